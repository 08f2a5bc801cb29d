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
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from datetime import timedelta
from functools import partial
from pickle import UnpicklingError

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

import data
import tokenizer as tokenizers

SENTENCE_TASK = {"bert": "nsp", "roberta": None, "albert": "sop"}
TOKENIZER = {"bert": "wordpiece", "roberta": "bpe", "albert": "unigram"}  # trained on the data, as published

# What a run is when no flag says otherwise. The CPU's is over in minutes on two cores.
DEFAULTS = {
    "cpu": dict(preset={"bert": "bert-laptop", "roberta": "roberta-laptop", "albert": "albert-laptop"},
                seq_length=64, batch_size=32, max_minutes=4.0,
                eval_interval=1000, save_interval=1000, log_interval=100),
    "cuda": dict(preset={"bert": "bert-10m", "roberta": "roberta-18m", "albert": "albert-8m"},
                 seq_length=128, batch_size=256, max_minutes=10.0,
                 eval_interval=1000, save_interval=1000, log_interval=50),
}
EVAL_SEED = 0  # validation masks are the same in every run

# dense bfloat16 peak in FLOP/s, from the data sheets
PEAK = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
        "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


SCHEDULES = "of --lr; constant falls, too, in the last fifth"


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    # model
    add("--model", default="roberta", choices=SENTENCE_TASK)
    add("--preset", help="a size from PRESETS in the model file; default: one that fits the device")
    add("--init_from", default="scratch", help="scratch, resume, or a checkpoint directory or hub name")
    add("--layers", type=int, help="default: the preset's")
    add("--dropout", type=float, help="default: the preset's")
    # data
    add("--data", nargs="+", default=["pydoc"], help="pydoc, files, folders, wikitext2, owner/name[:config]")
    add("--val_data", nargs="+", help="validation text; default: a twentieth of the data is held out")
    add("--text_field", default="text", help="of .jsonl, .csv, .parquet and hub data")
    add("--tokenizer", help="a kind to train (bpe, wordpiece, unigram), or a directory or hub name")
    add("--vocab_size", type=int, default=8192, help="of a tokenizer trained here")
    add("--cache_dir", default="cache", help="for token files")
    # masking
    add("--seq_length", type=int, help="tokens in a row; default: 64 on the CPU, 128 on CUDA")
    add("--mask_prob", type=float, default=0.15, help="share of the tokens to predict, in training")
    add("--sentence_weight", type=float, default=1.0, help="of the NSP or SOP loss")
    add("--masking", default="dynamic", choices=("dynamic", "static"), help="static: the same every epoch")
    add("--mask_unit", default="token", choices=("token", "word", "ngram"),
        help="word: all the tokens of a word; ngram: of one to three words")
    # length and rate
    add("--batch_size", type=int, help="rows of an optimizer step, over all processes")
    add("--accumulation", type=int, default=1, help="micro-batches a process makes of its share of them")
    add("--max_steps", type=int, help="length of the run, in optimizer steps")
    add("--epochs", type=float, help="or in passes over the data")
    add("--max_minutes", type=float, help="or in minutes of training, with the schedule fitted to them")
    add("--lr", type=float, help="peak learning rate; default: by the size of the model")
    add("--schedule", default="linear", choices=("linear", "cosine", "constant"), help=SCHEDULES)
    add("--warmup", type=float, default=0.06, help="share of the run")
    add("--weight_decay", type=float, default=0.01, help="of matrices; biases and LayerNorms have none")
    add("--beta1", type=float, default=0.9)
    add("--beta2", type=float, default=0.98)
    add("--eps", type=float, default=1e-6)
    add("--clip", type=float, default=1.0, help="largest gradient norm; 0: no limit")
    # machine
    add("--seed", type=int, default=0, help="of the weights, the order, the masks and the dropout")
    add("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 where it is faster")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; default: on CUDA")
    add("--threads", type=int, help="CPU threads of the model; default: all cores")
    # output
    add("--out_dir", help="default: out/MODEL")
    add("--overwrite", action="store_true", help="replace the run in out_dir")
    add("--log_interval", type=int, help="steps")
    add("--eval_interval", type=int, help="steps")
    add("--save_interval", type=int, help="steps")
    add("--eval_rows", type=int, default=1024, help="validation rows, evenly spaced; 0: all")
    add("--dry_run", action="store_true", help="set up, take three steps, write no checkpoint")
    return p

# -----------------------------------------------------------------------------
# Setting up: whatever can be wrong with the input is found here, before anything is written

LENGTHS = ("max_steps", "epochs", "max_minutes")
# what a resumed run may not change
FIXED = ("model", "preset", "layers", "dropout", "seed", "batch_size", "seq_length", "masking")
OUTPUTS = ("resume.pt", "log.jsonl", "model.safetensors", "config.json", "tokenizer_config.json",
           "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")  # what a run may write into out_dir

def parse_arguments(argv):
    """-> args, and the state of the run to resume or None. What is not on the command line comes from that
    run, or from the defaults of the device."""
    p = parser()
    args, state = p.parse_args(argv), None
    if args.init_from == "resume":
        out_dir = args.out_dir or f"out/{args.model}"
        state = load_state(out_dir)
        before = state["args"] | {"out_dir": out_dir}  # it may have moved
        p.set_defaults(**{name: value for name, value in before.items() if name not in LENGTHS})
        args = p.parse_args(argv)
        if all(getattr(args, name) is None for name in LENGTHS):
            vars(args).update({name: before[name] for name in LENGTHS})
        for name in FIXED:
            if getattr(args, name) != before[name]:
                raise ValueError(f"{args.out_dir} holds a run with --{name} {before[name]}, and "
                                 f"{getattr(args, name)} does not go on with it")
        args.init_from = before["init_from"]
    if state is None and args.init_from != "scratch" and args.preset:
        raise ValueError("--preset: a checkpoint has its own size")
    if args.vocab_size != p.get_default("vocab_size") and (
            args.init_from != "scratch" or args.tokenizer and args.tokenizer not in tokenizers.KINDS):
        raise ValueError("--vocab_size: only a tokenizer that is trained here takes it")
    args.device = choose_device(args.device)
    args.out_dir = args.out_dir or f"out/{args.model}"
    length_given = any(getattr(args, name) is not None for name in LENGTHS)
    for name, value in DEFAULTS[args.device.partition(":")[0]].items():
        if getattr(args, name) is None and not (name in LENGTHS and length_given):
            setattr(args, name, value[args.model] if isinstance(value, dict) else value)
    if sum(getattr(args, name) is not None for name in LENGTHS) > 1:
        raise ValueError("give one of --max_steps, --epochs and --max_minutes")
    for name in ("lr", "layers", "batch_size", "accumulation", "seq_length", "vocab_size", "threads",
                 "log_interval", "eval_interval", "save_interval", *LENGTHS):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must be positive")
    for name in ("clip", "weight_decay", "seed", "eval_rows", "sentence_weight"):
        if not getattr(args, name) >= 0:
            raise ValueError(f"--{name} must not be negative")
    if args.sentence_weight != 1 and not SENTENCE_TASK[args.model]:
        raise ValueError(f"--sentence_weight: {args.model} has no sentence task")
    for name in ("mask_prob", "warmup", "beta1", "beta2"):
        if not 0 < getattr(args, name) < 1:
            raise ValueError(f"--{name} must be between 0 and 1")
    if args.dropout is not None and not 0 <= args.dropout < 1:
        raise ValueError("--dropout must be at least 0 and less than 1")
    starts_from = None if args.init_from == "scratch" else os.path.realpath(args.init_from)
    if state is None and not args.dry_run and os.path.realpath(args.out_dir) == starts_from:
        raise ValueError(f"--out_dir {args.out_dir} is --init_from, which would be lost: choose another")
    if state is None and not args.overwrite and not args.dry_run and os.path.isdir(args.out_dir):
        there = set(OUTPUTS) & set(os.listdir(args.out_dir))
        if there:
            resume = "go on with it by --init_from resume, " if "resume.pt" in there else ""
            raise ValueError(f"{args.out_dir} holds a run already: {resume}choose another --out_dir, or "
                             "replace it by --overwrite")
    return args, state


def choose_device(name):
    """--device, checked; cuda if there is one."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    here = {"cpu": 1, "cuda": torch.cuda.device_count()}
    index = index if colon else "0"
    if not index.isdecimal() or int(index) >= here.get(kind, 0):
        raise ValueError(f"--device {name}: this machine has a cpu and {here['cuda']} cuda devices")
    return name


def load_state(out_dir):
    file = os.path.join(out_dir, "resume.pt")
    if not os.path.exists(file):
        raise ValueError(f"{out_dir} holds no run to resume: there is no {file}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not {"args", "config", "model", "optimizer", "step"} <= set(state):
        raise ValueError(f"{file} is not what this script wrote")
    return state


def open_tokenizer(args, state):
    """-> a Tokenizer, or the kind of it to train. A checkpoint goes on with its own."""
    name = args.tokenizer or TOKENIZER[args.model]
    if args.init_from == "scratch":
        return name if name in tokenizers.KINDS else tokenizers.load(name)
    own = tokenizers.load(args.out_dir if state else args.init_from)
    if args.tokenizer and (name in tokenizers.KINDS or tokenizers.load(name).hash() != own.hash()):
        raise ValueError(f"--tokenizer {name} is not the tokenizer of {args.init_from}; leave it out")
    return own


def open_data(args, state, control):
    """-> {"train": Tokens, "val": Tokens}, tokenizer, folder. One process of a machine prepares the token
    files; the others wait for it, or for its error."""
    tokenizer, result = open_tokenizer(args, state), None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        try:
            corpus = data.open_corpus(args.data, args.text_field)
            validation = data.open_corpus(args.val_data, args.text_field) if args.val_data else None
            validation = validation and (validation.validation or validation)  # WikiText has a split for it
            result = data.prepare(corpus, validation, tokenizer, args.vocab_size, args.cache_dir)
        except (ValueError, OSError) as error:
            result = error
    results = [result]
    if control:
        results = [None] * dist.get_world_size()
        dist.all_gather_object(results, result, group=control)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return *data.load(results[0]), results[0]


def build_model(args, tokenizer, state):
    """The model, on the CPU. Every process, and every run with this seed, starts from the same weights."""
    module = importlib.import_module(args.model)
    changes = {} if args.dropout is None else {
        field.name: args.dropout for field in fields(module.Config) if field.name.endswith("dropout_prob")}
    if args.layers:
        changes["num_hidden_layers"] = args.layers
    torch.manual_seed(args.seed)
    if state:
        model = module.ForPreTraining(module.Config(**state["config"]))
        model.load_state_dict(state.pop("model"))
    elif args.init_from == "scratch":
        model = module.ForPreTraining(fresh_config(module, args.preset, tokenizer, **changes))
    else:
        model = module.ForPreTraining.from_pretrained(args.init_from, **changes)
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}")
    positions = longest_row(model)
    if args.seq_length > positions:
        raise ValueError(f"--seq_length {args.seq_length} is more than the model's {positions} positions")
    return model.train()


def fresh_config(module, preset, tokenizer, **changes):
    if preset not in module.PRESETS:
        raise ValueError(f"no preset {preset}; {module.__name__}.py has {', '.join(module.PRESETS)}")
    return module.Config(**{**module.PRESETS[preset], "vocab_size": tokenizer.vocab_size,
                            "pad_token_id": tokenizer.pad_id, **changes})


def longest_row(model):
    """In tokens. RoBERTa's positions begin after that of the padding."""
    config, roberta = model.config, type(model).__module__ == "roberta"
    return config.max_position_embeddings - (config.pad_token_id + 1 if roberta else 0)


def pick_dtype(device):
    """bfloat16 if this machine multiplies matrices at least 1.5 times as fast in it."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        a @ b
        tries = []
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    return "bfloat16" if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else "float32"


def make_optimizer(model, args):
    """AdamW; weight decay on matrices and embeddings only. What is frozen has no place in it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=vectors, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, fused=True)


def default_lr(config):
    """With post-LN a rate that is too high ends at the unigram line: the deeper and wider, the lower."""
    if config.num_hidden_layers == 1:
        return 1.2e-3 if hasattr(config, "embedding_size") else 2e-3  # ALBERT takes less
    return 5e-4 if config.hidden_size <= 512 else 1e-4


def learning_rate(args, progress):
    """progress: the share of the run that is over, 0 to 1."""
    if progress < args.warmup:
        return args.lr * progress / args.warmup
    after = min(1.0, (progress - args.warmup) / (1 - args.warmup))
    if args.schedule == "linear":
        return args.lr * (1 - after)
    if args.schedule == "cosine":
        return args.lr * 0.5 * (1 + math.cos(math.pi * after))
    return args.lr * min(1.0, (1 - after) / 0.2)


def flops_per_token(config, seq_length, masked):
    """Forward and backward: 6 for each weight that multiplies a token, 12 L H T for attention."""
    H, E = config.hidden_size, getattr(config, "embedding_size", config.hidden_size)
    layers = config.num_hidden_layers * getattr(config, "inner_group_num", 1)
    weights = layers * (4 * H * H + 2 * H * config.intermediate_size) + (E * H if E != H else 0)
    head = (H * E + E * config.vocab_size) * masked / seq_length
    return 6 * (weights + head) + 12 * layers * H * seq_length

# -----------------------------------------------------------------------------
# Training

class Stop(Exception):
    """The run ends before its time. The arguments: a message and the exit status."""


@contextmanager
def computing(device, dtype, length):
    """The context of a forward pass of rows of `length` tokens: its precision, its attention kernel.

    On the CPU in bfloat16 PyTorch's fused kernel takes up to five times as long, backward, as plain matrix
    products, until the rows are long. And it computes those in float32 unless told that bfloat16 will do,
    by a setting that is called cuda's and is the CPU's, too. Measured: 32 rows, 4 heads of 64, forward and
    backward, 64 tokens: 15.4 ms fused, 8.7 plain, 2.8 plain in bfloat16; at 256 tokens they draw.
    """
    with torch.autocast(device.type, torch.bfloat16, dtype == "bfloat16"):
        if device.type != "cpu" or dtype != "bfloat16":
            yield
            return
        before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with sdpa_kernel(SDPBackend.MATH) if length < 256 else nullcontext():
                yield
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def weigh(parts, per_target, per_row):
    """The parts of a loss, weighted: [MLM loss, masked accuracy, sentence loss, sentence accuracy]."""
    zero = torch.zeros((), device=parts["mlm_loss"].device)
    if not per_target:  # no targets, of which the means are not numbers
        parts = parts | {name: parts[name].nan_to_num() for name in ("mlm_loss", "mlm_accuracy")}
    return torch.stack([parts["mlm_loss"].float() * per_target, parts["mlm_accuracy"] * per_target,
                        parts.get("sentence_loss", zero).float() * per_row,
                        parts.get("sentence_accuracy", zero) * per_row])


def to_device(batch, device):
    batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    if device.type == "cuda":
        batch = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
    return batch


@torch.no_grad()
def evaluate(model, batches, amp, device, rank, world):
    """-> [MLM loss, masked accuracy, sentence loss, sentence accuracy], means over all targets."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches[rank::world]:
        with amp(batch["input_ids"].shape[1]):
            _, parts = model(**to_device(batch, device))
        sums += weigh(parts, int((batch["labels"] != -100).sum()), len(batch["labels"]))
    model.train()
    if world > 1:
        dist.all_reduce(sums)
    targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    n_rows = sum(len(batch["labels"]) for batch in batches)
    return (sums / torch.tensor([targets, targets, n_rows, n_rows], device=device)).tolist()


@torch.no_grad()
def show_fills(model, rows, tokenizer, device):
    """Print eight masks from validation text, each alone in its row, and what the model puts there."""
    model.eval()
    for row in np.linspace(0, len(rows) - 1, 8).astype(int):
        batch = rows.batch([row])
        ids, masked = batch["input_ids"].copy(), batch["labels"] != -100
        if not masked.any():
            continue
        positions = batch["positions"][masked]
        ids[0, positions] = batch["labels"][masked]  # the text as it was
        position = int(positions[len(positions) // 2])
        truth = int(ids[0, position])
        around = [tokenizer.decode(ids[0, max(1, position - 12):position].tolist()),
                  tokenizer.decode(ids[0, position + 1:position + 9].tolist())]
        ids[0, position] = tokenizer.mask_id
        types = {"token_type_ids": torch.from_numpy(batch["token_type_ids"]).to(device)} if rows.task else {}
        ids, position = torch.from_numpy(ids).to(device), torch.tensor([[position]], device=device)
        logits, _ = model.forward(ids, position, **types)  # forward: nothing is compiled for eight rows
        p, best = logits[0, 0, :tokenizer.vocab_size].float().softmax(-1).topk(3)
        guesses = ", ".join(f"{tokenizer.decode([i])!r} {x:.2f}" for x, i in zip(p.tolist(), best.tolist()))
        word = tokenizer.decode([truth]).strip()
        print(f"  {'right' if best[0] == truth else 'wrong'}  ...{around[0]} [{word}] {around[1].strip()}...")
        print(f"         {guesses}")
    model.train()


def check_disk(out_dir, needed):
    """OSError if the disk has no room for that many bytes, what is in out_dir now included."""
    needed -= sum(entry.stat().st_size for entry in os.scandir(out_dir)) if os.path.isdir(out_dir) else 0
    folder = os.path.abspath(out_dir)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{out_dir}: checkpoints need {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")


def save_state(file, state):
    """All that resuming needs in one file, so that at no moment parts of two steps lie there."""
    try:
        with open(file + ".tmp", "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        os.remove(file + ".tmp")
        raise OSError(f"{file} could not be written, the disk may be full; what was saved before is kept "
                      f"({str(error).splitlines()[0]})") from error
    os.replace(file + ".tmp", file)


def train(args, state, device, rank, world, control):
    """control: a group of all processes for what the CPU has to agree on; None if there is one process."""
    # data and model
    splits, tokenizer, folder = open_data(args, state, control)
    if state and state["tokenizer"] != tokenizer.hash():
        raise ValueError(f"{args.out_dir} was trained with another tokenizer than the flags give now")
    if state and state["data"].rpartition("-")[2] != folder.rpartition("-")[2]:  # the path may be another
        raise ValueError(f"{args.out_dir} was trained on other text than the flags give now")
    model = build_model(args, tokenizer, state)
    if args.batch_size % (args.accumulation * world):
        raise ValueError(f"--batch_size {args.batch_size} does not divide into {args.accumulation} "
                         f"micro-batches on each of {world} processes")
    micro = args.batch_size // (args.accumulation * world)  # rows of one forward pass
    task = SENTENCE_TASK[args.model]
    rows = data.Rows(splits["train"], tokenizer, args.seq_length, task, args.seed, args.masking == "static")
    val_rows = data.Rows(splits["val"], tokenizer, args.seq_length, task, EVAL_SEED)
    if len(rows) < args.batch_size:
        raise ValueError(f"the data fill {len(rows)} rows of {args.seq_length} tokens, less than one batch "
                         f"of {args.batch_size}")
    if task == "nsp" and rows.pairs(0)[2].mean() < 0.3:
        raise ValueError(f"{' '.join(args.data)} has too few documents to pair sentences of different ones, "
                         "as BERT's second task does; put blank lines between documents, or take RoBERTa")
    chosen = np.arange(len(val_rows))
    if 0 < args.eval_rows < len(val_rows):
        chosen = np.linspace(0, len(val_rows) - 1, args.eval_rows).astype(int)
    val_batches = [val_rows.batch(chosen[i:i + micro]) for i in range(0, len(chosen), micro)]
    labels = np.concatenate([batch["labels"].ravel() for batch in val_batches])
    if (labels == -100).all():
        raise ValueError("the validation text has no token to predict: the tokenizer knows none of its words")
    unigram = data.unigram_nats(labels)

    # machine
    dtype = [args.dtype or pick_dtype(device)]
    if world > 1:  # a measurement, and all must take the same
        dist.broadcast_object_list(dtype, group=control)
    args.dtype = dtype[0]
    args.compile = device.type == "cuda" if args.compile is None else args.compile
    max_steps = args.max_steps
    if args.epochs:
        max_steps = max(1, round(args.epochs * len(splits["train"].tokens) / rows.width / args.batch_size))
    n_parameters = sum(p.numel() for p in model.parameters())
    # A parameter takes 12 bytes in resume.pt (itself and AdamW's two averages), 4 in model.safetensors, and
    # 12 more while the next resume.pt is written beside the last.
    check_disk(args.out_dir, 28 * n_parameters)
    model.to(device)
    args.lr = args.lr or (default_lr(model.config) if args.init_from == "scratch" else 5e-5)
    optimizer = make_optimizer(model, args)
    step, before, smoothed = 0, 0.0, None  # before: seconds of training in earlier runs
    if state:
        flags = [{name: value for name, value in group.items() if name != "params"}
                 for group in optimizer.param_groups]
        optimizer.load_state_dict(state.pop("optimizer"))
        for group, values in zip(optimizer.param_groups, flags):
            group.update(values)  # what the flags say now, not what they said then
        step, before, smoothed = state["step"], state["elapsed"], state["smoothed"]
    if args.compile:
        model.compile()  # in place: the names of the parameters stay
    parallel = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    amp = partial(computing, device, args.dtype)

    writes = rank == 0 and not args.dry_run
    log_file = os.path.join(args.out_dir, "log.jsonl")

    def open_out_dir():
        os.makedirs(args.out_dir, exist_ok=True)
        if state:
            return keep_lines(log_file, step)
        for name in OUTPUTS:
            if os.path.exists(os.path.join(args.out_dir, name)):
                os.remove(os.path.join(args.out_dir, name))
        with tempfile.TemporaryDirectory(dir=args.out_dir) as folder:
            tokenizer.save(folder)
            for name in os.listdir(folder):
                os.replace(os.path.join(folder, name), os.path.join(args.out_dir, name))

    def log(**line):
        if writes:
            with open(log_file, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")

    def save():
        if writes:
            save_state(os.path.join(args.out_dir, "resume.pt"), {
                "config": asdict(model.config), "model": model.state_dict(),
                "optimizer": optimizer.state_dict(), "step": step,
                "elapsed": before + time.time() - start, "smoothed": smoothed, "args": vars(args),
                "tokenizer": tokenizer.hash(), "data": os.path.basename(folder)})
            model.save_pretrained(args.out_dir)

    say = print if rank == 0 else lambda *a, **k: None
    origin = args.preset if args.init_from == "scratch" else args.init_from
    say(f"{args.model} {origin}: {n_parameters / 1e6:.1f} M parameters, {tokenizer.vocab_size:,} token ids")
    say(f"{' '.join(args.data)}: {len(splits['train'].tokens):,} training tokens, "
        f"{len(splits['val'].tokens):,} for validation, in {folder}")
    say(f"{device}, {args.dtype}{', compiled' if args.compile else ''}, {torch.get_num_threads()} threads"
        + (f", {world} processes" if world > 1 else ""))
    length = f"{max_steps:,} steps" if max_steps else f"{args.max_minutes:g} minutes"
    say(f"{length}; steps of {args.batch_size} rows of {args.seq_length} tokens, {len(rows):,} rows an epoch")
    say(f"unigram entropy of the validation targets: {unigram:.3f} nats. Only context gets a loss below it.")
    if state:
        say(f"resuming {args.out_dir} at step {step:,}")

    def read_batches(step):
        """The micro-batches of this process for a step."""
        first = step * args.batch_size + rank * micro * args.accumulation
        return [rows.batch(np.arange(first, first + micro) + i * micro, args.mask_prob, args.mask_unit)
                for i in range(args.accumulation)]

    if task == "nsp" and val_rows.pairs(0)[2].mean() < 0.3:
        say("the validation text has too few documents to pair sentences of different ones: its nsp accuracy "
            "says little")

    if args.compile:  # before the clock starts, and before an old run is overwritten
        say("compiling ...", flush=True)
        with amp(args.seq_length):
            _, parts = parallel(**to_device(read_batches(step)[0], device))
        weigh(parts, 1.0, 1.0).sum().backward()
        optimizer.zero_grad(set_to_none=True)
    if writes:
        open_out_dir()
    if not state:
        log(**vars(args), unigram_nats=unigram, parameters=n_parameters, processes=world,
            torch=torch.__version__, numpy=np.__version__, python=sys.version.split()[0])
    else:
        changed = {name: value for name, value in vars(args).items() if value != state["args"].get(name)}
        if changed:
            log(resumed_at=step, **changed)

    caught = catch_signals()

    masked = max(1, round(args.mask_prob * rows.width))
    flops = flops_per_token(model.config, args.seq_length, masked)
    peak = None  # for MFU, on the GPUs of the table
    if device.type == "cuda" and args.dtype == "bfloat16":
        gpu = torch.cuda.get_device_name(device).replace("-", " ")
        peak = next((PEAK[name] for name in PEAK if re.search(rf"\b{name}\b", gpu)), None)
    if args.dry_run:
        max_steps = step + 3

    start = shown_at = time.time()
    shown_step = saved_step = step
    history = []  # of the steps since the last look, as a look has to wait for the GPU

    def look():
        """-> [MLM loss, masked accuracy, sentence loss, sentence accuracy, gradient norm], mean loss."""
        values = torch.stack(history)
        history.clear()
        if world > 1:
            dist.all_reduce(values)
            values /= world
        finite = values.isfinite().all(1).tolist()
        if not all(finite):
            first = step - len(finite) + 1 + finite.index(False)
            kept = f"what was saved at step {saved_step} is kept" if saved_step else "nothing had been saved"
            raise Stop(f"the loss or its gradient is not finite at step {first}; {kept}; try a lower --lr", 2)
        return values[-1].tolist(), values[:, 0].mean().item()

    reader = ThreadPoolExecutor(1)
    upcoming = reader.submit(read_batches, step)
    while True:
        batches = upcoming.result()
        upcoming = reader.submit(read_batches, step + 1)
        targets = [int((batch["labels"] != -100).sum()) for batch in batches]
        shared = [sum(targets), len(caught), before + time.time() - start if rank == 0 else 0.0]
        if world > 1:  # every process must stop at the same step and divide by the same number
            shared = torch.tensor(shared, dtype=torch.float64)
            dist.all_reduce(shared, group=control)
            shared = shared.tolist()
        all_targets, stop, elapsed = shared
        progress = (step + 0.5) / max_steps if max_steps else elapsed / (60 * args.max_minutes)
        if stop or progress >= 1:
            break

        lr = learning_rate(args, progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # for dropout; 32 bits, as the CPU's generator takes no more
        torch.manual_seed(int(data.random_numbers(args.seed, data.DROPOUT, step, rank).integers(2**32)))
        sums = torch.zeros(4, device=device)
        for i, batch in enumerate(batches):
            with parallel.no_sync() if world > 1 and i < len(batches) - 1 else nullcontext():
                with amp(args.seq_length):
                    _, parts = parallel(**to_device(batch, device))
                # A sum over the targets, divided once by their number in the whole step, whatever the
                # micro-batches and processes. DDP takes a mean over the processes, hence the factor world.
                weighed = weigh(parts, targets[i] * world / max(1, all_targets),
                                micro * world / args.batch_size)
                (weighed[0] + args.sentence_weight * weighed[2]).backward()
                sums += weighed.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        history.append(torch.cat([sums, norm.detach().reshape(1)]))

        log_due = step % args.log_interval == 0 or step == 1 or step == max_steps
        eval_due, save_due = step % args.eval_interval == 0, step % args.save_interval == 0
        if not (log_due or eval_due or save_due):
            continue
        (loss, accuracy, sentence_loss, sentence_accuracy, norm), mean = look()
        now = time.time()
        elapsed, speed = before + now - start, tokens_between(shown_step, step, args) / (now - shown_at)
        if log_due:
            smoothed = mean if smoothed is None else 0.7 * smoothed + 0.3 * mean
            left = max(0, 60 * args.max_minutes - elapsed) if args.max_minutes else (
                (max_steps - step) * (now - shown_at) / (step - shown_step))
            mfu = f" mfu {100 * flops * speed / world / peak:.1f}%" if peak else ""
            sentence = f" {task} {sentence_accuracy:.2f}" if task else ""
            tokens = tokens_between(0, step, args)
            say(f"step {step:6,} | {tokens / 1e6:6.2f} M tokens | loss {smoothed:.3f} | masked acc "
                f"{accuracy:.3f}{sentence} | lr {lr:.2e} | norm {norm:5.2f} | {speed:,.0f} tok/s{mfu} | "
                f"{clock(left)} left", flush=True)
            log(step=step, tokens=tokens, loss=loss, masked_accuracy=accuracy,
                **({"sentence_loss": sentence_loss, "sentence_accuracy": sentence_accuracy} if task else {}),
                lr=lr, grad_norm=norm, tokens_per_s=round(speed), elapsed_s=round(elapsed, 1))
            shown_at, shown_step = time.time(), step
        if eval_due and step != max_steps:
            loss, accuracy, _, sentence_accuracy = evaluate(model, val_batches, amp, device, rank, world)
            sentence = f", {task} accuracy {sentence_accuracy:.3f}" if task else ""
            say(f"step {step:6,} | validation loss {loss:.3f} ({loss - unigram:+.3f} from the unigram line), "
                f"masked accuracy {accuracy:.3f}{sentence}", flush=True)
            log(step=step, val_loss=loss, val_masked_accuracy=accuracy,
                **({"val_sentence_accuracy": sentence_accuracy} if task else {}))
            shown_at, shown_step = time.time(), step
        if save_due:
            save()
            saved_step = step
            shown_at, shown_step = time.time(), step
    reader.shutdown(cancel_futures=True)
    if history:
        look()

    if stop:
        save()
        kept = "nothing was written" if args.dry_run else (
            f"go on with: python train_mlm.py --init_from resume --out_dir {args.out_dir}")
        raise Stop(f"stopped at step {step:,}; {kept}", 128 + (caught or [signal.SIGTERM])[0])
    save()
    loss, accuracy, _, sentence_accuracy = evaluate(model, val_batches, amp, device, rank, world)
    if not math.isfinite(loss):
        raise Stop(f"the validation loss is not finite; {args.out_dir} holds the weights", 2)
    perplexity = math.exp(min(loss, 700.0))
    nats_per_byte = loss * len(splits["val"].tokens) / splits["val"].bytes
    elapsed = before + time.time() - start
    tokens = tokens_between(0, step, args)
    sentence = {"val_sentence_accuracy": sentence_accuracy} if task else {}
    log(final=True, step=step, val_loss=loss, perplexity=perplexity, masked_accuracy=accuracy, **sentence,
        nats_per_byte=nats_per_byte, tokens=tokens, elapsed_s=round(elapsed, 1))
    say(f"\nfinal, after {step:,} steps, {tokens / 1e6:.2f} M tokens and {clock(elapsed)}:")
    say(f"  validation loss {loss:.3f} nats a masked token, {unigram - loss:.3f} under the unigram line of "
        f"{unigram:.3f}")
    say(f"  perplexity {perplexity:.2f}, masked accuracy {accuracy:.3f}, {nats_per_byte:.3f} nats a byte"
        + (f", {task} accuracy {sentence_accuracy:.3f}" if task else ""))
    if rank == 0:
        print("\neight masks in held-out text, [truth] in place, and the model's three best:")
        show_fills(model, val_rows, tokenizer, device)
        if writes:
            of_code = args.data == ["pydoc"]
            text = "The function returns a {} of integers." if of_code else "The capital of France is {}."
            print(f"\nnext: python fill_mask.py --checkpoint {args.out_dir} "
                  f"\"{text.format(tokenizer.special_tokens['mask'])}\"")


def tokens_between(first, last, args):
    return (last - first) * args.batch_size * args.seq_length


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def catch_signals():
    """-> a list of the signals that came. The first lets a step end, so that it can be saved; the second one
    ends the process."""
    caught = []
    def on_signal(number, frame):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return caught


def keep_lines(log_file, step):
    """Drop what was logged after the step that is resumed, and the closing line."""
    with open(log_file, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f if line.endswith("\n")]  # a killed process leaves half a line
    with open(log_file + ".tmp", "w", encoding="utf-8") as f:
        for line in lines:
            if line.get("step", 0) <= step and "final" not in line:
                f.write(json.dumps(line) + "\n")
    os.replace(log_file + ".tmp", log_file)


def interrupt(number, frame):
    raise Stop("interrupted while setting up", 128 + number)


def launch(script, parse, job):
    """Run job(*parse(), device, rank, world, control), in one process or under torchrun. parse() -> args with
    device and threads, and whatever else the job takes. An error in the input is one line and status 2."""
    rank, world, local_rank, processes_here = (int(os.environ.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)  # until the training loop takes over
    control = None
    try:
        args, *more = parse()
        device = torch.device(args.device)
        if device.type == "cuda":
            if processes_here > torch.cuda.device_count():
                raise ValueError(f"{processes_here} processes, and this machine has "
                                 f"{torch.cuda.device_count()} GPUs; --nproc_per_node gives their number")
            device = torch.device("cuda", local_rank if world > 1 else device.index or 0)
            torch.cuda.set_device(device)
        if world > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            control = dist.new_group(backend="gloo", timeout=timedelta(days=1))  # a corpus may take long
        torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // processes_here))
        torch.set_float32_matmul_precision("high")  # TF32 on the GPUs that have it
        job(args, *more, device, rank, world, control)
    except torch.OutOfMemoryError as error:
        print(f"{script}: the GPU's memory is full; raise --accumulation, or lower --batch_size "
              f"({str(error).splitlines()[0]})", file=sys.stderr)
        sys.exit(2)
    except Stop as stop:
        message, status = stop.args
        if rank == 0:
            print(message, file=sys.stderr)
        sys.exit(status)
    except (ValueError, OSError) as error:
        if local_rank == 0:
            print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
    except torch._dynamo.exc.TorchDynamoException as error:
        print(f"{script}: torch.compile failed, do without it: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv=None):
    launch("train_mlm.py", lambda: parse_arguments(sys.argv[1:] if argv is None else argv), train)


if __name__ == "__main__":
    main()
