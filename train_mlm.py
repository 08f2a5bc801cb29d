"""
Pretrain RoBERTa, BERT or ALBERT: masked language model, and for BERT and ALBERT the sentence task.

    python train_mlm.py --model roberta                                       # from scratch, on any machine
    python train_mlm.py --model bert --data a.txt b.txt --max_steps 20000     # on your own text
    python train_mlm.py --init_from resume --out_dir out/roberta              # go on where a run stopped
    python train_mlm.py --init_from roberta-base --data medical.txt           # go on from a checkpoint
    torchrun --nproc_per_node 8 train_mlm.py --preset roberta-base --data wikitext103

out_dir becomes a Hugging Face checkpoint, with log.jsonl and what resuming needs beside it. Start
reading at train(), near the end; the functions above it stand in about the order in which it calls them.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import shlex
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import runtime  # before torch: it sets how torch's threads wait

import numpy as np
import torch

import data
import init
import rundir
import tokenizer as tokenizers
from muon import Muon, split_parameters

# What a run is when no flag says otherwise. The CPU's is over in minutes on two cores.
RECIPES = {
    # measured, part by part: results/speedrun.md
    "fast": dict(optimizer="muon", softmax="sampled", batch_size=64, mask_prob=0.25, dropout=0.0,
                 schedule="constant", decay=0.4, unigram_bias=True, word_vectors=True,
                 sinusoids=True, neighbours=True),
    # after Devlin et al. 2018, appendix A.2; Liu et al. 2019, table 9; Lan et al. 2019, section 4.1
    "paper": dict(optimizer="adamw", softmax="full", batch_size=32, mask_prob=0.15, dropout=None,
                  schedule="linear", decay=0.2, unigram_bias=False, word_vectors=False,
                  sinusoids=False, neighbours=False),
}
DEFAULTS = {
    "cpu": dict(seq_length=64, max_minutes=4.0, log_interval=100, eval_interval=250, save_interval=1000,
                compile=False),
    "cuda": dict(seq_length=128, batch_size=256, max_minutes=10.0, softmax="full", log_interval=50,
                 eval_interval=1000, save_interval=5000, compile=True),
}
LENGTHS = ("max_steps", "epochs", "max_minutes")  # a run has one of these
FRESH = ("unigram_bias", "word_vectors", "sinusoids", "neighbours")  # flags of runs from scratch only
# what a resumed run may not change
FIXED = ("model", "preset", "layers", "positions", "recipe", "optimizer", *FRESH, "dropout", "seed",
         "batch_size", "seq_length", "masking")
EVAL_SEED = 0  # validation masks are the same in every run


def parser():
    p = runtime.Parser(__doc__)
    add = p.add_argument_group("model").add_argument
    add("--model", choices=runtime.MODELS, help="default: roberta, or what the checkpoint is")
    add("--preset", help=f"a size: {runtime.preset_names()}; default: MODEL-laptop, on CUDA roberta-18m, "
        "bert-10m or albert-8m")
    add("--init_from", default="scratch", help="scratch, resume, or a checkpoint directory or hub name")
    add("--layers", type=runtime.positive_int, help="from scratch; default: the preset's")
    add("--positions", type=runtime.number(int, lambda n: 0 < n <= 10**6, "between 1 and 1,000,000"),
        help="tokens of the longest row that the model takes; default: --seq_length, as a position beyond is "
        "not trained")
    add("--dropout", type=runtime.probability,
        help="of this run; the checkpoint keeps the model's own. Default: 0, with --recipe paper the model's "
        "own")
    add = p.add_argument_group("recipe").add_argument
    paper = ", ".join(f"--no-{name}" if value is False else f"--{name} {value}"
                      for name, value in RECIPES["paper"].items() if value is not None)
    add("--recipe", choices=RECIPES, help=f"fast, with the defaults below, or paper: {paper}; default: fast "
        "from scratch, paper from a checkpoint")
    add("--optimizer", choices=("muon", "adamw"), help="muon: for the matrices between embeddings "
        "and outputs, AdamW for the rest")
    add("--softmax", choices=("sampled", "full"), help="sampled: training loss and accuracy are over only "
        "the ids that the step predicts; full: over all, as validation always is; default: sampled, on CUDA "
        "full")
    add("--unigram_bias", action=argparse.BooleanOptionalAction,
        help="start the output bias at the tokens' log-frequencies, and so the loss at the unigram line")
    add("--word_vectors", action=argparse.BooleanOptionalAction,
        help="start the word embeddings alike for tokens that have the same neighbours in the text")
    add("--sinusoids", action=argparse.BooleanOptionalAction,
        help="start the position embeddings as sinusoids")
    add("--neighbours", action=argparse.BooleanOptionalAction,
        help="start half of the heads looking at a neighbour: one token back, one ahead, ...; with sinusoids")
    add = p.add_argument_group("data").add_argument
    add("--data", nargs="+", default=["pydoc"], help="files and folders, or one of pydoc, wikitext2, "
        "wikitext103, owner/name[:config]")
    add("--val_data", nargs="+", help="validation text; default: a twentieth of the data is held out")
    add("--text_field", default="text", help="of .jsonl, .csv, .tsv, .parquet and hub data")
    add("--tokenizer", help="a kind to train (bpe, wordpiece, unigram), or a directory or hub name; "
        "default: the kind that the model was published with")
    add("--vocab_size", type=runtime.positive_int, default=8192, help="of a tokenizer trained here")
    add("--cache_dir", default="cache", help="for token files")
    add = p.add_argument_group("masking").add_argument
    add("--seq_length", type=runtime.positive_int, help="tokens in a row; default: 64, on CUDA 128")
    add("--mask_prob", type=runtime.fraction, help="share of the tokens to predict; validation has 0.15")
    add("--sentence_weight", type=runtime.not_negative, default=1.0, help="of the NSP or SOP loss")
    add("--masking", default="dynamic", choices=("dynamic", "static"), help="static: the same every epoch")
    add("--mask_unit", default="token", choices=("token", "word", "ngram"),
        help="word: all the tokens of a word; ngram: of one to three words")
    runtime.add_training_flags(
        p, beta2=0.98, eps=1e-6, length="4 minutes, 10 on CUDA; of a resumed run always that of the whole",
        batch_size="; default: 64, with --recipe paper 32, on CUDA 256")
    add = runtime.add_machine_flags(p)
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; default: on CUDA")
    add = p.add_argument_group("output").add_argument
    add("--out_dir", help="default: out/MODEL")
    add("--log_interval", type=runtime.positive_int, help="steps; default: 100, on CUDA 50")
    add("--eval_interval", type=runtime.positive_int, help="steps; default: 250, on CUDA 1000")
    add("--save_interval", type=runtime.positive_int, help="steps; default: 1000, on CUDA 5000")
    add("--eval_rows", type=runtime.not_negative_int, default=1024,
        help="validation rows, evenly spaced; 0: all")
    runtime.add_output_flags(add)
    p.set_defaults(**RECIPES["fast"])  # what --help shows
    return p

# -----------------------------------------------------------------------------
# Setting up: whatever can be wrong with the input is found here, before anything is written

def parse_arguments(argv):
    """-> args; and the state of the run to resume, or None."""
    p = parser()
    args, state = p.parse_args(argv), None
    if args.init_from == "resume":
        args, state = resumed_arguments(p, argv, args.out_dir or f"out/{args.model or 'roberta'}")
    else:
        set_defaults(p, args)
        args = p.parse_args(argv)  # again: the defaults depend on some of the flags
        args.command = runtime.command("train_mlm.py", argv)
    args.device = runtime.choose_device(args.device)
    args.out_dir = args.out_dir or f"out/{args.model}"
    module = importlib.import_module(args.model)
    if args.init_from == "scratch":
        args.preset = args.preset or module.DEFAULT_PRESET[args.device.partition(":")[0]]
        runtime.sizes(module, args.preset)  # of that name, or an error
    elif given := p.given(args, ("preset", "layers", "positions", *FRESH)):
        raise ValueError(f"{', '.join(given)}: a checkpoint has its own size and weights")
    if p.given(args, ["vocab_size"]) and (
            args.init_from != "scratch" or args.tokenizer and args.tokenizer not in tokenizers.KINDS):
        raise ValueError("--vocab_size: only a tokenizer that is trained here takes it")
    if args.sentence_weight != 1 and not module.SENTENCE_TASK:
        raise ValueError(f"--sentence_weight: {args.model} has no sentence task")
    if args.neighbours and not args.sinusoids:
        raise ValueError("--neighbours: heads find a neighbour by --sinusoids; give both, or --no-neighbours")
    for val, name in itertools.product(args.val_data or (), args.data):
        if os.path.exists(val) and Path(val).resolve().is_relative_to(Path(name).resolve()):
            raise ValueError(f"--val_data {val} is in --data {name}, and would be trained on")
        if os.path.exists(name) and Path(name).resolve().is_relative_to(Path(val).resolve()):
            raise ValueError(f"--data {name} is in --val_data {val}, and would be validation text, too")
    rundir.check_sources(args.out_dir, data=args.data, val_data=args.val_data)
    rundir.check_disk("cache_dir", args.cache_dir)
    if state is None and not args.dry_run:
        rundir.check_out_dir("out_dir", args.out_dir, args.init_from, args.overwrite)
    return args, state


def set_defaults(p, args):
    """Of a new run, by its recipe, its checkpoint and its device."""
    scratch = args.init_from == "scratch"
    recipe = args.recipe or ("fast" if scratch else "paper")
    model = "roberta" if scratch else runtime.read_config(args.init_from)["model_type"]
    device_type = runtime.choose_device(args.device).partition(":")[0]
    p.set_defaults(**{"recipe": recipe, "model": model} | RECIPES[recipe] | DEFAULTS[device_type])
    if any(getattr(args, name) for name in LENGTHS):
        p.set_defaults(max_minutes=None)
    if not scratch:
        p.set_defaults(**dict.fromkeys(FRESH, False))


def resumed_arguments(p, argv, out_dir):
    """What is not on the command line comes from the run in out_dir -> args, the state of that run."""
    state = load_state(out_dir)
    before = state["args"] | {"out_dir": out_dir}  # it may have moved
    p.set_defaults(**{name: value for name, value in before.items() if name not in LENGTHS})
    args = p.parse_args(argv)
    args.init_from = before["init_from"]
    if all(getattr(args, name) is None for name in LENGTHS):
        vars(args).update({name: before[name] for name in LENGTHS})
    if unknown := set(vars(args)) - set(before):
        raise ValueError(f"{out_dir} holds a run of an older version, without --{min(unknown)}")
    changed = [name for name, value in vars(args).items() if value != before[name]]
    for name in FIXED:
        if name in changed:
            raise ValueError(f"{out_dir} holds a run with --{name} {before[name]}, and "
                             f"{getattr(args, name)} does not go on with it")
    if changed:  # else the command only went on
        args.command += f" && python {runtime.command('train_mlm.py', argv)}"
    return args, state


def load_state(out_dir):
    """The dict that save() wrote, with its file; where that is damaged, the one of the save before."""
    rundir.check_unlocked(out_dir)
    newest, previous = (os.path.join(out_dir, name) for name in ("resume.pt", rundir.PREVIOUS))
    if not os.path.exists(newest):
        raise ValueError(f"{out_dir} holds no run to resume: there is no {newest}")
    try:
        return read_state(newest)
    except ValueError as error:
        if not os.path.exists(previous):
            raise
        print(f"{error}; going on from the save before it", file=sys.stderr)
    return read_state(previous)


def read_state(file):
    try:
        with zipfile.ZipFile(file) as content:  # torch.load() does not compare the checksums
            if damaged := content.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not {"args", "config", "model", "optimizers", "step"} <= set(state):
            raise ValueError("not what this script writes")
        return state | {"file": file}
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # damage raises errors of every kind
        raise ValueError(f"{file} is damaged: {runtime.first_line(error)}") from error


def open_tokenizer(args, state):
    """-> a Tokenizer, or the kind of it to train. A checkpoint goes on with its own."""
    name = args.tokenizer or importlib.import_module(args.model).TOKENIZER
    if args.init_from == "scratch":
        return name if name in tokenizers.KINDS else tokenizers.load(name)
    own = tokenizers.load(args.out_dir if state else args.init_from)
    if args.tokenizer and (name in tokenizers.KINDS or tokenizers.load(name).hash() != own.hash()):
        raise ValueError(f"--tokenizer {name} is not the tokenizer of {args.init_from}; leave it out")
    return own


def open_data(args, state, host):
    """The token files, from the cache or made now -> {"train", "val": data.Tokens}, their tokenizer."""
    def prepare():
        tokenizer = open_tokenizer(args, state)
        corpus = data.open_corpus(args.data, args.text_field)
        val_corpus = data.open_corpus(args.val_data, args.text_field) if args.val_data else None
        if val_corpus and val_corpus.fingerprint == corpus.fingerprint and not val_corpus.validation:
            raise ValueError(f"the text of --val_data {val_corpus.name} is the training text")
        return data.prepare(corpus, val_corpus, tokenizer, args.vocab_size, args.cache_dir)
    folder = host.once_per_machine(prepare)
    splits, tokenizer = data.load(folder)
    host.say(f"{folder}: {len(splits['train'].tokens):,} training tokens, {len(splits['val'].tokens):,} for "
             f"validation, of {tokenizer.vocab_size:,} ids")
    args.fingerprint = folder.rpartition("-")[2]  # a hash of all that the files in it depend on
    if state and state["args"].get("fingerprint") != args.fingerprint:
        raise ValueError(f"{args.out_dir} was trained on other text, or with another tokenizer, than the "
                         "flags give now")
    return splits, tokenizer


def open_rows(args, state, host):
    """-> data.Rows of the training and of the validation text."""
    if args.batch_size % (args.accumulation * host.world):
        raise ValueError(f"--batch_size {args.batch_size} does not divide into {args.accumulation} "
                         f"micro-batches on each of {host.world} processes")
    splits, tokenizer = open_data(args, state, host)
    task = importlib.import_module(args.model).SENTENCE_TASK
    rows = data.Rows(splits["train"], tokenizer, args.seq_length, task, args.seed, args.masking == "static")
    try:
        val_rows = data.Rows(splits["val"], tokenizer, args.seq_length, task, EVAL_SEED)
    except ValueError as error:
        raise ValueError(f"validation: {error}; give more by --val_data, or lower --seq_length") from error
    if len(rows) < args.batch_size:
        raise ValueError(f"the data fill {len(rows)} rows of {args.seq_length} tokens, less than one batch "
                         f"of {args.batch_size}")
    if task == "nsp":
        problem = "has too few documents to pair sentences of different ones"
        if rows.sentence_labels().mean() < 0.3:
            raise ValueError(f"{' '.join(args.data)} {problem}, as BERT's second task does; put blank lines "
                             "between documents, or take RoBERTa")
        if val_rows.sentence_labels().mean() < 0.3:
            host.say(f"the validation text {problem}: its nsp accuracy says little")
    if task == "sop":
        share = np.mean(rows.sentence_labels() != -100)
        if not share:
            raise ValueError(f"no row of {args.seq_length} tokens has two whole sentences of a document for "
                             "ALBERT's second task to put in order; raise --seq_length, or take RoBERTa")
        host.say(f"{100 * share:.0f}% of the rows have two whole sentences of a document to put in order; "
                 "the others have no sentence task")
    return rows, val_rows


def open_model(args, state, rows):
    """The model, on the CPU. Every process, and every run with this seed, starts from the same weights."""
    torch.manual_seed(args.seed)
    module, tokenizer = importlib.import_module(args.model), rows.tokenizer
    if state:
        model = runtime.set_dropout(module.ForPreTraining(module.Config(**state["config"])), args.dropout)
        model.load_state_dict(state.pop("model"))  # else it would stay in memory until the end
    else:
        options = {}
        if args.init_from == "scratch":
            # RoBERTa's first position is the one after the padding id
            default = module.Config(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
            unused = default.max_position_embeddings - default.longest_row
            options["max_position_embeddings"] = (args.positions or args.seq_length) + unused
        model = runtime.build_model(module, "ForPreTraining", args, tokenizer, **options)
        if args.unigram_bias:
            init.unigram_bias(model, rows.unigram_probs)
        if args.word_vectors:
            init.word_vectors(model, rows.split.tokens)
        if args.sinusoids:
            init.sinusoids(model)
        if args.neighbours:
            init.neighbours(model)
    if args.seq_length > model.config.longest_row:
        raise ValueError(f"--seq_length {args.seq_length} is more than the model's "
                         f"{model.config.longest_row} positions")
    # A parameter takes 12 bytes in resume.pt (itself and AdamW's two averages) and 4 in model.safetensors;
    # the last ones stay until the next are there, and resume.pt one save longer.
    rundir.check_disk("out_dir", args.out_dir, 44 * sum(p.numel() for p in model.parameters()))
    return model


def default_lr(args, config):
    """With post-LN, too high a rate leaves the loss at the unigram line. Wider models need a lower one; with
    AdamW so do deeper ones. A checkpoint needs a lower one, too, or it forgets what it knows."""
    scratch = args.init_from == "scratch"
    if args.optimizer == "muon":
        return (4e-3 if config.hidden_size <= 512 else 1e-3) / (1 if scratch else 4)
    if not scratch:
        return 5e-5 * 768 / config.hidden_size
    if config.num_hidden_layers == 1:
        return 1.2e-3 if hasattr(config, "embedding_size") else 2e-3  # factorised embeddings take less
    return 5e-4 if config.hidden_size <= 512 else 1e-4


def validation_batches(args, rows, host):
    """-> the batches of --eval_rows rows"""
    chosen = np.linspace(0, len(rows) - 1, min(args.eval_rows or len(rows), len(rows))).astype(int)
    micro = args.batch_size // (args.accumulation * host.world)
    batches = [rows.batch(chosen[i:i + micro]) for i in range(0, len(chosen), micro)]
    if not count_targets(*batches)[0]:
        raise ValueError("the validation text has no token to predict: the tokenizer knows none of its words")
    return batches


def make_optimizers(model, args):
    """A list of optimizers: Muon for the matrices between embeddings and outputs, AdamW for the rest; or
    AdamW for all. Every group keeps the rate that it has here as the peak of its schedule."""
    matrices, others = split_parameters(model) if args.optimizer == "muon" else ([], list(model.parameters()))
    groups = [dict(params=[p for p in others if p.dim() >= 2], weight_decay=args.weight_decay),
              dict(params=[p for p in others if p.dim() < 2], weight_decay=0.0)]  # biases and LayerNorms
    adamw = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, fused=True)
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, lr=args.lr, momentum=args.beta1, weight_decay=args.weight_decay,
                        dtype=getattr(torch, args.dtype))]


def restore(optimizers, state, host):
    """Put the saved moments into fresh optimizers; rates and other settings are those of the flags now.
    -> the step, the seconds trained, and the figures of each step since the last line of the log."""
    if not state:
        return 0, 0.0, []
    moments = state.pop("optimizers")  # else both would stay in memory until the end
    sizes = lambda states: [[len(group["params"]) for group in each["param_groups"]] for each in states]
    if sizes(optimizer.state_dict() for optimizer in optimizers) != sizes(moments):
        raise ValueError("the run to resume had other optimizers than make_optimizers makes now")
    for optimizer, saved in zip(optimizers, moments):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": saved["state"]})
    if len(set(host.gather([state["step"]]))) > 1:
        raise ValueError("the processes have read different checkpoints")
    # of the history every process takes its share, as the sum over them was saved
    return state["step"], state["elapsed"], list(state["history"].to(host.device) / host.world)


def compile_and_wrap(model, rows, val_batches, step, elapsed, max_steps, args, host):
    """torch.compile and DistributedDataParallel. Compiling takes minutes: it is done here, before the clock
    starts and before an old run is overwritten; with two batches, as with a sampled softmax their sizes
    differ, and torch.compile then makes that size dynamic."""
    if args.compile:
        host.say("compiling ...")
        model.compile()  # in place: the names of the parameters stay
    parallel = host.wrap(model)
    if not args.compile:
        return parallel
    for i in (step, step + 1):
        batch = read_batches(rows, i, elapsed, max_steps, args, host)[0]
        with host.autocast(args.seq_length):
            _, parts = parallel(**host.to_device(batch))
        weighted(parts, *count_targets(batch)).sum().backward()
        model.zero_grad()
    evaluate(model, val_batches, host)  # compiles, too: no gradients, other masks, a shorter last batch
    return parallel

# -----------------------------------------------------------------------------
# What a step is made of

def mask_rate(args, progress):
    """The share of the tokens to predict. To vary it over the run, use progress, from 0 to 1."""
    return args.mask_prob


def read_batches(rows, step, elapsed, max_steps, args, host):
    """This process's micro-batches of one step: what a model's forward takes, as arrays."""
    rate = mask_rate(args, runtime.share_done(step, elapsed, max_steps, args))
    numbers = step * args.batch_size + np.arange(args.batch_size)
    size, sample = args.batch_size // host.world, {}
    micro, mine = size // args.accumulation, slice(host.rank * size, (host.rank + 1) * size)
    if args.softmax == "full":
        batch = rows.batch(numbers[mine], rate, args.mask_unit)
    else:  # sampled from the labels of all processes, so that all have the same
        batch = rows.batch(numbers, rate, args.mask_unit)
        if (batch["labels"] != -100).any():
            sample["candidates"], sample["corrections"], batch["labels"] = data.sampled_softmax(
                batch["labels"], rows.unigram_probs)
        batch = {name: array[mine] for name, array in batch.items()}
    return [{name: array[i:i + micro] for name, array in batch.items()} | sample
            for i in range(0, size, micro)]


def count_targets(*batches):
    """Tokens to predict, and pairs of sentences to judge."""
    return [sum(int((batch[name] != -100).sum()) for batch in batches if name in batch)
            for name in ("labels", "sentence_labels")]


def weighted(parts, mlm_weight, sentence_weight):
    """The four means of a batch (MLM loss, masked accuracy, sentence loss, sentence accuracy), each times a
    weight -> a tensor. Weighted by the batch's targets and pairs they are sums; weighted by its share of the
    step's they add up to the step's means."""
    names = ("mlm_loss", "mlm_accuracy", "sentence_loss", "sentence_accuracy")
    means = [parts.get(name, torch.zeros_like(parts["mlm_loss"])).float() for name in names]
    # A mean over no target is NaN. It becomes 0 but stays in the graph: DDP waits for all gradients.
    return torch.stack([mean * weight if weight else 0 * mean.nan_to_num()
                        for mean, weight in zip(means, [mlm_weight] * 2 + [sentence_weight] * 2)])


@torch.no_grad()
def evaluate(model, batches, host):
    """-> the four of weighted() for the validation batches: means over all targets, NaN over none."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=host.device)
    for batch in batches[host.rank::host.world]:
        with host.autocast(batch["input_ids"].shape[1]):
            _, parts = model(**host.to_device(batch))
        sums += weighted(parts, *count_targets(batch))
    model.train()
    n_targets, n_pairs = count_targets(*batches)
    counts = torch.tensor([n_targets, n_targets, n_pairs, n_pairs], device=host.device)
    return (host.sum(sums) / counts).tolist()

# -----------------------------------------------------------------------------
# What a run leaves and says

def open_log(args, state, host):
    """-> rundir.Log. A run to resume goes on with its own, without what came after the step it saved."""
    log = rundir.Log(args, host, replace=not state and bool(rundir.outputs_in(args.out_dir)))
    if log.writes and state:
        lines = rundir.read_log(args.out_dir)
        os.replace(state["file"], os.path.join(args.out_dir, "resume.pt"))  # if that was damaged
        def write(folder):
            with open(os.path.join(folder, "log.jsonl"), "w", encoding="utf-8") as f:
                f.writelines(json.dumps(line) + "\n" for line in lines
                             if "final" not in line and line.get("step", 0) <= state["step"]
                             and line.get("resumed_at", -1) < state["step"])  # else it ended before a save
        log.checkpoint(write)
        rundir.remove_outputs(args.out_dir, ["README.md"])  # with old figures
    return log


def save(args, host, log, model, tokenizer, optimizers, step, elapsed, history):
    """The checkpoint, and in resume.pt all that resuming needs: one file, so that the folder never mixes two
    steps."""
    history = host.sum(torch.stack(history)).cpu() if history else torch.zeros(0, 6)
    def write(folder):
        resume = os.path.join(args.out_dir, "resume.pt")
        if not log.replace:
            with suppress(OSError):  # there is none yet, or the file system has no hard links
                os.link(resume, os.path.join(folder, rundir.PREVIOUS))
        torch.save({"args": vars(args), "config": asdict(model.config), "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "step": step, "elapsed": elapsed, "history": history}, os.path.join(folder, "resume.pt"))
        model.save_pretrained(folder)
        tokenizer.save(folder, model.config.longest_row)
    log.checkpoint(write)


class Report:
    """The lines of a run: the same numbers on the screen and in log.jsonl."""

    def __init__(self, args, state, host, log, model, rows, val_rows, max_steps, step, elapsed):
        self.args, self.log, self.val, self.unigram = args, log, val_rows.split, data.unigram_nats(val_rows)
        self.task, self.max_steps, self.step_tokens = rows.task, max_steps, args.batch_size * args.seq_length
        self.last_step, self.last_time = step, elapsed  # of the last line
        parameters = sum(p.numel() for p in model.parameters())
        if state:
            host.say(f"resuming {args.out_dir} at step {step:,}")
            if runtime.share_done(step, elapsed, max_steps, args) >= 1:
                host.say("its length is reached, and only the last evaluation left; a greater --max_steps, "
                         "--epochs or --max_minutes goes on")
            log.write(resumed_at=step, **vars(args))  # some may have changed
        else:
            log.write(**vars(args), unigram_nats=self.unigram, parameters=parameters, processes=host.world,
                      machine=runtime.machine(host.device), torch=torch.__version__, numpy=np.__version__,
                      python=sys.version.split()[0])
        length = f"{max_steps:,} steps" if max_steps else f"{args.max_minutes:g} minutes"
        host.say(f"{parameters / 1e6:.1f} M parameters; {length}; steps of {args.batch_size} rows of "
                 f"{args.seq_length} tokens, {len(rows):,} rows an epoch\nunigram entropy of the validation "
                 f"targets: {self.unigram:.3f} nats. Copying the one in ten that stays visible gets a "
                 "loss somewhat below it, context further.")
        if args.softmax == "sampled":
            host.say("The training loss is over a sample of the vocabulary, and so it is lower than that of "
                     "validation.")
        self.top_speed = None  # tokens/s at the peak of the GPUs, where that can be said
        on_gpu = host.device.type == "cuda"
        peak = on_gpu and runtime.peak_flops(runtime.machine(host.device))
        if peak and args.dtype == "bfloat16" and args.softmax == "full":
            masked = max(1, round(args.mask_prob * rows.width))
            flops = runtime.flops_of_a_row(model.config, args.seq_length, masked, bool(rows.task))
            self.top_speed = host.world * peak * args.seq_length / flops

    def training(self, step, means, progress, elapsed):
        """means over the steps since the last line; elapsed in seconds."""
        loss, accuracy, sentence_loss, sentence_accuracy, norm, with_pairs = means
        lr, tokens = runtime.learning_rate(self.args.lr, progress, self.args), step * self.step_tokens
        step_seconds = (elapsed - self.last_time) / (step - self.last_step)
        speed, self.last_step, self.last_time = self.step_tokens / step_seconds, step, elapsed
        line = dict(step=step, tokens=tokens, loss=loss, masked_accuracy=accuracy, lr=lr, grad_norm=norm,
                    tokens_per_s=round(speed), elapsed_s=round(elapsed, 1))
        text = f"step {step:6,} | {tokens / 1e6:6.2f} M tokens | loss {loss:.3f} | masked acc {accuracy:.3f}"
        if with_pairs:  # the share of the steps that had a pair of sentences
            sentence_loss, sentence_accuracy = sentence_loss / with_pairs, sentence_accuracy / with_pairs
            line |= dict(sentence_loss=sentence_loss, sentence_accuracy=sentence_accuracy)
            text += f" | {self.task} acc {sentence_accuracy:.3f}"
        text += f" | lr {lr:.2e} | norm {norm:5.2f} | {speed:,.0f} tok/s"
        if self.top_speed:
            text += f" | mfu {100 * speed / self.top_speed:.1f}%"
        left = (self.max_steps - step) * step_seconds if self.max_steps else (
            60 * self.args.max_minutes - elapsed)
        self.log.write(f"{text} | {runtime.clock(left)} left", **line)

    def validation(self, step, means, elapsed, final=False):
        """final: at the end, with the loss per byte, too, which depends less on the tokenizer."""
        loss, accuracy, _, sentence_accuracy = means
        if final and not math.isfinite(loss):
            raise runtime.Stop(f"the validation loss is not finite; {self.args.out_dir} holds the weights", 2)
        line = dict(step=step, tokens=step * self.step_tokens, val_loss=loss, val_masked_accuracy=accuracy,
                    elapsed_s=round(elapsed, 1))
        gap, side = abs(self.unigram - loss), "under" if loss <= self.unigram else "above"
        text = (f"validation loss {loss:.3f} nats, {gap:.3f} {side} the unigram line, "
                f"masked acc {accuracy:.3f}")
        if not math.isnan(sentence_accuracy):
            line["val_sentence_accuracy"] = sentence_accuracy
            text += f", {self.task} acc {sentence_accuracy:.3f}"
        if not final:
            return self.log.write(f"step {step:6,} | {text}", **line)
        # of the tokens those that are predicted: not the [SEP] after each document, which has no bytes
        predicted = len(self.val.tokens) - len(self.val.documents)
        line |= dict(perplexity=math.exp(min(loss, 700.0)), nats_per_byte=loss * predicted / self.val.bytes)
        self.log.write(f"\nfinal, after {step:,} steps, {line['tokens'] / 1e6:.2f} M tokens and "
                       f"{runtime.clock(elapsed)}:\n  {text}\n  perplexity {line['perplexity']:.2f}, "
                       f"{line['nats_per_byte']:.3f} nats per byte", final=True, **line)


@torch.no_grad()
def show_fills(args, model, rows, host):
    """Print eight masks from validation text, each alone in its row, what the model puts there, and how to
    try others."""
    print("\neight masks in held-out text, [truth] in place, and the model's three best:")
    tokenizer = rows.tokenizer
    batch = rows.batch(np.linspace(0, len(rows) - 1, 8).astype(int), mask_prob=0)  # one target a row
    batch = {name: array[batch["labels"][:, 0] != -100] for name, array in batch.items()}
    ids, truths, positions = batch["input_ids"], batch.pop("labels"), batch["positions"]
    np.put_along_axis(ids, positions, tokenizer.mask_id, 1)  # not a random token, nor the truth
    logits, _ = model.eval().forward(**host.to_device(batch))  # model(...) would compile for these shapes
    p, best = logits[:, 0].float().softmax(-1)[:, :tokenizer.vocab_size].topk(3)
    for row, [at], [truth], row_p, row_best in zip(ids, positions, truths, p.tolist(), best.tolist()):
        before = tokenizer.decode(row[max(1, at - 12):at].tolist())
        after = tokenizer.decode(row[at + 1:at + 9].tolist()).strip()
        word, verdict = tokenizer.decode([truth]).strip(), "right" if row_best[0] == truth else "wrong"
        guesses = ", ".join(f"{tokenizer.decode([i])!r} {x:.2f}" for i, x in zip(row_best, row_p))
        print(f"  {verdict}  ...{before} [{word}] {after}...\n         {guesses}")
    if not args.dry_run:
        pydoc = args.data == ["pydoc"]
        text = "The function returns a {} of integers." if pydoc else "The capital of France is {}."
        print(f"\nnext: python predict.py --checkpoint {shlex.quote(args.out_dir)} "
              f"\"{text.format(tokenizer.special_tokens['mask'])}\"")

# -----------------------------------------------------------------------------
# Training

def train(args, state, host):
    """state: of the run to resume, or None."""
    origin = f"{args.preset} from scratch" if args.init_from == "scratch" else f"from {args.init_from}"
    host.say(f"{args.model}, {origin}; {host.describe()}; text: {' '.join(args.data)}")
    rows, val_rows = open_rows(args, state, host)
    model = open_model(args, state, rows).to(host.device)
    args.lr = args.lr or default_lr(args, model.config)
    val_batches = validation_batches(args, val_rows, host)
    optimizers = make_optimizers(model, args)
    step, elapsed, history = restore(optimizers, state, host)
    max_steps = runtime.run_length(args, rows.epoch_length / rows.width / args.batch_size, step)
    parallel = compile_and_wrap(model, rows, val_batches, step, elapsed, max_steps, args, host)
    log = open_log(args, state, host)
    report = Report(args, state, host, log, model, rows, val_rows, max_steps, step, elapsed)
    if args.init_from != "scratch" and not state:  # what the checkpoint knows of this text already
        report.validation(0, evaluate(model, val_batches, host), elapsed)

    host.catch_signals()  # from now on Ctrl-C lets the step end and saves
    start = time.perf_counter() - elapsed  # this clock is never set, and stands while a laptop sleeps
    kept = f"what was saved at step {step} is kept" if step else "nothing had been saved"
    # Reads the batches of the next step while this one computes. None is lost: a resume reads them again.
    reader = ThreadPoolExecutor(1)
    upcoming = reader.submit(read_batches, rows, step, elapsed, max_steps, args, host)
    while True:
        batches = upcoming.result()
        counts = count_targets(*batches)  # of this process
        elapsed = (time.perf_counter() - start) / host.world
        # all processes divide by the same number of targets and stop at the same step; elapsed is a mean
        all_targets, all_pairs, signals, elapsed = host.total(*counts, len(host.signals), elapsed)
        progress = runtime.share_done(step, elapsed, max_steps, args)
        if signals or progress >= 1:
            break
        upcoming = reader.submit(read_batches, rows, step + 1, elapsed, max_steps, args, host)

        # Forward and backward, in micro-batches. Each adds its share of the mean over all targets, so that
        # the step is the same however it is cut; DDP takes a mean over the processes, hence the factor.
        runtime.set_learning_rates(optimizers, progress, args)
        torch.manual_seed(data.dropout_seed(args.seed, step, host.rank))  # the same after a resume
        figures = torch.zeros(4, device=host.device)
        for batch in batches:
            n_targets, n_pairs = count_targets(batch)
            with host.sync(parallel, last=batch is batches[-1]):
                with host.autocast(args.seq_length):
                    _, parts = parallel(**host.to_device(batch))
                # a step may have no target at all: of words that the tokenizer does not know
                shares = weighted(parts, n_targets / max(1, all_targets), n_pairs / max(1, all_pairs))
                mlm_loss, _, sentence_loss, _ = shares
                ((mlm_loss + args.sentence_weight * sentence_loss) * host.world).backward()
            figures += shares.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        # A row of history: weighted()'s four, of this process; the gradient's norm; 1 if the step had pairs.
        # The last two are the same in all processes, and mean_of_steps() adds theirs up: hence / world.
        # Nothing here waits for the GPU, as .item() would.
        rest = torch.stack([norm, torch.full_like(norm, all_pairs > 0)]) / host.world
        history.append(torch.cat([figures, rest]))

        # Now and then: a line, an evaluation, a checkpoint. Only here does the CPU wait for the GPU.
        log_due = step % args.log_interval == 0 or step in (1, max_steps)
        eval_due = step % args.eval_interval == 0 and step != max_steps
        save_due = step % args.save_interval == 0
        if log_due or eval_due or save_due:
            means = runtime.mean_of_steps(history, step, kept, host)
            elapsed = time.perf_counter() - start
            if log_due:
                report.training(step, means, progress, elapsed)
                history = []
            if eval_due:
                report.validation(step, evaluate(model, val_batches, host), elapsed)
            if save_due:
                save(args, host, log, model, rows.tokenizer, optimizers, step, elapsed, history)
                kept = f"what was saved at step {step} is kept"
            report.last_time += time.perf_counter() - start - elapsed  # this does not count for the speed

    runtime.mean_of_steps(history, step, kept, host)  # weights that are not finite are not saved
    elapsed = time.perf_counter() - start
    if step or not signals:  # a signal before the first step leaves nothing to save
        save(args, host, log, model, rows.tokenizer, optimizers, step, elapsed, history)
    if signals:
        raise host.stopped(step, "nothing was saved" if args.dry_run or not step else (
            f"go on with: python train_mlm.py --init_from resume --out_dir {shlex.quote(args.out_dir)}"))
    report.validation(step, evaluate(model, val_batches, host), elapsed, final=True)
    if log.writes:
        rundir.write_card(args.out_dir)
    if host.rank == 0:
        show_fills(args, model, val_rows, host)


def main(argv=None):
    with runtime.one_line_errors("train_mlm.py"):
        args, state = parse_arguments(argv)
        with runtime.Host(args) as host:
            train(args, state, host)


if __name__ == "__main__":
    main()
