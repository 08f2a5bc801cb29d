"""
Damaged and hostile files of every kind that is read: each gives a result, or an error of one line.

    python tests/fuzz.py --cases 20000 --json results/fuzz.json    # of each kind; test_fuzz.py takes 200
    python tests/fuzz.py --kinds config.json --cases 500 --seed 1

A case is a file that is right, with bytes changed, or if it is JSON, with a value in it replaced. What fails
is printed with the number of its case.
"""

import argparse
import copy
import io
import json
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import bert
import data
import files
import lora
import runtime
import tokenizer as tokenizers
import train_mlm

TEXTS = ["The film was good, and it was not long.", "A dull film; it was the worst of 2007!"] * 40
ODD = [None, True, 5, -1, 0, 0.5, 1e308, 10**30, float("nan"), float("inf"), "", "x", "\ud800", [], {}, [5],
       {"a": 1}, ["a", "b"], [[[[[[]]]]]]]

# -----------------------------------------------------------------------------
# Damage

def damage_bytes(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 8, 100))
        what = rng.randrange(5)
        if what == 0:
            content[at:at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            content[at:at + size] = b""
        elif what == 2:
            content[at:at] = rng.choice((rng.randbytes(size), b"9" * 30, *[bytes([b]) for b in b'",\n\t\0{']))
        elif what == 3:
            content[at:at] = content[at:at + 50 * size]
        else:
            del content[at:]
    return bytes(content)


def damage_json(content, rng):
    """Another value, or none, somewhere; or a nesting deeper than a reader can follow."""
    if rng.random() < 0.01:
        return b"[" * 100_000
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        node = tree  # never empty: it has several keys, and loses at most one
        while isinstance(node, (dict, list)) and node:
            container, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = node[key]
            if rng.random() < 0.3:
                break
        if rng.random() < 0.2:
            del container[key]
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(tree).encode()

# -----------------------------------------------------------------------------
# What is read: a folder with right files, the one to damage, and what reads it

def tiny(folder):
    """A BERT of few weights, with a tokenizer."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    tokenizer = tokenizers.train("wordpiece", TEXTS, 80)
    tokenizer.save(folder)
    model = bert.ForPreTraining(bert.Config(**bert.preset(1, 8, 2), vocab_size=tokenizer.vocab_size,
                                            max_position_embeddings=16, id2label={0: "no", 1: "yes"}))
    model.save_pretrained(str(folder))
    return model


def read_model(folder):
    runtime.read_config(str(folder))
    model = bert.ForSequenceClassification.from_pretrained(str(folder))
    model(torch.tensor([[2, 5, 3]]))


def read_tokenizer(folder):
    tokenizer = tokenizers.load(str(folder))
    tokenizer.decode(tokenizer.encode("Was it good? [MASK] <mask> 2007", specials=True))
    with tempfile.TemporaryDirectory() as other:
        tokenizer.save(other)


def read_rows(folder):
    for file in folder.iterdir():
        for _ in files.records(str(file)):
            pass


def read_adapter(folder):
    model = lora.load(bert.ForSequenceClassification.from_pretrained(str(folder / "base")), str(folder))
    model(torch.tensor([[2, 5, 3]]))


def read_tokens(folder):
    splits, tokenizer = data.load(str(folder))
    if len(splits["train"].tokens) > 100:
        data.Rows(splits["train"], tokenizer, 16, "nsp", 0).batch(np.arange(4))


def prepare(name, folder):
    """-> the function that reads what is in the folder now, of which the file `name` is to be damaged."""
    folder.mkdir()
    rows = [(text, str(i % 2)) for i, text in enumerate(TEXTS[:6])]
    if name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        model = tiny(folder)
        if name == "pytorch_model.bin":
            weights = bert.read_weights(str(folder))
            (folder / "model.safetensors").unlink()
            torch.save(weights, folder / name)
        return read_model
    if name.startswith("adapter"):
        tiny(folder / "base")
        model = lora.inject(bert.ForSequenceClassification.from_pretrained(str(folder / "base")), r=2)
        lora.save(model, str(folder), "base")
        return read_adapter
    if name == "resume.pt":
        model = tiny(folder / "model")
        torch.save({"args": {"lr": 1e-3, "data": ["pydoc"]}, "config": {}, "model": model.state_dict(),
                    "optimizers": [{"state": {}, "param_groups": [{"lr": 1e-3}]}], "step": 3, "elapsed": 1.0,
                    "history": torch.zeros(0, 5)}, folder / name)
        return lambda folder: train_mlm.load_state(str(folder))
    if name in ("meta.json", "train.bin"):
        text = folder / "text.txt"
        text.write_text("\n\n".join(TEXTS * 3))
        made = data.prepare(data.open_corpus([str(text)]), None, "wordpiece", 80, str(folder / "cache"))
        shutil.copytree(made, folder, dirs_exist_ok=True)
        return read_tokens
    if name == "rows.parquet":
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(("text", "label"), zip(*rows)))), folder / name)
        return read_rows
    if name.startswith("rows"):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        if name != "rows.jsonl":
            separator = "," if name == "rows.csv" else "\t"
            lines = [f'"{text}"{separator}{label}' for text, label in [("text", "label"), *rows]]
        (folder / name).write_text("\n".join(lines) + "\n")
        return read_rows
    kind = {"vocab.json": "bpe", "merges.txt": "bpe", "vocab.txt": "wordpiece"}.get(name, "unigram")
    tokenizer = tokenizers.train(kind, TEXTS, 300 if kind == "bpe" else 80)
    tokenizer.save(folder)
    if name == "spiece.model":
        import sentencepiece
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=(folder / name).open("wb"), vocab_size=35, pad_id=0,
            unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP]", user_defined_symbols="[MASK],(",
            minloglevel=2)
        (folder / "tokenizer.json").unlink()
    return read_tokenizer


KINDS = ("config.json", "model.safetensors", "pytorch_model.bin", "adapter_config.json",
         "adapter_model.safetensors", "resume.pt", "meta.json", "train.bin", "rows.csv", "rows.tsv",
         "rows.jsonl", "rows.parquet", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.json",
         "tokenizer_config.json", "spiece.model")

# -----------------------------------------------------------------------------
# Cases

BUGS = (NameError, ImportError, Warning)  # of ours, whoever caught them


class Hang(BaseException):
    """Nothing that reads a file may catch it."""


def hang(number, frame):
    raise Hang("no answer in 20 seconds")


def fuzz(name, cases, seed):
    """-> how many cases gave a result, how many an error of one line, and a list of what else happened."""
    results, refused, failures = 0, 0, []
    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        with redirect_stdout(None):
            read = prepare(name, folder)
        right = (folder / name).read_bytes()
        read(folder)  # the right file is read
        for case in range(cases):
            rng = random.Random(f"{name} {seed} {case}")
            as_json = name.endswith(".json") and rng.random() < 0.7
            (folder / name).write_bytes((damage_json if as_json else damage_bytes)(right, rng))
            signal.alarm(20)
            try:
                with redirect_stderr(io.StringIO()), warnings.catch_warnings():
                    warnings.simplefilter("error")  # a library's, which would be on the screen
                    read(folder)
                results += 1
            except (ValueError, OSError) as error:
                refused += 1
                if "\n" in str(error) or not str(error) or isinstance(error.__cause__, BUGS):
                    failures.append(f"case {case}: {str(error)!r:.300}")
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                where = error.__traceback__
                while where.tb_next:
                    where = where.tb_next
                failures.append(f"case {case}: {type(error).__name__}: {str(error)[:200]} "
                                f"({where.tb_frame.f_code.co_name}, line {where.tb_lineno})")
            finally:
                signal.alarm(0)
    return results, refused, failures


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=200)
    p.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json")
    args = p.parse_args()
    rows = []
    for name in args.kinds:
        start = time.time()
        results, refused, failures = fuzz(name, args.cases, args.seed)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name:26} {results:6,} results, {refused:6,} errors of one line, {len(failures):4,} others; "
              f"{time.time() - start:.0f} s, at most {memory:.0f} MB", flush=True)
        for failure in failures[:12]:
            print("   ", failure)
        rows.append(dict(kind=name, results=results, refused=refused, others=len(failures), memory_mb=memory))
    if args.json:
        command = shlex.join(["python", "tests/fuzz.py", *sys.argv[1:]])
        Path(args.json).write_text(json.dumps(dict(command=command, results=rows), indent=1) + "\n")
    sys.exit(any(row["others"] for row in rows))


if __name__ == "__main__":
    main()
