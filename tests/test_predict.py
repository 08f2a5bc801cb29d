"""predict.py from the command line: masks, scores, labels, embeddings, evaluation, merging, bad input."""

import io
import json
import math
import os
import shutil
from datetime import date
from pathlib import Path

import datasets
import numpy as np
import peft
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers

import bert
import finetune
import inference
import lora
import predict
import tokenizer as tokenizers
from conftest import read_log

FAST = ["--device", "cpu", "--threads", "1"]


def use(path, *more):
    predict.main(["--checkpoint", str(path), *map(str, more), *FAST])


def final(out_dir):
    return read_log(out_dir)[-1]


def json_lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_masks_from_arguments_a_file_and_standard_input(base, tmp_path, capsys, monkeypatch):
    texts = ["A <mask> film.", "It was [MASK] and <mask>."]
    use(base["roberta"], "--json", "--top", 3, *texts)
    expected = capsys.readouterr().out
    assert [len(json.loads(line)["masks"]) for line in expected.splitlines()] == [1, 2]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    use(base["roberta"], "--json", "--top", 3, "--file", tmp_path / "texts.txt")
    assert capsys.readouterr().out == expected
    for more in ([], ["--file", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n\n".join(texts).encode())))
        use(base["roberta"], "--json", "--top", 3, *more)
        assert capsys.readouterr().out == expected


def test_a_file_of_any_name_is_never_a_text(finetuning, files, tmp_path, capsys, refused):
    """Texts are arguments and files are --file, so that no name of a file is classified."""
    finetune.main(finetuning(tmp_path / "run", "single", "bert", "--epochs", "1"))
    capsys.readouterr()
    (tmp_path / "texts.json").write_text("{}")
    for name, message in ((tmp_path / "texts.json", "not one of .txt"), (tmp_path, "no such file"),
                          ("nowhere.csv", "no such file")):
        assert message in refused(predict, ["--checkpoint", str(tmp_path / "run"), "--file", str(name)])


def test_bad_input(base, tmp_path, refused):
    checkpoint = ["--checkpoint", base["bert"]]
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "long.txt").write_text("a [MASK]\n" + "film " * 62 + "[MASK]\n")
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2\na,b\n")
    (tmp_path / "there.npy").write_text("")
    npy = str(tmp_path / "x.npy")
    bert.Encoder.from_pretrained(base["bert"]).save_pretrained(tmp_path / "encoder")
    tokenizers.load(base["bert"]).save(tmp_path / "encoder")
    for argv, message in [
        (["--checkpoint", "/no/such/place", "a <mask>"], "no such directory"),
        ([*checkpoint, "no mask here"], "no [MASK] or <mask> in 'no mask here'"),
        ([*checkpoint, "text", "--file", "x.txt"], "give one of texts, --file, --evaluate and --merge"),
        ([*checkpoint, "--embed", "", "text"], "--embed: the name is empty"),
        ([*checkpoint, "--evaluate", ""], "--evaluate: the name is empty"),
        ([*checkpoint, "text", "--overwrite"], "--overwrite: no effect here"),
        ([*checkpoint, "text", "--task", "sst2"], "--task: no effect here"),
        ([*checkpoint, "text", "--text_columns", "body"], "--text_columns: no effect here"),
        ([*checkpoint, "--evaluate", "sst2", "--label_column", "x"], "--label_column: no effect here"),
        ([*checkpoint, "--file", str(tmp_path / "empty.txt")], "empty.txt is empty"),
        ([*checkpoint, "--evaluate", "x.csv"], "has no classifier to evaluate; fine-tune it first"),
        ([*checkpoint, "--merge", str(tmp_path / "out")], "is no adapter: it has no adapter_config.json"),
        ([*checkpoint, "--top", "0", "x"], "argument --top: 0 is not a positive whole number"),
        ([*checkpoint, "--file", str(tmp_path / "long.txt")], "long.txt, line 2: a row of 65 tokens is"),
        ([*checkpoint, "--stride", "4", "a [MASK]"], "--stride: no effect here"),
        ([*checkpoint, "--max_length", "9", "--score", "a film"], "--max_length: no effect here"),
        ([*checkpoint, "--score", "a [MASK]"], "text 1: a text with a mask has no score"),
        ([*checkpoint, "--score", "--file", str(tmp_path / "long.txt")], "long.txt, line 1: a text with a"),
        ([*checkpoint, "--score", "--file", str(tmp_path / "pairs.csv")], "line 2: one column of strings is"),
        ([*checkpoint, "--score", "a", " "], "text 2: the text is blank"),
        ([*checkpoint, "--score", "--embed", npy, "a"], "not allowed with argument --score"),
        ([*checkpoint, "--normalize", "a"], "--normalize: no effect here"),
        ([*checkpoint, "--embed", str(tmp_path / "x.txt"), "a"], "x.txt: the name of a .npy file is wanted"),
        ([*checkpoint, "--embed", str(tmp_path / "no" / "x.npy"), "a"], "there is no folder"),
        ([*checkpoint, "--embed", str(tmp_path / "there.npy"), "a"], "there.npy is there already"),
        ([*checkpoint, "--embed", npy, "--max_length", "65", "a"], "the model has positions for 64 tokens"),
        ([*checkpoint, "--embed", npy, "--max_length", "16", "--stride", "14", "a"], "overlap by at most 13"),
        (["--checkpoint", str(tmp_path / "encoder"), "a <mask>"], "holds BertModel, without mlm"),
    ]:
        assert message in refused(predict, argv), message
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.npy").exists()


def test_checkpoints_that_do_not_do(finetuning, base, tmp_path, capsys, refused):
    finetune.main(finetuning(tmp_path / "lora", "single", "bert", "--train", "lora", "--epochs", "1"))
    capsys.readouterr()
    for text, message in ((" ", "text 1: the text is blank"), ("one\t", "text 1: the text is blank"),
                          ("one\ttwo\tthree", "3 texts with tabs between; one or two are wanted")):
        assert message in refused(predict, ["--checkpoint", str(tmp_path / "lora"), text])
    assert "gives labels; a masked language model is wanted" in refused(
        predict, ["--checkpoint", str(tmp_path / "lora"), "--score", "x"])
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    gone = json.dumps(config | {"base_model_name_or_path": "/no/such/base"})
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "adapter_config.json").write_text(gone)
    for name in ("adapter_model.safetensors", "base_config.json"):
        shutil.copy(tmp_path / "lora" / name, tmp_path / "moved")
    error = refused(predict, ["--checkpoint", str(tmp_path / "moved"), "x"])
    assert "moved/adapter_config.json: base_model_name_or_path /no/such/base" in error
    (tmp_path / "moved" / "base_config.json").write_text("{")
    error = refused(predict, ["--checkpoint", str(tmp_path / "moved"), "x"])
    assert "moved/base_config.json is damaged" in error
    # neither a run nor the adapter itself is written over
    assert "holds a run already" in refused(
        predict, ["--checkpoint", str(tmp_path / "lora"), "--merge", str(tmp_path / "lora")])
    assert "and would be lost" in refused(
        predict, ["--checkpoint", str(tmp_path / "lora"), "--merge", str(tmp_path / "lora"), "--overwrite"])
    # a damaged adapter, and one for another model
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(config | {"task_type": ["SEQ_CLS"]}))
    error = refused(predict, ["--checkpoint", str(tmp_path / "moved"), "x"])
    assert "task_type is ['SEQ_CLS'], not SEQ_CLS or TOKEN_CLS" in error
    config["base_model_name_or_path"] = base["roberta"]
    os.makedirs(tmp_path / "wrong")
    for name in ("adapter_model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / "wrong" / name).write_bytes((tmp_path / "lora" / name).read_bytes())
    (tmp_path / "wrong" / "adapter_config.json").write_text(json.dumps(config))
    assert "is an adapter for another model" in refused(
        predict, ["--checkpoint", str(tmp_path / "wrong"), "x"])


def test_an_adapter_that_peft_trained(base, files, tmp_path, capsys, monkeypatch):
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
    assert list(probabilities.values()) == pytest.approx(p, abs=1e-6)
    # the same from the hub
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    use("somebody/adapter", "a lovely film", "--json")
    assert json.loads(capsys.readouterr().out)["probabilities"] == probabilities


def test_words_beyond_the_length(finetuning, tmp_path, capsys, refused):
    finetune.main(finetuning(tmp_path, "tags", "bert", "--epochs", "1"))
    capsys.readouterr()
    use(tmp_path, "the film was " * 10, "--json", "--max_length", 12)
    captured = capsys.readouterr()
    line = json.loads(captured.out)
    tagged = [tag for tag in line["tags"] if tag]
    assert len(line["tags"]) == 30 and 0 < len(tagged) < 12 and line["tags"][-1] is None
    assert line["words"] == ["the", "film", "was"] * 10 and len(line["probabilities"]) == 30
    assert captured.err == ("1 of 1 texts were cut at --max_length 12; "
                            f"{30 - len(tagged)} words have no tag\n")
    assert "is for single texts, not for tags" in refused(
        predict, ["--checkpoint", str(tmp_path), "the film", "--stride", "4"])


def test_a_task_names_the_classes(finetuning, files, tmp_path, capsys, monkeypatch):
    """Of a checkpoint that does not; 0 of SST-2 is negative. Nothing is downloaded to evaluate a file."""
    finetune.main(finetuning(tmp_path, "single", "bert", "--epochs", "1"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    names = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config | names))
    text = Path(files["val_single"]).read_text()
    (tmp_path / "dev.csv").write_text(text.replace(",bad\n", ",negative\n").replace(",good\n", ",positive\n"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    capsys.readouterr()
    use(tmp_path, "--task", "sst2", "--evaluate", tmp_path / "dev.csv")
    out = capsys.readouterr().out
    assert f"rows of {tmp_path / 'dev.csv'}: accuracy {final(tmp_path)['mean']:.4f}" in out
    assert "negative" in out and "LABEL" not in out


def test_a_task_with_other_classes(finetuning, files, tmp_path, capsys, refused):
    finetune.main(finetuning(tmp_path / "run", "single", "bert", "--epochs", "1"))
    capsys.readouterr()
    (tmp_path / "dev.csv").write_text("text,label\na fine film,1\na dull film,0\n")
    error = refused(predict, ["--checkpoint", str(tmp_path / "run"), "--evaluate", str(tmp_path / "dev.csv"),
                              "--task", "sst2"])
    assert "--task sst2: its classes are negative, positive; those of" in error and "are bad, good" in error


@pytest.mark.parametrize("labels", [("0", "1"), ("Negative", "Positive")])
def test_a_task_numbers_its_classes(labels, finetuning, files, tmp_path, capsys):
    """A checkpoint may have them in another order, as roberta-large-mnli; a file's numbers are GLUE's."""
    finetune.main(finetuning(tmp_path, "single", "bert", "--epochs", "1"))
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "label2id": {"POSITIVE": 0, "NEGATIVE": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config | names))
    negative, positive = labels
    text = Path(files["val_single"]).read_text()  # its "bad" is the checkpoint's 0
    text = text.replace(",bad\n", f",{positive}\n").replace(",good\n", f",{negative}\n")
    (tmp_path / "dev.csv").write_text(text)
    capsys.readouterr()
    use(tmp_path, "--task", "sst2", "--evaluate", tmp_path / "dev.csv")
    assert f"accuracy {final(tmp_path)['mean']:.4f}" in capsys.readouterr().out


def test_what_is_held_out(finetuning, files, tmp_path, capsys, refused):
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
    (tmp_path / "log.jsonl").write_text("")
    use(tmp_path, "--evaluate", files["train_tags"], "--held_out")  # no log can say that it held nothing out
    finetune.main([*argv, "--overwrite"])
    capsys.readouterr()
    assert "this model's training had a --val_file" in refused(
        predict, ["--checkpoint", str(tmp_path), "--evaluate", files["train_tags"], "--held_out"])
    assert "sst2 has validation rows of its own" in refused(
        predict, ["--checkpoint", str(tmp_path), "--evaluate", "sst2", "--held_out"])


def test_an_adapter_whose_base_lacks_the_pooler(finetuning, base, tmp_path, capsys, refused):
    """PEFT saves the classifier alone; a pooler from nowhere would give random answers."""
    bert.ForTokenClassification.from_pretrained(base["bert"]).save_pretrained(tmp_path / "base")  # no pooler
    tokenizers.load(base["bert"]).save(tmp_path / "base")
    model = bert.ForSequenceClassification.from_pretrained(tmp_path / "base")
    lora.save(lora.inject(model), tmp_path / "adapter", str(tmp_path / "base"))
    capsys.readouterr()
    assert "neither the adapter nor its base" in refused(
        predict, ["--checkpoint", str(tmp_path / "adapter"), "x"])


def test_the_threshold_of_several_labels(finetuning, files, tmp_path, capsys):
    """The labels with a probability above it, in words, in --json, and in what --evaluate counts."""
    finetune.main(finetuning(tmp_path, "many", "bert", "--kind", "multilabel", "--epochs", "2"))
    capsys.readouterr()
    recalls = []
    for threshold in (0.1, 0.5, 0.9):
        use(tmp_path, "--file", files["val_many"], "--json", "--threshold", threshold)
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for row in rows:
            above = [name for name, p in row["probabilities"].items() if p > threshold]
            assert row["predicted_labels"] == above
        use(tmp_path, rows[0]["text"], "--threshold", threshold)
        assert capsys.readouterr().out == "|".join(rows[0]["predicted_labels"]) + f"\t{rows[0]['text']}\n"
        truth = [set(filter(None, row["labels"].split("|"))) for row in rows]
        hits = sum(len(set(row["predicted_labels"]) & labels) for row, labels in zip(rows, truth))
        recalls.append(hits / sum(map(len, truth)))
        use(tmp_path, "--evaluate", files["val_many"], "--threshold", threshold)
        assert f"micro_recall {recalls[-1]:.4f}" in capsys.readouterr().out
    assert recalls == sorted(recalls, reverse=True)


def test_the_columns_of_fine_tuning_are_remembered(files, base, tmp_path, capsys):
    """Beside a column whose name would be taken for the text; unless others are named."""
    rows = Path(files["train_single"]).read_text().splitlines()[1:]
    lines = ["headline,mood,text,label"] + [f"{row},x y,odd" for row in rows]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    finetune.main(["--init_from", base["bert"], "--train", "lora", "--train_file", str(tmp_path / "rows.csv"),
                   "--text_columns", "headline", "--label_column", "mood", "--max_steps", "3", "--out_dir",
                   str(tmp_path / "out")])
    capsys.readouterr()
    for more, columns in (((), "headline; mood"), (("--text_columns", "text"), "text; mood")):
        use(tmp_path / "out", "--evaluate", tmp_path / "rows.csv", *more)
        assert f"columns: {columns}\n" in capsys.readouterr().out
    use(tmp_path / "out", "--merge", tmp_path / "merged")
    for name in ("out", "merged"):
        capsys.readouterr()
        use(tmp_path / name, "--file", tmp_path / "rows.csv")
        assert capsys.readouterr().out.splitlines()[0].endswith(rows[0].split(",")[0])
    (tmp_path / "new.csv").write_text('text,n\n"one\ntwo",1\n')
    use(tmp_path / "out", "--file", tmp_path / "new.csv")
    out, err = capsys.readouterr()
    assert "new.csv: the text is taken from text; in training it was headline\n" in err
    assert out.count("\n") == 1 and out.endswith("\tone two\n")


def test_one_column_of_several_is_not_all_labels(finetuning, files, tmp_path, refused):
    finetune.main(finetuning(tmp_path / "out", "many", "bert", "--kind", "multilabel", "--epochs", "1"))
    classes = list(json.loads((tmp_path / "out" / "config.json").read_text())["label2id"])
    (tmp_path / "one.csv").write_text(f"text,{classes[0]}\na film,1\n")
    assert f"--label_column {classes[0]} is one class alone" in refused(predict, [
        "--checkpoint", str(tmp_path / "out"), "--evaluate", str(tmp_path / "one.csv"), "--label_column",
        classes[0]])


def test_an_adapter_for_a_revision_of_the_hub(tmp_path, refused):
    model = bert.ForSequenceClassification(bert.Config(**bert.PRESETS["bert-tiny"]))
    lora.save(lora.inject(model), tmp_path, "someone/bert-tiny")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"revision": "v1.0"}))
    assert "revision is 'v1.0'" in refused(predict, ["--checkpoint", str(tmp_path), "x"])


def test_no_text_to_fill(base, tmp_path, refused):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "there are no texts" in refused(predict, ["--checkpoint", base["bert"], "--file",
                                                     str(tmp_path / "empty.txt")])


def test_masks_beside_a_column_of_that_name(base, tmp_path, capsys):
    """In every line under one name, though the column is in one row alone."""
    file = tmp_path / "m.jsonl"
    file.write_text('{"text": "a [MASK] b"}\n{"text": "a [MASK] b", "masks": "x"}\n')
    use(base["bert"], "--file", file, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all("predicted_masks" in row for row in rows) and rows[1]["masks"] == "x"


def test_two_classes_of_one_name(classifier, tmp_path, refused):
    shutil.copytree(classifier, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config |= {"id2label": {"0": "cat", "1": "cat"}, "label2id": {"cat": 0}}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert "several classes have one name" in refused(predict, ["--checkpoint", str(tmp_path / "copy"), "a"])


def test_an_adapter_is_not_merged_over_its_base(finetuning, base, tmp_path, capsys, refused):
    shutil.copytree(base["bert"], tmp_path / "base")
    finetune.main([*finetuning(tmp_path / "lora", "single", "bert", "--train", "lora", "--epochs", "1"),
                   "--init_from", str(tmp_path / "base")])
    before = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    capsys.readouterr()
    assert "is the adapter's base, and would be lost" in refused(
        predict, ["--checkpoint", str(tmp_path / "lora"), "--merge", str(tmp_path / "base"), "--overwrite"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()} == before


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


def test_masks_of_a_table(base, tmp_path, capsys, refused):
    (tmp_path / "a.csv").write_text("id,sentence\n1,a [MASK] film\n2,the [MASK]\n")
    use(base["bert"], "--json", "--file", tmp_path / "a.csv")
    found = json_lines(capsys)
    use(base["bert"], "--json", "--file", tmp_path / "a.csv", "--text_columns", "2")
    assert found == json_lines(capsys)
    assert [list(line) for line in found] == [["id", "sentence", "masks"]] * 2
    assert [(line["id"], line["sentence"]) for line in found] == [("1", "a [MASK] film"), ("2", "the [MASK]")]
    assert "no column 'text'" in refused(
        predict, ["--checkpoint", base["bert"], "--file", str(tmp_path / "a.csv"), "--text_columns", "text"])

# -----------------------------------------------------------------------------
# scores and embeddings

def test_scores(base, tmp_path, capsys):
    """With --json every token and every digit; without, the sum and the mean."""
    (tmp_path / "a.csv").write_text("id,text,score\n7,the fine film,x\n8,film,y\n")
    use(base["bert"], "--score", "--json", "--file", tmp_path / "a.csv")
    lines = json_lines(capsys)
    model, tokenizer = inference.open_model(base["bert"])
    for line, tokens in zip(lines, inference.score(model, tokenizer, ["the fine film", "film"]), strict=True):
        assert list(line) == ["id", "text", "score", "predicted_score", "pseudo_perplexity", "tokens"]
        assert line["tokens"] == [list(pair) for pair in tokens]
        values = [value for _, value in tokens]
        assert line["predicted_score"] == pytest.approx(sum(values), rel=1e-12)
        assert line["pseudo_perplexity"] == pytest.approx(math.exp(-np.mean(values)), rel=1e-12)
    use(base["bert"], "--score", "--file", tmp_path / "a.csv")
    total, count = lines[0]["predicted_score"], len(lines[0]["tokens"])
    assert capsys.readouterr().out.splitlines()[0] == f"{total:.4f}\t{total / count:.4f}\tthe fine film"


def test_embeddings(base, tmp_path, capsys, refused, monkeypatch):
    """The file is whole or not there; what is cut is said, and with --stride nothing is."""
    texts, file = ["the film", "film " * 70, "it was a film"], tmp_path / "x.npy"
    (tmp_path / "a.txt").write_text("\n".join(texts))
    use(base["roberta"], "--embed", file, "--file", tmp_path / "a.txt")
    captured = capsys.readouterr()
    assert captured.out == f"{file}: 3 texts, 128 numbers each\n"
    assert captured.err == "1 of 3 texts were cut at --max_length 62\n"  # of 64 positions
    encoder, tokenizer = inference.open_encoder(base["roberta"])
    np.testing.assert_array_equal(np.load(file), inference.embed(encoder, tokenizer, texts)[0])
    flags = ["--overwrite", "--normalize", "--pooling", "cls", "--stride", 8, "--max_length", 32]
    use(base["roberta"], "--embed", file, "--file", tmp_path / "a.txt", *flags)
    vectors, _ = inference.embed(encoder, tokenizer, texts, 32, 8, "cls", True)
    np.testing.assert_array_equal(np.load(file), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert not capsys.readouterr().err

    def fill_the_disk(file, array):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(np, "save", fill_the_disk)
    assert "No space left" in refused(
        predict, ["--checkpoint", base["roberta"], "--embed", str(file), "--overwrite", "a"])
    assert np.load(file).shape == (3, 128) and sorted(os.listdir(tmp_path)) == ["a.txt", "x.npy"]

# -----------------------------------------------------------------------------
# labels that other programs take

@pytest.fixture(scope="module")
def classifier(files, base, tmp_path_factory):
    """Fine-tuned on at most 12 tokens a text."""
    out_dir = str(tmp_path_factory.mktemp("classifier") / "run")
    finetune.main(["--init_from", base["bert"], "--train_file", files["train_single"], "--val_file",
                   files["val_single"], "--out_dir", out_dir, "--epochs", "2", "--lr", "1e-3", "--batch_size",
                   "16", "--max_length", "12", *FAST, "--dtype", "float32"])
    return out_dir


def test_the_row_comes_back_with_the_prediction(classifier, tmp_path, capsys):
    """Columns and order as they came, nothing overwritten, every digit."""
    rows = [{"id": 3, "text": "a fine film", "day": date(2020, 2, 3), "label": "?", "x": {"y": math.nan}},
            {"id": 4, "text": "a dull film", "day": date(2020, 2, 4), "label": "?", "x": {"y": 0.5}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    use(classifier, "--json", "--file", tmp_path / "a.parquet")
    lines = json_lines(capsys)
    assert [list(line) for line in lines] == [["id", "text", "day", "label", "x", "predicted_label",
                                               "probabilities"]] * 2
    assert [list(line.values())[:5] for line in lines] == [
        [3, "a fine film", "2020-02-03", "?", {"y": None}], [4, "a dull film", "2020-02-04", "?", {"y": 0.5}]]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    for line in lines:
        with torch.no_grad():
            p = theirs(**tokenizer(line["text"], return_tensors="pt")).logits[0].double().softmax(-1)
        assert list(line["probabilities"].values()) == pytest.approx(p.tolist(), abs=1e-6)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-15)  # not of rounded numbers
    # predictions on predictions: what is there already keeps its name
    (tmp_path / "b.jsonl").write_text(json.dumps(lines[0]) + '\n{"text": "a film"}\n')
    use(classifier, "--json", "--file", tmp_path / "b.jsonl")
    first, second = json_lines(capsys)
    assert {name: first[name] for name in lines[0]} == lines[0]
    assert first["predicted_predicted_label"] == lines[0]["predicted_label"]
    assert list(second) == ["text", "predicted_predicted_label", "predicted_probabilities"]
    use(classifier, "--json", "a fine film")
    [line] = json_lines(capsys)
    assert list(line) == ["text", "label", "probabilities"] and line["text"] == "a fine film"
    assert line["probabilities"] == pytest.approx(lines[0]["probabilities"], abs=1e-6)


def test_json_has_no_nan():
    """Also where pyarrow gives the pairs of a map as tuples."""
    assert predict.finite({"a": [("b", math.nan), [math.inf, 1.5]]}) == {"a": [["b", None], [None, 1.5]]}


def test_pairs_come_back_as_they_came(finetuning, tmp_path, capsys, refused):
    finetune.main(finetuning(tmp_path / "run", "pair", "albert", "--epochs", "1"))
    (tmp_path / "a.tsv").write_text("premise\thypothesis\tid\na film\tthe film\t5\n")
    capsys.readouterr()
    use(tmp_path / "run", "--json", "--file", tmp_path / "a.tsv")
    use(tmp_path / "run", "--json", "a film\tthe film")
    table, line = json_lines(capsys)
    assert list(table) == ["premise", "hypothesis", "id", "label", "probabilities"]
    assert line == {"text": "a film\tthe film", "label": table["label"],
                    "probabilities": table["probabilities"]}
    assert "is for single texts, not for pairs" in refused(
        predict, ["--checkpoint", str(tmp_path / "run"), "a film\tthe film", "--stride", "4"])


def test_blocks_of_texts(classifier, capsys, monkeypatch):
    texts = ["the film was fine", "a dull film", "it was a great film, " * 4, "poor", "film"]
    use(classifier, "--json", *texts)
    whole = capsys.readouterr()
    monkeypatch.setattr(predict, "BLOCK", 2)
    use(classifier, "--json", *texts)
    parts = capsys.readouterr()
    assert whole.err == parts.err == "1 of 5 texts were cut at --max_length 12\n"
    for a, b in zip(whole.out.splitlines(), parts.out.splitlines(), strict=True):
        a, b = json.loads(a), json.loads(b)
        assert a["text"] == b["text"] and a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)

# -----------------------------------------------------------------------------
# long texts

def test_the_length_of_fine_tuning_is_remembered(classifier, tmp_path, capsys, refused):
    """Here and by transformers; another is a flag, up to the positions."""
    text = "it was a film " * 10 + "and it was great"
    pipeline = transformers.pipeline("text-classification", classifier, top_k=None, device="cpu")
    expected = {found["label"]: found["score"] for found in pipeline(text, truncation=True)[0]}
    capsys.readouterr()
    use(classifier, "--json", text)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert captured.err == "1 of 1 texts were cut at --max_length 12\n"
    use(classifier, "--json", text, "--max_length", 64)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["probabilities"] != pytest.approx(expected, abs=1e-6) and not captured.err
    assert "--max_length 65: the model has positions for 64 tokens" in refused(
        predict, ["--checkpoint", classifier, text, "--max_length", "65"])


def test_windows_of_a_long_text(classifier, tmp_path, capsys):
    """Of their logits the mean, by the number of tokens, also where a file is evaluated."""
    text = "it was a film " * 20 + "and it was great"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    windows = transformers.AutoTokenizer.from_pretrained(classifier)(
        text, truncation=True, max_length=24, stride=6, return_overflowing_tokens=True).input_ids
    with torch.no_grad():
        logits = torch.stack([theirs(torch.tensor([ids])).logits[0] for ids in windows])
    counts = torch.tensor([len(ids) for ids in windows])[:, None]
    p = ((logits * counts).sum(0) / counts.sum()).softmax(-1).tolist()
    assert len(windows) > 3
    capsys.readouterr()
    use(classifier, "--json", "--max_length", 24, "--stride", 6, "a film", text)
    captured = capsys.readouterr()
    short, long = (json.loads(line)["probabilities"] for line in captured.out.splitlines())
    assert list(long.values()) == pytest.approx(p, abs=1e-6) and not captured.err
    use(classifier, "--json", "a film")
    assert json_lines(capsys)[0]["probabilities"] == pytest.approx(short, abs=1e-6)
    best = theirs.config.id2label[int(np.argmax(p))]
    (tmp_path / "a.csv").write_text(f"text,label\n{text},{best}\n{text},{best}\n")
    use(classifier, "--evaluate", tmp_path / "a.csv", "--max_length", 24, "--stride", 6)
    assert f"2 rows of {tmp_path / 'a.csv'}: accuracy 1.0000" in capsys.readouterr().out


def test_what_fine_tuning_cuts_is_said(finetuning, files, base, tmp_path, capsys):
    finetune.main(finetuning(tmp_path, "single", "bert", "--max_length", 8, "--epochs", "1"))
    out, tokenizer = capsys.readouterr().out, transformers.AutoTokenizer.from_pretrained(base["bert"])
    for split, n in (("train", 256), ("val", 64)):
        lines = Path(files[f"{split}_single"]).read_text().splitlines()[1:]
        cut = sum(len(tokenizer(line.rpartition(",")[0]).input_ids) > 8 for line in lines)
        assert 0 < cut < n and f"{cut} of {n} texts of {split} are cut at --max_length 8\n" in out
    with pytest.raises(SystemExit):
        finetune.main(finetuning(tmp_path / "b", "single", "bert", "--max_length", 65))
    error = "finetune.py: --max_length 65: the model has positions for 64 tokens\n"
    assert capsys.readouterr().err.endswith(error) and not (tmp_path / "b").exists()

# -----------------------------------------------------------------------------
# other terminals

def test_a_terminal_that_is_not_utf8(classifier, monkeypatch):
    """An accent is printed as its escape; JSON stays JSON."""
    for more, shown in (([], "un film tr\\xe8s bon"), (["--json"], '{"text": "un film tr\\u00e8s bon"')):
        terminal = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="ascii"))
        use(classifier, "un film très bon", *more)
        assert shown in terminal.getvalue().decode("ascii")
    assert json.loads(terminal.getvalue())["text"] == "un film très bon"


def test_a_reader_that_has_enough(classifier, monkeypatch, capsys):
    """As in `predict.py ... | head -1`: no line of error."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("sys.stdout", os.fdopen(writer, "w"))
    with pytest.raises(SystemExit) as exit:
        use(classifier, "a film")
    assert exit.value.code == 141 and not capsys.readouterr().err


def test_standard_input_that_is_not_utf8(classifier, refused, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a film\ntr\xe8s\n")))
    assert "standard input, line 2: not UTF-8" in refused(predict, ["--checkpoint", classifier])
