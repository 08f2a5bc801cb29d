"""
A soak: runs that are killed at random moments, half of them while they save, and go on to the same end.

    python tests/soak.py --kills 100 --json results/soak.json       # a quarter of an hour on two cores

Pretraining, of three models and two recipes, is resumed after every kill, and its end compared to the bit
with that of a run that nothing disturbed. Fine-tuning begins again: what a kill leaves is whole or nothing.
"""

import argparse
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from conftest import ROOT, reviews, same_run, write_corpus

import inference

STEPS = 300
CPU = ["--device", "cpu", "--dtype", "float32", "--threads", 1]


def start(script, flags):
    return subprocess.Popen([sys.executable, script, *map(str, flags)], cwd=ROOT, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def finish(script, flags):
    process = start(script, flags)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def kill(process, out_dir, saving, rng):
    """SIGKILL within the next save, or up to half a second after the next line of the log. -> whether the
    process was still there."""
    temporary, log = Path(out_dir) / "saving.tmp", Path(out_dir) / "log.jsonl"
    shutil.rmtree(temporary, ignore_errors=True)  # of the one before
    size = log.stat().st_size if log.exists() else 0
    patience = time.time() + 120
    while process.poll() is None and not (temporary.exists() if saving else
                                          log.exists() and log.stat().st_size > size):
        assert time.time() < patience, "neither a line nor a save in two minutes"
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.01 if saving else 0.5))
    in_time = process.poll() is None
    process.kill()
    errors = process.communicate()[1]
    assert in_time or process.returncode == 0, errors
    return in_time


def pretraining(folder, model, recipe, kills, rng, steps=STEPS):
    """-> kills that were in time. AssertionError where the ends differ."""
    folder = Path(folder)
    if not (folder / "corpus.txt").exists():
        write_corpus(folder / "corpus.txt")
    flags = ["--model", model, "--preset", f"{model}-tiny", "--recipe", recipe, "--dropout", 0.1,
             "--data", folder / "corpus.txt", "--cache_dir", folder / "cache", "--vocab_size", 600,
             "--seq_length", 96 if model == "albert" else 32, "--batch_size", 16, "--max_steps", steps,
             "--save_interval", 2, "--log_interval", 1, "--eval_interval", 25, "--eval_rows", 32, *CPU]
    whole, killed = folder / f"{model}-{recipe}-whole", folder / f"{model}-{recipe}-killed"
    finish("train_mlm.py", [*flags, "--out_dir", whole])
    def next_flags():  # a kill within the first save leaves nothing to resume
        begin = ["--init_from", "resume"] if (killed / "resume.pt").exists() else [*flags, "--overwrite"]
        return [*begin, "--out_dir", killed]
    in_time = 0
    for i in range(kills):
        in_time += kill(start("train_mlm.py", next_flags()), killed, i % 2 == 0, rng)
    finish("train_mlm.py", next_flags())
    same_run(whole, killed)
    return in_time


def finetuning(folder, train, kills, rng):
    """-> kills that were in time. ValueError where one left what cannot be opened, AssertionError where the
    run after them ends elsewhere."""
    folder = Path(folder)
    base = folder / "base"
    if not base.exists():
        write_corpus(folder / "corpus.txt")
        for name, n, seed in (("train", 256, 0), ("val", 64, 1)):
            rows = [f"{text},{label}" for text, label in reviews(n, seed)]
            (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        finish("train_mlm.py", ["--preset", "roberta-tiny", "--data", folder / "corpus.txt", "--vocab_size",
                                600, "--cache_dir", folder / "cache", "--seq_length", 32, "--max_steps", 2,
                                "--out_dir", base, *CPU])
    flags = ["--init_from", base, "--train_file", folder / "train.csv", "--val_file", folder / "val.csv",
             "--train", train, "--epochs", 20, "--eval_interval", 2, "--batch_size", 16, "--overwrite",
             *CPU]
    whole, killed, in_time = folder / f"{train}-whole", folder / f"{train}-killed", 0
    finish("finetune.py", [*flags, "--out_dir", whole])
    for i in range(kills):
        in_time += kill(start("finetune.py", [*flags, "--out_dir", killed]), killed, i % 2 == 0, rng)
        if (killed / "config.json").exists() and (killed / "log.jsonl").exists():
            inference.open_model(str(killed))
    finish("finetune.py", [*flags, "--out_dir", killed])
    name = "adapter_model.safetensors" if train == "lora" else "model.safetensors"
    ends = [load_file(path / name) for path in (whole, killed)]
    assert ends[0].keys() == ends[1].keys() and all((ends[0][key] == ends[1][key]).all() for key in ends[0])
    return in_time


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=100, help="in all")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json")
    args = p.parse_args()
    rng, results = random.Random(args.seed), []
    runs = [(pretraining, model, recipe) for model in ("roberta", "bert", "albert")
            for recipe in ("fast", "paper")] + [(finetuning, "full"), (finetuning, "lora")]
    each = -(-args.kills // len(runs))
    with tempfile.TemporaryDirectory() as folder:
        for function, *names in runs:
            began = time.time()
            in_time = function(folder, *names, each, rng)
            results.append(dict(run=" ".join(names), kills=in_time))
            seconds = time.time() - began
            print(f"{' '.join(names)}: {in_time} kills, the same end; {seconds:.0f} s", flush=True)
    if args.json:
        command = shlex.join(["python", "tests/soak.py", *sys.argv[1:]])
        Path(args.json).write_text(json.dumps(dict(command=command, results=results), indent=1) + "\n")


if __name__ == "__main__":
    main()
