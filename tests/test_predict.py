"""predict.py from the command line: masks, labels, evaluation, merging, bad input."""

import io
import json
import os

import datasets
import peft
import pytest
import torch
import transformers

import bert
import finetune
import lora
import predict
import tokenizer as tokenizers
from conftest import read_log

FAST = ["--device", "cpu", "--threads", "1"]


def use(path, *more):
    predict.main(["--checkpoint", str(path), *map(str, more), *FAST])


def final(out_dir):
    return read_log(out_dir)[-1]


def refused(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        predict.main([*argv, *FAST])
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("predict.py: ") and len(error.splitlines()) == 1, error
    return error


def test_masks_from_arguments_a_file_and_standard_input(base, tmp_path, capsys, monkeypatch):
    texts = ["A <mask> film.", "It was [MASK] and <mask>."]
    use(base["roberta"], "--json", "--top", 3, *texts)
    expected = capsys.readouterr().out
    assert [len(json.loads(line)["masks"]) for line in expected.splitlines()] == [1, 2]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    use(base["roberta"], "--json", "--top", 3, "--file", tmp_path / "texts.txt")
    assert capsys.readouterr().out == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n".join(texts)))
    use(base["roberta"], "--json", "--top", 3)
    assert capsys.readouterr().out == expected


def test_a_file_of_any_name_is_never_a_text(finetuning, files, tmp_path, capsys):
    """Texts are arguments and files are --file, so that no name of a file is classified."""
    finetune.main(finetuning(tmp_path / "run", "single", "bert", "--epochs", "1"))
    capsys.readouterr()
    (tmp_path / "texts.json").write_text("{}")
    for name, message in ((tmp_path / "texts.json", "not one of .txt"), (tmp_path, "no such file"),
                          ("nowhere.csv", "no such file")):
        assert message in refused(["--checkpoint", str(tmp_path / "run"), "--file", str(name)], capsys)


def test_bad_input(base, tmp_path, capsys):
    checkpoint = ["--checkpoint", base["bert"]]
    (tmp_path / "empty.txt").write_text("")
    bert.Encoder.from_pretrained(base["bert"]).save_pretrained(tmp_path / "encoder")
    tokenizers.load(base["bert"]).save(tmp_path / "encoder")
    for argv, message in [
        (["--checkpoint", "/no/such/place", "a <mask>"], "no such directory"),
        ([*checkpoint, "no mask here"], "no [MASK] or <mask> in 'no mask here'"),
        ([*checkpoint, "text", "--file", "x.txt"], "give one of texts, --file, --evaluate and --merge"),
        ([*checkpoint, "text", "--overwrite"], "--overwrite: no effect here"),
        ([*checkpoint, "text", "--task", "sst2"], "--task: no effect here"),
        ([*checkpoint, "--file", str(tmp_path / "empty.txt")], "empty.txt is empty"),
        ([*checkpoint, "--evaluate", "x.csv"], "has no classifier to evaluate; fine-tune it first"),
        ([*checkpoint, "--merge", str(tmp_path / "out")], "is no adapter: it has no adapter_config.json"),
        ([*checkpoint, "--top", "0", "x"], "argument --top: 0 is not a positive whole number"),
        (["--checkpoint", str(tmp_path / "encoder"), "a <mask>"], "holds BertModel, without mlm"),
    ]:
        assert message in refused(argv, capsys), message
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_do(finetuning, base, tmp_path, capsys):
    finetune.main(finetuning(tmp_path / "lora", "single", "bert", "--train", "lora", "--epochs", "1"))
    capsys.readouterr()
    for text in (" ", "one\ttwo\tthree", "one\t"):
        assert "a text, or two with a tab between, is wanted" in refused(
            ["--checkpoint", str(tmp_path / "lora"), text], capsys)
    # neither a run nor the adapter itself is written over
    assert "holds a run already" in refused(
        ["--checkpoint", str(tmp_path / "lora"), "--merge", str(tmp_path / "lora")], capsys)
    assert "and would be lost" in refused(
        ["--checkpoint", str(tmp_path / "lora"), "--merge", str(tmp_path / "lora"), "--overwrite"], capsys)
    # an adapter for another model
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base["roberta"]
    os.makedirs(tmp_path / "wrong")
    for name in ("adapter_model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / "wrong" / name).write_bytes((tmp_path / "lora" / name).read_bytes())
    (tmp_path / "wrong" / "adapter_config.json").write_text(json.dumps(config))
    assert "is an adapter for another model" in refused(
        ["--checkpoint", str(tmp_path / "wrong"), "x"], capsys)


def test_an_adapter_that_peft_trained(base, files, tmp_path, capsys):
    """It comes without config.json: the number of classes is in its head, the tokenizer beside its base."""
    torch.manual_seed(3)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base["roberta"], num_labels=2)
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS",
                             init_lora_weights=False)
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path)
    use(tmp_path, "a lovely film", "--json")
    probabilities = json.loads(capsys.readouterr().out)["probabilities"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base["roberta"])
    with torch.no_grad():
        p = theirs(**tokenizer("a lovely film", return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert list(probabilities.values()) == pytest.approx(p, abs=1e-4)


def test_words_beyond_the_length(finetuning, tmp_path, capsys):
    finetune.main(finetuning(tmp_path, "tags", "bert", "--epochs", "1"))
    capsys.readouterr()
    use(tmp_path, "the film was " * 10, "--json", "--max_length", 12)
    captured = capsys.readouterr()
    line = json.loads(captured.out)
    tagged = [tag for tag in line["tags"] if tag]
    assert len(line["tags"]) == 30 and 0 < len(tagged) < 12 and line["tags"][-1] is None
    assert f"the last {30 - len(tagged)} words are beyond --max_length" in captured.err


def test_a_file_without_the_hub(finetuning, files, tmp_path, capsys, monkeypatch):
    """--task beside --test_file names the labels; nothing is downloaded to evaluate."""
    finetune.main(finetuning(tmp_path, "single", "bert", "--epochs", "1"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    use(tmp_path, "--task", "sst2", "--evaluate", files["val_single"])
    assert f"rows of {files['val_single']}: accuracy" in capsys.readouterr().out


def test_what_is_held_out(finetuning, files, tmp_path, capsys):
    """Without --val_file; --held_out of the same file finds the same rows."""
    argv = finetuning(tmp_path, "tags", "bert", "--epochs", "1")
    i = argv.index("--val_file")
    finetune.main(argv[:i] + argv[i + 2:])
    rows = read_log(tmp_path)[0]["rows"]
    assert rows["val"] == (rows["train"] + rows["val"]) // 10
    capsys.readouterr()
    use(tmp_path, "--evaluate", files["train_tags"], "--held_out")
    assert f"{rows['val']} rows of " in (out := capsys.readouterr().out)
    assert f"token_f1 {final(tmp_path)['mean']:.4f}" in out


def test_an_adapter_whose_base_lacks_the_pooler(finetuning, base, tmp_path, capsys):
    """PEFT saves the classifier alone; a pooler from nowhere would give random answers."""
    bert.ForTokenClassification.from_pretrained(base["bert"]).save_pretrained(tmp_path / "base")  # no pooler
    tokenizers.load(base["bert"]).save(tmp_path / "base")
    model = bert.ForSequenceClassification.from_pretrained(tmp_path / "base")
    lora.save(lora.inject(model), tmp_path / "adapter", str(tmp_path / "base"))
    capsys.readouterr()
    assert "neither the adapter nor its base" in refused(
        ["--checkpoint", str(tmp_path / "adapter"), "x"], capsys)


def test_several_labels_are_refused(finetuning, tmp_path, capsys):
    finetune.main(finetuning(tmp_path, "single", "bert", "--epochs", "1"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    capsys.readouterr()
    assert "gives several labels to a text" in refused(
        ["--checkpoint", str(tmp_path), "x"], capsys)


def test_masks_need_neither_a_pooler_nor_a_sentence_head(base, tmp_path, capsys):
    """As transformers' BertForMaskedLM and AlbertForMaskedLM save it."""
    for family in ("bert", "albert"):
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(base[family])
        theirs.save_pretrained(tmp_path / family)
        tokenizers.load(base[family]).save(tmp_path / family)
        capsys.readouterr()
        use(tmp_path / family, "--json", "a [MASK] film")
        out = capsys.readouterr().out
        use(base[family], "--json", "a [MASK] film")
        assert out == capsys.readouterr().out


def test_masks_of_a_table(base, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("id,sentence\n1,a [MASK] film\n2,the [MASK]\n")
    use(base["bert"], "--json", "--file", tmp_path / "a.csv")
    found = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    use(base["bert"], "--json", "--file", tmp_path / "a.csv", "--text_columns", "2")
    assert found == ["a [MASK] film", "the [MASK]"] == [
        json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert "no column 'text'" in refused(
        ["--checkpoint", base["bert"], "--file", str(tmp_path / "a.csv"), "--text_columns", "text"], capsys)
