"""
Pretrain RoBERTa, BERT or ALBERT: masked language model, and for BERT and ALBERT the sentence task.

    python train_mlm.py --model roberta                                       # from scratch, on any machine
    python train_mlm.py --model bert --data a.txt b.txt --max_steps 20000     # on your own text
    python train_mlm.py --init_from resume --out_dir out/roberta              # go on where a run stopped
    python train_mlm.py --init_from roberta-base --data medical.txt           # go on from a checkpoint
    torchrun --nproc_per_node 8 train_mlm.py --preset roberta-base --data wikitext103

out_dir becomes a Hugging Face checkpoint, with log.jsonl and what resuming needs beside it.
"""

import argparse
import importlib
import json
import math
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist

import data
import tokenizer as tokenizers

SENTENCE_TASK = {"bert": "nsp", "roberta": None, "albert": "sop"}

# What a run is when no flag says otherwise. The CPU's is over in minutes on two cores.
DEFAULTS = {
    "cpu": dict(preset={"bert": "bert-mini", "roberta": "roberta-mini", "albert": "albert-mini"},
                batch_size=32, lr=1e-3, max_minutes=4.0, eval_interval=250, save_interval=250, log_interval=20),
    "cuda": dict(preset={"bert": "bert-10m", "roberta": "roberta-18m", "albert": "albert-8m"},
                 batch_size=256, lr=1e-3, max_minutes=10.0, eval_interval=1000, save_interval=1000, log_interval=50),
}
EVAL_SEED = 0  # validation masks are the same in every run

# dense bfloat16 peak in FLOP/s, from the data sheets
PEAK = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "L4": 121e12,
        "4090": 165e12, "3090": 71e12}


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # model
    p.add_argument("--model", default="roberta", choices=SENTENCE_TASK)
    p.add_argument("--preset", help="a size from PRESETS in the model file; default: one that fits the device")
    p.add_argument("--init_from", default="scratch", help="scratch, resume (out_dir), or a checkpoint directory or hub name")
    p.add_argument("--dropout", type=float, help="hidden and attention dropout; default: the preset's")
    # data
    p.add_argument("--data", nargs="+", default=["pydoc"], help="pydoc, files, folders, wikitext2, wikitext103, owner/name[:config]")
    p.add_argument("--val_data", nargs="+", help="validation text; default: a twentieth of the data is held out")
    p.add_argument("--text_field", default="text", help="of .jsonl, .csv, .parquet and hub data")
    p.add_argument("--tokenizer", help="a kind to train (bpe), a directory or a hub name; default: bpe, or the checkpoint's own")
    p.add_argument("--vocab_size", type=int, default=8192, help="of a tokenizer trained here")
    p.add_argument("--cache_dir", default="cache", help="for token files")
    # masking
    p.add_argument("--seq_length", type=int, default=128, help="tokens in a row, special ones included")
    p.add_argument("--mask_prob", type=float, default=0.15, help="share of the tokens to predict, in training")
    p.add_argument("--masking", default="dynamic", choices=("dynamic", "static"), help="static: the same masks every epoch")
    p.add_argument("--mask_unit", default="token", choices=("token", "word", "ngram"))
    # length and rate
    p.add_argument("--batch_size", type=int, help="rows of an optimizer step, over all processes")
    p.add_argument("--accumulation", type=int, default=1, help="micro-batches that a process makes of its share of them")
    p.add_argument("--max_steps", type=int, help="length of the run, in optimizer steps")
    p.add_argument("--epochs", type=float, help="or in passes over the data")
    p.add_argument("--max_minutes", type=float, help="or in minutes of training, with the schedule fitted to them")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--schedule", default="linear", choices=("linear", "cosine", "constant"), help="constant: down in the last fifth")
    p.add_argument("--warmup", type=float, default=0.06, help="share of the run")
    p.add_argument("--weight_decay", type=float, default=0.01, help="of matrices; biases and LayerNorms have none")
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.98)
    p.add_argument("--eps", type=float, default=1e-6)
    p.add_argument("--clip", type=float, default=1.0, help="largest gradient norm; 0: no limit")
    # machine
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 if the device is faster in it")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; default: on CUDA")
    p.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    # output
    p.add_argument("--out_dir", help="default: out/MODEL")
    p.add_argument("--overwrite", action="store_true", help="replace the run in out_dir")
    p.add_argument("--log_interval", type=int, help="steps")
    p.add_argument("--eval_interval", type=int, help="steps")
    p.add_argument("--save_interval", type=int, help="steps")
    p.add_argument("--eval_rows", type=int, default=1024, help="validation rows, evenly spaced; 0: all")
    p.add_argument("--dry_run", action="store_true", help="set up, time three steps, write no checkpoint")
    return p

# -----------------------------------------------------------------------------
# Setting up. Whatever can be wrong with the input is found here.

def parse_arguments(argv):
    """Flags, over what a resumed run was started with, over the defaults of the device."""
    args = parser().parse_args(argv)
    saved = None
    if args.init_from == "resume":
        out_dir = args.out_dir or f"out/{args.model}"
        saved = load_resume(out_dir)
        given = parser()
        given.set_defaults(**saved["args"])
        args = given.parse_args(argv)
        args.out_dir = out_dir
        for name in ("model", "preset"):
            if getattr(args, name) != saved["args"][name]:
                raise ValueError(f"{out_dir} holds a {saved['args'][name]} run, not {getattr(args, name)}")
        lengths = [f for f in ("max_steps", "epochs", "max_minutes") if any(a.split("=")[0] == f"--{f}" for a in argv)]
        for name in ("max_steps", "epochs", "max_minutes"):
            if lengths and name not in lengths:
                setattr(args, name, None)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    defaults = dict(DEFAULTS[torch.device(args.device).type])
    if args.max_steps or args.epochs:
        del defaults["max_minutes"]
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value[args.model] if isinstance(value, dict) else value)
    args.out_dir = args.out_dir or f"out/{args.model}"
    if sum(x is not None for x in (args.max_steps, args.epochs, args.max_minutes)) > 1:
        raise ValueError("give one of --max_steps, --epochs and --max_minutes")
    return args, saved
