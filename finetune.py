"""
Fine-tune BERT, RoBERTa or ALBERT, all parameters or LoRA: classify sentences or pairs, predict a number, tag
words. Then evaluate, predict, merge, compare.

    python finetune.py --init_from out/roberta                                  # a task that needs no network
    python finetune.py --init_from bert-base-uncased --task sst2 --train lora   # GLUE, from the hub
    python finetune.py --init_from out/bert --train_file my.csv --val_file dev.csv --out_dir out/mine
    python finetune.py --init_from out/mine --predict "What a film."            # or a file
    python finetune.py --init_from out/mine --val_file test.csv --eval_only
    python finetune.py --init_from out/lora --merge --out_dir out/merged        # adapter + base -> checkpoint
    python finetune.py --init_from out/bert --task sst2 --compare full,lora,head --seeds 3

out_dir becomes a Hugging Face checkpoint with the best weights, or with --train lora a PEFT adapter.
"""

import argparse
import importlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
from contextlib import nullcontext, redirect_stderr
from dataclasses import fields
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

import compare
import data
import fill_mask
import lora
import tasks
import tokenizer as tokenizers
import train_mlm

MODES = {"full": 1, "lora": 20, "head": 20, "last_block": 2}  # what is trained; factors of a task's rate
OUTPUTS = ("config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors",
           "log.jsonl", "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False)
    add = p.add_argument
    # model
    add("--init_from", required=True, help="a checkpoint (directory or hub name), scratch, or an adapter")
    add("--model", default="roberta", choices=train_mlm.TOKENIZER, help="with --init_from scratch")
    add("--preset", help="with --init_from scratch; default: MODEL-laptop")
    add("--tokenizer", help="with --init_from scratch: a kind to train on the task's texts, or a directory")
    add("--vocab_size", type=int, default=8192, help="of a tokenizer trained here")
    add("--dropout", type=float, help="default: the checkpoint's")
    # data
    add("--task", choices=tasks.TASKS, help="default: pydoc, or what the files hold")
    add("--train_file", help=", ".join(tasks.FORMATS))
    add("--val_file", help="default: a tenth of the training rows is held out")
    add("--test_file", help="evaluated with the weights that are best on --val_file")
    add("--kind", choices=tasks.OWN, help="of the files; default: by their labels")
    add("--text_columns", nargs="+", help="one or two, by name or counted from 1; default: found")
    add("--label_column", help="by name or counted from 1; default: found")
    add("--header", action=argparse.BooleanOptionalAction, help="in .csv and .tsv; default: found")
    add("--max_length", type=int, default=256, help="tokens; longer texts are cut; not remembered")
    # what is trained
    add("--train", default="full", choices=MODES)
    add("--lora_r", type=int, default=8, help="rank of the adapters")
    add("--lora_alpha", type=float, default=16)
    add("--lora_dropout", type=float, default=0.0)
    add("--lora_targets", nargs="+", default=["query", "value"],
        help="of query key value out fc_in fc_out pooler")
    add("--lora_pooler", action="store_true", help="train and save BERT's or ALBERT's pooler too")
    add("--rslora", action="store_true", help="scale by alpha / sqrt(r), not alpha / r")
    add("--dora", action="store_true", help="train the lengths of the rows apart from their directions")
    # length and rate
    add("--epochs", type=float, help="default: the task's")
    add("--max_steps", type=int, help="or in optimizer steps")
    add("--max_minutes", type=float, help="or in minutes, with the schedule fitted to them; of each seed")
    add("--batch_size", type=int, help="rows of an optimizer step, over all processes; default: the task's")
    add("--accumulation", type=int, default=1, help="micro-batches a process makes of its share of them")
    add("--lr", type=float, help="peak learning rate; default: the task's, by width and --train")
    add("--schedule", default="linear", choices=("linear", "cosine", "constant"), help=train_mlm.SCHEDULES)
    add("--warmup", type=float, default=0.06, help="share of the run")
    add("--weight_decay", type=float, default=0.01, help="of matrices; biases and LayerNorms have none")
    add("--beta1", type=float, default=0.9)
    add("--beta2", type=float, default=0.999)
    add("--eps", type=float, default=1e-8)
    add("--clip", type=float, default=1.0, help="largest gradient norm; 0: no limit")
    add("--class_weights", nargs="+", metavar="W", help="of the loss: balanced, or a number for each class")
    add("--metric", help="that chooses the best weights; default: the task's")
    add("--patience", type=int, help="stop after so many evaluations without a better one")
    add("--seed", type=int, default=0, help="of the fresh weights, the order and the dropout")
    add("--seeds", type=int, default=1, help="runs with --seed, --seed + 1, ...; mean and deviation")
    # machine
    add("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"),
        help="default: in training bfloat16 where it is faster, else float32")
    add("--compile", action="store_true", help="torch.compile")
    add("--threads", type=int, help="CPU threads of the model; default: all cores")
    # output
    add("--out_dir", help="default: out/TASK-TRAIN")
    add("--overwrite", action="store_true", help="replace what is in out_dir")
    add("--log_interval", type=int, default=50, help="steps")
    add("--eval_interval", type=int, help="steps; default: an epoch")
    # instead of training
    add("--eval_only", action="store_true", help="evaluate --init_from")
    add("--predict", metavar="FILE_OR_TEXT", help="labels and probabilities; a tab parts the two of a pair")
    add("--json", action="store_true", help="predictions as JSON lines")
    add("--merge", action="store_true", help="write --init_from, an adapter, as a plain checkpoint")
    add("--compare", metavar="MODES",
        help="full,lora,head,last_block: train each, one table; lora:5e-4 with that rate")
    add("--compared", action="store_true", help=argparse.SUPPRESS)  # one run of a comparison
    return p

# -----------------------------------------------------------------------------
# Setting up

def parse_arguments(argv):
    args = parser().parse_args(argv)
    args.argv = argv
    args.device = train_mlm.choose_device(args.device)
    if args.eval_only + args.merge + (args.predict is not None) + (args.compare is not None) > 1:
        raise ValueError("give one of --eval_only, --predict, --merge and --compare")
    if sum(getattr(args, name) is not None for name in train_mlm.LENGTHS) > 1:
        raise ValueError("give one of --epochs, --max_steps and --max_minutes")
    for name in ("lr", "batch_size", "accumulation", "threads", "log_interval", "eval_interval", "patience",
                 "seeds", "vocab_size", "lora_r", "lora_alpha", *train_mlm.LENGTHS):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must be positive")
    for name in ("clip", "weight_decay", "seed"):
        if not getattr(args, name) >= 0:
            raise ValueError(f"--{name} must not be negative")
    for name in ("warmup", "beta1", "beta2"):
        if not 0 < getattr(args, name) < 1:
            raise ValueError(f"--{name} must be between 0 and 1")
    for name in ("dropout", "lora_dropout"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 0 and less than 1")
    if args.max_length < 8:
        raise ValueError("--max_length must be at least 8")
    given = lambda *names: [f"--{name}" for name in names
                            if getattr(args, name) != parser().get_default(name)]
    idle = [] if args.init_from == "scratch" else given("model", "preset", "tokenizer", "vocab_size")
    if idle:
        raise ValueError(f"{', '.join(idle)}: only --init_from scratch takes them, a checkpoint has its own")
    if only_uses(args):
        idle = given("train", "kind", "metric", "class_weights", "lr", "schedule", "warmup", "weight_decay",
                     "beta1", "beta2", "eps", "clip", "patience", "seed", "seeds", "accumulation", "dropout",
                     "compile", "log_interval", "eval_interval", *train_mlm.LENGTHS)
        idle += [] if args.merge else given("out_dir", "overwrite")
        if idle:
            raise ValueError(f"{', '.join(idle)}: --eval_only, --predict and --merge take a model as it is")
    if args.json and args.predict is None:
        raise ValueError("--json without --predict")
    if args.compare and args.train != "full":
        raise ValueError(f"--train {args.train} beside --compare, which says what is trained")
    modes = list(rates_of(args)) if args.compare else [args.train]
    idle = given("lora_r", "lora_alpha", "lora_dropout", "lora_targets", "lora_pooler", "rslora", "dora")
    if idle and "lora" not in modes and not args.compared:
        raise ValueError(f"{', '.join(idle)} without --train lora")
    if args.init_from == "scratch" and "lora" in modes:
        raise ValueError("--train lora adapts a pretrained model; from scratch there is none")
    for name in ("text_columns", "lora_targets"):  # a,b as well as a b
        if getattr(args, name):
            setattr(args, name, [part for value in getattr(args, name) for part in value.split(",") if part])
    files = [args.train_file, args.val_file, args.test_file]
    if not args.task and not any(files):
        args.task = "pydoc"
    if any(files) and not args.train_file and not args.eval_only and not (args.task and not args.val_file):
        raise ValueError("there is no --train_file; --eval_only evaluates without training")
    if args.compare and args.lr:
        raise ValueError("--compare with --lr: each mode has a rate of its own; --compare full,lora:5e-4 "
                         "gives one")
    default = f"{args.init_from.rstrip('/')}-merged" if args.merge else (
        f"out/{args.task or 'mine'}-{'compare' if args.compare else args.train}")
    args.out_dir = args.out_dir or default
    if not args.eval_only and args.predict is None:
        check_out_dirs(args, [f"{args.out_dir}/{mode}" for mode in modes] if args.compare else [args.out_dir])
    return (args,)


def only_uses(args):
    """A trained model, that is."""
    return args.eval_only or args.merge or args.predict is not None


def rates_of(args):
    """--compare full,lora:5e-4 -> {"full": None, "lora": "5e-4"}"""
    rates = {}
    for part in args.compare.split(","):
        mode, colon, rate = part.partition(":")
        if mode not in MODES:
            raise ValueError(f"--compare {args.compare}: {mode!r} is not one of {', '.join(MODES)}")
        if mode in rates:
            raise ValueError(f"--compare {args.compare}: {mode} twice")
        if colon and not (tasks.is_number(rate) and float(rate) > 0):
            raise ValueError(f"--compare {args.compare}: {rate!r} is not a learning rate")
        rates[mode] = rate or None
    return rates


def check_out_dirs(args, folders):
    for folder in folders:
        if not args.overwrite and os.path.isdir(folder) and set(OUTPUTS) & set(os.listdir(folder)):
            raise ValueError(f"{folder} holds a run already: choose another --out_dir, or replace it by "
                             "--overwrite")
        if os.path.realpath(folder) == os.path.realpath(args.init_from):
            raise ValueError(f"--out_dir {folder} is --init_from: choose another")


def read_splits(args):
    """The files or the task -> {split: Examples}, in strings."""
    read = lambda file: tasks.read_file(file, args.header, args.text_columns, args.label_column)
    files = {"train": args.train_file, "val": args.val_file, "test": args.test_file}
    splits = {name: read(file) for name, file in files.items() if file}
    if args.task and not (args.train_file or args.val_file or args.eval_only and args.test_file):
        splits = (tasks.read_pydoc() if args.task == "pydoc" else tasks.read_hub(args.task)) | splits
    return splits


def is_adapter(path):
    return os.path.isfile(os.path.join(path, "adapter_config.json"))


def open_model(args):
    """--init_from with its head -> model, tokenizer, the kind of its task. An adapter comes with its base."""
    path = args.init_from
    if not is_adapter(path):
        config, module = fill_mask.read_config(path)
        model = head_class(path, config, module).from_pretrained(path)
        tokenizer = tokenizers.load(path)
    else:
        adapter = lora.read_config(path)
        base = adapter.get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{path}/adapter_config.json names no base model")
        options = {"num_labels": head_size(path)}
        if os.path.exists(os.path.join(path, "config.json")):
            config, module = fill_mask.read_config(path)
            options |= {name: config[name] for name in ("id2label", "problem_type") if config.get(name)}
        else:  # PEFT's alone
            config, module = fill_mask.read_config(base)
            heads = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
            config["architectures"] = [heads.get(adapter.get("task_type"), "an adapter")]
        kind = head_class(path, config, module)
        with redirect_stderr(io.StringIO()):  # that the base has no head; the adapter has it
            model = kind.from_pretrained(base, **options)
        lora.load(model, path)
        lacking = [name for name in model.fresh if not name.startswith(tuple(model.lora["modules_to_save"]))]
        if lacking:
            raise ValueError(f"{path}: neither the adapter nor its base {base} has {lacking[0]}")
        own = {"tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"} & set(os.listdir(path))
        tokenizer = tokenizers.load(path if own else base)
    if model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{path} gives several labels to a text; finetune.py gives one")
    tokens = type(model).__name__.endswith("ForTokenClassification")
    return model, tokenizer, "tokens" if tokens else (
        "regression" if model.config.num_labels == 1 else "classification")


def head_class(path, config, module):
    architecture = (config.get("architectures") or ["nothing"])[0]
    if architecture.endswith("ForTokenClassification"):
        return module.ForTokenClassification
    if architecture.endswith("ForSequenceClassification"):
        return module.ForSequenceClassification
    raise ValueError(f"{path} holds {architecture}, no classifier; fine-tune it first")


def head_size(path):
    """The number of classes of an adapter's classifier."""
    from safetensors import SafetensorError, safe_open
    file = os.path.join(path, "adapter_model.safetensors")
    try:
        with safe_open(file, "pt") as f:
            sizes = [f.get_slice(key).get_shape()[0] for key in f.keys()
                     if key.endswith((".classifier.weight", ".classifier.out_proj.weight"))]
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not sizes:
        raise ValueError(f"{path} has no classifier")
    return sizes[0]


def new_model(args, tokenizer, found, seed):
    """--init_from with a head for the classes of Data `found` -> model, ready to train."""
    torch.manual_seed(seed)
    module = module_of(args)
    kind = module.ForTokenClassification if found.kind == "tokens" else module.ForSequenceClassification
    options = {} if args.dropout is None else {
        field.name: args.dropout for field in fields(module.Config) if field.name.endswith("dropout_prob")}
    if found.kind == "regression":
        options |= dict(num_labels=1, problem_type="regression", id2label={0: "LABEL_0"})
    else:
        options |= dict(num_labels=len(found.classes), id2label=dict(enumerate(found.classes)),
                        problem_type=None if found.kind == "tokens" else "single_label_classification")
    if args.init_from == "scratch":
        preset = args.preset or f"{args.model}-laptop"
        model = kind(train_mlm.fresh_config(module, preset, tokenizer, **options))
    else:
        model = kind.from_pretrained(args.init_from, **options)
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}")
    choose_trained(model, args)
    return model.train()


def module_of(args):
    if args.init_from == "scratch":
        return importlib.import_module(args.model)
    return fill_mask.read_config(args.init_from)[1]


def check_last_block(module):
    if module.MODEL_TYPE == "albert":
        raise ValueError("ALBERT's layers share their parameters: there is no last block of its own")


def choose_trained(model, args):
    """Freeze what --train leaves."""
    if args.train == "full":
        return
    # what comes after the layers: the classifier, and in BERT and ALBERT the pooler that it reads
    head = ["classifier"] + ["encoder.pooler"] * (model.encoder.pooler is not None)
    if args.lora_pooler and len(head) == 1:
        raise ValueError("--lora_pooler: this model has no pooler")
    if args.train == "lora":
        # a pooler from the checkpoint stays, as in PEFT; one with fresh weights has to learn
        saved = [name for name in head if name == "classifier" or args.lora_pooler or name in model.fresh]
        lora.inject(model, args.lora_r, args.lora_alpha, args.lora_dropout, args.lora_targets, args.rslora,
                    args.dora, saved)
        return
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    if args.train == "last_block":
        check_last_block(sys.modules[type(model).__module__])
        model.encoder.layers[-1].requires_grad_(True)


def open_tokenizer(args, texts):
    if args.init_from != "scratch":
        if is_adapter(args.init_from):
            raise ValueError(f"{args.init_from} is an adapter: --merge it, and train what that writes")
        return tokenizers.load(args.init_from)
    name = args.tokenizer or train_mlm.TOKENIZER[args.model]
    if name not in tokenizers.KINDS:
        return tokenizers.load(name)
    lines = (part for text in texts for part in ([" ".join(text)] if isinstance(text, list) else text))
    return tokenizers.train(name, lines, args.vocab_size)


def make_rows(args, examples, kind, tokenizer, model):
    types = model.config.type_vocab_size > 1
    length = min(args.max_length, train_mlm.longest_row(model))
    return tasks.Rows(examples, kind, tokenizer, length, types)

def say_cut_words(say, name, rows):
    if rows.cut_words:
        say(f"{rows.cut_words:,} words of {name} are beyond --max_length: not trained on, not scored")

# -----------------------------------------------------------------------------
# Computing

def loss_sum(kind, logits, labels, weight):
    """The sum of the losses of a batch. logits (B, classes), for tokens (B, T, classes); labels (B,), for
    tokens (B, T), -100 ignored; weight (classes,) or None."""
    logits = logits.float().flatten(0, -2)
    if kind == "regression":
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
    return F.cross_entropy(logits, labels.flatten(), weight, ignore_index=-100, reduction="sum")


@torch.no_grad()
def outputs_of(model, rows, batch_size, amp, device, rank=0, world=1):
    """-> an array for each row, in order: (classes,), or for tokens (words, classes)."""
    model.eval()
    order = np.argsort(-rows.lengths, kind="stable")  # the longest first: what fits, fits
    batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
    found = []
    for chosen in batches[rank::world]:
        inputs = rows.inputs(chosen)
        with amp(inputs["input_ids"].shape[1]):
            logits, _ = model(**train_mlm.to_device(inputs, device))
        for i, output in zip(chosen, logits.float().cpu().numpy()):
            found.append((i, output[rows.rows[i].words] if rows.kind == "tokens" else output))
    model.train()
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, found)
        found = [pair for part in parts for pair in part]
    return [output for _, output in sorted(found, key=lambda pair: pair[0])]


def score(rows, outputs, classes):
    return tasks.scores(rows.kind, rows.flat(rows.labels), rows.flat(outputs), classes)


def report(rows, outputs, classes):
    """Precision, recall and F1 of every class, and the confusion matrix where it fits the screen."""
    if rows.kind == "regression":
        return
    matrix = tasks.confusion_matrix(rows.flat(rows.labels), rows.flat(outputs).argmax(-1), len(classes))
    precision, recall, f1, _ = tasks.by_class(matrix)
    width = max(map(len, classes))
    show = len(classes) <= 12
    print(f"  {'':{width}}  precision  recall     f1   count" + ("   predicted as" if show else ""))
    for i, name in enumerate(classes):
        counts = "".join(f"{n:7}" for n in matrix[i]) if show else ""
        print(f"  {name:{width}}      {precision[i]:.3f}   {recall[i]:.3f}  {f1[i]:.3f} {matrix[i].sum():7}"
              f"  {counts}")

# -----------------------------------------------------------------------------
# Training

def finetune(args, device, rank, world, control):
    if world > 1 and (args.compare or only_uses(args)):
        raise ValueError("--compare, --merge, --predict and --eval_only run in one process; leave torchrun "
                         "out")
    if args.compare:
        return start_comparison(args)
    if args.merge:
        return merge(args)
    if only_uses(args):
        return use(args, device)
    splits = read_once(args, rank, control)
    known = tasks.TASKS.get(args.task)
    classes = list(known.labels) if known and known.labels else None
    scored = known and known.metric == "spearman"
    kind = args.kind or ("classification" if classes else "regression" if scored else None)
    found = tasks.prepare(splits, kind, classes)
    if "val" not in found.splits:
        found.splits["train"], found.splits["val"] = tasks.hold_out(found.splits["train"], found.kind)
    task = known or tasks.OWN[found.kind]
    set_defaults(args, task, found)
    tokenizer = open_tokenizer(args, splits["train"].texts)

    dtype = [args.dtype or train_mlm.pick_dtype(device)]
    if world > 1:
        dist.broadcast_object_list(dtype, group=control)
    args.dtype = dtype[0]
    model = new_model(args, tokenizer, found, args.seed)
    args.lr = args.lr or task.lr * 768 / model.config.hidden_size * MODES[args.train]
    rows = {name: make_rows(args, examples, found.kind, tokenizer, model)
            for name, examples in found.splits.items()}
    say = print if rank == 0 else lambda *a, **k: None
    n_all = sum(p.numel() for p in model.parameters())
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    saved = n_trained if args.train == "lora" else n_all
    os.makedirs(args.out_dir, exist_ok=True)
    train_mlm.check_disk(args.out_dir, 8 * saved)  # the last weights, until the next ones are there
    say(f"{args.init_from}: {n_all / 1e6:.1f} M parameters, {n_trained:,} of them trained ({args.train}, "
        f"{100 * n_trained / n_all:.2f}%)")
    names = ", ".join(found.classes[:12]) + ", ..." * (len(found.classes) > 12)
    say(", ".join(f"{len(part):,} rows {name}" for name, part in rows.items())
        + f"; {found.kind}{' into ' * bool(names)}{names}")
    for name, part in rows.items():
        say_cut_words(say, name, part)
    say(f"{device}, {args.dtype}{', compiled' if args.compile else ''}, {torch.get_num_threads()} threads"
        + (f", {world} processes" if world > 1 else "")
        + f"; steps of {args.batch_size} rows, learning rate {args.lr:.1e}")
    if names:
        counts = np.bincount(rows["val"].flat(rows["val"].labels))
        say(f"always the most frequent class: validation accuracy {counts.max() / counts.sum():.4f}")

    run = Run(args, found.classes, tokenizer, rows, device, rank, world, control, say)
    args.kind = found.kind
    run.log(**{k: v for k, v in vars(args).items() if k != "argv"}, classes=found.classes,
            parameters=n_all, trained=n_trained, processes=world, torch=torch.__version__,
            rows={name: len(part) for name, part in rows.items()})
    results = []
    for seed in range(args.seed, args.seed + args.seeds):
        if args.seeds > 1:
            say(f"\nseed {seed}")
        if seed > args.seed:
            model = new_model(args, tokenizer, found, seed)
        results.append(run.train(model, seed))
        del model
    run.finish(results, n_all, n_trained)


def start_comparison(args):
    rates, argv = rates_of(args), list(args.argv)
    if "last_block" in rates:
        check_last_block(module_of(args))
    i = next(i for i, word in enumerate(argv) if word.partition("=")[0] == "--compare")
    del argv[i:i + (1 if "=" in argv[i] else 2)]
    compare.compare([*argv, "--compared"], rates, args.out_dir)


def read_once(args, rank, control):
    """The first process reads, or downloads; the others get what it has, or its error."""
    result = [None]
    if rank == 0:
        try:
            result = [read_splits(args)]
        except (ValueError, OSError) as error:
            result = [error]
    if control:
        dist.broadcast_object_list(result, group=control)
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def set_defaults(args, task, found):
    args.batch_size = args.batch_size or task.batch_size
    if all(getattr(args, name) is None for name in train_mlm.LENGTHS):
        args.epochs = task.epochs
    args.metric, n = args.metric or task.metric, len(found.classes)
    metrics = [name for name in tasks.METRICS[found.kind] if name != "f1" or n == 2]
    if args.metric not in metrics:
        raise ValueError(f"--metric {args.metric}: for this task there are {', '.join(metrics)}")
    if args.class_weights:
        if found.kind == "regression":
            raise ValueError("--class_weights: a regression has no classes")
        labels = found.splits["train"].labels
        counts = np.bincount(np.concatenate(labels) if found.kind == "tokens" else labels, minlength=n)
        if args.class_weights == ["balanced"]:
            args.class_weights = (counts.sum() / (n * np.maximum(counts, 1))).tolist()
        elif len(args.class_weights) == n and all(
                tasks.is_number(w) and float(w) > 0 for w in args.class_weights):
            args.class_weights = list(map(float, args.class_weights))
        else:
            raise ValueError(f"--class_weights: balanced, or {n} positive numbers, for "
                             f"{', '.join(found.classes)}")


def write_checkpoint(model, tokenizer, out_dir, base=None, replace=True):
    """A model; or if it has adapters those, and the name of its base. Each file appears whole. With replace,
    what an older run left beside them goes then."""
    os.makedirs(out_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        if hasattr(model, "lora"):
            lora.save(model, folder, base)
            with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
                json.dump(sys.modules[type(model).__module__].hf_config(model), f, indent=2)
        else:
            model.save_pretrained(folder)
        tokenizer.save(folder)
        written = os.listdir(folder)
        for name in written:
            os.replace(os.path.join(folder, name), os.path.join(out_dir, name))
    for name in set(OUTPUTS) - set(written) if replace else ():
        if os.path.exists(os.path.join(out_dir, name)):
            os.remove(os.path.join(out_dir, name))


def peak_memory(device):
    """The most bytes that this process held: on the GPU, or resident on the CPU (nan on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return math.nan
    import resource  # POSIX only
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Run:
    """What the seeds of one command share: data, machine, log, and the best weights on the disk."""

    def __init__(self, args, classes, tokenizer, rows, device, rank, world, control, say):
        self.args, self.classes, self.tokenizer, self.rows = args, classes, tokenizer, rows
        self.device, self.rank, self.world, self.control, self.say = device, rank, world, control, say
        self.amp = partial(train_mlm.computing, device, args.dtype)
        self.class_weights = np.array(args.class_weights) if args.class_weights else None
        self.caught = train_mlm.catch_signals()
        self.best = None  # (score, seed) of the weights on the disk
        self.lines = []

    def log(self, **line):
        """Before the first weights are written, lines wait: until then an old run in out_dir is whole."""
        self.lines.append(json.dumps(line))
        if self.best and self.rank == 0:
            with open(os.path.join(self.args.out_dir, "log.jsonl"), "a", encoding="utf-8") as f:
                f.writelines(line + "\n" for line in self.lines)
            self.lines = []

    def save(self, model, score, seed):
        """The best weights so far, in place of those before."""
        first, self.best = self.best is None, (score, seed)
        if self.rank == 0:
            init = self.args.init_from
            base = os.path.abspath(init) if os.path.isdir(init) else init
            write_checkpoint(model, self.tokenizer, self.args.out_dir, base, replace=first)

    def weight_of(self, labels):
        """What the sum of the losses is divided by: the number of labels, or the sum of their weights."""
        return len(labels) if self.class_weights is None else self.class_weights[labels].sum()

    def evaluate(self, model, split):
        rows = max(1, self.args.batch_size // (self.args.accumulation * self.world))
        outputs = outputs_of(model, self.rows[split], rows, self.amp, self.device, self.rank, self.world)
        return score(self.rows[split], outputs, self.classes), outputs

    def train(self, model, seed):
        """One seed -> what it reached. The best weights of all seeds are in out_dir."""
        args, rows, device, rank, world = self.args, self.rows["train"], self.device, self.rank, self.world
        model.to(device)
        optimizer = train_mlm.make_optimizer(model, args)
        if args.compile:
            model.compile(dynamic=True)  # in place: the names of the parameters stay
        parallel = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
        weights = None if self.class_weights is None else torch.tensor(
            self.class_weights, dtype=torch.float32, device=device)
        per_epoch = -(-len(rows) // args.batch_size)
        max_steps = args.max_steps or (max(1, round(args.epochs * per_epoch)) if args.epochs else None)
        eval_interval = args.eval_interval or per_epoch

        step, history, curve, best, since_best = 0, [], [], None, 0
        real = padded = 0  # tokens, and positions
        start = shown_at = time.time()
        aside = shown_aside = 0.0  # seconds of evaluating and saving
        shown_step = 0

        def mean_loss():
            """Of the steps since the last look, as a look has to wait for the GPU."""
            losses = torch.stack(history)
            history.clear()
            if world > 1:
                dist.all_reduce(losses)
                losses /= world
            if not losses.isfinite().all():
                kept = f"{args.out_dir} has the best weights so far" if self.best else "nothing was saved"
                raise train_mlm.Stop(f"the loss is not finite near step {step}; {kept}; try a lower --lr", 2)
            return losses.mean().item()

        while True:
            if step % per_epoch == 0:
                rng = data.random_numbers(seed, data.ORDER, step // per_epoch)
                batches = tasks.batches_by_length(rows.lengths, args.batch_size, rng)
            elapsed = time.time() - start
            shared = [len(self.caught), elapsed if rank == 0 else 0.0]
            if world > 1:  # every process must stop at the same step
                shared = torch.tensor(shared, dtype=torch.float64)
                dist.all_reduce(shared, group=self.control)
                shared = shared.tolist()
            progress = (step + 0.5) / max_steps if max_steps else shared[1] / (60 * args.max_minutes)
            stop = bool(shared[0])
            ended = progress >= 1 or (args.patience and since_best >= args.patience)
            if ended or stop:
                break

            chosen = batches[step % per_epoch]
            lr = train_mlm.learning_rate(args, progress)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(int(data.random_numbers(seed, data.DROPOUT, step, rank).integers(2**32)))
            # A sum over the labels of the whole step, divided once, whatever the micro-batches and processes.
            # DDP takes a mean over the processes, hence the factor world. Where a last batch leaves a process
            # no rows, it computes one and takes it times zero.
            factor = world / self.weight_of(rows.flat([rows.labels[i] for i in chosen]))
            share = chosen[rank::world]
            micro = np.array_split(share, min(args.accumulation, len(share))) if len(share) else [chosen[:1]]
            total = torch.zeros((), device=device)
            for i, part in enumerate(micro):
                inputs = rows.inputs(part)
                real, padded = real + int(rows.lengths[part].sum()), padded + inputs["input_ids"].size
                labels = torch.from_numpy(rows.targets(part)).to(device)
                with parallel.no_sync() if world > 1 and i < len(micro) - 1 else nullcontext():
                    with self.amp(inputs["input_ids"].shape[1]):
                        logits, _ = parallel(**train_mlm.to_device(inputs, device))
                    loss = loss_sum(rows.kind, logits, labels, weights) * (factor if len(share) else 0.0)
                    loss.backward()
                    total += loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            history.append(total + 0 * norm)  # a gradient that is not finite shows, too

            eval_due = step % eval_interval == 0 or step == max_steps
            if step % args.log_interval == 0 or eval_due or step == 1:
                loss, now = mean_loss(), time.time()
                speed = (step - shown_step) * args.batch_size / (now - shown_at - (aside - shown_aside))
                left = 60 * args.max_minutes - (now - start) if args.max_minutes else (
                    (max_steps - step) * args.batch_size / speed)
                epoch = step / per_epoch
                self.say(f"step {step:6,} | epoch {epoch:5.2f} | loss {loss:.4f} | lr {lr:.2e} | "
                         f"{speed:,.0f} rows/s | {train_mlm.clock(max(0, left))} left", flush=True)
                self.log(seed=seed, step=step, epoch=epoch, loss=loss, lr=lr,
                         rows_per_s=round(speed, 1), elapsed_s=round(now - start, 1))
                shown_at, shown_step, shown_aside = now, step, aside
            if eval_due:
                before = time.time()
                best, since_best = self.look(model, seed, step, best, since_best, curve)
                aside += time.time() - before

        seconds = time.time() - start - aside
        if history:
            mean_loss()  # weights that are not finite are not saved
        if step and (not curve or curve[-1][0] != step) and not (stop and self.best):
            # a budget ended between two evaluations, or a signal came before the first
            best, since_best = self.look(model, seed, step, best, since_best, curve)
        if stop:
            kept = "nothing was saved" if not self.best else (
                f"{args.out_dir} has the best weights so far (validation {args.metric} {self.best[0]:.4f})")
            raise train_mlm.Stop(f"stopped at step {step:,}; {kept}",
                                 128 + (self.caught or [signal.SIGTERM])[0])
        if not step:
            raise ValueError(f"--max_minutes {args.max_minutes:g} is over before the first step")
        state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
        gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        return best | dict(
            seed=seed, curve=curve, train_s=seconds, epochs=step / per_epoch, real=real / max(1, padded),
            ms_per_step=1000 * seconds / step, training_mb=(state + gradients) / 1e6)

    def look(self, model, seed, step, best, since_best, curve):
        """Evaluate. The weights go to the disk if they are the best of all seeds so far."""
        scores, outputs = self.evaluate(model, "val")
        value = scores[self.args.metric]
        curve.append((step, value))
        better = best is None or value > best["score"]
        if better:
            best, since_best = dict(score=value, step=step, scores=scores, outputs=outputs), 0
            if "test" in self.rows:
                best["test"] = self.evaluate(model, "test")[0]
            if self.best is None or value > self.best[0]:
                self.save(model, value, seed)
        else:
            since_best += 1
        names = [self.args.metric] + [name for name in scores if name != self.args.metric][:3]
        self.say(f"step {step:6,} | validation " + ", ".join(f"{name} {scores[name]:.4f}" for name in names)
                 + (" | best so far" if better else ""), flush=True)
        self.log(seed=seed, step=step, **{f"val_{name}": v for name, v in scores.items()})
        return best, since_best

    def finish(self, results, n_all, n_trained):
        args, metric = self.args, self.args.metric
        values = np.array([result["score"] for result in results])
        deviation = values.std(ddof=1) if len(values) > 1 else 0.0
        winner = max(results, key=lambda result: result["score"])
        peak = peak_memory(self.device)
        name = "adapter_model.safetensors" if args.train == "lora" else "model.safetensors"
        epochs, seconds = (sum(result[key] for result in results) for key in ("epochs", "train_s"))
        final = dict(final=True, metric=metric, mean=float(values.mean()), std=float(deviation),
                     seeds=[{k: v for k, v in result.items() if k != "outputs"} for result in results],
                     trained=n_trained, parameters=n_all, s_per_epoch=seconds / epochs,
                     ms_per_step=float(np.mean([result["ms_per_step"] for result in results])),
                     peak_memory_mb=peak / 1e6, training_mb=results[0]["training_mb"],
                     disk_mb=os.path.getsize(os.path.join(args.out_dir, name)) / 1e6 if self.rank == 0 else 0)
        self.log(**final)
        self.say(f"\nbest validation {metric} {values.mean():.4f}" + (
            f" ± {deviation:.4f} over {len(values)} seeds" if len(values) > 1 else
            f", at step {winner['step']:,}"))
        if "test" in winner:
            tests = np.array([result["test"][metric] for result in results])
            self.say(f"test {metric} {tests.mean():.4f}" + (
                f" ± {tests.std(ddof=1):.4f}" if len(tests) > 1 else ""))
        self.say("  " + ", ".join(f"{name} {value:.4f}" for name, value in winner["scores"].items()))
        if self.rank == 0:
            report(self.rows["val"], winner["outputs"], self.classes)
        self.say(f"  {final['s_per_epoch']:.1f} s an epoch; tokens in {100 * winner['real']:.1f}% of the "
                 f"positions; peak memory {peak / 1e6:,.0f} MB, gradients and AdamW "
                 f"{final['training_mb']:.1f} of it; {name} {final['disk_mb']:.2f} MB")
        self.say(f"\nnext: python finetune.py --init_from {args.out_dir} --predict \"...\"")

# -----------------------------------------------------------------------------
# Using what was trained

def use(args, device):
    """--eval_only and --predict."""
    model, tokenizer, kind = open_model(args)
    classes = list(model.config.id2label.values()) if kind != "regression" else []
    known = tasks.TASKS.get(args.task)
    if known and len(known.labels) == len(classes) and all(name.startswith("LABEL_") for name in classes):
        classes = list(known.labels)
    amp = partial(train_mlm.computing, device, args.dtype)  # default: float32
    batch_size = args.batch_size or 32
    model.to(device)
    if args.predict is not None:
        examples = texts_to_predict(args, kind)
        rows = make_rows(args, examples, kind, tokenizer, model)
        outputs = outputs_of(model, rows, batch_size, amp, device)
        return show_predictions(args, examples, outputs, kind, classes)
    splits = read_splits(args)
    if set(splits) != {"train"}:
        splits.pop("train", None)
    found = tasks.prepare(splits, kind, classes or None)
    if "train" in found.splits:  # what was held out of it
        found.splits = {"val": tasks.hold_out(found.splits["train"], kind)[1]}
    for name, examples in found.splits.items():
        rows = make_rows(args, examples, kind, tokenizer, model)
        say_cut_words(print, name, rows)
        outputs = outputs_of(model, rows, batch_size, amp, device)
        print(f"{args.init_from}, {len(rows):,} rows {name}: " + ", ".join(
            f"{metric} {value:.4f}" for metric, value in score(rows, outputs, classes).items()))
        report(rows, outputs, classes)


def texts_to_predict(args, kind):
    """--predict -> Examples without labels: a file as for training, the lines of a .txt, or a text."""
    name = args.predict
    if name.endswith(tasks.FORMATS):
        examples = tasks.read_file(name, args.header, args.text_columns, args.label_column, labelled=False)
    else:
        lines = [(name, "--predict")]
        if name.endswith(".txt"):
            if not os.path.isfile(name):
                raise FileNotFoundError(f"{name}: no such file")
            lines = [(line, f"{name}, line {number}") for number, line in data.decoded_lines(name)]
        for line, where in lines:
            if not all(text.strip() for text in line.split("\t")) or line.count("\t") > 1:
                raise ValueError(f"{where}: a text, or two with a tab between, is wanted")
        if not lines:
            raise ValueError(f"{name} is empty")
        examples = tasks.Examples([tuple(line.split("\t")) for line, _ in lines], None, [w for _, w in lines])
    (tasks.split_words if kind == "tokens" else tasks.check_strings)(examples)
    return examples


def show_predictions(args, examples, outputs, kind, classes):
    for text, where, output in zip(examples.texts, examples.where, outputs):
        p = np.exp(output - output.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        if kind == "tokens":
            cut = [None] * (len(text) - len(p))
            if cut:
                print(f"{where}: the last {len(cut)} words are beyond --max_length and get no tag",
                      file=sys.stderr)
            tags = [classes[i] for i in output.argmax(-1)] + cut
            best = [round(float(x), 4) for x in p.max(-1)] + cut
            line = {"words": text, "tags": tags, "probabilities": best}
            plain = " ".join(f"{word}/{tag}" for word, tag in zip(text, tags))
        elif kind == "regression":
            line = {"text": list(text), "score": round(float(output[0]), 4)}
            plain = f"{output[0]:.4f}\t" + "\t".join(text)
        else:
            label = classes[output.argmax()]
            line = {"text": list(text), "label": label,
                    "probabilities": {name: round(float(x), 4) for name, x in zip(classes, p)}}
            plain = f"{label}\t{p.max():.4f}\t" + "\t".join(text)
        print(json.dumps(line, ensure_ascii=False) if args.json else plain)


def merge(args):
    if not is_adapter(args.init_from):
        raise ValueError(f"--merge: {args.init_from} is no adapter: it has no adapter_config.json")
    model, tokenizer, _ = open_model(args)
    write_checkpoint(lora.merge(model), tokenizer, args.out_dir)
    print(f"{args.out_dir}: {args.init_from} and its base, merged\n\n"
          f"next: python finetune.py --init_from {args.out_dir} --predict \"...\"")


def main(argv=None):
    train_mlm.launch("finetune.py", lambda: parse_arguments(sys.argv[1:] if argv is None else argv), finetune)


if __name__ == "__main__":
    main()
