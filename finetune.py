"""
Fine-tune BERT, RoBERTa or ALBERT, all parameters or LoRA: classify sentences or pairs, with one label or
several, predict a number, tag words.

    python finetune.py --init_from out/roberta                                  # a task that needs no network
    python finetune.py --init_from bert-base-uncased --task sst2 --train lora   # GLUE, from the hub
    python finetune.py --init_from out/bert --train_file my.csv --val_file dev.csv --out_dir out/mine
    torchrun --nproc_per_node 8 finetune.py --init_from roberta-base --task mnli

out_dir becomes a Hugging Face checkpoint with the best weights, or with --train lora a PEFT adapter.
predict.py uses either; compare.py runs this script in several ways.
"""

import argparse
import importlib
import json
import math
import os
import shlex
import sys
import time

import runtime  # before torch: it sets how torch's threads wait

import numpy as np
import torch
from torch.nn import functional as F

import data
import files
import lora
import rundir
import tasks
import tokenizer as tokenizers

# What is trained, and the factor of its rate: few or fresh parameters want larger steps.
MODES = {"full": 1, "lora": 10, "head": 20, "last_block": 2}
LORA_FLAGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets", "lora_pooler", "rslora", "dora")


def parser():
    p = runtime.Parser(__doc__)
    add = p.add_argument_group("model").add_argument
    add("--init_from", required=True, help="a checkpoint (directory or hub name), or scratch")
    add("--model", default="roberta", choices=runtime.MODELS, help="with --init_from scratch")
    add("--preset", help=f"with --init_from scratch: {runtime.preset_names()}; default: MODEL-laptop")
    add("--layers", type=runtime.positive_int, help="with --init_from scratch; default: the preset's")
    add("--tokenizer", help="with --init_from scratch: a kind to train on the task's texts, or a directory; "
        "default: the kind that the model was published with")
    add("--vocab_size", type=runtime.positive_int, default=8192, help="of a tokenizer trained here")
    add("--dropout", type=runtime.probability,
        help="of this run; default: the checkpoint's, with --train lora 0")
    add = p.add_argument_group("data").add_argument
    add("--task", choices=tasks.TASKS, help="default: pydoc, or what the files hold")
    add("--train_file", help=", ".join(files.TABLES))
    add("--val_file", help="default: a tenth of the training rows is held out")
    add("--test_file", help="evaluated with the weights that are best on the validation rows")
    add("--kind", choices=tasks.KINDS, help="what labels are; default: guessed, but never multilabel")
    runtime.add_text_flags(add)
    add = p.add_argument_group("what is trained").add_argument
    add("--train", default="full", choices=MODES)
    add("--lora_r", type=runtime.number(int, lambda r: 0 < r <= 4096, "between 1 and 4,096"), default=8,
        help="rank of the adapters")
    add("--lora_alpha", type=runtime.positive, default=16, help="the adapters are scaled by alpha / r")
    add("--lora_dropout", type=runtime.probability, default=0.0, help="on the adapters' input")
    add("--lora_targets", nargs="+", default=["fc_in", "fc_out"],
        help="of query key value out fc_in fc_out pooler; or all-linear")
    add("--lora_pooler", action=argparse.BooleanOptionalAction, default=True,
        help="train and save BERT's or ALBERT's pooler, too; default: yes, unless it is among the targets")
    add("--rslora", action="store_true", help="scale by alpha / sqrt(r), not alpha / r")
    add("--dora", action="store_true", help="train the norms of W's rows apart from their directions")
    runtime.add_training_flags(p, beta2=0.999, eps=1e-8, length="3 to 8 epochs, by the task")
    add = p.add_argument_group("what counts").add_argument
    add("--class_weights", nargs="+", metavar="W", help="of the loss: balanced, or a number for each class")
    add("--metric", help="that chooses the best weights; default: the task's; for " + "; ".join(
        f"{kind}: {', '.join(names)}" for kind, names in tasks.METRICS.items()))
    add("--patience", type=runtime.positive_int, help="stop after so many evaluations without a better one")
    add("--seeds", type=runtime.positive_int, default=1,
        help="runs with --seed, --seed + 1, ...; mean and deviation")
    add = runtime.add_machine_flags(p)
    add("--compile", action="store_true", help="torch.compile")
    add = p.add_argument_group("output").add_argument
    add("--out_dir", help="default: out/TASK-TRAIN")
    add("--log_interval", type=runtime.positive_int, default=50, help="steps")
    add("--eval_interval", type=runtime.positive_int, help="steps; default: an epoch")
    runtime.add_output_flags(add)
    p.set_defaults(batch_size=32)
    return p

# -----------------------------------------------------------------------------
# Setting up: whatever can be wrong with the input is found here, before anything is written

def parse_arguments(argv):
    p = parser()
    args = p.parse_args(argv)
    args.device = runtime.choose_device(args.device)
    given = p.given(args, ["model", "preset", "layers", "tokenizer", "vocab_size"])
    if given and args.init_from != "scratch":
        raise ValueError(f"{', '.join(given)}: only --init_from scratch takes them, a checkpoint has its own")
    if p.given(args, ["vocab_size"]) and args.tokenizer and args.tokenizer not in tokenizers.KINDS:
        raise ValueError("--vocab_size: only a tokenizer that is trained here takes it")
    if args.train == "lora" and args.init_from == "scratch":
        raise ValueError("--train lora adapts a pretrained model; from scratch there is none")
    if args.train != "lora" and (given := p.given(args, LORA_FLAGS)):
        raise ValueError(f"{', '.join(given)} without --train lora")
    if args.dropout is None and args.train == "lora":
        args.dropout = 0.0  # few parameters hardly overfit, and learn more without: 1.2 points on SST-2
    args.text_columns = runtime.split_commas(args.text_columns)
    args.lora_targets = runtime.split_commas(args.lora_targets)
    if not (args.train_file or args.val_file or args.test_file):
        args.task = args.task or "pydoc"
        if given := p.given(args, ["text_columns", "label_column", "header"]):
            raise ValueError(f"{', '.join(given)}: no effect here, as no file is given")
    if not args.train_file and (args.val_file or not args.task):
        raise ValueError("there is no --train_file; predict.py --evaluate evaluates without training")
    if args.init_from == "scratch":
        args.preset = args.preset or importlib.import_module(args.model).DEFAULT_PRESET["cpu"]
    else:
        args.model = runtime.read_config(args.init_from)["model_type"]
    args.out_dir = args.out_dir or f"out/{args.task or 'mine'}-{args.train}"
    args.command = runtime.command("finetune.py", argv)
    rundir.check_sources(args.out_dir, train_file=[args.train_file], val_file=[args.val_file],
                         test_file=[args.test_file])
    if not args.dry_run:
        rundir.check_out_dir("out_dir", args.out_dir, args.init_from, args.overwrite)
    return args


def open_task(args, host):
    """-> tasks.Data with "train", "val" and perhaps "test". Sets what the task decides and no flag says."""
    def read():
        splits = {} if args.train_file else tasks.read_task(args.task)
        for name in ("train", "val", "test"):
            if file := getattr(args, f"{name}_file"):
                like = splits["train"].columns if splits else None
                splits[name] = tasks.read_file(file, args.header, args.text_columns, args.label_column,
                                               kind=args.kind, like=like)
        return splits
    splits = host.once_per_machine(read)
    known = tasks.TASKS.get(args.task, tasks.Task(kind=None))
    task_data = tasks.prepare(splits, args.kind or known.kind, known.labels)
    if "val" not in task_data.splits:
        train, val = tasks.hold_out(task_data.splits["train"], task_data.kind)
        task_data.splits |= {"train": train, "val": val}
    args.kind = task_data.kind
    task = known if args.task and known.metric in tasks.METRICS[args.kind] else tasks.KINDS[args.kind]
    if not (args.max_steps or args.epochs or args.max_minutes):
        args.epochs = task.epochs
    n = len(task_data.classes)
    args.metric = args.metric or task.metric
    metrics = [name for name in tasks.METRICS[args.kind] if name != "f1" or n == 2]
    if args.metric not in metrics:
        raise ValueError(f"--metric {args.metric}: for this task there are {', '.join(metrics)}")
    if args.class_weights:
        args.class_weights = class_weights(args.class_weights, task_data)
    return task_data


def class_weights(words, task_data):
    """--class_weights -> a number for each class."""
    n, labels = len(task_data.classes), task_data.splits["train"].labels
    if task_data.kind in ("regression", "multilabel"):
        raise ValueError(f"--class_weights: a {task_data.kind} loss takes none")
    if words == ["balanced"]:
        counts = np.bincount(np.concatenate(labels) if task_data.kind == "tokens" else labels, minlength=n)
        return (counts.sum() / (n * np.maximum(counts, 1))).tolist()
    if len(words) != n or not all(tasks.is_number(word) and float(word) > 0 for word in words):
        raise ValueError(f"--class_weights: balanced, or {n} positive numbers, for "
                         f"{', '.join(task_data.classes)}")
    return [float(word) for word in words]


def open_tokenizer(args, texts):
    """The checkpoint's; from scratch that of --tokenizer, or one trained on the texts."""
    if args.init_from != "scratch":
        return tokenizers.load(args.init_from)
    name = args.tokenizer or importlib.import_module(args.model).TOKENIZER
    if name not in tokenizers.KINDS:
        return tokenizers.load(name)
    if args.kind == "tokens":  # a text is a list of words
        texts = [[" ".join(words)] for words in texts]
    return tokenizers.train(name, (part for text in texts for part in text), args.vocab_size)


def open_model(args, tokenizer, task_data, seed, host):
    """--init_from with a head for the classes of the task, ready to train."""
    torch.manual_seed(seed)
    head = "ForTokenClassification" if args.kind == "tokens" else "ForSequenceClassification"
    names = task_data.classes or ["LABEL_0"]  # a regression has none
    problem = {"classification": "single_label_classification", "multilabel": "multi_label_classification",
               "regression": "regression"}.get(args.kind)  # tags have none
    options = dict(num_labels=len(names), id2label=dict(enumerate(names)), problem_type=problem)
    model = runtime.build_model(importlib.import_module(args.model), head, args, tokenizer, **options)
    if args.init_from != "scratch" and not any(name.startswith("classifier") for name in model.fresh):
        sort_classes(model, args.init_from, names, host)
    elif args.kind == "regression":  # else the first steps only learn how large the numbers are
        bias = list(model.classifier.parameters())[-1]
        torch.nn.init.constant_(bias, np.mean(task_data.splits["train"].labels))
    choose_trained(model, args)
    if args.compile:
        model.compile()  # in place: the names of the parameters stay
    return model.to(host.device)


def sort_classes(model, init_from, names, host):
    """Bring the classes of a checkpoint's own head into the order of names, if they are the same ones."""
    id2label = runtime.read_config(init_from).get("id2label") or {}
    fold = tasks.folding(names)
    before, wanted = [fold(str(id2label[i])) for i in sorted(id2label, key=int)], list(map(fold, names))
    if sorted(before) == sorted(wanted):
        for p in list(model.classifier.parameters())[-2:]:  # of the last layer
            p.data = p.data[[before.index(name) for name in wanted]]
    elif any(not name.lower().startswith("label_") for name in before):
        host.say(f"the head of {init_from} goes on, though it was trained for other classes")


def choose_trained(model, args):
    """Freeze what --train does not name; for lora, add the adapters."""
    if args.train == "full":
        return
    # what comes after the layers: the classifier, and in BERT and ALBERT the pooler that it reads
    head = ["classifier"] + ["encoder.pooler"] * (model.encoder.pooler is not None)
    if args.train == "lora":
        adapted = any(target.split(".")[-1] == "pooler" for target in args.lora_targets)
        fresh = "encoder.pooler" in model.fresh  # then it has to learn
        if adapted and fresh:
            raise ValueError("--lora_targets pooler: the checkpoint has none; leave it out, and a fresh one "
                             "is trained and saved whole")
        saved = head if not adapted and (args.lora_pooler or fresh) else ["classifier"]
        lora.inject(model, args.lora_r, args.lora_alpha, args.lora_dropout, args.lora_targets, args.rslora,
                    args.dora, saved)
        return
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    if args.train == "last_block":
        if not hasattr(model.encoder, "layers"):
            raise ValueError("--train last_block: the layers of this model share their parameters: there is "
                             "no last block of its own")
        model.encoder.layers[-1].requires_grad_(True)


def default_lr(args, config, n_rows):
    """5e-5 for all parameters of a model 768 wide; narrower ones take higher rates, and so do few or fresh
    parameters. LoRA runs of less than 1,000 steps take twice that."""
    lr = 5e-5 * 768 / config.hidden_size * MODES[args.train]
    steps = args.max_steps or (args.epochs or math.inf) * n_rows / args.batch_size
    return 2 * lr if args.train == "lora" and steps < 1000 else lr


def make_optimizers(model, args):
    """A list of optimizers, of what is not frozen. Every group keeps the rate that it has here as the peak
    of its schedule."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [dict(params=[p for p in trained if p.dim() >= 2], weight_decay=args.weight_decay),
              dict(params=[p for p in trained if p.dim() < 2], weight_decay=0.0)]  # biases and LayerNorms
    return [torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, fused=True)]

# -----------------------------------------------------------------------------
# The best weights

class Best:
    """The best weights of all seeds so far, on the disk."""

    def __init__(self, args, host, log, tokenizer, rows, classes):
        self.args, self.host, self.log, self.tokenizer = args, host, log, tokenizer
        self.rows, self.classes = rows, classes
        self.scores, self.outputs = None, None  # on the validation rows

    def rank(self, scores):
        """What scores are compared by: the metric and, where it is equal, the lower loss."""
        return scores[self.args.metric], -scores["loss"]

    def evaluate_and_keep(self, model, step, result):
        """Evaluate, and save the weights if they are better than all before. result: what this seed has
        reached, a dict that is brought up to date."""
        args = self.args
        scores, outputs = self.evaluate(model, "val")
        rows = self.rows["val"]
        logits, labels = torch.from_numpy(rows.flat(outputs)), torch.from_numpy(rows.flat(rows.labels))
        scores["loss"] = loss_sum(args.kind, logits, labels, None).item() / labels.numel()
        result["curve"].append((step, scores[args.metric]))
        result["since_best"] += 1
        better = not result["scores"] or self.rank(scores) > self.rank(result["scores"])
        if better:
            result.update(score=scores[args.metric], step=step, scores=scores, since_best=0)
            if "test" in self.rows:
                result["test"] = self.evaluate(model, "test")[0]
            if not self.scores or self.rank(scores) > self.rank(self.scores):
                self.save(model)
                self.scores, self.outputs = scores, outputs
        names = [args.metric] + [name for name in scores if name != args.metric][:3]
        text = ", ".join(f"{name} {scores[name]:.4f}" for name in names)
        self.log.write(f"step {step:6,} | validation {text}{' | best so far' * better}",
                       seed=result["seed"], step=step,
                       **{f"val_{name}": value for name, value in scores.items()})

    def evaluate(self, model, split):
        size = max(1, self.args.batch_size // self.args.accumulation)
        outputs = tasks.logits_of(model, self.rows[split], size, self.host)
        return self.rows[split].scores(outputs, self.classes), outputs

    def save(self, model):
        """A checkpoint; or, where the model has adapters, those with the name of their base."""
        def write(folder):
            if hasattr(model, "lora"):
                base = self.args.init_from
                lora.save(model, folder, os.path.abspath(base) if os.path.isdir(base) else base)
                with open(os.path.join(folder, runtime.BASE_CONFIG), "w", encoding="utf-8") as f:
                    json.dump(importlib.import_module(self.args.model).hf_config(model), f, indent=2)
            else:
                model.save_pretrained(folder)
            self.tokenizer.save(folder, self.args.max_length)  # predict.py cuts there, too
        self.log.checkpoint(write)

    def kept(self):
        return "nothing was saved" if not self.scores else (
            f"{self.args.out_dir} has the best weights so far (validation {self.args.metric} "
            f"{self.scores[self.args.metric]:.4f})")

# -----------------------------------------------------------------------------
# Training

def loss_sum(kind, logits, labels, weight):
    """The sum of the losses of a batch. logits (B, classes), for tokens (B, T, classes); labels (B,), for
    multilabel (B, classes), for tokens (B, T), -100 ignored; weight (classes,) or None."""
    logits = logits.float().flatten(0, -2)
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    if kind == "regression":
        return F.mse_loss(logits[:, 0], labels.float(), reduction="sum")
    return F.cross_entropy(logits, labels.flatten(), weight, ignore_index=-100, reduction="sum")


def train(args, model, rows, seed, best, log, host):
    """One seed -> what it reached, a dict. The best weights of all seeds are on the disk."""
    optimizers = make_optimizers(model, args)
    parallel = host.wrap(model)
    weight = torch.tensor(args.class_weights, device=host.device) if args.class_weights else None
    per_epoch = -(-len(rows) // args.batch_size)
    max_steps = runtime.run_length(args, per_epoch)
    eval_interval = args.eval_interval or per_epoch
    result = dict(seed=seed, scores=None, since_best=0, curve=[])

    step, line_step, history = 0, 0, []  # history: loss and gradient norm of each step since the last line
    start = line_time = time.perf_counter()
    paused = 0.0  # seconds of evaluating and saving
    while True:
        if step % per_epoch == 0:  # a new order of the rows
            rng = data.random_numbers(seed, data.ORDER, step // per_epoch)
            batches = tasks.batches_by_length(rows.lengths, args.batch_size, rng)
        # every process stops at the same step
        signals, elapsed = host.total(len(host.signals), (time.perf_counter() - start) / host.world)
        progress = runtime.share_done(step, elapsed, max_steps, args)
        if signals or progress >= 1 or args.patience and result["since_best"] >= args.patience:
            break

        # Forward and backward. The losses of the whole step are summed and divided once, whatever the
        # micro-batches and processes; DDP takes a mean over the processes, hence the factor. Where a last
        # batch leaves a process no rows, it computes one and takes it times zero.
        runtime.set_learning_rates(optimizers, progress, args)
        torch.manual_seed(data.dropout_seed(seed, step, host.rank))
        batch = batches[step % per_epoch]
        labels = rows.flat([rows.labels[i] for i in batch])
        # with class weights, the mean is over the rows' weights, as in F.cross_entropy
        divisor = np.take(args.class_weights, labels).sum() if args.class_weights else labels.size
        mine = batch[host.rank::host.world]
        mine, scale = (mine, host.world / divisor) if len(mine) else (batch[:1], 0.0)
        micro_batches = np.array_split(mine, min(args.accumulation, len(mine)))
        total = torch.zeros((), device=host.device)
        for i, micro in enumerate(micro_batches):
            inputs = host.to_device(rows.inputs(micro) | {"targets": rows.targets(micro)})
            targets = inputs.pop("targets")
            with host.sync(parallel, last=i == len(micro_batches) - 1):
                with host.autocast(inputs["input_ids"].shape[1]):
                    logits, _ = parallel(**inputs)
                loss = loss_sum(rows.kind, logits, targets, weight) * scale
                loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        history.append(torch.stack([total, norm]) / host.world)

        # now and then: a line, an evaluation. Only here does the CPU wait for the GPU.
        eval_due = step % eval_interval == 0 or step == max_steps
        if step % args.log_interval == 0 or eval_due or step == 1:
            mean_loss, norm = runtime.mean_of_steps(history, step, best.kept(), host)
            history = []
            now = time.perf_counter()
            step_seconds = (now - line_time) / (step - line_step)
            left = (max_steps - step) * step_seconds if max_steps else 60 * args.max_minutes - (now - start)
            lr, epoch = runtime.learning_rate(args.lr, progress, args), step / per_epoch
            log.write(f"step {step:6,} | epoch {epoch:5.2f} | loss {mean_loss:.4f} | lr {lr:.2e} | "
                      f"{args.batch_size / step_seconds:,.0f} rows/s | {runtime.clock(left)} left",
                      seed=seed, step=step, epoch=epoch, loss=mean_loss, lr=lr, grad_norm=norm,
                      rows_per_s=round(args.batch_size / step_seconds, 1), elapsed_s=round(now - start, 1))
            if eval_due and not args.dry_run:
                best.evaluate_and_keep(model, step, result)
            line_step, line_time = step, time.perf_counter()
            paused += line_time - now

    train_seconds = time.perf_counter() - start - paused
    runtime.mean_of_steps(history, step, best.kept(), host)  # weights that are not finite are not saved
    if step and not eval_due and not args.dry_run and not (signals and best.scores):
        # a budget ended between two evaluations, or a signal came before the first
        best.evaluate_and_keep(model, step, result)
    if signals:
        raise host.stopped(step, best.kept())
    if not step:
        raise ValueError(f"--max_minutes {args.max_minutes:g} is over before the first step")
    return result | dict(train_s=train_seconds, epochs=step / per_epoch,
                         ms_per_step=1000 * train_seconds / step, training_mb=training_mb(model, optimizers))


def training_mb(model, optimizers):
    """Of the gradients and the optimizers' state."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
    tensors += [p for p in model.parameters() if p.requires_grad]  # as large as their gradients
    return sum(tensor.nbytes for tensor in tensors) / 1e6


def finetune(args, host):
    """All seeds, from the flags to the last line."""
    host.say(f"{args.init_from}, {args.train}; {host.describe()}; {args.train_file or args.task}")
    task_data = open_task(args, host)  # which also settles args.kind, .metric, .epochs, .class_weights
    tokenizer = open_tokenizer(args, task_data.splits["train"].texts)
    if args.kind == "tokens" and isinstance(tokenizer, tokenizers.ByteLevelBPE):
        tokenizer.prefix_space = True  # as every word is encoded here, and in transformers by this setting
    model = open_model(args, tokenizer, task_data, args.seed, host)
    args.max_length = runtime.row_length(args.max_length, model.config)
    token_types = model.config.type_vocab_size > 1
    rows = {name: tasks.Rows(examples, args.kind, tokenizer, args.max_length, token_types)
            for name, examples in task_data.splits.items()}
    args.lr = args.lr or default_lr(args, model.config, len(rows["train"]))
    n_all = sum(p.numel() for p in model.parameters())
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # the last weights stay until the next ones are there
    rundir.check_disk("out_dir", args.out_dir, 8 * (n_trained if args.train == "lora" else n_all))
    describe(args, host, task_data, rows, n_all, n_trained)

    log = rundir.Log(args, host, replace=True)
    log.write(**vars(args), classes=task_data.classes, columns=task_data.splits["train"].columns,
              parameters=n_all, trained=n_trained,
              processes=host.world, machine=runtime.machine(host.device), torch=torch.__version__,
              rows={name: len(part) for name, part in rows.items()})
    best = Best(args, host, log, tokenizer, rows, task_data.classes)
    host.catch_signals()  # from now on Ctrl-C lets the step end, and the best weights stay
    results = []
    for seed in range(args.seed, args.seed + args.seeds):
        if args.seeds > 1:
            host.say(f"\nseed {seed}")
        if seed > args.seed:
            model = open_model(args, tokenizer, task_data, seed, host)
        results.append(train(args, model, rows["train"], seed, best, log, host))
        del model  # before the next one is made
    if not args.dry_run:
        summarize(args, host, results, best, n_all, n_trained)


def describe(args, host, task_data, rows, n_all, n_trained):
    host.say(f"{n_all / 1e6:.1f} M parameters, of which {n_trained:,} are trained, "
             f"{100 * n_trained / n_all:.2f}%")
    names = ", ".join(task_data.classes[:12]) + ", ..." * (len(task_data.classes) > 12)
    host.say(", ".join(f"{len(part):,} rows {name}" for name, part in rows.items())
             + f"; {args.kind}{' into ' * bool(names)}{names}")
    texts, labels = task_data.splits["train"].columns
    if texts:
        host.say(f"columns: {' and '.join(texts)}; {', '.join(labels)}")
    if args.kind == "tokens" and "O" not in task_data.classes:
        host.say("no tag is O, so token_f1 is the accuracy")
    for name, part in rows.items():
        if part.cut_words:
            host.say(f"{part.cut_words:,} words of {name} are beyond --max_length: not trained on, not "
                     "scored")
        elif part.cut_texts:
            host.say(f"{part.cut_texts:,} of {len(part):,} texts of {name} are cut at --max_length "
                     f"{args.max_length}")
    trained = set(map(str, task_data.splits["train"].texts))
    for name, examples in task_data.splits.items():
        again = sum(str(text) in trained for text in examples.texts)
        if name != "train" and again:
            host.say(f"{again:,} of {len(examples.texts):,} texts of {name} are in train, too")
    length = f"{args.epochs:g} epochs, " if args.epochs else ""
    host.say(f"{length}steps of {args.batch_size} rows, learning rate {args.lr:.1e}")
    if args.kind == "regression":
        mse = np.mean((np.array(rows["val"].labels) - np.mean(rows["train"].labels)) ** 2)
        host.say(f"always the mean of the training targets: validation mse {mse:.4f}")
    if args.kind == "multilabel":
        counts = np.sort(rows["val"].flat(rows["val"].labels).sum(0))[::-1]
        f1 = 2 * counts.cumsum() / (len(rows["val"]) * np.arange(1, len(counts) + 1) + counts.sum())
        host.say(f"always the same labels, the most frequent ones: validation micro_f1 {f1.max():.4f}")
    elif task_data.classes:
        if args.metric == "f1":
            host.say(f"f1 is that of the class {task_data.classes[1]}")
        counts = np.bincount(rows["val"].flat(rows["val"].labels))
        host.say(f"always the most frequent class: validation accuracy {counts.max() / counts.sum():.4f}")


def summarize(args, host, results, best, n_all, n_trained):
    """The closing lines: mean and deviation over the seeds, and the best seed in detail."""
    metric, values = args.metric, np.array([result["score"] for result in results])
    several = len(values) > 1
    deviation = values.std(ddof=int(several))  # of one value 0
    winner = max(results, key=lambda result: best.rank(result["scores"]))
    file = "adapter_model.safetensors" if args.train == "lora" else "model.safetensors"
    size = os.path.getsize(os.path.join(args.out_dir, file)) / 1e6 if host.rank == 0 else 0
    s_per_epoch = sum(result["train_s"] for result in results) / sum(result["epochs"] for result in results)
    peak, training_mb = peak_memory(host.device) / 1e6, results[0]["training_mb"]
    best.log.write(final=True, metric=metric, mean=float(values.mean()), std=float(deviation),
                   seeds=results, trained=n_trained, parameters=n_all, s_per_epoch=s_per_epoch,
                   ms_per_step=float(np.mean([result["ms_per_step"] for result in results])),
                   peak_memory_mb=peak, training_mb=training_mb, disk_mb=size)
    if best.log.writes:
        rundir.write_card(args.out_dir)
    host.say(f"\nbest validation {metric} {values.mean():.4f}" + (
        f" ± {deviation:.4f} over {len(values)} seeds" if several else f", at step {winner['step']:,}"))
    if "test" in winner:
        tests = np.array([result["test"][metric] for result in results])
        host.say(f"test {metric} {tests.mean():.4f}" + f" ± {tests.std(ddof=int(several)):.4f}" * several)
    host.say("  " + ", ".join(f"{name} {value:.4f}" for name, value in winner["scores"].items()))
    if host.rank == 0:
        tasks.report(best.rows["val"], best.outputs, best.classes)
    if args.kind == "multilabel":
        threshold, f1 = tasks.best_threshold(best.rows["val"], best.outputs)
        host.say(f"  on the validation rows predict.py --threshold {threshold} is best: micro_f1 {f1:.4f}")
    host.say(f"  {s_per_epoch:.1f} s an epoch; {peak:,.0f} MB at the peak, {training_mb:.1f} of them "
             f"gradients and optimizer; {file} {size:.2f} MB")
    host.say(f"\nnext: python predict.py --checkpoint {shlex.quote(args.out_dir)} \"...\"")


def peak_memory(device):
    """The most bytes that this process held: on the GPU, or resident on the CPU (NaN on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return math.nan
    import resource  # POSIX only
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv=None):
    with runtime.one_line_errors("finetune.py"):
        args = parse_arguments(argv)
        with runtime.Host(args) as host:
            finetune(args, host)


if __name__ == "__main__":
    main()
