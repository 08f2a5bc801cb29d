"""finetune.py from the command line: learning, saving, using, bad input; against transformers and PEFT."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import sklearn.metrics
import torch
import transformers
from safetensors.torch import load_file

import bert
import data
import finetune
import inference
import predict
import tasks
import tokenizer as tokenizers
from conftest import read_log, reviews

ROOT = Path(finetune.__file__).parent
MODELS = ("bert", "roberta", "albert")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            "finetune.py"]
FAST = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]


def instead_of_epochs(argv, *length):
    i = argv.index("--epochs")
    return [*argv[:i], *length, *argv[i + 2:]]


def use(path, *more):
    predict.main(["--checkpoint", str(path), *map(str, more), *FAST])


def final(out_dir):
    return read_log(out_dir)[-1]


def test_dry_run_writes_nothing(finetuning, tmp_path, capsys):
    finetune.main(finetuning(tmp_path / "dry", "pair", "albert", "--dry_run"))
    assert "step      3 |" in capsys.readouterr().out and not (tmp_path / "dry").exists()

# -----------------------------------------------------------------------------
# every kind and mode

@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind, metric", [("single", "accuracy"), ("pair", "accuracy"), ("score", "spearman"),
                                          ("tags", "token_f1"), ("many", "micro_f1")])
def test_every_kind_learns_and_transformers_agrees(kind, metric, family, finetuning, files, tmp_path, capsys):
    more = {"pair": ["--epochs", 8], "many": ["--epochs", 8, "--kind", "multilabel"]}
    finetune.main(finetuning(tmp_path, kind, family, *more.get(kind, [])))
    log = read_log(tmp_path)
    assert log[-1]["metric"] == metric
    if kind != "pair":  # to compare two words takes longer than these seconds
        assert log[-1]["mean"] > (0.8 if metric == "spearman" else 0.95)
    assert min(line["loss"] for line in log if "loss" in line) < 0.9 * log[1]["loss"]
    # what the command line evaluates and predicts, transformers computes from the same directory
    capsys.readouterr()
    use(tmp_path, "--evaluate", files[f"val_{kind}"])
    assert f"{metric} {log[-1]['mean']:.4f}" in capsys.readouterr().out
    use(tmp_path, "--file", files[f"val_{kind}"], "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    token = kind == "tags"
    auto = getattr(transformers, f"AutoModelFor{'Token' if token else 'Sequence'}Classification")
    theirs = auto.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for line in lines[:10]:
        with torch.no_grad():
            if token:
                inputs = tokenizer(line["tokens"], is_split_into_words=True, return_tensors="pt")
                first = [inputs.word_ids().index(i) for i in range(len(line["tokens"]))]
                p = theirs(**inputs).logits[0, first].softmax(-1)
                assert [theirs.config.id2label[i] for i in p.argmax(-1).tolist()] == line["predicted_tags"]
                np.testing.assert_allclose(p.max(-1).values, line["probabilities"], atol=1e-5)
                continue
            texts = [line[name] for name in ("text", "sentence1", "sentence2") if name in line]
            logits = theirs(**tokenizer(*texts, return_tensors="pt")).logits[0]
        if kind == "score":
            assert logits.item() == pytest.approx(line["predicted_score"], abs=1e-5)
        elif kind == "many":
            p = dict(zip(theirs.config.id2label.values(), logits.sigmoid().tolist()))
            assert p == pytest.approx(line["probabilities"], abs=1e-5)
            assert [name for name in p if p[name] > 0.5] == line["predicted_labels"]
        else:
            p = dict(zip(theirs.config.id2label.values(), logits.softmax(-1).tolist()))
            assert p == pytest.approx(line["probabilities"], abs=1e-5)
            assert max(p, key=p.get) == line["predicted_label"]
    if kind in ("single", "pair"):
        loss = np.mean([-np.log(line["probabilities"][line["label"]]) for line in lines])
    elif kind == "score":
        loss = np.mean([(line["predicted_score"] - float(line["score"])) ** 2 for line in lines])
    elif kind == "many":
        loss = np.mean([-np.log(p if name in line["labels"].split("|") else 1 - p) for line in lines
                        for name, p in line["probabilities"].items()])
    if not token:  # of which no other probabilities are printed
        assert log[-1]["seeds"][0]["scores"]["loss"] == pytest.approx(loss, abs=1e-5)


def logits_and_labels(model, tokenizer, file, classes):
    """transformers' logits of every row of a file of several labels, and its labels, read by hand."""
    rows = [line.rsplit(",", 1) for line in Path(file).read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text, _ in rows]
    labels = [[float(name in cell.split("|")) for name in classes] for _, cell in rows]
    return torch.stack(logits), torch.tensor(labels)


@pytest.mark.parametrize("family", MODELS)
def test_several_labels_learn_and_transformers_agrees(family, finetuning, files, tmp_path, capsys):
    """Also with seeds, rows held out of the training file, a test file and another metric."""
    argv = finetuning(tmp_path, "many", family, "--kind", "multilabel", "--epochs", "6", "--test_file",
                      files["test_many"])
    if family == "albert":
        i = argv.index("--val_file")
        argv = [*argv[:i], *argv[i + 2:], "--seeds", "2", "--metric", "macro_f1", "--patience", "3"]
    finetune.main(argv)
    printed, log = capsys.readouterr().out, read_log(tmp_path)
    assert log[0]["classes"] == ["good", "it", "was"]
    assert log[-1]["metric"] == ("macro_f1" if family == "albert" else "micro_f1") and log[-1]["mean"] > 0.9
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == {0: "good", 1: "it", 2: "was"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    logits, labels = logits_and_labels(theirs, tokenizer, files["test_many"], log[0]["classes"])
    f1 = lambda average, k=0: sklearn.metrics.f1_score(labels, logits > k, average=average, zero_division=0)
    best = max(log[-1]["seeds"], key=lambda seed: seed["score"])
    assert best["test"]["micro_f1"] == pytest.approx(f1("micro"), abs=1e-9)
    assert best["test"]["macro_f1"] == pytest.approx(f1("macro"), abs=1e-9)
    subset = sklearn.metrics.accuracy_score(labels, logits > 0)
    assert best["test"]["subset_accuracy"] == pytest.approx(subset, abs=1e-9)
    if family == "albert":
        return
    logits, labels = logits_and_labels(theirs, tokenizer, files["val_many"], log[0]["classes"])
    threshold, value = re.search(r"predict.py --threshold (\S+) is best: micro_f1 (\S+)", printed).groups()
    cut = np.log(float(threshold) / (1 - float(threshold)))
    assert float(value) == pytest.approx(f1("micro", cut), abs=5.1e-5) and f1("micro", cut) >= f1("micro")
    choices = [np.tile(choice, (len(labels), 1)) for choice in np.ndindex(2, 2, 2) if any(choice)]
    always = max(sklearn.metrics.f1_score(labels, choice, average="micro") for choice in choices)
    assert f"validation micro_f1 {always:.4f}\n" in printed


def test_lora_of_several_labels(finetuning, files, base, tmp_path):
    """The adapter in PEFT, on transformers' base; and as it is opened here."""
    finetune.main(finetuning(tmp_path, "many", "bert", "--kind", "multilabel", "--train", "lora", "--lr",
                             "5e-3", "--epochs", "8", "--lora_targets", "query,key,value,out,fc_in,fc_out"))
    log = read_log(tmp_path)
    assert log[-1]["mean"] > 0.9
    model, tokenizer = inference.open_model(str(tmp_path))
    assert model.config.problem_type == "multi_label_classification"
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForSequenceClassification.from_pretrained(
        base["bert"], num_labels=3), tmp_path).eval()
    logits, labels = logits_and_labels(theirs, transformers.AutoTokenizer.from_pretrained(tmp_path),
                                       files["val_many"], log[0]["classes"])
    assert log[-1]["mean"] == pytest.approx(sklearn.metrics.f1_score(labels, logits > 0, average="micro"))
    text = Path(files["val_many"]).read_text().splitlines()[1].rsplit(",", 1)[0]
    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]])
    torch.testing.assert_close(model(ids)[0][0], logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", MODELS)
def test_lora_end_to_end(family, finetuning, files, base, tmp_path, capsys):
    """Train, evaluate the adapter, open it in PEFT, merge it, open that in transformers."""
    finetune.main(finetuning(tmp_path / "lora", "single", family, "--train", "lora", "--lr", "5e-3",
                        "--epochs", "8", "--lora_targets", "query,key,value,out,fc_in,fc_out"))
    log = final(tmp_path / "lora")
    assert log["mean"] > 0.95 and not (tmp_path / "lora" / "model.safetensors").exists()
    capsys.readouterr()
    use(tmp_path / "lora", "--merge", tmp_path / "merged")
    assert 'library_name: "transformers"' in (tmp_path / "merged" / "README.md").read_text()
    probabilities = {}
    for name in ("lora", "merged"):
        use(tmp_path / name, "--evaluate", files["val_single"])
        assert f"accuracy {log['mean']:.4f}" in capsys.readouterr().out
        use(tmp_path / name, "--file", files["val_single"], "--json")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        probabilities[name] = [line["probabilities"]["good"] for line in lines]
    np.testing.assert_allclose(probabilities["lora"], probabilities["merged"], atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "lora")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base[family], num_labels=2)
    auto = transformers.AutoModelForSequenceClassification
    models = [peft.PeftModel.from_pretrained(theirs, tmp_path / "lora"),
              auto.from_pretrained(tmp_path / "merged"), auto.from_pretrained(tmp_path / "lora")]
    how = re.search("peft.AutoPeft[^`]+", (tmp_path / "lora" / "README.md").read_text())[0]
    models.append(eval(how.replace("'NAME'", repr(str(tmp_path / "lora")))))
    assert models[-1].config.id2label == {0: "bad", 1: "good"}
    for line, expected in zip(lines[:8], probabilities["lora"]):
        for model in models:
            with torch.no_grad():
                p = model.eval()(**tokenizer(line["text"], return_tensors="pt")).logits.softmax(-1)[0]
            good = [i for i, name in models[1].config.id2label.items() if name == "good"][0]
            assert p[good].item() == pytest.approx(expected, abs=1e-5)


def test_default_rates():
    """5e-5 for all parameters of a model 768 wide; LoRA ten times, and twenty in less than 1,000 steps."""
    def rate(train, n_rows, **length):
        lengths = {"max_steps": None, "epochs": None} | length
        args = SimpleNamespace(train=train, batch_size=32, **lengths)
        config = SimpleNamespace(hidden_size=384)
        return finetune.default_lr(args, config, n_rows)
    assert rate("full", 320, epochs=1) == rate("full", 64_000, epochs=1) == pytest.approx(1e-4)
    assert rate("lora", 31_968, epochs=1) == rate("lora", 10**9, max_steps=999) == pytest.approx(2e-3)
    assert rate("lora", 16_000, epochs=2) == rate("lora", 320, max_minutes=9) == pytest.approx(1e-3)


@pytest.mark.parametrize("mode", ["lora", "head", "last_block"])
def test_what_is_frozen_stays(mode, finetuning, base, tmp_path):
    finetune.main(finetuning(tmp_path / "run", "single", "bert", "--train", mode, "--epochs", "1"))
    log = final(tmp_path / "run")
    H, layer, head = 128, 12 * 128 ** 2 + 13 * 128, 128 * 128 + 128 + 2 * 128 + 2
    # LoRA: two layers, in each two matrices between H and 4 H with r = 8
    expected = {"lora": 2 * 2 * 8 * 5 * H + head, "head": head, "last_block": layer + head}
    assert log["trained"] == expected[mode]
    if mode == "lora":
        first = read_log(tmp_path / "run")[0]
        assert first["dropout"] == 0 and first["model"] == "bert"
        return
    before, after = (load_file(Path(d) / "model.safetensors") for d in (base["bert"], tmp_path / "run"))
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    allowed = ("classifier.", "bert.pooler.", *(["bert.encoder.layer.1."] if mode == "last_block" else []))
    assert moved and all(name.startswith(allowed) for name in moved)


def test_from_scratch_is_the_control(files, tmp_path):
    finetune.main(["--init_from", "scratch", "--model", "bert", "--preset", "bert-tiny", "--layers", "1",
                   "--dropout", "0", "--lr", "2e-3", "--train_file", files["train_single"],
                   "--val_file", files["val_single"], "--out_dir", str(tmp_path), "--epochs", "3",
                   "--batch_size", "16", "--vocab_size", "300", *FAST])
    assert final(tmp_path)["mean"] > 0.9
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.num_hidden_layers == 1


def test_flags_that_would_do_nothing(base, files, tmp_path, refused):
    bert.ForTokenClassification.from_pretrained(base["bert"]).save_pretrained(tmp_path / "base")  # no pooler
    tokenizers.load(base["bert"]).save(tmp_path / "base")
    scratch = ["--init_from", "scratch", "--model", "bert"]
    for argv, problem in (
            (["--init_from", tmp_path / "base", "--train", "lora", "--lora_targets", "query", "pooler",
              "--train_file", files["train_single"]], "--lora_targets pooler: the checkpoint has none"),
            ([*scratch, "--tokenizer", base["bert"], "--vocab_size", 300], "--vocab_size: only a tokenizer"),
            ([*scratch, "--task", "sst2", "--label_column", "x"], "--label_column: no effect here")):
        assert problem in refused(finetune, [*map(str, argv), "--out_dir", str(tmp_path / "out")])


def test_the_default_task_needs_nothing(base, tmp_path, capsys, monkeypatch):
    """No network and no file; packages apart by module, and no paragraph that says its package."""
    monkeypatch.setattr(data, "PYDOC", ("numpy",))  # one is sooner read than all
    monkeypatch.setattr(data, "pydoc_modules", functools.cache(data.pydoc_modules.__wrapped__))
    splits = tasks.read_pydoc(smallest=300, largest=100)
    assert set(splits["train"].labels) == set(splits["val"].labels) == {"python", "numpy"}
    assert not set(splits["train"].texts) & set(splits["val"].texts)
    assert not any("numpy" in text.lower() for text, in splits["train"].texts)
    assert splits["train"].labels.count("numpy") == 100 and splits["val"].labels.count("numpy") == 20
    finetune.main(["--init_from", base["albert"], "--max_steps", "2", "--out_dir", str(tmp_path), *FAST])
    log = read_log(tmp_path)
    assert log[0]["task"] == "pydoc" and log[0]["classes"] == ["numpy", "python"]
    assert "next: python predict.py --checkpoint" in capsys.readouterr().out

# -----------------------------------------------------------------------------
# against transformers: one step, weights

@pytest.mark.parametrize("kind, more", [("single", []), ("single", ["--class_weights", "1", "3"]),
                                        ("many", ["--kind", "multilabel"])])
def test_three_steps_equal_transformers(kind, more, finetuning, base, files, tmp_path):
    """The losses of a plain loop over the same batches, class weights and several labels included."""
    argv = finetuning(tmp_path, kind, "bert", "--warmup", "0.5", "--schedule", "constant", "--clip", "0",
                      *more)
    argv = instead_of_epochs(argv, "--max_steps", "3")
    finetune.main([*argv, "--log_interval", "1"])
    log = read_log(tmp_path)
    losses, norms = ([line[name] for line in log if name in line] for name in ("loss", "grad_norm"))

    # the rows as tasks.py gives them, in the order of seed 0
    own = {"single": "classification", "many": "multilabel"}[kind]
    task_data = tasks.prepare({"train": tasks.read_file(files[f"train_{kind}"], kind=own)}, own)
    rows = tasks.Rows(task_data.splits["train"], own, tokenizers.load(base["bert"]), 64, True)
    batches = tasks.batches_by_length(rows.lengths, 16, data.random_numbers(0, data.ORDER, 0))
    torch.manual_seed(0)  # the seed of the fresh head
    ours = bert.ForSequenceClassification.from_pretrained(
        base["bert"], num_labels=len(task_data.classes),
        problem_type=None if kind == "single" else "multi_label_classification")
    ours.save_pretrained(tmp_path / "start")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start").train()
    theirs.dropout.p = 0.0
    decayed = [p for p in theirs.parameters() if p.dim() >= 2]
    plain = [p for p in theirs.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.01),
                                   dict(params=plain, weight_decay=0.0)], lr=1e-3, eps=1e-8)
    assert len(losses) == 3
    for i, (batch, loss) in enumerate(zip(batches, losses)):
        inputs, targets = rows.inputs(batch), rows.targets(batch)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (i + 0.5) / 3 / 0.5)
        inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
        expected = theirs(**inputs, labels=torch.from_numpy(targets))
        if "--class_weights" in more:
            expected.loss = torch.nn.functional.cross_entropy(
                expected.logits, torch.from_numpy(targets), torch.tensor([1.0, 3.0]))
        expected = expected.loss
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), float("inf")).item()
        assert norms[i] == pytest.approx(norm, rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", MODELS)
def test_loss_and_gradient_of_several_labels_equal_transformers(family, files, base, tmp_path):
    task_data = tasks.prepare({"train": tasks.read_file(files["train_many"], kind="multilabel")},
                              "multilabel")
    tokenizer = tokenizers.load(base[family])
    rows = tasks.Rows(task_data.splits["train"], "multilabel", tokenizer, 64, family != "roberta")
    module = sys.modules[family]
    ours = module.ForSequenceClassification.from_pretrained(base[family], num_labels=3,
                                                            problem_type="multi_label_classification")
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    chosen = np.arange(20)
    inputs = {name: torch.from_numpy(array) for name, array in rows.inputs(chosen).items()}
    targets = torch.from_numpy(rows.targets(chosen))
    logits, mean = ours(**inputs, labels=targets)
    loss = finetune.loss_sum("multilabel", logits, targets, None) / rows.flat(rows.labels)[chosen].size
    expected = theirs(**inputs, labels=targets)
    loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    assert mean.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    keys, compared = module.hf_keys(ours), 0
    for name, p in ours.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[keys[name]], atol=1e-6, rtol=0)
            compared += 1
    assert compared == len(gradients)


def losses_of(out_dir):
    return [line["loss"] for line in read_log(out_dir) if "loss" in line]


@pytest.mark.parametrize("kind, mode, more", [
    ("tags", "full", ["--class_weights", "balanced"]), ("single", "lora", ["--class_weights", "balanced"]),
    ("many", "full", ["--kind", "multilabel"])])
def test_one_batch_cut_in_different_ways(kind, mode, more, finetuning, tmp_path):
    """Micro-batches, and two processes, with different numbers of labels; and a last batch of one row."""
    argv = lambda name, *cut: instead_of_epochs(finetuning(
        tmp_path / name, kind, "bert", "--train", mode, "--batch_size", "51",  # 256 = 5 * 51 + 1
        "--log_interval", "1", "--eval_interval", "3", *more, *cut), "--max_steps", "6")
    finetune.main(argv("one"))
    finetune.main(argv("micro", "--accumulation", "3"))
    done = subprocess.run(TORCHRUN + argv("two"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one = losses_of(tmp_path / "one")
    assert len(one) == 6
    for name in ("micro", "two"):
        assert losses_of(tmp_path / name) == pytest.approx(one, rel=1e-5), name
        assert final(tmp_path / name)["mean"] == pytest.approx(final(tmp_path / "one")["mean"], abs=1e-9)


def test_repeats_to_the_bit(finetuning, tmp_path):
    for name in "ab":
        finetune.main(finetuning(tmp_path / name, "single", "roberta", "--dropout", "0.1", "--log_interval",
                                 "1"))
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)

# -----------------------------------------------------------------------------
# best weights, seeds, interruption

def noise(folder, n=60):
    """Validation rows with scores that nothing explains: the metric goes up and down by chance."""
    rng = np.random.default_rng(1)
    rows = [f"{text}\t{rng.normal():.3f}" for text, _ in reviews(n, 7)]
    (folder / "noise.tsv").write_text("\n".join(["text\tscore", *rows]) + "\n")
    return str(folder / "noise.tsv")


def curves(out_dir):
    """{seed: the validation metric of each evaluation}"""
    found = {}
    for line in read_log(out_dir):
        if "val_spearman" in line:
            found.setdefault(line["seed"], []).append(line["val_spearman"])
    return found


def saved_score(out_dir, file, capsys):
    """The metric of the weights in out_dir, as predict.py computes it."""
    capsys.readouterr()
    use(out_dir, "--evaluate", file)
    return float(re.search(r"spearman (-?[\d.]+)", capsys.readouterr().out)[1])


def test_the_best_weights_are_kept_and_patience_ends(finetuning, tmp_path, capsys):
    file = noise(tmp_path)
    finetune.main(finetuning(tmp_path / "run", "score", "bert", "--val_file", file, "--eval_interval", "2",
                             "--epochs", "50", "--patience", "4"))
    curve = curves(tmp_path / "run")[0]
    best = int(np.argmax(curve))  # the first of those that are equal
    assert len(curve) == best + 1 + 4 and 0 < best  # four evaluations without a better one
    assert all(value <= curve[best] for value in curve[best:])
    assert final(tmp_path / "run")["mean"] == curve[best]
    assert saved_score(tmp_path / "run", file, capsys) == pytest.approx(curve[best], abs=5.1e-5)
    assert sum(abs(value - curve[best]) < 1e-4 for value in curve) == 1  # so these are its weights


def test_the_best_of_all_seeds_is_kept(finetuning, tmp_path, capsys):
    file = noise(tmp_path)
    finetune.main(finetuning(tmp_path / "run", "score", "bert", "--val_file", file, "--seeds", "3",
                             "--epochs", "2"))
    best = {seed: max(curve) for seed, curve in curves(tmp_path / "run").items()}
    assert [seed["score"] for seed in final(tmp_path / "run")["seeds"]] == [best[0], best[1], best[2]]
    assert len(set(best.values())) == 3
    assert saved_score(tmp_path / "run", file, capsys) == pytest.approx(max(best.values()), abs=5.1e-5)


def test_a_test_file_is_measured_with_the_best_weights(finetuning, files, tmp_path, capsys):
    finetune.main(finetuning(tmp_path, "single", "bert", "--test_file", files["test_single"]))
    capsys.readouterr()
    use(tmp_path, "--evaluate", files["test_single"])
    assert f"accuracy {final(tmp_path)['seeds'][0]['test']['accuracy']:.4f}" in capsys.readouterr().out


def test_seeds(finetuning, tmp_path):
    finetune.main(finetuning(tmp_path, "single", "bert", "--seeds", "3", "--epochs", "1"))
    log = final(tmp_path)
    scores = [seed["score"] for seed in log["seeds"]]
    assert [seed["seed"] for seed in log["seeds"]] == [0, 1, 2]
    assert log["mean"] == pytest.approx(np.mean(scores))
    assert log["std"] == pytest.approx(np.std(scores, ddof=1))
    first = [line["loss"] for line in read_log(tmp_path) if line.get("step") == 1 and "loss" in line]
    assert len(set(first)) == 3  # other heads, other orders


@pytest.mark.parametrize("number, moment", [(signal.SIGINT, "best so far"),
                                            (signal.SIGTERM, "step      1 |")])
def test_a_signal_keeps_the_best(number, moment, finetuning, files, tmp_path, capsys):
    """Also before the first evaluation, which then takes place."""
    argv = finetuning(tmp_path / "run", "single", "bert", "--epochs", "1000", "--log_interval", "1")
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
    use(tmp_path / "run", "--evaluate", files["val_single"])
    assert f"accuracy {best:.4f}" in capsys.readouterr().out


def test_a_budget_in_minutes(finetuning, tmp_path):
    argv = finetuning(tmp_path, "single", "bert")
    finetune.main([*instead_of_epochs(argv, "--max_minutes", "0.05"), "--log_interval", "5"])
    lines = [line for line in read_log(tmp_path) if "lr" in line and "step" in line]
    assert lines[-1]["lr"] < 0.5e-3 and lines[-1]["elapsed_s"] < 10

# -----------------------------------------------------------------------------
# bad input

def test_bad_input(finetuning, files, base, tmp_path, refused):
    out = tmp_path / "out"
    argv = finetuning(out)
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
        ([*argv, "--epochs", "1", "--max_steps", "2"], "--max_steps: not allowed with argument --epochs"),
        ([*argv, "--lr", "-1"], "argument --lr: -1 is not positive"),
        ([*argv, "--dora"], "--dora without --train lora"),
        ([*argv, "--preset", "bert-tiny", "--layers", "1"], "--preset, --layers: only --init_from scratch"),
        ([*argv, "--init_from", "scratch", "--train", "lora"], "--train lora adapts a pretrained model"),
        ([*argv, "--class_weights", "1", "0"], "balanced, or 2 positive numbers, for bad, good"),
        ([*argv, "--warmup", "1"], "argument --warmup: 1 is not at least 0 and less than 1"),
        ([*argv, "--metric", "pearson"], "--metric pearson: for this task there are accuracy, f1, macro_f1"),
        ([*argv, "--class_weights", "1", "2", "3"], "balanced, or 2 positive numbers, for bad, good"),
        ([*argv, "--kind", "multilabel", "--class_weights", "balanced"], "a multilabel loss takes none"),
        ([*argv, "--label_column", "label,text"], "several columns go with the kind multilabel alone"),
        ([*finetuning(out, "many"), "--kind", "classification"], "no label in column 'labels'"),
        ([*argv, "--train", "lora", "--lora_targets", "qurey"], "no linear layer is called 'qurey'"),
        ([*argv, "--init_from", "out/nowhere/at/all"], "out/nowhere/at/all: no such directory"),
        ([*argv, "--init_from", "scratch", "--preset", "huge"], "no preset huge; roberta.py has"),
        (without("--train_file"), "there is no --train_file; predict.py --evaluate evaluates"),
        ([*argv, "--out_dir", "/proc/nothing"], "--out_dir /proc/nothing cannot be written"),
        ([*finetuning(out, "single", "albert"), "--train", "last_block"],
         "there is no last block of its own"),
    ]
    for words, message in cases:
        error = refused(finetune, words)
        assert message in error, (message, error)
        assert error.startswith("finetune.py: ")
        assert not out.exists(), message


def test_checkpoints_that_do_not_do(finetuning, base, tmp_path, capsys, refused):
    finetune.main(finetuning(tmp_path / "lora", "single", "bert", "--train", "lora", "--epochs", "1"))
    capsys.readouterr()
    # a run is never written over
    assert "holds a run already" in refused(finetune, finetuning(tmp_path / "lora"))
    # an adapter is merged before it is trained on
    assert "predict.py --merge" in refused(
        finetune, [*finetuning(tmp_path / "b"), "--init_from", str(tmp_path / "lora")])
    # a checkpoint without a tokenizer
    bare = tmp_path / "bare"
    bert.ForPreTraining.from_pretrained(base["bert"]).save_pretrained(bare)
    assert "has no tokenizer" in refused(finetune, [*finetuning(tmp_path / "c"), "--init_from", str(bare)])


def spoil(monkeypatch, step):
    """Gradients of that step become NaN, as in a run whose rate is too high."""
    clip, calls = torch.nn.utils.clip_grad_norm_, []
    def clip_and_spoil(parameters, limit):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == step:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, limit)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_spoil)


def test_a_loss_that_is_not_finite(finetuning, files, tmp_path, monkeypatch, capsys, refused):
    """The best weights of before stay; before the first evaluation nothing is there."""
    spoil(monkeypatch, 20)
    argv = finetuning(tmp_path / "run", "single", "bert", "--eval_interval", "8", "--log_interval", "1")
    error = refused(finetune, argv)
    assert "not finite at step 20" in error and f"{tmp_path}/run has the best weights" in error
    best = max(line["val_accuracy"] for line in read_log(tmp_path / "run") if "val_accuracy" in line)
    use(tmp_path / "run", "--evaluate", files["val_single"])
    assert f"accuracy {best:.4f}" in capsys.readouterr().out
    spoil(monkeypatch, 3)
    argv[argv.index("--out_dir") + 1] = str(tmp_path / "none")
    assert "nothing was saved" in refused(finetune, argv)
    assert not list((tmp_path / "none").iterdir())


def test_a_budget_that_ends_on_a_loss_that_is_not_finite(finetuning, tmp_path, monkeypatch, refused):
    """Between two lines of the log: the weights are not saved."""
    spoil(monkeypatch, 3)
    argv = instead_of_epochs(finetuning(tmp_path / "run", "single", "bert", "--log_interval", "1000000"),
                             "--max_minutes", "0.02")
    assert "not finite at step 3" in refused(finetune, [*argv, "--eval_interval", "1000000"])
    assert not list((tmp_path / "run").iterdir())


def test_overwrite_leaves_nothing_of_the_run_before(finetuning, tmp_path, refused):
    finetune.main(finetuning(tmp_path, "single", "bert", "--train", "lora", "--epochs", "1"))
    assert "holds a run already" in refused(finetune, finetuning(tmp_path))
    finetune.main(finetuning(tmp_path, "single", "roberta", "--epochs", "1", "--overwrite"))
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "log.jsonl", "merges.txt",
                                            "model.safetensors", "tokenizer_config.json", "vocab.json"]
    assert sum("torch" in line for line in read_log(tmp_path)) == 1  # the log is of one run


def test_bad_input_of_two_processes(finetuning, tmp_path):
    """The process that reads tells the other, and neither shows a traceback of ours."""
    done = subprocess.run(TORCHRUN + [*finetuning(tmp_path / "out"), "--train_file", "none.csv"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode and done.stderr.count("finetune.py: none.csv: no such file") == 1
    assert "finetune.py\", line" not in done.stderr and not (tmp_path / "out").exists()
    done = subprocess.run([*TORCHRUN[:-1], "predict.py", "--checkpoint", "x", "y"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode and "runs in one process; leave torchrun out" in done.stderr and not done.stdout


def test_words_beyond_the_length_are_counted(finetuning, files, tmp_path, capsys):
    finetune.main(finetuning(tmp_path, "tags", "bert", "--epochs", "1", "--max_length", 8))
    assert "words of train are beyond --max_length" in capsys.readouterr().out
    use(tmp_path, "--evaluate", files["val_tags"], "--max_length", 8)
    cut = re.search(r"([\d,]+) words of \S+ are beyond", capsys.readouterr().out)
    use(tmp_path, "--file", files["val_tags"], "--json", "--max_length", 8)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert int(cut[1].replace(",", "")) == sum(line["predicted_tags"].count(None) for line in lines) > 0


def test_bpe_for_tags_knows_words_after_a_space(files, tmp_path):
    """From scratch: trained on the words as they are encoded, each with its space."""
    finetune.main(["--init_from", "scratch", "--model", "roberta", "--vocab_size", "300", "--max_steps", "1",
                   "--train_file", files["train_tags"], "--val_file", files["val_tags"],
                   "--out_dir", str(tmp_path), *FAST])
    tokenizer = tokenizers.load(str(tmp_path))
    rows = tasks.encode([["the", "film"]], tokenizer, 16)
    assert len(rows[0].ids) == 4  # <s>, a token each, </s>


def test_scores_without_a_fraction(finetuning, tmp_path, capsys):
    """--task stsb is a regression, whatever the numbers in the file look like."""
    rows = "".join(f"the film\tthe {word} film\t{i % 6}\n" for i, word in enumerate(["fine", "dull"] * 20))
    (tmp_path / "whole.tsv").write_text("sentence1\tsentence2\tscore\n" + rows)
    finetune.main([*finetuning(tmp_path / "out", "score", "bert", "--task", "stsb", "--max_steps", "1")[:2],
                   "--task", "stsb", "--train_file", str(tmp_path / "whole.tsv"), "--max_steps", "1",
                   "--out_dir", str(tmp_path / "out"), *FAST])
    assert "; regression" in capsys.readouterr().out and final(tmp_path / "out")["metric"] == "spearman"


@pytest.mark.parametrize("more", [["--dora"], ["--rslora", "--lora_dropout", "0.1", "--lora_r", "4"]])
def test_lora_in_bfloat16(more, finetuning, tmp_path):
    finetune.main(finetuning(tmp_path, "single", "bert", "--train", "lora", "--dtype", "bfloat16", "--lr",
                             "3e-3", *more))
    losses = losses_of(tmp_path)
    assert losses[-1] < losses[0]


def test_a_kind_that_is_not_the_tasks(finetuning, tmp_path):
    """It is judged as that kind is."""
    more = ("--task", "stsb", "--kind", "classification", "--epochs", "1")
    finetune.main(finetuning(tmp_path, "single", "bert", *more))
    assert final(tmp_path)["metric"] == "accuracy"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_head_of_the_same_classes_in_another_order(family, finetuning, tmp_path, capsys):
    """A checkpoint whose id 0 is "GOOD" goes on with a file whose first class is "bad"."""
    finetune.main(finetuning(tmp_path / "first", "single", family))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    for p in list(theirs.classifier.parameters())[-2:]:
        p.data = p.data.flip(0)
    theirs.config.id2label = {0: "GOOD", 1: "BAD"}
    theirs.save_pretrained(tmp_path / "turned")
    tokenizers.load(tmp_path / "first").save(tmp_path / "turned")
    argv = [*finetuning(tmp_path / "next", "single", family, "--lr", "1e-9"),
            "--init_from", str(tmp_path / "turned")]
    finetune.main(instead_of_epochs(argv, "--max_steps", "1"))
    assert final(tmp_path / "next")["mean"] == final(tmp_path / "first")["mean"] > 0.9
    assert "goes on, though" not in capsys.readouterr().out
    theirs.config.id2label = {0: "ham", 1: "spam"}
    theirs.save_pretrained(tmp_path / "turned")
    finetune.main([*argv, "--dry_run", "--overwrite"])
    assert "turned goes on, though it was trained for other classes" in capsys.readouterr().out


def test_classes_that_differ_only_in_case_keep_their_rows(tmp_path):
    names = ["Polish", "other", "polish"]
    config = {"model_type": "bert", "id2label": dict(enumerate(names))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = SimpleNamespace(classifier=torch.nn.Linear(4, 3))
    before = model.classifier.weight.detach().clone()
    finetune.sort_classes(model, str(tmp_path), names, host=None)
    assert torch.equal(model.classifier.weight, before)
    finetune.sort_classes(model, str(tmp_path), names[::-1], host=None)
    assert torch.equal(model.classifier.weight, before.flip(0))


@pytest.mark.parametrize("family", MODELS)
def test_a_regression_starts_at_the_mean_of_its_targets(family, finetuning, files, tmp_path, capsys):
    argv = finetuning(tmp_path, "score", family, "--lr", "1e-9")
    finetune.main(instead_of_epochs(argv, "--max_steps", "1"))
    train, val = ([float(line.split("\t")[1]) for line in Path(files[name]).read_text().splitlines()[1:]]
                  for name in ("train_score", "val_score"))
    weights = load_file(tmp_path / "model.safetensors")
    name = "classifier.out_proj.bias" if family == "roberta" else "classifier.bias"
    assert weights[name].item() == pytest.approx(np.mean(train), abs=1e-6)
    mse = np.mean((np.array(val) - np.mean(train)) ** 2)
    assert f"always the mean of the training targets: validation mse {mse:.4f}" in capsys.readouterr().out


def test_single_texts_for_a_model_of_pairs_are_noticed(finetuning, tmp_path, capsys):
    finetune.main(instead_of_epochs(finetuning(tmp_path, "pair", "bert"), "--max_steps", "1"))
    capsys.readouterr()
    warning = "was trained on pairs of texts; here are single ones\n"
    for text, said in (("one\tanother", ""), ("one", warning)):
        use(tmp_path, text)
        assert capsys.readouterr().err == (f"{tmp_path} {said}" if said else "")


def test_of_equal_metrics_the_lower_loss_is_kept(finetuning, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.Rows, "scores", lambda *arguments: {"accuracy": 0.5})
    finetune.main(finetuning(tmp_path, "single", "bert"))
    losses = [line["val_loss"] for line in read_log(tmp_path) if "val_loss" in line]
    assert losses == sorted(losses, reverse=True)  # 3 epochs of 16 steps
    assert final(tmp_path)["seeds"][0]["step"] == 48


def test_validation_texts_that_are_trained_on_are_counted(finetuning, files, tmp_path, capsys):
    finetune.main(finetuning(tmp_path, "single", "bert", "--val_file", files["train_single"], "--dry_run"))
    assert "256 of 256 texts of val are in train, too" in capsys.readouterr().out


def test_another_task_gets_another_head(finetuning, files, tmp_path, capsys):
    finetune.main(finetuning(tmp_path / "two", "single", "roberta", "--epochs", "1"))
    capsys.readouterr()
    finetune.main([*finetuning(tmp_path / "three", "tags", "roberta", "--epochs", "1"),
                   "--init_from", str(tmp_path / "two")])
    assert "fresh weights" in capsys.readouterr().err
