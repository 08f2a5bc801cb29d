"""
What each part of the fast recipe is worth: runs of train_mlm.py that differ in one flag, and a table.

    python results/speedrun.py --seeds 0 1 2       # those that results/speedrun.json lacks; then speedrun.md
    python results/speedrun.py --wiki ../text      # the second task; a folder with train-2M.txt and valid.txt

Nothing else may run meanwhile: the runs are measured in minutes. Ctrl-C loses the run under way, no other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
FIRST = {  # the first command of the README, and what is changed
    "fast, the default": "",
    "AdamW for all, no Muon": "--optimizer adamw",
    "heads start anywhere": "--no-neighbours",
    "and positions start anywhere": "--no-sinusoids",
    "the output bias starts at 0": "--no-unigram_bias",
    "15 % masks": "--mask_prob 0.15",
    "linear decay": "--schedule linear",
    "two layers": "--layers 2",
    "paper": "--recipe paper",
}
WIKI = {  # bert-10m with the vocabulary of bert-base-uncased, three epochs
    "fast": "--batch_size 32",
    "paper": "--recipe paper --batch_size 8 --lr 1e-4",
}


def train(flags, seed):
    """-> the final line of the log, and when the validation loss came under 5, if it was often evaluated."""
    out_dir = os.path.join("out", "speedrun")
    command = ["train_mlm.py", *flags.split(), "--seed", str(seed)]
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command, "--out_dir", out_dir, "--overwrite"], check=True,
                   stdout=subprocess.DEVNULL, cwd=os.path.dirname(HERE))
    with open(os.path.join(os.path.dirname(HERE), out_dir, "log.jsonl"), encoding="utf-8") as f:
        first, *lines = map(json.loads, f)
    under = next((line for line in lines if line.get("val_loss", 9) <= 5.0), {})
    often = "--eval_interval" in flags
    speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line]
    return dict(command=" ".join(["python", *command]), seed=seed, tokens_per_s=statistics.median(speeds),
                **({f"under_5_{name}": under.get(name) for name in ("elapsed_s", "tokens")} if often else {}),
                machine=first["machine"], parameters=first["parameters"],
                unigram_nats=first["unigram_nats"], **lines[-1])


def table(runs):
    """Markdown: a line for each change, means over its seeds."""
    columns = ["change", "flags", "validation loss", "perplexity", "steps", "tokens", "seconds", "seeds"]
    columns += ["to 5.0 nats"] * (often := "under_5_tokens" in runs[0])
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for change in dict.fromkeys(run["change"] for run in runs):
        same = [run for run in runs if run["change"] == change]
        mean = {name: statistics.mean(run[name] for run in same)
                for name in ("val_loss", "perplexity", "step", "tokens", "elapsed_s")}
        spread = f" ± {statistics.stdev(run['val_loss'] for run in same):.3f}" if len(same) > 1 else ""
        flags = f"`{same[0]['flags']}`" if same[0]["flags"] else ""
        lines.append(
            f"| {change} | {flags} | **{mean['val_loss']:.3f}**{spread} | {mean['perplexity']:.1f} | "
            f"{mean['step']:,.0f} | {mean['tokens'] / 1e6:.1f} M | {mean['elapsed_s']:.0f} | {len(same)} |")
        if often:
            reached = [f"{run['under_5_tokens'] / 1e6:.1f} M tokens, {run['under_5_elapsed_s']:.0f} s"
                       if run["under_5_tokens"] else "never" for run in same]
            lines[-1] += f" {'; '.join(reached)} |"
    return lines


def write(runs):
    with open(os.path.join(HERE, "speedrun.json"), "w", encoding="utf-8") as f:
        json.dump(runs, f, indent=1)
    lines = ["# Speed-run", "", "Written by `python results/speedrun.py`; the command of every run is in "
             "`speedrun.json`. " + "; ".join(sorted({run["machine"] for run in runs})) + ". The seconds are "
             "a fair budget only where the machine was as quiet: compare the tokens, too.", ""]
    for task in dict.fromkeys(run["task"] for run in runs):
        same = [run for run in runs if run["task"] == task]
        lines += [f"## {task}", "", f"`{same[0]['command'].split(' --seed')[0]}`, unigram line "
                  f"{same[0]['unigram_nats']:.3f} nats, {same[0]['parameters'] / 1e6:.1f} M parameters.", "",
                  *table(same), ""]
    with open(os.path.join(HERE, "speedrun.md"), "w", encoding="utf-8") as f:
        f.write("\n".join(lines))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--changes", nargs="+", help="only these; default: all")
    p.add_argument("--wiki", metavar="FOLDER", help="the second task, of the files there, with vocab.txt")
    args = p.parse_args()
    task, changes, base = "Four minutes of the first command", FIRST, "--model roberta "
    if args.wiki:
        task, changes = "Three epochs of bert-10m", WIKI
        base = (f"--model bert --preset bert-10m --data {args.wiki}/train-2M.txt --val_data {args.wiki}/"
                f"valid.txt --tokenizer {args.wiki} --seq_length 128 --epochs 3 --eval_interval 100 ")
    runs = []
    if os.path.exists(os.path.join(HERE, "speedrun.json")):
        with open(os.path.join(HERE, "speedrun.json"), encoding="utf-8") as f:
            runs = json.load(f)
    for seed in args.seeds:
        for change in args.changes or changes:
            if not any((run["task"], run["change"], run["seed"]) == (task, change, seed) for run in runs):
                runs.append(dict(task=task, change=change, flags=changes[change],
                                 **train(base + changes[change], seed)))
                write(runs)
    write(runs)


if __name__ == "__main__":
    main()
