"""Tests import the project's files from the folder above and reach no network."""

import importlib
import json
import os
import signal
import socket
import sys
import sysconfig
from pathlib import Path

# before torch: each of pytest's workers, and what it starts, has one core
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        raise OSError(f"a test tried to connect to {address}")
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def refused(capsys):
    """script.main(argv) must end with status 2 and one line of its own, which is returned."""
    def run(script, argv):
        with pytest.raises(SystemExit) as exit:
            script.main(argv)
        *notices, error = capsys.readouterr().err.splitlines()
        assert exit.value.code == 2 and error.startswith(f"{script.__name__}.py: "), error
        assert all("fresh weights" in line for line in notices), notices
        return error
    return run


def read_log(out_dir):
    """The lines of log.jsonl, as dicts."""
    return [json.loads(line) for line in (Path(out_dir) / "log.jsonl").read_text().splitlines()]


def same_run(a, b):
    """Two pretrainings: weights, optimizers and log, to the bit; but for times, and the lines of flags."""
    a_state, b_state = (torch.load(Path(d) / "resume.pt", weights_only=True) for d in (a, b))
    assert a_state["step"] == b_state["step"]
    for name, tensor in a_state["model"].items():
        assert torch.equal(tensor, b_state["model"][name]), name
    for a_optimizer, b_optimizer in zip(a_state["optimizers"], b_state["optimizers"], strict=True):
        for i, values in a_optimizer["state"].items():
            for name, tensor in values.items():
                assert torch.equal(tensor, b_optimizer["state"][i][name]), (i, name)
    times = ("tokens_per_s", "elapsed_s")
    logs = [[{k: v for k, v in line.items() if k not in times} for line in read_log(d)[1:]
             if "resumed_at" not in line] for d in (a, b)]
    assert logs[0] == logs[1]


def interrupt_the_fifth_step(script, argv):
    """script.main(argv) with a Ctrl-C in its fifth step, which ends and is saved."""
    clip, calls = torch.nn.utils.clip_grad_norm_, []
    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return clip(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", interrupt)
        with pytest.raises(SystemExit) as exit:
            script.main(argv)
    out_dir = Path(argv[argv.index("--out_dir") + 1])
    assert exit.value.code == 130 and torch.load(out_dir / "resume.pt", weights_only=True)["step"] == 5


def write_corpus(file):
    """Real English: docstrings of the standard library, a paragraph a line, a blank line between modules."""
    import data
    documents = []
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-f]*.py")):
        paragraphs = [line for text in data.docstrings(str(source)) for line in data.prose(text)]
        if paragraphs:
            documents.append("\n".join(paragraphs))
    file.write_text("\n\n".join(documents), encoding="utf-8")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "corpus.txt"
    write_corpus(file)
    return file


@pytest.fixture(scope="session")
def prepared(text_file, tmp_path_factory):
    """Its token files, with a byte-level BPE of 600 ids."""
    import data
    cache = str(tmp_path_factory.mktemp("cache"))
    return data.prepare(data.open_corpus([str(text_file)]), None, "bpe", 600, cache)

# -----------------------------------------------------------------------------
# pretraining

@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def flags(text_file, cache):
    """A small float32 run on real text, seconds long."""
    def make(out_dir, model="roberta", *more):
        size = [] if "--init_from" in more else ["--preset", f"{model}-tiny"]
        size += [] if {"--init_from", "--tokenizer"} & set(more) else ["--vocab_size", "600"]
        length = "96" if model == "albert" else "32"  # has room for two whole sentences
        return ["--model", model, *size, "--data", str(text_file),
                "--cache_dir", str(cache), "--out_dir", str(out_dir), "--seq_length", length,
                "--batch_size", "32", "--max_steps", "10", "--device", "cpu", "--dtype", "float32",
                "--threads", "1", "--log_interval", "1", "--eval_interval", "4", "--save_interval", "3",
                "--eval_rows", "32", *map(str, more)]
    return make

# -----------------------------------------------------------------------------
# fine-tuning

WORDS = {"good": ["fine", "lovely", "great", "superb"], "bad": ["poor", "awful", "dull", "weak"]}


def reviews(n, seed):
    """Sentences whose label is in one word, which a model of any size can learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        label = ("good", "bad")[rng.integers(2)]
        filler = " ".join(rng.choice(["the", "film", "was", "it", "and", "a", "of"], rng.integers(2, 9)))
        rows.append((f"{filler} {rng.choice(WORDS[label])} film", label))
    return rows


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """{name: path} of data for every kind."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name, n, seed in (("train", 256, 0), ("val", 64, 1), ("test", 32, 2)):
        rows, rng = reviews(n, seed), np.random.default_rng(seed)
        def save(kind, extension, lines):
            found[f"{name}_{kind}"] = str(folder / f"{name}_{kind}.{extension}")
            Path(found[f"{name}_{kind}"]).write_text("\n".join(lines) + "\n")
        save("single", "csv", ["text,label", *(f"{text},{label}" for text, label in rows)])
        score = {"good": 2.5, "bad": -0.5}
        save("score", "tsv", ["text\tscore", *(f"{text}\t{score[label]}" for text, label in rows)])
        others = [rows[i] for i in rng.permutation(n)]
        save("pair", "jsonl", [json.dumps({"sentence1": a, "sentence2": b,
                                           "label": "same" if x == y else "differ"})
                               for (a, x), (b, y) in zip(rows, others)])
        tag = lambda word: next((label for label in WORDS if word in WORDS[label]), "O")
        save("tags", "jsonl", [json.dumps({"tokens": text.split(), "tags": list(map(tag, text.split()))})
                               for text, _ in rows])
        # a label for each of three things in the text; many texts have none of them
        things = {"it": ["it"], "was": ["was"], "good": WORDS["good"]}
        found_in = lambda text: [thing for thing, words in things.items() if set(words) & set(text.split())]
        save("many", "csv", ["text,labels", *(f"{text},{'|'.join(found_in(text))}" for text, _ in rows)])
    return found


@pytest.fixture(scope="session")
def base(files, tmp_path_factory):
    """{family: a small checkpoint with random weights and a tokenizer of its kind}."""
    import tokenizer as tokenizers
    made, texts = {}, [text for text, _ in reviews(300, 9)]
    for family in ("bert", "roberta", "albert"):
        folder = tmp_path_factory.mktemp(family)
        module = importlib.import_module(family)
        tokenizer = tokenizers.train(module.TOKENIZER, texts, 300)
        tokenizer.save(folder)
        torch.manual_seed(0)
        config = module.PRESETS[f"{family}-tiny"] | dict(
            vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, initializer_range=0.1,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if family == "albert":
            config["classifier_dropout_prob"] = 0.0
        module.ForPreTraining(module.Config(**config)).save_pretrained(folder)
        made[family] = str(folder)
    return made


@pytest.fixture
def finetuning(files, base):
    """A small float32 fine-tuning, seconds long."""
    def make(out_dir, kind="single", family="bert", *more):
        return ["--init_from", base[family], "--train_file", files[f"train_{kind}"],
                "--val_file", files[f"val_{kind}"], "--out_dir", str(out_dir), "--lr", "1e-3",
                "--epochs", "3", "--batch_size", "16", "--device", "cpu", "--dtype", "float32",
                "--threads", "1", *map(str, more)]
    return make
