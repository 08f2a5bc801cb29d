"""
A long run, watched from outside: does it take more and more memory or files, or get slower?

    python tests/load.py --json results/load.json train_mlm.py --data wiki --max_minutes 120 --out_dir out/w

Noted once a minute: the process's resident memory and open files (Linux); its log has the speed. The first
ten minutes do not count. Exit status 1 if the run fails, ends sooner, or its memory grows by more than 2 %.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT, read_log


def watch(process, every):
    """-> [seconds, resident MB, open files] of each moment, until it ends"""
    samples, began, folder = [], time.time(), Path(f"/proc/{process.pid}")
    while True:
        try:
            process.wait(every)
            return samples
        except subprocess.TimeoutExpired:
            pages = int((folder / "statm").read_text().split()[1])
            samples.append([round(time.time() - began), round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
                            len(os.listdir(folder / "fd"))])
            print("{:6d} s  {:8.1f} MB  {:3d} open files".format(*samples[-1]), flush=True)


def summary(samples, speeds, warmup):
    """speeds: (seconds, tokens a second) of the log's lines. -> what is left to compare after the warmup"""
    samples = [sample for sample in samples if sample[0] >= warmup]
    speeds = [speed for seconds, speed in speeds if seconds >= warmup]
    if len(samples) < 2 or len(speeds) < 4:
        raise SystemExit("load.py: the run has ended too soon after the warmup")
    _, memory, files = zip(*samples)
    quarter = len(speeds) // 4
    return dict(minutes=round(samples[-1][0] / 60), memory_mb=memory[0], memory_mb_at_most=max(memory),
                growth=max(memory) / memory[0] - 1, files_at_least=min(files), files_at_most=max(files),
                tokens_per_s_first_quarter=statistics.median(speeds[:quarter]),
                tokens_per_s_last_quarter=statistics.median(speeds[-quarter:]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--every", type=float, default=60, help="seconds")
    p.add_argument("--warmup", type=float, default=600, help="seconds that do not count")
    p.add_argument("--json")
    p.add_argument("command", nargs=argparse.REMAINDER, help="a script and its flags, --out_dir among them")
    args = p.parse_args()
    if "--out_dir" not in args.command[:-1]:
        p.error("the command has no --out_dir")
    out_dir = ROOT / args.command[args.command.index("--out_dir") + 1]
    with subprocess.Popen([sys.executable, *args.command], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        samples = watch(process, args.every)
    if process.returncode:
        raise SystemExit(f"load.py: the run has ended with exit status {process.returncode}")
    log = [line for line in read_log(out_dir) if "tokens_per_s" in line]
    speeds = [(line["elapsed_s"], line["tokens_per_s"]) for line in log]
    found = summary(samples, speeds, args.warmup)
    print(json.dumps(found, indent=1))
    if args.json:
        command = shlex.join(["python", "tests/load.py", *sys.argv[1:]])
        Path(args.json).write_text(json.dumps(dict(command=command, **found, samples=samples)) + "\n")
    if found["growth"] > 0.02:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
