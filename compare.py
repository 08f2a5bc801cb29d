"""
Several fine-tunings side by side: one table and one picture.

    python compare.py --runs full lora head --seeds 3 --init_from out/roberta
    python compare.py --runs full "lora --lr 5e-4 --lora_r 4" "lora --dora" --init_from out/bert --task sst2

Each of --runs is what --train of finetune.py takes, and flags of its own; all other flags are finetune.py's
and go to every run. A run is a process of its own, so that its peak memory is its own.
"""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys

import rundir
import runtime

HERE = os.path.dirname(os.path.abspath(__file__))
FINETUNE, PLOT = os.path.join(HERE, "finetune.py"), os.path.join(HERE, "plot.py")
COLUMNS = ("run", "trained parameters", "share", "best validation, × 100", "s an epoch", "ms a step",
           "peak memory, MB", "gradients and optimizer, MB", "on disk, MB")


def parse_arguments(argv):
    """-> args, and {run: (its out_dir, its command)}"""
    p = runtime.Parser(__doc__)
    p.add_argument("--runs", nargs="+", required=True, help='such as full "lora --lr 5e-4"')
    p.add_argument("--out_dir", default="out/compare", help="for the runs, the table and the picture")
    args, common = p.parse_known_args(argv)
    flags_of = {run: shlex.split(run) for run in args.runs}
    for word in sum(flags_of.values(), common):
        flag = word.partition("=")[0]
        if flag in ("--train", "--dry_run", "--out_dir"):
            raise ValueError(f"{flag}: --runs says what is trained, each is checked by a dry run first, and "
                             "gets a folder in --out_dir")
    if len(set(args.runs)) < len(args.runs):
        raise ValueError("--runs: one of them is there twice")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this runs in one process; leave torchrun out")
    commands = {}
    for run in args.runs:
        folder = os.path.join(args.out_dir, run.replace("--", "").replace(" ", "-").replace("/", "-"))
        flags = [*common, "--train", *flags_of[run], "--out_dir", folder]
        rundir.check_out_dir("out_dir", folder, "scratch", "--overwrite" in flags)
        commands[run] = folder, [sys.executable, FINETUNE, *flags]
    if len({folder for folder, _ in commands.values()}) < len(commands):
        raise ValueError("--runs: two of them would have one folder: in its name blanks and / become -")
    if os.path.exists(os.path.join(args.out_dir, "compare.md")) and "--overwrite" not in common:
        raise ValueError(f"{args.out_dir} holds a comparison already: choose another --out_dir, or replace "
                         "it by --overwrite")
    return args, commands


def compare(args, commands):
    for run, (_, command) in commands.items():  # what is wrong with the last one is found before the first
        print(f"checking {run}", flush=True)
        run_and_wait(run, [*command, "--dry_run"], stdout=subprocess.DEVNULL)
    logs = {}
    for run, (folder, command) in commands.items():
        print(f"\n{shlex.join(command[1:])}", flush=True)
        run_and_wait(run, command)
        logs[run] = rundir.read_log(folder)[-1]
        table = write_table(os.path.join(args.out_dir, "compare.md"), logs)  # anew, should the next one fail
    widths = [max(map(len, column)) for column in zip(*table)]
    print("\n" + "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table))
    draws = importlib.util.find_spec("matplotlib") is not None
    hint = "" if draws else "; with matplotlib there would be a picture"
    print(f"\n{args.out_dir}/compare.md{hint}", flush=True)
    if draws and len({log["metric"] for log in logs.values()}) == 1:  # one picture has one metric
        folders = [folder for folder, _ in commands.values()]
        run_and_wait("plot.py", [sys.executable, PLOT, *folders, "--names", *commands,
                                 "--out", os.path.join(args.out_dir, "compare.png")])


def write_table(file, logs):
    """{run: the last line of its log} -> the rows of the table, in the file as Markdown."""
    table = [COLUMNS]
    for run, log in logs.items():
        deviation = f" ± {100 * log['std']:.2f}" if len(log["seeds"]) > 1 else ""
        table.append([run, f"{log['trained']:,}", f"{100 * log['trained'] / log['parameters']:.2f}%",
                      f"{log['metric']} {100 * log['mean']:.2f}{deviation}", f"{log['s_per_epoch']:.1f}",
                      f"{log['ms_per_step']:.0f}", f"{log['peak_memory_mb']:,.0f}",
                      f"{log['training_mb']:.1f}", f"{log['disk_mb']:.2f}"])
    markdown = ["| " + " | ".join(row) + " |" for row in table]
    markdown.insert(1, "|---" * len(COLUMNS) + "|")
    with open(file, "w", encoding="utf-8") as f:
        f.write("\n".join(markdown) + "\n")
    return table


def run_and_wait(run, command, **options):
    """A signal goes on to the process, which saves and ends by itself. Stop if it did not end well."""
    came, process = [], None
    def forward(number, frame):
        came.append(number)
        if process:
            process.send_signal(number)
    handlers = {number: signal.signal(number, forward) for number in runtime.SIGNALS}
    # in a session of its own: else a terminal's Ctrl-C comes twice, and the second ends it unsaved
    process = subprocess.Popen(command, start_new_session=True, **options)
    status = process.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if came and not status:  # it was about to end, and did
        status = 128 + came[0]
    if status:
        raise runtime.Stop(f"{run} ended with status {status}", status if status > 0 else 128 - status)


def main(argv=None):
    with runtime.one_line_errors("compare.py"):
        compare(*parse_arguments(argv))


if __name__ == "__main__":
    main()
