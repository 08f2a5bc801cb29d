"""finetune.py from the command line: learning, saving, using, bad input; against transformers and PEFT."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import bert
import finetune
import lora
import tasks
import tokenizer as tokenizers

ROOT = Path(finetune.__file__).parent
MODELS = ("bert", "roberta", "albert")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            "finetune.py"]
FAST = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
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
    return found


@pytest.fixture(scope="session")
def base(files, tmp_path_factory):
    """{family: a small checkpoint with random weights and a tokenizer of its kind}."""
    made, texts = {}, [text for text, _ in reviews(300, 9)]
    for family in MODELS:
        folder = tmp_path_factory.mktemp(family)
        kind = finetune.train_mlm.TOKENIZER[family]
        tokenizer = tokenizers.train(kind, texts, 300)
        tokenizer.save(folder)
        module = __import__(family)
        torch.manual_seed(0)
        extra = dict(classifier_dropout_prob=0.0) if family == "albert" else {}
        module.ForPreTraining(module.Config(**{
            **module.PRESETS[f"{family}-tiny"], "vocab_size": tokenizer.vocab_size,
            "pad_token_id": tokenizer.pad_id, "initializer_range": 0.1, "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            **extra})).save_pretrained(folder)
        made[family] = str(folder)
    return made


@pytest.fixture
def flags(files, base):
    def make(out_dir, kind="single", family="bert", *more):
        return ["--init_from", base[family], "--train_file", files[f"train_{kind}"],
                "--val_file", files[f"val_{kind}"], "--out_dir", str(out_dir), "--lr", "1e-3",
                "--epochs", "3", "--batch_size", "16", *FAST, *map(str, more)]
    return make


def instead_of_epochs(argv, *length):
    i = argv.index("--epochs")
    return [*argv[:i], *length, *argv[i + 2:]]


def use(path, *more):
    finetune.main(["--init_from", str(path), *map(str, more), *FAST])


def read_log(out_dir):
    return [json.loads(line) for line in (Path(out_dir) / "log.jsonl").read_text().splitlines()]


def final(out_dir):
    return read_log(out_dir)[-1]


def refused(argv, capsys, status=2):
    with pytest.raises(SystemExit) as exit:
        finetune.main(argv)
    assert exit.value.code == status
    error = capsys.readouterr().err.strip()
    assert error and "Traceback" not in error
    return error.splitlines()[-1]

# -----------------------------------------------------------------------------
# every kind and mode

@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind, metric", [("single", "accuracy"), ("pair", "accuracy"), ("score", "spearman"),
                                          ("tags", "token_f1")])
def test_every_kind_learns_and_transformers_agrees(kind, metric, family, flags, files, tmp_path, capsys):
    finetune.main(flags(tmp_path, kind, family, *(["--epochs", 8] if kind == "pair" else [])))
    log = read_log(tmp_path)
    assert log[-1]["metric"] == metric
    if kind != "pair":  # to compare two words takes longer than these seconds
        assert log[-1]["mean"] > (0.8 if metric == "spearman" else 0.95)
    assert min(line["loss"] for line in log if "loss" in line) < 0.9 * log[1]["loss"]
    # what the command line evaluates and predicts, transformers computes from the same directory
    capsys.readouterr()
    use(tmp_path, "--val_file", files[f"val_{kind}"], "--eval_only")
    assert f"{metric} {log[-1]['mean']:.4f}" in capsys.readouterr().out
    use(tmp_path, "--predict", files[f"val_{kind}"], "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    token = kind == "tags"
    auto = getattr(transformers, f"AutoModelFor{'Token' if token else 'Sequence'}Classification")
    theirs = auto.from_pretrained(tmp_path).eval()
    prefix = {"add_prefix_space": True} if token and family == "roberta" else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, **prefix)
    for line in lines[:10]:
        with torch.no_grad():
            if token:
                inputs = tokenizer(line["words"], is_split_into_words=True, return_tensors="pt")
                first = [inputs.word_ids().index(i) for i in range(len(line["words"]))]
                p = theirs(**inputs).logits[0, first].softmax(-1)
                assert [theirs.config.id2label[i] for i in p.argmax(-1).tolist()] == line["tags"]
                np.testing.assert_allclose(p.max(-1).values, line["probabilities"], atol=1e-4)
                continue
            logits = theirs(**tokenizer(*line["text"], return_tensors="pt")).logits[0]
        if kind == "score":
            assert logits.item() == pytest.approx(line["score"], abs=1e-4)
        else:
            p = dict(zip(theirs.config.id2label.values(), logits.softmax(-1).tolist()))
            assert p == pytest.approx(line["probabilities"], abs=1e-4) and max(p, key=p.get) == line["label"]


@pytest.mark.parametrize("family", MODELS)
def test_lora_end_to_end(family, flags, files, base, tmp_path, capsys):
    """Train, evaluate the adapter, open it in PEFT, merge it, open that in transformers."""
    finetune.main(flags(tmp_path / "lora", "single", family, "--train", "lora", "--lr", "1e-2",
                        "--epochs", "8", "--lora_targets", "query,key,value,out,fc_in,fc_out"))
    log = final(tmp_path / "lora")
    assert log["mean"] > 0.95 and not (tmp_path / "lora" / "model.safetensors").exists()
    capsys.readouterr()
    use(tmp_path / "lora", "--merge", "--out_dir", str(tmp_path / "merged"))
    probabilities = {}
    for name in ("lora", "merged"):
        use(tmp_path / name, "--val_file", files["val_single"], "--eval_only")
        assert f"accuracy {log['mean']:.4f}" in capsys.readouterr().out
        use(tmp_path / name, "--predict", files["val_single"], "--json")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        probabilities[name] = [line["probabilities"]["good"] for line in lines]
    # four digits are printed
    np.testing.assert_allclose(probabilities["lora"], probabilities["merged"], atol=1.01e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "lora")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base[family], num_labels=2)
    models = [peft.PeftModel.from_pretrained(theirs, tmp_path / "lora"),
              transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")]
    for line, expected in zip(lines[:8], probabilities["lora"]):
        for model in models:
            with torch.no_grad():
                p = model.eval()(**tokenizer(*line["text"], return_tensors="pt")).logits.softmax(-1)[0]
            good = [i for i, name in models[1].config.id2label.items() if name == "good"][0]
            assert p[good].item() == pytest.approx(expected, abs=1.01e-4)


def test_an_adapter_that_peft_trained(base, files, tmp_path, capsys):
    """It comes without config.json: the number of classes is in its head, the tokenizer beside its base."""
    torch.manual_seed(3)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base["roberta"], num_labels=2)
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS",
                             init_lora_weights=False)
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path)
    use(tmp_path, "--predict", "a lovely film", "--json")
    found = json.loads(capsys.readouterr().out)["probabilities"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base["roberta"])
    with torch.no_grad():
        p = theirs(**tokenizer("a lovely film", return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert list(found.values()) == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize("mode", ["lora", "head", "last_block"])
def test_what_is_frozen_stays(mode, flags, base, tmp_path):
    finetune.main(flags(tmp_path / "run", "single", "bert", "--train", mode, "--epochs", "1"))
    log = final(tmp_path / "run")
    H, layer, head = 128, 12 * 128 ** 2 + 13 * 128, 128 * 128 + 128 + 2 * 128 + 2
    # the checkpoint has a pooler, which LoRA leaves as it is, as PEFT does
    expected = {"lora": 2 * 2 * 2 * 8 * H + 2 * H + 2, "head": head, "last_block": layer + head}
    assert log["trained"] == expected[mode]
    if mode == "lora":
        return
    before, after = (load_file(Path(d) / "model.safetensors") for d in (base["bert"], tmp_path / "run"))
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    allowed = ("classifier.", "bert.pooler.", *(["bert.encoder.layer.1."] if mode == "last_block" else []))
    assert moved and all(name.startswith(allowed) for name in moved)


def test_from_scratch_is_the_control(files, tmp_path):
    finetune.main(["--init_from", "scratch", "--model", "bert", "--preset", "bert-tiny", "--dropout", "0",
                   "--lr", "2e-3", "--train_file", files["train_single"], "--val_file", files["val_single"],
                   "--out_dir", str(tmp_path), "--epochs", "3", "--batch_size", "16",
                   "--vocab_size", "300", *FAST])
    assert final(tmp_path)["mean"] > 0.9
    transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_pydoc_needs_nothing(base, tmp_path, capsys):
    """The default task, two steps of it."""
    finetune.main(["--init_from", base["albert"], "--max_steps", "2", "--out_dir", str(tmp_path), *FAST])
    log = read_log(tmp_path)
    assert log[0]["task"] == "pydoc" and {"python", "torch", "pandas"} <= set(log[0]["classes"])
    assert "next: python finetune.py --init_from" in capsys.readouterr().out

# -----------------------------------------------------------------------------
# against transformers: one step, weights

@pytest.mark.parametrize("weights", [[], ["--class_weights", "1", "3"]])
def test_three_steps_equal_transformers(weights, flags, base, files, tmp_path):
    """The losses of a plain loop over the same batches, class weights included."""
    argv = flags(tmp_path, "single", "bert", "--warmup", "0.5", "--schedule", "constant", "--clip", "0",
                 *weights)
    argv = instead_of_epochs(argv, "--max_steps", "3")
    batches, step = [], finetune.tasks.Rows.inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.tasks.Rows, "inputs", lambda self, chosen: batches.append(
            (step(self, chosen), self.targets(chosen))) or step(self, chosen))
        finetune.main([*argv, "--log_interval", "1"])
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]

    torch.manual_seed(0)  # the seed of the fresh head
    ours = bert.ForSequenceClassification.from_pretrained(base["bert"], num_labels=2)
    ours.save_pretrained(tmp_path / "start")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start").train()
    theirs.dropout.p = 0.0
    decayed = [p for p in theirs.parameters() if p.dim() >= 2]
    plain = [p for p in theirs.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.01),
                                   dict(params=plain, weight_decay=0.0)], lr=1e-3, eps=1e-8)
    for i, ((inputs, targets), loss) in enumerate(zip(batches, losses)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (i + 0.5) / 3 / 0.5)
        logits = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
        weight = torch.tensor([1.0, 3.0]) if weights else None
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), weight)
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()


def losses_of(out_dir):
    return [line["loss"] for line in read_log(out_dir) if "loss" in line]


@pytest.mark.parametrize("kind, mode", [("tags", "full"), ("single", "lora")])
def test_one_batch_cut_in_different_ways(kind, mode, flags, tmp_path):
    """Micro-batches, and two processes, with different numbers of labels; and a last batch of one row."""
    argv = lambda name, *more: instead_of_epochs(flags(
        tmp_path / name, kind, "bert", "--train", mode, "--batch_size", "51",  # 256 = 5 * 51 + 1
        "--log_interval", "1", "--class_weights", "balanced", "--eval_interval", "3", *more),
        "--max_steps", "6")
    finetune.main(argv("one"))
    finetune.main(argv("micro", "--accumulation", "3"))
    done = subprocess.run(TORCHRUN + argv("two"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one = losses_of(tmp_path / "one")
    assert len(one) == 6
    for name in ("micro", "two"):
        assert losses_of(tmp_path / name) == pytest.approx(one, rel=1e-5), name
        assert final(tmp_path / name)["mean"] == pytest.approx(final(tmp_path / "one")["mean"], abs=1e-9)


def test_repeats_to_the_bit(flags, tmp_path):
    for name in "ab":
        finetune.main(flags(tmp_path / name, "single", "roberta", "--dropout", "0.1", "--log_interval", "1"))
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)

# -----------------------------------------------------------------------------
# best weights, seeds, interruption

class Script:
    """Plays an accuracy for each evaluation, and remembers the weights of that moment."""

    def __init__(self, patch, *accuracies):
        self.weights, look = [], finetune.Run.look
        values = iter(accuracies)
        patch.setattr(finetune, "score", lambda rows, outputs, classes: {"accuracy": next(values)})
        def remember(run, model, *more):
            self.weights.append({name: tensor.clone() for name, tensor in model.hf_state().items()})
            return look(run, model, *more)
        patch.setattr(bert.Pretrained, "hf_state", lambda model: {
            key: model.state_dict()[name] for name, key in model.hf_keys().items()}, raising=False)
        patch.setattr(finetune.Run, "look", remember)

    def saved(self, out_dir):
        """Which evaluation's weights are in out_dir."""
        found = load_file(Path(out_dir) / "model.safetensors")
        return [i for i, weights in enumerate(self.weights)
                if all(torch.equal(weights[name], found[name]) for name in found)]


def test_the_best_weights_are_kept_and_patience_ends(flags, tmp_path, monkeypatch):
    script = Script(monkeypatch, 0.6, 0.8, 0.9, 0.7, 0.9, 0.2, 0.95)
    finetune.main(flags(tmp_path, "single", "bert", "--eval_interval", "4", "--patience", "3"))
    assert len(script.weights) == 6  # three evaluations without a better one; an equal one is not better
    assert script.saved(tmp_path) == [2] and final(tmp_path)["mean"] == 0.9


def test_the_best_of_all_seeds_is_kept(flags, tmp_path, monkeypatch):
    script = Script(monkeypatch, 0.5, 0.7, 0.9, 0.6, 0.8, 0.2)
    finetune.main(flags(tmp_path, "single", "bert", "--seeds", "3", "--epochs", "2"))
    assert script.saved(tmp_path) == [2]
    assert [seed["score"] for seed in final(tmp_path)["seeds"]] == [0.7, 0.9, 0.8]


def test_a_test_file_is_measured_with_the_best_weights(flags, files, tmp_path, capsys):
    finetune.main(flags(tmp_path, "single", "bert", "--test_file", files["test_single"]))
    capsys.readouterr()
    use(tmp_path, "--test_file", files["test_single"], "--eval_only")
    assert f"accuracy {final(tmp_path)['seeds'][0]['test']['accuracy']:.4f}" in capsys.readouterr().out


def test_seeds(flags, tmp_path):
    finetune.main(flags(tmp_path, "single", "bert", "--seeds", "3", "--epochs", "1"))
    log = final(tmp_path)
    scores = [seed["score"] for seed in log["seeds"]]
    assert [seed["seed"] for seed in log["seeds"]] == [0, 1, 2]
    assert log["mean"] == pytest.approx(np.mean(scores))
    assert log["std"] == pytest.approx(np.std(scores, ddof=1))
    first = [line["loss"] for line in read_log(tmp_path) if line.get("step") == 1 and "loss" in line]
    assert len(set(first)) == 3  # other heads, other orders


@pytest.mark.parametrize("number, moment", [(signal.SIGINT, "best so far"),
                                            (signal.SIGTERM, "step      1 |")])
def test_a_signal_keeps_the_best(number, moment, flags, files, tmp_path, capsys):
    """Also before the first evaluation, which then takes place."""
    argv = flags(tmp_path / "run", "single", "bert", "--epochs", "1000", "--log_interval", "1")
    process = subprocess.Popen([sys.executable, "finetune.py", *argv], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if moment in line:
            process.send_signal(number)
            break
    process.stdout.read()
    error = process.stderr.read()
    assert process.wait(60) == 128 + number
    assert f"{tmp_path / 'run'} has the best weights so far (validation accuracy" in error.splitlines()[-1]
    best = max(line["val_accuracy"] for line in read_log(tmp_path / "run") if "val_accuracy" in line)
    use(tmp_path / "run", "--val_file", files["val_single"], "--eval_only")
    assert f"accuracy {best:.4f}" in capsys.readouterr().out


def test_a_signal_to_a_comparison(flags, tmp_path):
    """It goes to the process that trains, which saves."""
    argv = flags(tmp_path / "run", "single", "bert", "--epochs", "1000", "--compare", "full,lora")
    i = argv.index("--lr")
    process = subprocess.Popen([sys.executable, "finetune.py", *argv[:i], *argv[i + 2:]], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step      1 |"):
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    error = process.stderr.read()
    assert process.wait(60) == 130 and "--compare: full ended with status 130" in error.splitlines()[-1]
    assert (tmp_path / "run" / "full" / "model.safetensors").exists()


def test_a_budget_in_minutes(flags, tmp_path):
    argv = flags(tmp_path, "single", "bert")
    finetune.main([*instead_of_epochs(argv, "--max_minutes", "0.05"), "--log_interval", "5"])
    lines = [line for line in read_log(tmp_path) if "lr" in line and "step" in line]
    assert lines[-1]["lr"] < 0.5e-3 and lines[-1]["elapsed_s"] < 10

# -----------------------------------------------------------------------------
# comparing

def test_compare(flags, tmp_path, capsys):
    argv = flags(tmp_path, "single", "bert", "--compare", "full,lora:2e-2", "--seeds", "2", "--lora_r", "4")
    i = argv.index("--lr")
    finetune.main(argv[:i] + argv[i + 2:])
    table = (tmp_path / "compare.md").read_text().splitlines()
    assert len(table) == 4 and table[2].startswith("| full | ") and table[3].startswith("| lora | ")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    full, lora = (final(tmp_path / name) for name in ("full", "lora"))
    assert [read_log(tmp_path / name)[0]["lr"] for name in ("full", "lora")] == [
        5e-5 * 768 / 128, 2e-2]  # bert-tiny is 128 wide
    assert f"| {lora['trained']:,} | {100 * lora['trained'] / lora['parameters']:.2f}% | " in table[3]
    # gradients and two moments of what is trained, and AdamW's step counts
    assert lora["training_mb"] == pytest.approx(12 * lora["trained"] / 1e6, rel=0.01)
    assert lora["training_mb"] < 0.1 * full["training_mb"] and lora["disk_mb"] < 0.1 * full["disk_mb"]

# -----------------------------------------------------------------------------
# bad input

def test_bad_input(flags, files, base, tmp_path, capsys):
    out = tmp_path / "out"
    argv = flags(out)
    without = lambda *names: [word for i, word in enumerate(argv)
                              if word not in names and (i == 0 or argv[i - 1] not in names)]
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)
    headless = write("headless.csv", "\n".join(f"{text},{label}" for text, label in reviews(40, 5)))
    cases = [
        ([*argv, "--train_file", "none.csv"], "none.csv: no such file"),
        ([*argv, "--label_column", "mood"], "no column 'mood' among text, label; see --label_column"),
        ([*argv, "--train_file", write("one.csv", "text,label\na b,x\nc d,x\n")],
         "every row has the label 'x'"),
        ([*argv, "--val_file", write("new.csv", "text,label\na b,good\nc d,odd\n")],
         "new.csv, line 3: the label 'odd' is none of the classes: bad, good"),
        ([*argv, "--kind", "regression"], "line 2: the target of a regression is '"),
        ([*argv, "--train_file", headless, "--header"], "which of the columns"),
        ([*argv, "--epochs", "1", "--max_steps", "2"], "give one of --epochs, --max_steps and --max_minutes"),
        ([*argv, "--lr", "-1"], "--lr must be positive"),
        ([*argv, "--dora"], "--dora without --train lora"),
        ([*argv, "--preset", "bert-tiny"], "--preset: only --init_from scratch takes them"),
        ([*argv, "--init_from", "scratch", "--train", "lora"], "--train lora adapts a pretrained model"),
        ([*argv, "--class_weights", "1", "0"], "balanced, or 2 positive numbers, for bad, good"),
        ([*without("--lr"), "--compare", "full,last_block", "--init_from", base["albert"]], "no last block"),
        ([*argv, "--warmup", "1"], "--warmup must be between 0 and 1"),
        ([*argv, "--metric", "pearson"], "--metric pearson: for this task there are accuracy, f1, macro_f1"),
        ([*argv, "--class_weights", "1", "2", "3"], "balanced, or 2 positive numbers, for bad, good"),
        ([*argv, "--train", "lora", "--lora_targets", "qurey"], "no linear layer is called 'qurey'"),
        ([*argv, "--init_from", "out/nowhere/at/all"], "out/nowhere/at/all: no such directory"),
        ([*argv, "--init_from", "scratch", "--preset", "huge"], "no preset huge; roberta.py has"),
        ([*argv, "--compare", "full,half"], "'half' is not one of full, lora, head, last_block"),
        ([*argv, "--compare", "full,lora:fast"], "'fast' is not a learning rate"),
        ([*argv, "--compare", "full,lora,full"], "full twice"),
        ([*argv, "--compare", "full,lora"], "--compare with --lr: each mode has a rate of its own"),
        (without("--train_file"), "there is no --train_file; --eval_only evaluates"),
        ([*argv, "--eval_only"], "--lr, --epochs, --out_dir: --eval_only, --predict and --merge take"),
        ([*argv, "--json"], "--json without --predict"),
        ([*argv, "--train", "head", "--compare", "full"], "--train head beside --compare"),
        ([*flags(out, "single", "roberta"), "--train", "lora", "--lora_pooler"], "this model has no pooler"),
        ([*without("--lr", "--epochs", "--out_dir", "--batch_size"), "--eval_only"],
         "holds BertForPreTraining, no classifier; fine-tune it first"),
        ([*without("--train_file", "--val_file", "--lr", "--epochs"), "--merge"],
         "is no adapter: it has no adapter_config.json"),
        ([*flags(out, "single", "albert"), "--train", "last_block"], "there is no last block of its own"),
    ]
    for words, message in cases:
        error = refused(words, capsys)
        assert message in error, (message, error)
        assert error.startswith("finetune.py: ")
        assert not out.exists(), message


def test_checkpoints_that_do_not_do(flags, files, base, tmp_path, capsys):
    finetune.main(flags(tmp_path / "lora", "single", "bert", "--train", "lora", "--epochs", "1"))
    capsys.readouterr()
    for text in (" ", "one\ttwo\tthree", "one\t"):
        assert "a text, or two with a tab between, is wanted" in refused(
            ["--init_from", str(tmp_path / "lora"), "--predict", text, *FAST], capsys)
    # a run is never written over
    assert "holds a run already" in refused(flags(tmp_path / "lora"), capsys)
    # an adapter for another model
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base["roberta"]
    os.makedirs(tmp_path / "wrong")
    for name in ("adapter_model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / "wrong" / name).write_bytes((tmp_path / "lora" / name).read_bytes())
    (tmp_path / "wrong" / "adapter_config.json").write_text(json.dumps(config))
    assert "is an adapter for another model" in refused(
        ["--init_from", str(tmp_path / "wrong"), "--predict", "x", *FAST], capsys)
    # an adapter is merged before it is trained on
    assert "--merge it, and train what that writes" in refused(
        [*flags(tmp_path / "b"), "--init_from", str(tmp_path / "lora")], capsys)
    # a checkpoint without a tokenizer
    bare = tmp_path / "bare"
    bert.ForPreTraining.from_pretrained(base["bert"]).save_pretrained(bare)
    assert "has no tokenizer" in refused([*flags(tmp_path / "c"), "--init_from", str(bare)], capsys)


def test_a_loss_that_is_not_finite(flags, tmp_path, monkeypatch, capsys):
    """The best weights of before stay."""
    script = Script(monkeypatch, 0.6, 0.7, 0.8)
    monkeypatch.setattr(finetune.train_mlm, "learning_rate",
                        lambda args, progress: 1e-3 if progress < 0.5 else float("inf"))
    argv = flags(tmp_path, "single", "bert", "--eval_interval", "8", "--log_interval", "1")
    error = refused(argv, capsys)
    assert "the loss is not finite near step" in error and f"{tmp_path} has the best weights so far" in error
    assert script.saved(tmp_path) == [len(script.weights) - 1]
    # without any, nothing is there
    argv[argv.index("--out_dir") + 1] = str(tmp_path / "none")
    monkeypatch.setattr(finetune.train_mlm, "learning_rate", lambda args, progress: float("inf"))
    assert "nothing was saved" in refused(argv, capsys)
    assert not os.listdir(tmp_path / "none")


def test_a_budget_that_ends_on_a_loss_that_is_not_finite(flags, tmp_path, monkeypatch, capsys):
    """Between two looks at the loss: the weights are not saved."""
    monkeypatch.setattr(finetune.train_mlm, "learning_rate", lambda args, progress: float("inf"))
    argv = instead_of_epochs(flags(tmp_path, "single", "bert", "--log_interval", "1000000"),
                             "--max_minutes", "0.01")
    assert "the loss is not finite near step" in refused([*argv, "--eval_interval", "1000000"], capsys)
    assert not os.listdir(tmp_path)


def test_overwrite_leaves_nothing_of_the_run_before(flags, tmp_path, capsys):
    finetune.main(flags(tmp_path, "single", "bert", "--train", "lora", "--epochs", "1"))
    assert "holds a run already" in refused(flags(tmp_path), capsys)
    finetune.main(flags(tmp_path, "single", "roberta", "--epochs", "1", "--overwrite"))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "log.jsonl", "merges.txt", "model.safetensors",
                                            "tokenizer_config.json", "vocab.json"]
    assert sum("torch" in line for line in read_log(tmp_path)) == 1  # the log is of one run


def test_bad_input_of_two_processes(flags, tmp_path):
    """The process that reads tells the other, and neither shows a traceback of ours."""
    done = subprocess.run(TORCHRUN + [*flags(tmp_path / "out"), "--train_file", "none.csv"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode and done.stderr.count("finetune.py: none.csv: no such file") == 1
    assert "finetune.py\", line" not in done.stderr and not (tmp_path / "out").exists()
    done = subprocess.run(TORCHRUN + ["--init_from", "x", "--predict", "y"], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode and "run in one process; leave torchrun out" in done.stderr and not done.stdout


def test_words_beyond_the_length(flags, tmp_path, capsys):
    finetune.main(flags(tmp_path, "tags", "bert", "--epochs", "1"))
    capsys.readouterr()
    use(tmp_path, "--predict", "the film was " * 10, "--json", "--max_length", 12)
    captured = capsys.readouterr()
    line = json.loads(captured.out)
    tagged = [tag for tag in line["tags"] if tag]
    assert len(line["tags"]) == 30 and 0 < len(tagged) < 12 and line["tags"][-1] is None
    assert f"the last {30 - len(tagged)} words are beyond --max_length" in captured.err


def test_words_beyond_the_length_are_counted(flags, files, tmp_path, capsys):
    finetune.main(flags(tmp_path, "tags", "bert", "--epochs", "1", "--max_length", 8))
    assert "words of train are beyond --max_length" in capsys.readouterr().out
    use(tmp_path, "--val_file", files["val_tags"], "--eval_only", "--max_length", 8)
    cut = re.search(r"([\d,]+) words of val are beyond", capsys.readouterr().out)
    use(tmp_path, "--predict", files["val_tags"], "--json", "--max_length", 8)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert int(cut[1].replace(",", "")) == sum(line["tags"].count(None) for line in lines) > 0


def test_bpe_for_tags_knows_words_after_a_space(files, tmp_path):
    """From scratch: trained on the words as they are encoded, each with its space."""
    finetune.main(["--init_from", "scratch", "--model", "roberta", "--vocab_size", "300", "--max_steps", "1",
                   "--train_file", files["train_tags"], "--val_file", files["val_tags"],
                   "--out_dir", str(tmp_path), *FAST])
    tokenizer = tokenizers.load(str(tmp_path))
    rows = tasks.encode([["the", "film"]], tokenizer, 16)
    assert len(rows[0].ids) == 4  # <s>, a token each, </s>


def test_a_file_without_the_hub(flags, files, tmp_path, capsys, monkeypatch):
    """--task beside --test_file names the labels; nothing is downloaded to evaluate."""
    finetune.main(flags(tmp_path, "single", "bert", "--epochs", "1"))
    monkeypatch.setattr(tasks, "read_hub", lambda name: pytest.fail("asked the hub"))
    use(tmp_path, "--task", "sst2", "--test_file", files["val_single"], "--eval_only")
    assert "rows test: accuracy" in capsys.readouterr().out


def test_scores_without_a_fraction(flags, tmp_path, capsys):
    """--task stsb is a regression, whatever the numbers in the file look like."""
    rows = "".join(f"the film\tthe {word} film\t{i % 6}\n" for i, word in enumerate(["fine", "dull"] * 20))
    (tmp_path / "whole.tsv").write_text("sentence1\tsentence2\tscore\n" + rows)
    finetune.main([*flags(tmp_path / "out", "score", "bert", "--task", "stsb", "--max_steps", "1")[:2],
                   "--task", "stsb", "--train_file", str(tmp_path / "whole.tsv"), "--max_steps", "1",
                   "--out_dir", str(tmp_path / "out"), *FAST])
    assert "; regression" in capsys.readouterr().out and final(tmp_path / "out")["metric"] == "spearman"


def test_what_is_held_out(flags, files, tmp_path, capsys):
    """Without --val_file; --eval_only of the same file finds the same rows."""
    argv = flags(tmp_path, "tags", "bert", "--epochs", "1")
    i = argv.index("--val_file")
    finetune.main(argv[:i] + argv[i + 2:])
    rows = read_log(tmp_path)[0]["rows"]
    assert rows["val"] == (rows["train"] + rows["val"]) // 10
    capsys.readouterr()
    use(tmp_path, "--train_file", files["train_tags"], "--eval_only")
    assert f"{rows['val']} rows val: " in (out := capsys.readouterr().out)
    assert f"token_f1 {final(tmp_path)['mean']:.4f}" in out


def test_an_adapter_whose_base_lacks_the_pooler(flags, base, tmp_path, capsys):
    """PEFT saves the classifier alone; a pooler from nowhere would give random answers."""
    bert.ForTokenClassification.from_pretrained(base["bert"]).save_pretrained(tmp_path / "base")  # no pooler
    tokenizers.load(base["bert"]).save(tmp_path / "base")
    model = bert.ForSequenceClassification.from_pretrained(tmp_path / "base")
    lora.save(lora.inject(model), tmp_path / "adapter", str(tmp_path / "base"))
    assert "neither the adapter nor its base" in refused(
        ["--init_from", str(tmp_path / "adapter"), "--predict", "x", *FAST], capsys)


def test_several_labels_are_refused(flags, tmp_path, capsys):
    finetune.main(flags(tmp_path, "single", "bert", "--epochs", "1"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    assert "gives several labels to a text" in refused(
        ["--init_from", str(tmp_path), "--predict", "x", *FAST], capsys)


@pytest.mark.parametrize("more", [["--dora"], ["--rslora", "--lora_dropout", "0.1", "--lora_r", "4"]])
def test_lora_in_bfloat16(more, flags, tmp_path):
    finetune.main(flags(tmp_path, "single", "bert", "--train", "lora", "--dtype", "bfloat16", "--lr", "1e-2",
                        *more))
    losses = losses_of(tmp_path)
    assert losses[-1] < losses[0]


def test_another_task_gets_another_head(flags, files, tmp_path, capsys):
    finetune.main(flags(tmp_path / "two", "single", "roberta", "--epochs", "1"))
    capsys.readouterr()
    finetune.main([*flags(tmp_path / "three", "tags", "roberta", "--epochs", "1"),
                   "--init_from", str(tmp_path / "two")])
    assert "fresh weights" in capsys.readouterr().err
