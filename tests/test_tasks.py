"""tasks.py: files and bad input; rows against transformers; metrics against scikit-learn and scipy."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers

import data
import tasks
import tokenizer as tokenizers

DATA = Path(tasks.__file__).resolve().parent.parent / "shared" / "data"


def write(folder, name, text, encoding="utf-8"):
    file = folder / name
    file.write_text(text, encoding=encoding, newline="")
    return str(file)

# -----------------------------------------------------------------------------
# Metrics

@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification_metrics_equal_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 400)
    labels[labels == classes - 1] = rng.integers(0, 2)  # a class that is predicted and never right
    outputs = rng.normal(size=(400, classes)) + np.eye(classes)[labels]
    outputs[:, 0] -= 9  # a class that is never predicted
    predicted = outputs.argmax(1)
    scores = tasks.scores("classification", labels, outputs)
    macro = dict(average="macro", zero_division=0)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "macro_f1": sklearn.metrics.f1_score(labels, predicted, **macro),
        "macro_precision": sklearn.metrics.precision_score(labels, predicted, **macro),
        "macro_recall": sklearn.metrics.recall_score(labels, predicted, **macro),
        "mcc": sklearn.metrics.matthews_corrcoef(labels, predicted)}
    if classes == 2:
        expected["f1"] = sklearn.metrics.f1_score(labels, predicted)
    assert scores == pytest.approx(expected, abs=1e-12)
    matrix = tasks.confusion_matrix(labels, predicted, classes)
    assert (matrix == sklearn.metrics.confusion_matrix(labels, predicted, labels=range(classes))).all()
    by_class = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0)
    for ours, theirs in zip(tasks.by_class(np.diag(matrix), matrix.sum(1), matrix.sum(0))[:3], by_class):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_regression_metrics_equal_scipys():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, 300) / 2  # with ties
    outputs = (labels + rng.normal(size=300)).round(1)[:, None]
    scores = tasks.scores("regression", labels, outputs)
    assert scores["pearson"] == pytest.approx(scipy.stats.pearsonr(labels, outputs[:, 0])[0], abs=1e-12)
    assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(labels, outputs[:, 0])[0], abs=1e-12)
    mse = sklearn.metrics.mean_squared_error(labels, outputs[:, 0])
    assert scores["mse"] == pytest.approx(mse, abs=1e-12)
    assert tasks.scores("regression", labels, np.ones((300, 1)))["spearman"] == 0  # undefined, and not a nan


def test_token_metrics_equal_scikit_learns():
    rng = np.random.default_rng(0)
    classes = ["B-PER", "I-PER", "O", "B-LOC"]
    labels = rng.choice(4, 500, p=[0.1, 0.1, 0.7, 0.1])
    outputs = rng.normal(size=(500, 4)) + 2 * np.eye(4)[labels]
    scores = tasks.scores("tokens", labels, outputs, classes)
    named = [0, 1, 3]
    assert scores["token_f1"] == pytest.approx(
        sklearn.metrics.f1_score(labels, outputs.argmax(1), labels=named, average="micro"), abs=1e-12)
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, outputs.argmax(1)))
    without_o = tasks.scores("tokens", labels, outputs, list("abcd"))
    assert without_o["token_f1"] == pytest.approx(scores["accuracy"])


def several(n=300, classes=5, seed=0):
    """Labels of which the last never applies, and outputs of which the last but one is never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, classes)) < [0.5, 0.2, 0.1, 0.1, 0.0][:classes]
    outputs = rng.normal(size=(n, classes)) + 3 * labels - 1.5
    outputs[:, 3] = -9
    return labels, outputs.astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_multilabel_metrics_equal_scikit_learns(threshold, capsys):
    labels, outputs = several()
    predicted = 1 / (1 + np.exp(-outputs)) > threshold
    f1 = lambda average: sklearn.metrics.f1_score(labels, predicted, average=average, zero_division=0)
    scores = tasks.scores("multilabel", labels, outputs, threshold=threshold)
    assert scores == pytest.approx({
        "micro_f1": f1("micro"), "macro_f1": f1("macro"),
        "micro_precision": sklearn.metrics.precision_score(labels, predicted, average="micro"),
        "micro_recall": sklearn.metrics.recall_score(labels, predicted, average="micro"),
        "subset_accuracy": sklearn.metrics.accuracy_score(labels, predicted)}, abs=1e-12)
    assert list(scores) == list(tasks.METRICS["multilabel"])
    rows = SimpleNamespace(kind="multilabel", labels=list(labels), flat=np.array)
    tasks.report(rows, list(outputs), list("abcde"), threshold)
    printed = np.array([line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]], float)
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    np.testing.assert_allclose(printed, np.transpose(expected), atol=5.1e-4)


def test_the_best_threshold_is_that_of_scikit_learn():
    labels, outputs = several()
    p = 1 / (1 + np.exp(-outputs))
    f1 = [sklearn.metrics.f1_score(labels, p > t / 100, average="micro") for t in range(1, 100)]
    rows = SimpleNamespace(kind="multilabel", labels=list(labels), flat=np.array)
    best, value = tasks.best_threshold(rows, list(outputs))
    assert value == pytest.approx(max(f1), abs=1e-12) and f1[round(100 * best) - 1] == max(f1)
    assert max(f1) > tasks.scores("multilabel", labels, outputs)["micro_f1"]
    sure = SimpleNamespace(kind="multilabel", labels=[np.array([True, False])], flat=np.array)
    assert tasks.best_threshold(sure, [np.array([9.0, -9.0])]) == (0.5, 1)  # of equal ones the middle


def test_degenerate_metrics():
    constant = np.array([[0.0, 1.0]] * 4)
    assert tasks.scores("classification", [0, 1, 0, 1], constant)["mcc"] == 0
    assert sklearn.metrics.matthews_corrcoef([0, 1, 0, 1], [1, 1, 1, 1]) == 0
    assert tasks.scores("classification", [1, 1], constant[:2])["f1"] == 1

# -----------------------------------------------------------------------------
# Rows

TYPES = {"wordpiece": "bert", "bpe": "roberta", "unigram": "albert"}

@pytest.fixture(scope="module")
def vocabularies(text_file, tmp_path_factory):
    """{kind: (our tokenizer, transformers' of the same files)}"""
    lines = text_file.read_text(encoding="utf-8").splitlines()
    made = {}
    for kind, model_type in TYPES.items():
        folder = tmp_path_factory.mktemp(kind)
        ours = tokenizers.train(kind, lines, 600)
        ours.save(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        made[kind] = ours, transformers.AutoTokenizer.from_pretrained(folder), folder
    return made


def sentences():
    lines = [line for text in data.docstrings(json.__file__) for line in data.prose(text)]
    assert len(lines) >= 8
    return [line[:20 * (i + 1)] for i, line in enumerate(lines)]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("max_length", [128, 33, 16])
def test_rows_equal_transformers(kind, max_length, vocabularies):
    """Single sentences and pairs, long and short in either place: ids, token types, mask, and what is cut."""
    ours, theirs, _ = vocabularies[kind]
    lines = sentences()
    for texts in ([(a,) for a in lines], [(a, b) for a in lines for b in lines]):
        examples = tasks.Examples(texts, None, None)
        rows = tasks.Rows(examples, "classification", ours, max_length, kind != "bpe")
        batch = rows.inputs(np.arange(len(texts)))
        expected = theirs(*map(list, zip(*texts)), truncation="longest_first", max_length=max_length,
                          padding=True, return_token_type_ids=True)
        assert batch["input_ids"].tolist() == expected["input_ids"]
        mask = batch.get("attention_mask", np.ones_like(batch["input_ids"]))  # none: all are tokens
        assert mask.tolist() == expected["attention_mask"]
        if kind != "bpe":
            assert batch["token_type_ids"].tolist() == expected["token_type_ids"]


@pytest.mark.parametrize("kind", TYPES)
def test_words_equal_transformers(kind, vocabularies):
    """A word's tag is at its first token; the others, the special tokens and the padding have none."""
    ours, theirs, folder = vocabularies[kind]
    if kind == "bpe":
        theirs = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    words = [line.split() for line in sentences()]
    tags = [list(range(len(row))) for row in words]
    rows = tasks.Rows(tasks.Examples(words, tags, None), "tokens", ours, 24, kind != "bpe")
    expected = theirs(words, is_split_into_words=True, truncation=True, max_length=24, padding=True)
    assert rows.inputs(np.arange(len(words)))["input_ids"].tolist() == expected["input_ids"]
    targets = rows.targets(np.arange(len(words)))
    for i in range(len(words)):
        seen, want = None, []
        for word in expected.word_ids(i):
            want.append(-100 if word is None or word == seen else word)
            seen = word
        assert targets[i].tolist() == want
        assert rows.labels[i] == [word for word in want if word != -100]


def test_no_mask_without_padding(vocabularies):
    ours = vocabularies["wordpiece"][0]
    rows = tasks.Rows(tasks.Examples([("of the list",)] * 3, None, None), "classification", ours, 32, True)
    assert "attention_mask" not in rows.inputs(np.arange(3))


def test_batches_by_length():
    lengths = np.random.default_rng(0).integers(4, 60, 5003)
    batches = tasks.batches_by_length(lengths, 32, data.random_numbers(7, data.ORDER, 0))
    assert sorted(np.concatenate(batches)) == list(range(5003))
    assert sorted({len(batch) for batch in batches}) == [5003 % 32, 32]
    assert lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches) > 0.98
    again = tasks.batches_by_length(lengths, 32, data.random_numbers(7, data.ORDER, 0))
    other = tasks.batches_by_length(lengths, 32, data.random_numbers(7, data.ORDER, 1))
    assert all((a == b).all() for a, b in zip(batches, again))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(batches, other))

# -----------------------------------------------------------------------------
# Outputs

def host(rank=0, world=1, gather=list):
    return SimpleNamespace(
        rank=rank, world=world, gather=gather, autocast=lambda length: nullcontext(),
        to_device=lambda batch: {name: torch.from_numpy(array) for name, array in batch.items()})


class Echo(torch.nn.Module):
    """Says of every token its id and the length of its row, or of a row what it says of its first word."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, input_ids, attention_mask=None):
        assert not self.training and not torch.is_grad_enabled()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = torch.stack([input_ids, mask.sum(1, keepdim=True).expand_as(input_ids)], -1)
        return (logits if self.tokens else logits[:, 1]), None


@pytest.mark.parametrize("kind", ["classification", "tokens"])
@pytest.mark.parametrize("world", [1, 3])
def test_outputs_are_in_the_order_of_the_rows(kind, world, vocabularies):
    """Whatever the batches and the processes; the model is left in the mode that it was in."""
    texts = [line.split() if kind == "tokens" else (line,) for line in sentences()]
    rows = tasks.Rows(tasks.Examples(texts, None, None), kind, vocabularies["bpe"][0], 32, False)
    model, parts = Echo(kind == "tokens"), []
    for rank in range(world):  # each process gathers what those before it have, and its own; the last has all
        def gather(part):
            parts.extend(part)
            return parts if rank == world - 1 else part
        outputs = tasks.logits_of(model.train(rank % 2 == 0), rows, 3, host(rank, world, gather))
        assert model.training == (rank % 2 == 0)
    assert len(outputs) == len(rows)
    for output, row in zip(outputs, rows.rows):
        places = row.words if kind == "tokens" else 1
        expected = np.stack([row.ids[places], np.full_like(row.ids[places], len(row.ids))], -1)
        assert (output == expected).all() and output.shape == expected.shape


def test_scores_and_report_of_rows(vocabularies, capsys):
    ours = vocabularies["wordpiece"][0]
    rows = tasks.Rows(tasks.Examples([("of the",)] * 3, [0, 1, 1], None), "classification", ours, 32, True)
    outputs = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0])]
    assert rows.scores(outputs, ["no", "yes"]) == tasks.scores("classification", [0, 1, 1], np.array(outputs))
    tasks.report(rows, outputs, ["no", "yes"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["precision", "recall", "f1", "count", "predicted", "as"],
        ["no", "0.500", "1.000", "0.667", "1", "1", "0"], ["yes", "1.000", "0.500", "0.667", "2", "1", "1"]]
    tags = tasks.Rows(tasks.Examples([["of", "the"]], [[0, 1]], None), "tokens", ours, 32, True)
    assert tags.scores([np.eye(2)], ["O", "B"])["token_f1"] == 1
    hot = np.array([[True, False, True], [False] * 3])
    many = tasks.Rows(tasks.Examples([("of",), ("the",)], list(hot), None), "multilabel", ours, 32, True)
    assert many.targets([1, 0]).dtype == np.float32 and many.targets([1, 0]).tolist() == hot[::-1].tolist()
    assert many.scores([np.array([1, -1, -1]), np.array([-1, -1, 1])], list("abc"))["micro_f1"] == 0.5
    numbers = tasks.Rows(tasks.Examples([("of",)] * 2, [0.5, 2.0], None), "regression", ours, 32, True)
    assert numbers.scores([np.array([0.5]), np.array([2.0])], [])["mse"] == 0
    tasks.report(numbers, outputs[:2], [])
    assert not capsys.readouterr().out

# -----------------------------------------------------------------------------
# Files

REVIEWS = [("good, very good", "pos"), ('he said "no"', "neg"), ("two\nlines", "pos"), ("fine", "neg")]

def test_every_format_says_the_same(tmp_path):
    texts, labels = [(text,) for text, _ in REVIEWS], [label for _, label in REVIEWS]
    csv_text = ('Review,Label\r\n"good, very good",pos\r\n"he said ""no""",neg\r\n'
                '"two\nlines",pos\r\nfine,neg\r\n')
    files = [write(tmp_path, "a.csv", csv_text), write(tmp_path, "b.csv", "\ufeff" + csv_text),
             write(tmp_path, "c.jsonl", "\n".join(json.dumps({"text": a, "label": b}) for a, b in REVIEWS))]
    table = pyarrow.table({"text": [a for a, _ in REVIEWS], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    for file in [*files, str(tmp_path / "d.parquet")]:
        examples = tasks.read_file(file)
        assert (examples.texts, examples.labels) == (texts, labels), file
    assert tasks.read_file(files[0]).where[2:] == [f"{files[0]}, line 4", f"{files[0]}, line 6"]


def test_tsv_takes_quotes_as_ordinary_characters(tmp_path):
    """As MRPC needs: byte order mark, lone quotes, names of its own."""
    file = write(tmp_path, "m.tsv", '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n'
                                    '1\t7\t8\tHe said "no\tNo "\n0\t7\t8\ta\tb\n')
    examples = tasks.read_file(file)
    assert examples.texts == [('He said "no', 'No "'), ("a", "b")] and examples.labels == ["1", "0"]


def test_columns_without_names_are_found_by_content(tmp_path):
    """As CoLA needs: source, label, mark, sentence."""
    rows = [f"src{i % 7}\t{i % 2}\t{'*' * (i % 2)}\tthe sentence number {i} is here" for i in range(40)]
    file = write(tmp_path, "c.tsv", "\n".join(rows))
    examples = tasks.read_file(file)
    assert examples.texts[3] == ("the sentence number 3 is here",) and examples.labels[:3] == ["0", "1", "0"]
    assert tasks.read_file(file, text_columns=["4"], label_column="2") == examples
    # AG News as published: class, title, text
    rows = [f'"{i % 4 + 1}","A title of it {i}","And a description of the {i}"' for i in range(40)]
    examples = tasks.read_file(write(tmp_path, "ag.csv", "\n".join(rows)))
    assert examples.texts[0] == ("A title of it 0", "And a description of the 0")
    assert examples.labels[0] == "1"


def test_columns_by_name(tmp_path):
    file = write(tmp_path, "x.csv", "a,b,c\nx one,y one,1.5\nx two,y two,2\n")
    examples = tasks.read_file(file, text_columns=["b", "A"], label_column="c")
    assert examples.texts == [("y one", "x one"), ("y two", "x two")] and examples.labels == ["1.5", "2"]
    prepared = tasks.prepare({"train": examples, "val": examples})
    assert prepared.kind == "regression" and prepared.splits["val"].labels == [1.5, 2.0]


def labelled(labels, texts=None):
    where = [f"f, line {i}" for i in range(len(labels))]
    return tasks.Examples(texts or [("text",)] * len(labels), list(labels), where)


def test_kinds_and_classes():
    prepare = lambda *labels, **more: tasks.prepare({"train": labelled(labels)}, **more)
    numbered = prepare("10", "9", "9", "10")
    assert (numbered.kind, numbered.classes) == ("classification", ["9", "10"])
    assert numbered.splits["train"].labels == [1, 0, 0, 1]
    assert prepare("b", "a").classes == ["a", "b"]
    assert prepare("0", "1", classes=["no", "yes"]).splits["train"].labels == [0, 1]
    assert prepare("yes", "no", classes=["no", "yes"]).splits["train"].labels == [1, 0]
    assert prepare("1", "2.5").kind == "regression"
    assert prepare("1", "2", kind="regression").splits["train"].labels == [1.0, 2.0]
    tags = tasks.prepare({"train": labelled(["O B", "O"], [("in Rome",), ("yes",)])}, kind="tokens")
    assert tags.classes == ["B", "O"] and tags.splits["train"].labels == [[1, 0], [1]]
    assert tags.splits["train"].texts == [["in", "Rome"], ["yes"]]
    lists = tasks.prepare({"train": labelled([["O", "B"]], [(["in", "Rome"],)])})
    assert lists.kind == "tokens" and lists.splits["train"].labels == [[1, 0]]


def test_labels_of_another_file_may_be_spelled_otherwise():
    classes = ["negative", "positive"]
    prepared = tasks.prepare({"train": labelled(["negative", "positive"]), "val": labelled(["1", "0"]),
                              "test": labelled(["Positive", "NEGATIVE"])}, classes=classes)
    labels = [prepared.splits[name].labels for name in ("train", "val", "test")]
    assert labels == [[0, 1], [1, 0], [1, 0]]
    published = tasks.prepare({"train": labelled("1234")}, classes=list(tasks.TASKS["ag_news"].labels))
    assert published.splits["train"].labels == [0, 1, 2, 3]
    assert tasks.clean_label(1.0) == "1" and tasks.clean_label(2.5) == 2.5  # as a .csv beside a .parquet
    assert tasks.clean_label("-10.0") == "-10" and tasks.clean_label("v2.0") == "v2.0"
    assert tasks.clean_label(float("inf")) == float("inf") and tasks.clean_label(float("nan")) == ""


def test_labels_are_not_guessed_across_files(capsys):
    """Ids begin where they begin in all the files; without given classes the training file spells them."""
    news = list(tasks.TASKS["ag_news"].labels)
    prepared = tasks.prepare({"train": labelled("1234"), "val": labelled("123")}, classes=news)
    assert prepared.splits["val"].labels == [0, 1, 2]
    assert not capsys.readouterr().err
    assert tasks.prepare({"val": labelled("123")}, classes=news).splits["val"].labels == [1, 2, 3]
    assert capsys.readouterr().err == (
        "no label is 0; they are taken as ids that begin there, 1 as 'Sports'\n")
    prepared = tasks.prepare({"train": labelled("123"), "val": labelled("0123")}, classes=news)
    assert prepared.splits["train"].labels == [1, 2, 3]
    with pytest.raises(ValueError, match="is none of the classes"):  # neither from 0 nor from 1 in both
        tasks.prepare({"train": labelled("1234"), "val": labelled("0123")}, classes=news)
    with pytest.raises(ValueError, match="the label '4' is none of the classes"):  # and not the first 0
        tasks.prepare({"train": labelled("01234")}, classes=news)
    cased = {"train": labelled(["Negative", "positive"]), "val": labelled(["NEGATIVE"])}
    assert tasks.prepare(cased, classes=["negative", "positive"]).splits["train"].labels == [0, 1]
    for train, val in ((["no", "yes"], ["1", "0"]), (["1.0", "2.0"], ["1", "2"]), ("45", "12")):
        with pytest.raises(ValueError, match="f, line 0: the label '1' is none of the classes"):
            tasks.prepare({"train": labelled(train), "val": labelled(val)})


def test_column_numbers_are_no_header(tmp_path):
    """A first row whose class is 1, or y, beside --label_column 1."""
    rows = [f'"{i % 4 + 1}","Title {i} of it","The text of number {i}"' for i in range(40)]
    examples = tasks.read_file(write(tmp_path, "ag.csv", "\n".join(rows)), None, ["2", "3"], "1")
    assert len(examples.texts) == 40 and examples.labels[:3] == ["1", "2", "3"]
    assert examples.texts[0][0] == "Title 0 of it"
    rows = ["y,a b c d", "n,e f g h"] * 5
    examples = tasks.read_file(write(tmp_path, "yn.csv", "\n".join(rows)), None, ["2"], "1")
    assert examples.labels == ["y", "n"] * 5


def test_words_and_their_tags_go_together(tmp_path):
    row = {"tokens": ["in", "Rome"], "tags": ["O", "LOC"], "intent": "travel"}
    prepared = tasks.prepare({"train": tasks.read_file(write(tmp_path, "a.jsonl", json.dumps(row)))})
    assert prepared.kind == "tokens" and prepared.classes == ["LOC", "O"]
    del row["tags"]
    rows = [json.dumps(row), json.dumps(row | {"intent": "x"})]
    examples = tasks.read_file(write(tmp_path, "b.jsonl", "\n".join(rows)))
    with pytest.raises(ValueError, match="b.jsonl, line 1: the text is a list"):
        tasks.prepare({"train": examples})
    headless = tasks.read_file(write(tmp_path, "c.tsv", "in Rome\tO LOC\nyes\tO\n"), False, ["1"], "2")
    assert tasks.prepare({"train": headless}, "tokens").splits["train"].labels == [[1, 0], [1]]


SEVERAL = [["toxic", "insult"], [], ["threat"], ["insult"]]

def test_several_labels_in_every_format(tmp_path):
    """Lists, cells with any of three separators, what pandas writes of lists, and a column for each label."""
    texts = ["a b", "c d", "e f", "g h"]
    table = lambda cells: "comment,labels\n" + "".join(f'{a},"{b}"\n' for a, b in zip(texts, cells))
    files = [write(tmp_path, f"{i}.csv", table(mark.join(labels) for labels in SEVERAL))
             for i, mark in enumerate("|;,")]
    files.append(write(tmp_path, "pandas.csv", table(SEVERAL)))
    files.append(write(tmp_path, "a.tsv", table("; ".join(labels) for labels in SEVERAL)
                       .replace('"', "").replace(",", "\t")))
    files.append(write(tmp_path, "a.jsonl", "\n".join(
        json.dumps({"text": a, "labels": b}) for a, b in zip(texts, SEVERAL))))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "labels": SEVERAL}), tmp_path / "a.parquet")
    files.append(str(tmp_path / "a.parquet"))
    names = ["insult", "threat", "toxic"]
    expected = [[True, False, True], [False] * 3, [False, True, False], [True, False, False]]
    read = [tasks.read_file(file, kind="multilabel") for file in files]
    columns = {"said": texts, **{name: [int(name in labels) for labels in SEVERAL] for name in names}}
    lines = [",".join(map(str, row)) for row in zip(*columns.values())]
    files.append(write(tmp_path, "columns.csv", "\n".join([",".join(columns), *lines])))
    pyarrow.parquet.write_table(pyarrow.table(columns | {"toxic": [True, False, False, False]}),
                                tmp_path / "columns.parquet")
    files.append(str(tmp_path / "columns.parquet"))
    read += [tasks.read_file(file, None, ["said"], "toxic,threat,insult", kind="multilabel")
             for file in files[-2:]]
    for file, examples in zip(files, read):
        prepared = tasks.prepare({"train": examples}, "multilabel")
        assert prepared.classes == names and examples.texts == [(text,) for text in texts], file
        assert np.array(prepared.splits["train"].labels).tolist() == expected, file


def test_a_column_without_a_one_is_a_class_too(tmp_path):
    file = write(tmp_path, "a.csv", "text,x,y,z\none,1,0,0\ntwo,0,1,0\n")
    later = write(tmp_path, "b.csv", "text,x,y,z\nthree,0,0,1\n")
    read = [tasks.read_file(name, label_column="x,y,z", kind="multilabel") for name in (file, later)]
    prepared = tasks.prepare(dict(zip(("train", "val"), read)), "multilabel")
    assert prepared.classes == ["x", "y", "z"]
    assert np.array(prepared.splits["val"].labels).tolist() == [[False, False, True]]


def test_classes_of_one_number_have_an_order():
    """Whatever the order of a set, which differs between processes."""
    names = [f"{'0' * i}1" for i in range(9)] + ["2"]
    assert tasks.prepare({"train": labelled(names)}).classes == [*sorted(names[:-1]), "2"]


def test_several_labels_across_files():
    """The same separator and the same classes in all, also where a file has one label a row."""
    prepared = tasks.prepare({"train": labelled(["x, y;z", "", "z"]), "val": labelled(["x, y", "z"])},
                             "multilabel")
    assert prepared.classes == ["x, y", "z"]
    assert np.array(prepared.splits["val"].labels).tolist() == [[True, False], [False, True]]
    given = tasks.prepare({"test": labelled([["b"], []])}, "multilabel", list("abc")).splits["test"]
    assert np.array(given.labels).tolist() == [[False, True, False], [False] * 3]
    numbered = tasks.prepare({"train": labelled(["9,10", "9"])}, "multilabel")
    assert numbered.classes == ["9", "10"]
    one = tasks.prepare({"train": labelled(["spam", ""])}, "multilabel")
    assert np.array(one.splits["train"].labels).tolist() == [[True], [False]]
    with pytest.raises(ValueError, match="f, line 1: the label 'd' is none of the classes: a, b"):
        tasks.prepare({"train": labelled(["a|b", "b"]), "val": labelled(["a", "a|d"])}, "multilabel")
    with pytest.raises(ValueError, match="f: no row has a label"):
        tasks.prepare({"train": labelled(["", "[]"])}, "multilabel")
    with pytest.raises(ValueError, match="f, line 1: a label is twice in .* not zeros and ones"):
        tasks.prepare({"train": labelled([["0", "1"], ["0", "1", "0"]])}, "multilabel")
    with pytest.raises(ValueError, match="f, line 0: the text is a list"):
        tasks.prepare({"train": labelled([["a", "b"]], [(["in", "Rome"],)])}, "multilabel")
    with pytest.raises(ValueError, match="f, line 0: 1 words and 2 tags; with several labels .* multilabel$"):
        tasks.prepare({"train": labelled([["a", "b"]])})


def test_a_name_in_its_own_case_comes_first(tmp_path):
    file = write(tmp_path, "x.csv", "Text,text,label,Label\none,a b,x,0\ntwo,c d,y,1\n")
    examples = tasks.read_file(file, text_columns=["text"], label_column="Label")
    assert examples.texts == [("a b",), ("c d",)] and examples.labels == ["0", "1"]
    assert examples.columns == (["text"], ["Label"])


def test_files_of_a_run_have_the_same_columns(tmp_path):
    """Those of the first; another file may have more of the usual names."""
    train = tasks.read_file(write(tmp_path, "a.csv", "text,sentiment\na b,0\nc d,1\n"))
    file = write(tmp_path, "b.csv", "sentence,text,id,label,sentiment\nx,a b,1,0,1\ny,c d,2,1,0\n")
    assert tasks.read_file(file, like=train.columns).labels == ["1", "0"]
    assert tasks.read_file(file, like=train.columns).texts == [("a b",), ("c d",)]
    assert tasks.read_file(file, label_column="label", like=train.columns).labels == ["0", "1"]
    file = write(tmp_path, "c.csv", "text,label\na b,0\n")  # has another name for it
    assert tasks.read_file(file, like=train.columns).labels == ["0"]
    hub = tasks.Examples([("a b",)], ["0"], ["row 1"])  # a task's rows, which have no columns
    assert tasks.read_file(file, like=hub.columns).texts == [("a b",)]


def test_rows_that_nobody_labelled(tmp_path):
    """As pandas writes a missing label, and as SNLI does."""
    for cell in ("nan", "NaN", ""):
        file = write(tmp_path, "x.csv", f"text,score\none,0.5\ntwo,{cell}\n")
        with pytest.raises(ValueError, match="line 3: no label in column 'score'"):
            tasks.read_file(file)
    rows = ["text,gold_label", "a,neutral", "b,entailment", "c,-", "d,contradiction"]
    examples = tasks.read_file(write(tmp_path, "snli.csv", "\n".join(rows)))
    with pytest.raises(ValueError, match="line 4: '-' says that there is no gold label"):
        tasks.prepare({"train": examples})
    several = labelled([["entailment", "-"], ["neutral"]])  # here it is a name like others
    assert tasks.prepare({"train": several}, "multilabel").classes == ["-", "entailment", "neutral"]


def test_a_list_in_a_cell_is_no_class(tmp_path):
    examples = tasks.read_file(write(tmp_path, "x.csv", "text,label\nsome text,\"['x', 'y']\"\na text,['x']"))
    with pytest.raises(ValueError, match="line 2: .* is a list; several labels a text are --kind multilabel"):
        tasks.prepare({"train": examples})
    assert tasks.prepare({"train": examples}, "multilabel").classes == ["x", "y"]


@pytest.mark.parametrize("cells, message", [
    (["['x' 'y']", "['y']"], "line 2: \"\\['x' 'y'\\]\" is a list without commas"),
    (["1|0", "0|1"], "line 2: every row has the labels 0 and 1; write names")])
def test_labels_of_several_that_would_be_misread(cells, message, tmp_path):
    rows = "\n".join(f"some text,{cell}" for cell in cells)
    examples = tasks.read_file(write(tmp_path, "x.csv", "text,labels\n" + rows), kind="multilabel")
    with pytest.raises(ValueError, match=message):
        tasks.prepare({"train": examples}, "multilabel")


BAD_LABELS = {  # the lines of a .jsonl, whose first is fine; the kind; the message
    "object": ('"a"', '{"name": "a"}', None, "line 2: {'name': 'a'} in column 'labels' is no label"),
    "null in tags": ('["O"]', '["O", null]', None, "line 2: ['O', None] in column 'labels' is no label"),
    "nested tags": ('["O"]', '[["O"], "B"]', None, "line 2: [['O'], 'B'] in column 'labels' is no label"),
    "object in tags": ('["O"]', '["O", {}]', None, "line 2: ['O', {}] in column 'labels' is no label"),
    "empty tag": ('["O"]', '["O", ""]', None, "line 2: ['O', ''] in column 'labels' is no label"),
    "null in labels": ('["a"]', '["a", null]', "multilabel", "line 2: ['a', None] in column 'labels' is no"),
    "nobody labelled": ('["a"]', "null", "multilabel", "line 2: no label in column 'labels'"),
    "no tags": ('["O"]', "[]", None, "line 2: no label in column 'labels'; a row may have none if"),
    "a list": ('"a"', '["a"]', "classification", "line 2: a list of labels in column 'labels' goes with"),
}

@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_in_a_file(name, tmp_path):
    *lines, kind, message = BAD_LABELS[name]
    file = write(tmp_path, "a.jsonl", "".join(f'{{"text": "x y", "labels": {line}}}\n' for line in lines))
    with pytest.raises(ValueError) as error:
        tasks.read_file(file, kind=kind)
    assert f"{file}, {message}" in str(error.value) and "\n" not in str(error.value)


def test_bad_labels_in_columns(tmp_path):
    file = write(tmp_path, "a.csv", "text,toxic,threat\na b,0,1\nc d,0,0.5\n")
    with pytest.raises(ValueError, match="a.csv, line 3: '0.5' in column 'threat' is neither 0 nor 1"):
        tasks.read_file(file, label_column="toxic,threat", kind="multilabel")
    with pytest.raises(ValueError, match="toxic,threat: several columns go with the kind multilabel alone"):
        tasks.read_file(file, label_column="toxic,threat")
    with pytest.raises(ValueError, match="no column 'insult' among text, toxic, threat; see --label_column"):
        tasks.read_file(file, label_column="toxic,insult", kind="multilabel")
    for columns, value, what in ((["text", "label"], [{"a": 1}], "row 1: {'a': 1} in column 'label' is no"),
                                 (["text", "label", "text"], ["a"], "two columns are called 'text'"),
                                 (["text", "label", "label"], ["a"], "two columns are called 'label'")):
        table = pyarrow.table([["x y"], value, ["z"]][:len(columns)], names=columns)
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=f"a.parquet(, |: ){what}"):
            tasks.read_file(str(tmp_path / "a.parquet"))


BAD_FILES = {
    "a.csv": ("text,label\na,1\nb\n", "line 3: 1 columns; the first line has 2"),
    "b.tsv": ("sentence\tlabel\na b\t1\n\t0\n", "line 3: the text in column 'sentence' is empty"),
    "c.tsv": ("sentence\tlabel\na b\t1\nc d\t\n", "line 3: no label in column 'label'"),
    "d.csv": ('text,label\n"a,1\nb,0\n', "line 2: unexpected end of data"),
    "e.jsonl": ('{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: no label in column 'label'"),
    "e2.jsonl": ('{"text": "a", "label": NaN}\n', "line 1: no label in column 'label'"),
    "f.jsonl": ('{"text": "a", "label": 1}\nnot json\n', "line 2: not JSON"),
    "g.jsonl": ('{"text": 7, "label": 1}\n', "line 1: the text in column 'text' is 7, no string"),
    "h.csv": ("", "h.csv is empty"),
    "i.csv": ("text,label\n", "i.csv has no rows"),
    "j.csv": ("foo,bar\na b c d,x\ne f g h,y\n", "which of the columns 1, 2 is the label"),
    "k.csv": ("text,other\na,1\n", "which of the columns text, other is the label"),
    "l.csv": ("label,other\n1,1\n", "which of the columns label, other is the text"),
    "l2.csv": ("text,label\na b, \n", "line 2: no label in column 'label'"),
    "l3.jsonl": ('{}\n{"text": "a", "label": 1}\n', "line 1: not a JSON object"),
    "l4.csv": ("text,label,text\na b,1,c\n", "line 1: two columns are called 'text'"),
    "l5.tsv": ("text\tlabel\tlabel\na b\t1\t0\n", "line 1: two columns are called 'label'"),
    "m.parquet": ("no parquet", "m.parquet: "),
    "n.txt": ("text", "not one of .csv, .tsv, .jsonl, .parquet"),
}

@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, tmp_path):
    text, message = BAD_FILES[name]
    with pytest.raises(ValueError) as error:
        tasks.read_file(write(tmp_path, name, text))
    assert message in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_other_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file"):
        tasks.read_file("nowhere.csv")
    with pytest.raises(ValueError, match="latin.csv, line 2: not UTF-8"):
        tasks.read_file(write(tmp_path, "latin.csv", "text,label\ncafé,1\n", "latin-1"))
    file = write(tmp_path, "named.csv", "text,label\na b,1\n")
    with pytest.raises(ValueError, match="no column 'txt' among text, label; see --text_columns"):
        tasks.read_file(file, text_columns=["txt"])
    with pytest.raises(ValueError, match="no column '7' among text, label; see --label_column"):
        tasks.read_file(file, label_column="7")
    headed = write(tmp_path, "headed.csv", "said,mood\n" + "a b c d,x\ne f g h,y\n" * 5)
    with pytest.raises(ValueError, match="line 1: no other row has the label 'mood'; .* say --header"):
        tasks.read_file(headed, label_column="2")
    with pytest.raises(ValueError, match="line 1: label, text look like names of columns; leave --no-header"):
        tasks.read_file(file, header=False)
    assert len(tasks.read_file(headed, True, ["said"], "mood").texts) == 10


def test_a_text_column_is_not_taken_for_the_label(tmp_path):
    file = write(tmp_path, "shop.csv", "category,description,stars\nbooks,a b c,4\nfilms,d e f,5\n")
    examples = tasks.read_file(file, text_columns=["category", "description"])
    assert examples.texts[0] == ("books", "a b c") and examples.labels == ["4", "5"]


def test_an_unknown_header_of_texts_is_pointed_out(tmp_path, capsys):
    file = write(tmp_path, "new.csv", "utterance\nthis is a text\n")
    assert len(tasks.read_file(file, text_columns=["1"], labelled=False).texts) == 2
    assert "new.csv: line 1 is taken for a row" in capsys.readouterr().err
    assert len(tasks.read_file(file, True, ["utterance"], labelled=False).texts) == 1
    assert not capsys.readouterr().err


def test_the_names_of_the_file_of_training_are_known(tmp_path):
    file = write(tmp_path, "train.csv", "phrase,verdict\na b,pos\n")
    train = tasks.read_file(file, None, ["phrase"], "verdict")
    new = write(tmp_path, "new.csv", "phrase,id\na b,1\nc d,2\n")
    assert tasks.read_file(new, labelled=False, like=train.columns).texts == [("a b",), ("c d",)]


def test_columns_without_names_that_have_changed_places(tmp_path):
    """What is in them counts for more than their places in the file of training."""
    train = tasks.read_file(write(tmp_path, "train.csv", "pos,a b c d e\nneg,f g h i j\n" * 5), False)
    assert train.columns == (["2"], ["1"])
    new = write(tmp_path, "new.csv", "a b c d e,100\nf g h i j,101\n")
    assert tasks.read_file(new, False, labelled=False, like=train.columns).texts[0] == ("a b c d e",)
    same = write(tmp_path, "same.csv", "100,a b c d e\n101,f g h i j\n")
    assert tasks.read_file(same, False, labelled=False, like=train.columns).texts[0] == ("a b c d e",)


def test_a_first_row_that_is_taken_for_a_header_is_pointed_out(tmp_path, capsys):
    file = write(tmp_path, "new.csv", "a text of several words,review\nand one more of them,other\n")
    assert tasks.read_file(file, labelled=False).texts == [("other",)]
    assert "new.csv: line 1 is taken for the names of the columns; else say --no-header" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("names", ["tokens,ner_tags", "Tokens,NER_tags"])
def test_columns_of_words_and_tags_are_tokens(names, tmp_path):
    """In a .csv they are strings."""
    file = write(tmp_path, "tags.csv", f"id,{names}\n1,in Rome,O LOC\n2,by Ann,O PER\n")
    assert tasks.prepare({"train": tasks.read_file(file)}).kind == "tokens"


def test_bad_labels():
    with pytest.raises(ValueError, match="f, line 1: the label 'c' is none of the classes: a, b"):
        tasks.prepare({"train": labelled("ab"), "val": labelled("ac")})
    amounts = {"train": labelled([str(i) for i in range(10, 40)]), "val": labelled(["9"])}
    with pytest.raises(ValueError, match="'9' is none of .*, 29, ...; of amounts the kind is regression"):
        tasks.prepare(amounts)
    with pytest.raises(ValueError, match="f: every row has the label 'a'"):
        tasks.prepare({"train": labelled("aaa")})
    for bad in ("high", "nan", "inf"):
        with pytest.raises(ValueError, match=f"f, line 1: the target of a regression is '{bad}', not a"):
            tasks.prepare({"train": labelled(["0.5", bad])}, kind="regression")
    with pytest.raises(ValueError, match="f, line 0: 2 words and 3 tags"):
        tasks.prepare({"train": labelled([["O", "O", "B"]], [(["in", "Rome"],)])})
    with pytest.raises(ValueError, match="f, line 0: 2 text columns"):
        tasks.prepare({"train": labelled(["O O"], [("in", "Rome")])}, kind="tokens")
    with pytest.raises(ValueError, match="f, line 0: 1 text columns; f, line 0 has 2; see --text_columns"):
        tasks.prepare({"train": labelled("ab", [("a", "b")] * 2), "val": labelled("ab")})


def test_hold_out():
    def held_out(labels, texts=None, kind=None):
        prepared = tasks.prepare({"train": labelled(labels, texts)}, kind)
        return prepared.classes, *tasks.hold_out(prepared.splits["train"], prepared.kind)
    _, train, val = held_out([str(i % 2) for i in range(50)])
    assert (len(train.texts), len(val.texts)) == (45, 5)
    assert sorted(train.where + val.where) == sorted(f"f, line {i}" for i in range(50))
    for rare in ("rare", "2"):  # wherever it falls, a class's only row is trained on
        for place in range(50):
            labels = ["0", "1"] * 25
            labels[place] = rare
            classes, train, _ = held_out(labels)
            assert classes.index(rare) in train.labels
    _, train, val = held_out([str(i / 2) for i in range(50)])  # a regression, where every target is new
    assert (len(train.texts), len(val.texts)) == (45, 5)
    tags = [" ".join("OB"[i >> bit & 1] for bit in range(6)) for i in range(60)]  # no two are the same
    _, train, val = held_out(tags, [("a b c d e f",)] * 60, "tokens")
    assert (len(train.texts), len(val.texts)) == (54, 6)
    rare = [["a", "b"][:i % 3] + ["rare"] * (i == 7) for i in range(60)]  # none, a, a and b
    for place in range(60):
        classes, train, val = held_out(rare[place:] + rare[:place], kind="multilabel")
        assert np.any(train.labels, 0).all() and len(classes) == 3 and len(val.texts) >= 5
    with pytest.raises(ValueError, match="rows are too few to split; give --val_file"):
        held_out("ab" * 9)
    with pytest.raises(ValueError, match="each has a class of its own; of amounts the kind is regression"):
        held_out([f"id {i}" for i in range(50)])  # every row a class of its own


def test_the_hub(monkeypatch):
    """No network here: the client is replaced, and gives what the hub's MRPC and STS-B look like."""
    import datasets
    table = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0], "idx": [0, 1]}
    asked = []
    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_dict(table)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    mrpc = tasks.prepare(tasks.read_task("mrpc"), classes=list(tasks.TASKS["mrpc"].labels))
    assert asked == [("nyu-mll/glue", "mrpc", "train"), ("nyu-mll/glue", "mrpc", "validation")]
    assert mrpc.splits["val"].texts == [("a", "c"), ("b", "d")] and mrpc.splits["val"].labels == [1, 0]
    table["label"] = [1, -1]  # as SNLI marks a row without a gold label
    with pytest.raises(ValueError, match="glue:mrpc, train, row 2: the label '-1' is none of the classes"):
        tasks.prepare(tasks.read_task("mrpc"), classes=list(tasks.TASKS["mrpc"].labels))
    table["label"] = [2.5, 4]
    assert tasks.prepare(tasks.read_task("stsb")).splits["val"].labels == [2.5, 4.0]
    def refuse(*args, **more):
        raise ConnectionError("no network\nand a second line")
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match="rte: give --train_file .* nyu-mll/glue:rte: no network$"):
        tasks.read_task("rte")

# -----------------------------------------------------------------------------
# The files as published, where ../shared/data has them, and small ones with the same quirks

COUNTS = {  # rows of train and dev, text columns, kind; counted by hand with wc
    "sst2": (67349, 872, 1, "classification"), "mnli": (41378, 4907, 2, "classification"),
    "rte": (2490, 277, 2, "classification"), "cola": (8551, 1043, 1, "classification"),
    "mrpc": (3667, 408, 2, "classification"), "stsb": (5749, 1500, 2, "regression"),
    "ag_news": (9991, 3800, 1, "classification")}
NEWS = "Unions representing workers at Turner"  # how the first row of AG News' dev.csv begins; it is Business


def small_files(folder):
    """A train and a dev file of each task, with what is odd about the published ones: CoLA has no header,
    MRPC a byte order mark, MNLI fewer columns in dev.tsv, SST-2 a space after each text; lone quotes."""
    def text(i, who="he"):
        return f'number {i} , and {who} said " no .'
    nli, news = ("entailment", "neutral", "contradiction"), tasks.TASKS["ag_news"].labels
    columns = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    forms = {  # the header, and row i
        "sst2": ("sentence\tlabel", lambda i: f"{text(i)} \t{i % 2}"),
        "mnli": ("premise\thypothesis\tlabel\tgenre\tsource",
                 lambda i: f"{text(i)}\t{text(i, 'she')}\t{nli[i % 3]}\tfiction\tpada"),
        "rte": ("index\tsentence1\tsentence2\tlabel",
                lambda i: f"{i}\t{text(i)}\t{text(i, 'she')}\t{tasks.ENTAILMENT[i % 2]}"),
        "cola": (None, lambda i: f"gj0{i % 5}\t{i % 2}\t{'*' * (1 - i % 2)}\t{text(i)}"),
        "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
                 lambda i: f"{i % 2}\t{70000 + i}\t{71000 + i}\t{text(i)}\t{text(i, 'she')}"),
        "stsb": (columns, lambda i: f"{i}\tmain-news\tMSRvid\t2012test\t{i:04}\tnone\tnone\t{text(i)}\t"
                                  f"{text(i, 'she')}\t{i % 11 / 2:.3f}"),
        "ag_news": ("text,label", lambda i: f'"{NEWS}\\, ""quoted"", #36;{i}",{news[i % 4]}')}
    for name, (header, row) in forms.items():
        (folder / name).mkdir()
        for split, numbers in (("train", range(60)), ("dev", range(2, 26))):  # news[2] is Business
            lines = [header] * (header is not None) + [row(i) for i in numbers]
            if (name, split) == ("mnli", "dev"):
                lines = [line.rsplit("\t", 2)[0] for line in lines]
            write(folder / name, f"{split}.{'csv' if name == 'ag_news' else 'tsv'}", "\n".join(lines) + "\n")
    return {name: (60, 24, columns, kind) for name, (_, _, columns, kind) in COUNTS.items()}


@pytest.mark.parametrize("source", ["small", *["published"] * DATA.exists()])
def test_files_of_the_tasks(source, tmp_path):
    """Found without a flag."""
    if not DATA.exists():
        print(f"{DATA} is absent: only small files of the same form are read")
    folder, counts = (DATA, COUNTS) if source == "published" else (tmp_path, small_files(tmp_path))
    for name, (train, val, columns, kind) in counts.items():
        extension = "csv" if name == "ag_news" else "tsv"
        splits = {ours: tasks.read_file(str(folder / name / f"{theirs}.{extension}"))
                  for ours, theirs in (("train", "train"), ("val", "dev"))}
        assert (len(splits["train"].texts), len(splits["val"].texts)) == (train, val), name
        assert {len(text) for text in splits["train"].texts + splits["val"].texts} == {columns}, name
        assert tasks.prepare(splits).kind == kind, name
        labels = tasks.TASKS[name].labels
        named = tasks.prepare(splits, classes=list(labels) or None)
        assert tuple(named.classes) == labels, name
        if name == "ag_news":
            assert named.splits["val"].texts[0][0].startswith(NEWS)
            assert named.classes[named.splits["val"].labels[0]] == "Business"


def test_the_separator_of_labels_spares_known_classes():
    """A file to evaluate may have none of the cells that told the separator in training."""
    def examples(*labels):
        return tasks.Examples([("a text",)] * len(labels), list(labels), ["f, line 1"] * len(labels))
    trained = tasks.prepare({"train": examples("x, y|z", "z", "x, y")}, "multilabel")
    assert trained.classes == ["x, y", "z"]
    test = tasks.prepare({"test": examples("x, y", "z", "x, y|z")}, "multilabel", trained.classes)
    assert np.array(test.splits["test"].labels).tolist() == [[True, False], [False, True], [True, True]]
    test = tasks.prepare({"test": examples("x, y", "z")}, "multilabel", trained.classes)
    assert np.array(test.splits["test"].labels).tolist() == [[True, False], [False, True]]
