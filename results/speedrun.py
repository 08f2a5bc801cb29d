"""
What each part of the fast recipe is worth: runs of train_mlm.py on as many tokens, each with one change, and
a table.

    python results/speedrun.py --seeds 0 1 2       # those that results/speedrun.json lacks; then speedrun.md
    python results/speedrun.py --time              # how long a step takes, one run at a time

Two runs at a time, of one thread each. Ctrl-C loses those under way, no other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed

import tables

HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND = "train_mlm.py --model roberta --max_steps 1000 --threads 1"
CHANGES = {
    "fast, the default": "",
    "AdamW for all, no Muon": "--optimizer adamw",
    "a full softmax": "--softmax full",
    "15 % masks": "--mask_prob 0.15",
    "40 % masks": "--mask_prob 0.4",
    "masks of whole words": "--mask_unit word",
    "masks of up to three words": "--mask_unit ngram",
    "dropout": "--dropout 0.1",
    "linear decay": "--schedule linear",
    "the output bias starts at 0": "--no-unigram_bias",
    "word embeddings as drawn": "--no-word_vectors",
    "heads as drawn": "--no-neighbours",
    "positions and heads as drawn": "--no-sinusoids --no-neighbours",
    "two layers": "--layers 2",
    "paper, with batches half as large": "--recipe paper --max_steps 2000",
}


def log_of(command):
    """Run it -> the lines of its log."""
    with tempfile.TemporaryDirectory() as out_dir:
        subprocess.run([sys.executable, *command, "--out_dir", out_dir], check=True,
                       stdout=subprocess.DEVNULL, cwd=os.path.dirname(HERE))
        with open(os.path.join(out_dir, "log.jsonl"), encoding="utf-8") as f:
            return list(map(json.loads, f))


def step_ms(change):
    """Milliseconds a step, the fastest five of forty: the machine is not always alone."""
    more = "--max_steps 45 --log_interval 5 --eval_interval 1000 --eval_rows 64"
    lines = [line for line in log_of([*COMMAND.split(), *CHANGES[change].split(), *more.split()])
             if "tokens_per_s" in line]
    return min(1000 * line["tokens"] / line["step"] / line["tokens_per_s"] for line in lines[2:])


def train(change, seed):
    """-> what speedrun.json keeps of a run"""
    command = [*COMMAND.split(), *CHANGES[change].split(), "--seed", str(seed)]
    first, *_, final = log_of(command)
    return dict(change=change, command=" ".join(["python", *command]), seed=seed, machine=first["machine"],
                parameters=first["parameters"], unigram_nats=first["unigram_nats"], **final)


def table(runs):
    """-> speedrun.md"""
    rows = []
    for change, flags in CHANGES.items():
        if same := [run for run in runs if run["change"] == change]:
            losses, perplexity, accuracy = ([run[name] for run in same] for name in (
                "val_loss", "perplexity", "val_masked_accuracy"))
            times = [run["step_ms"] for run in same if "step_ms" in run]
            rows.append([change, f"`{flags}`" if flags else "", tables.mean_and_spread(losses, 3),
                         f"{statistics.mean(perplexity):.1f}", f"{statistics.mean(accuracy):.3f}",
                         f"{times[0]:.0f} ms" if times else "", len(same)])
    cells = tables.table(["change", "flags", "validation loss", "perplexity", "masked accuracy", "a step",
                          "seeds"], rows)
    return f"""# What the parts of the fast recipe are worth

Written by `python results/speedrun.py`; the command of every run is in `speedrun.json`. `python {COMMAND}`
and one change: {runs[0]["tokens"] / 1e6:.1f} M tokens, unigram line {runs[0]["unigram_nats"]:.3f} nats. Means
and deviations over the seeds; milliseconds of one thread, by `--time`, on a shared machine, where a fifth
more or less says nothing.

Rows have equal tokens, not equal time. A full softmax, 40 % masks and a second layer lower the loss, and
take longer for a step: in equal time the first and the last end higher ([README.md](README.md)); 40 % masks
were not run so. These tokens are too few for the paper's recipe, which has learnt to copy the one target in
ten that stays visible, and hardly any context; of longer runs this says nothing.

{cells}
"""


def write(runs):
    runs.sort(key=lambda run: (list(CHANGES).index(run["change"]), run["seed"]))
    for name, text in (("speedrun.json", json.dumps(runs, indent=1)), ("speedrun.md", table(runs))):
        file = os.path.join(HERE, name)
        with open(file + ".tmp", "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(file + ".tmp", file)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--changes", nargs="+", default=list(CHANGES), choices=CHANGES)
    p.add_argument("--workers", type=int, default=2, help="runs at a time")
    p.add_argument("--time", action="store_true", help="time steps of the runs that are there, train none")
    args = p.parse_args()
    runs = []
    if os.path.exists(os.path.join(HERE, "speedrun.json")):
        with open(os.path.join(HERE, "speedrun.json"), encoding="utf-8") as f:
            runs = json.load(f)
    if args.time:
        for run in [run for run in runs if run["seed"] == 0 and "step_ms" not in run]:
            run["step_ms"] = step_ms(run["change"])
            print(run["change"], f"{run['step_ms']:.0f} ms", flush=True)
            write(runs)
        return
    done = {(run["change"], run["seed"]) for run in runs}
    with ThreadPoolExecutor(args.workers) as pool:
        waiting = [pool.submit(train, change, seed) for seed in args.seeds for change in args.changes
                   if (change, seed) not in done]
        try:
            for future in as_completed(waiting):
                run = future.result()
                runs.append(run)
                print(run["command"], f"{run['val_loss']:.3f}", flush=True)
                write(runs)
        except BaseException:  # Ctrl-C, too: without those that wait
            pool.shutdown(cancel_futures=True)
            raise
    write(runs)


if __name__ == "__main__":
    main()
