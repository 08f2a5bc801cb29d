"""
finetune.py --compare: the same task trained in several ways, one table and one picture.

Each way is a process of its own, so that its peak memory is its own.
"""

import json
import os
import signal
import subprocess
import sys

from train_mlm import Stop

FINETUNE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "finetune.py")
COLUMNS = ("trained", "trained parameters", "share", "{metric}", "s an epoch", "ms a step", "peak memory, MB",
           "gradients and AdamW, MB", "on disk, MB")

def compare(argv, rates, out_dir):
    """Run finetune.py with the flags argv and each mode of {mode: learning rate or None}, into out_dir/MODE;
    print one table."""
    logs = {}
    for mode, rate in rates.items():
        flags = ["--train", mode, *(["--lr", rate] if rate else [])]
        print(f"\n{' '.join(flags)}", flush=True)
        folder = os.path.join(out_dir, mode)
        status = run_and_wait([sys.executable, FINETUNE, *argv, *flags, "--out_dir", folder])
        if status:
            done = f"; {', '.join(logs)} ended well, see {out_dir}" if logs else ""
            raise Stop(f"--compare: {mode} ended with status {status}{done}", status)
        with open(os.path.join(folder, "log.jsonl"), encoding="utf-8") as f:
            logs[mode] = json.loads(f.read().splitlines()[-1])
    metric = next(iter(logs.values()))["metric"]
    table = [[column.format(metric=metric) for column in COLUMNS]]
    for mode, log in logs.items():
        deviation = f" ± {100 * log['std']:.2f}" if len(log["seeds"]) > 1 else ""
        table.append([mode, f"{log['trained']:,}", f"{100 * log['trained'] / log['parameters']:.2f}%",
                      f"{100 * log['mean']:.2f}{deviation}", f"{log['s_per_epoch']:.1f}",
                      f"{log['ms_per_step']:.0f}", f"{log['peak_memory_mb']:,.0f}",
                      f"{log['training_mb']:.1f}", f"{log['disk_mb']:.2f}"])
    markdown = ["| " + " | ".join(row) + " |" for row in table]
    markdown.insert(1, "|---" * len(COLUMNS) + "|")
    widths = [max(map(len, column)) for column in zip(*table)]
    print("\n" + "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table))
    with open(os.path.join(out_dir, "compare.md"), "w", encoding="utf-8") as f:
        f.write("\n".join(markdown) + "\n")
    files = f"{out_dir}/compare.md"
    try:
        import matplotlib
    except ImportError:
        print(f"\n{files}; with matplotlib there would be a picture")
        return
    matplotlib.use("Agg")
    draw(logs, metric, os.path.join(out_dir, "compare.png"))
    print(f"\n{files}, {out_dir}/compare.png")


def run_and_wait(command):
    """A signal goes on to the process, once, which saves and ends by itself -> its status."""
    process = subprocess.Popen(command, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: process.send_signal(number))
    return process.wait()


def draw(logs, metric, file):
    """The metric against the trained parameters, and over the steps."""
    from matplotlib import pyplot as plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for i, (mode, log) in enumerate(logs.items()):
        left.errorbar(log["trained"], 100 * log["mean"], 100 * log["std"], fmt="o", capsize=4, color=f"C{i}")
        left.annotate(mode, (log["trained"], 100 * log["mean"]), textcoords="offset points", xytext=(8, 4))
        for j, seed in enumerate(log["seeds"]):
            steps, values = zip(*seed["curve"])
            right.plot(steps, [100 * v for v in values], marker=".", color=f"C{i}", alpha=0.7,
                       label=None if j else mode)
    left.set(xscale="log", xlabel="trained parameters", ylabel=f"best validation {metric} × 100")
    left.margins(x=0.2)
    right.set(xlabel="step", ylabel=f"validation {metric} × 100")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
