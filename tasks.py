"""
Labelled data for fine-tuning: GLUE and AG News, your own files, and a task that every machine has. Metrics.

    train = read_file("train.csv")                            # columns and header are found, or named
    data = prepare({"train": train, "val": read_file("dev.csv")})   # classes, kind, checks
    rows = Rows(data.splits["train"], data.kind, tokenizer, max_length=128, token_types=True)
    for chosen in batches_by_length(rows.lengths, 32, rng):   # rows of about one length: little padding
        rows.inputs(chosen), rows.targets(chosen)
    scores("classification", labels, logits)                  # accuracy, F1, MCC, ...

Everything that can be wrong with a file is an error that names the file and the line.
"""

import csv
import json
import os
import re
import sys
from dataclasses import dataclass

import numpy as np

import data
import tokenizer as tokenizers

# -----------------------------------------------------------------------------
# The tasks

@dataclass
class Task:
    hub: str            # data set[:configuration] on the hub, where there is one
    validation: str     # its validation split
    text: tuple         # its text columns
    labels: tuple       # in the order of their ids; none: a regression
    metric: str         # that chooses the best checkpoint, one of those that scores() gives
    lr: float           # for all parameters of a model 768 wide
    epochs: float
    batch_size: int

GLUE, PAIR, NLI = "nyu-mll/glue:", ("sentence1", "sentence2"), ("entailment", "not_entailment")
TASKS = {
    "sst2": Task(GLUE + "sst2", "validation", ("sentence",), ("negative", "positive"), "accuracy",
                 5e-5, 3, 32),
    "ag_news": Task("fancyzhx/ag_news", "test", ("text",), ("World", "Sports", "Business", "Sci/Tech"),
                    "accuracy", 5e-5, 3, 32),
    "mnli": Task(GLUE + "mnli", "validation_matched", ("premise", "hypothesis"),
                 ("entailment", "neutral", "contradiction"), "accuracy", 5e-5, 3, 32),
    "cola": Task(GLUE + "cola", "validation", ("sentence",), ("unacceptable", "acceptable"), "mcc",
                 5e-5, 5, 32),
    "mrpc": Task(GLUE + "mrpc", "validation", PAIR, ("not_equivalent", "equivalent"), "f1", 5e-5, 5, 32),
    "qqp": Task(GLUE + "qqp", "validation", ("question1", "question2"), ("not_duplicate", "duplicate"), "f1",
                5e-5, 3, 32),
    "qnli": Task(GLUE + "qnli", "validation", ("question", "sentence"), NLI, "accuracy", 5e-5, 3, 32),
    "rte": Task(GLUE + "rte", "validation", PAIR, NLI, "accuracy", 5e-5, 8, 32),
    "stsb": Task(GLUE + "stsb", "validation", PAIR, (), "spearman", 5e-5, 5, 32),
    "wnli": Task(GLUE + "wnli", "validation", PAIR, ("not_entailment", "entailment"), "accuracy",
                 5e-5, 5, 32),
    # which package a paragraph of documentation comes from: no network, nothing downloaded
    "pydoc": Task("", "", ("text",), (), "accuracy", 5e-5, 4, 32),
}
# of your own files
OWN = {
    "classification": Task("", "", (), (), "accuracy", 5e-5, 3, 32),
    "regression": Task("", "", (), (), "spearman", 5e-5, 5, 32),
    "tokens": Task("", "", (), (), "token_f1", 5e-5, 5, 32),
}


@dataclass
class Examples:
    """The rows of one split, as read."""
    texts: list         # tuples of one or two strings; for tokens: lists of words
    labels: list        # strings; for a regression numbers, for tokens lists of strings; None: not labelled
    where: list         # the file and line of each row, for errors


def read_hub(name):
    """A task of the table -> {"train", "val"}: Examples, from the hub."""
    import datasets  # here, as everything but the hub works without it
    task = TASKS[name]
    path, _, config = task.hub.partition(":")
    found = {}
    for ours, split in (("train", "train"), ("val", task.validation)):
        try:
            table = datasets.load_dataset(path, config or None, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileNotFoundError(f"{name}: the hub did not give {task.hub} ({reason}); --train_file and "
                                    "--val_file take files") from error
        where = [f"{task.hub}, {split}, row {i}" for i in range(len(table))]
        labels = [task.labels[i] for i in table["label"]] if task.labels else list(map(float, table["label"]))
        found[ours] = Examples(list(zip(*(table[column] for column in task.text))), labels, where)
    return found


def read_pydoc(smallest=400, largest=1000, held_out=5):
    """Which package a paragraph comes from -> {"train", "val"}: Examples.

    The packages with at least `smallest` paragraphs; of each at most `largest`, drawn with a fixed seed. A
    paragraph that says a package's name is left out. Every fifth module, whole, is for validation.
    """
    named = re.compile("|".join(("python", *data.PYDOC)), re.IGNORECASE)
    modules = {}
    for package, document in data.pydoc_modules():
        modules.setdefault(package, []).append([text for text in document if not named.search(text)])
    found = {"train": Examples([], [], []), "val": Examples([], [], [])}
    for package, documents in sorted(modules.items()):
        if sum(map(len, documents)) < smallest:
            continue
        for split, limit in (("train", largest), ("val", largest // held_out)):
            texts = [text for i, document in enumerate(documents) for text in document
                     if (i % held_out == held_out - 1) == (split == "val")]
            chosen = sorted(np.random.default_rng(0).permutation(len(texts))[:limit])
            found[split].texts += [(texts[i],) for i in chosen]
            found[split].labels += [package] * len(chosen)
            found[split].where += [f"pydoc, {package}"] * len(chosen)
    return found

# -----------------------------------------------------------------------------
# Files

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
LABELS = ("label", "labels", "gold_label", "class", "category", "target", "sentiment", "quality",
          "is_duplicate", "score", "rating", "stars", "topic", "intent")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")  # beside a column of words
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
         ("question", "sentence"), ("#1 string", "#2 string"), ("text_a", "text_b"), ("text1", "text2"),
         ("sentence_a", "sentence_b"))
WORDS = ("tokens", "words")
TEXTS = ("text", "sentence", *WORDS, "review", "comment", "message", "content", "body", "tweet", "document",
         "description", "title")


@dataclass
class Table:
    file: str
    names: list         # of the columns; "1", "2", ... where the file names none
    named: bool
    rows: list          # lists of cells
    lines: list         # the line of each row


def read_file(file, header=None, text_columns=None, label_column=None, labelled=True):
    """A .csv, .tsv, .jsonl or .parquet file -> Examples.

    .tsv is as GLUE's: a tab separates, and a quote is a letter. header: whether the first line of a .csv or
    .tsv names the columns; None: it does if one of the names is known. Columns are given by name, or counted
    from 1; or else found by the known names, or without names by what is in them. ValueError with the line
    number for a row with more or fewer columns than the first, a missing column, an empty text, no label,
    bytes that are not UTF-8.
    """
    table = read_table(file, header, (text_columns or []) + [label_column or ""])
    texts, label = find_columns(table, text_columns, label_column, labelled)
    found = Examples([], [] if labelled else None, [])
    for row, line in zip(table.rows, table.lines):
        where = f"{file}, {'row' if file.endswith('.parquet') else 'line'} {line}"
        for i in texts:
            if row[i] in (None, []) or str(row[i]).isspace() or row[i] == "":
                raise ValueError(f"{where}: the text in column {table.names[i]!r} is empty")
            if not isinstance(row[i], (str, list)):
                raise ValueError(f"{where}: the text in column {table.names[i]!r} is {row[i]!r}, no string")
        found.texts.append(tuple(row[i] for i in texts))
        found.where.append(where)
        if labelled:
            if row[label] in (None, []) or row[label] != row[label] or plain(row[label]) == "":
                raise ValueError(f"{where}: no label in column {table.names[label]!r}")  # unequal: a NaN
            found.labels.append(plain(row[label]))
    if labelled and not table.named and header is None:
        first = found.labels[0]
        if found.labels.count(first) == 1 and not is_number(first):
            raise ValueError(f"{found.where[0]}: no other row has the label {first!r}; if this line names "
                             "the columns, say --header, if not --no-header")
    elif not table.named and header is None:
        print(f"{file}: line 1 is taken for a row, not for the names of the columns; else say --header",
              file=sys.stderr)
    return found


def plain(label):
    """A cell -> a string; a list and a number with a fraction stay, and 1.0 is "1"."""
    if isinstance(label, list) or isinstance(label, float) and not label.is_integer():
        return label
    return str(int(label)) if isinstance(label, float) else str(label).strip()


def read_table(file, header, given):
    if not file.endswith(FORMATS):
        raise ValueError(f"{file}: not one of {', '.join(FORMATS)}")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such file")
    if file.endswith(".jsonl"):
        return read_jsonl(file)
    if file.endswith(".parquet"):
        return read_parquet(file)
    rows, lines = [], []
    if file.endswith(".tsv"):
        for number, line in data.decoded_lines(file):
            if line:
                rows.append(line.split("\t"))
                lines.append(number)
    else:
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader((line + "\n" for _, line in data.decoded_lines(file)), strict=True)
        try:
            for row in reader:
                if row:
                    rows.append([cell.removesuffix("\n") for cell in row])
                    lines.append(reader.line_num)
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{file} is empty")
    for row, line in zip(rows, lines):
        if len(row) != len(rows[0]):
            raise ValueError(f"{file}, line {line}: {len(row)} columns; the first line has {len(rows[0])}")
    first = [cell.strip() for cell in rows[0]]
    known = {*LABELS, *TAGS, *TEXTS, *sum(PAIRS, ()), *(name.lower() for name in given if not name.isdigit())}
    named = {cell.lower() for cell in first} & (known - {""})
    if header is False and len(named) > 1:
        raise ValueError(f"{file}, line {lines[0]}: {', '.join(sorted(named))} look like names of columns; "
                         "leave --no-header out")
    header = bool(named) if header is None else header
    if not header:
        return Table(file, [str(i + 1) for i in range(len(first))], False, rows, lines)
    if len(rows) == 1:
        raise ValueError(f"{file} has a header and no rows")
    return Table(file, first, True, rows[1:], lines[1:])


def read_jsonl(file):
    table = Table(file, [], True, [], [])
    for number, line in data.decoded_lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: not a JSON object")
        if not row:
            raise ValueError(f"{file}, line {number}: an object without columns")
        table.names = table.names or list(row)
        table.rows.append([row.get(name) for name in table.names])
        table.lines.append(number)
    if not table.rows:
        raise ValueError(f"{file} is empty")
    return table


def read_parquet(file):
    import pyarrow
    import pyarrow.parquet
    try:
        columns = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: {error}") from error
    rows = list(zip(*(column.to_pylist() for column in columns.columns)))
    if not rows:
        raise ValueError(f"{file} is empty")
    return Table(file, columns.column_names, True, rows, list(range(1, len(rows) + 1)))


def find_columns(table, text_columns, label_column, labelled):
    """-> the places of the text columns, and of the label's."""
    places = {str(i): i - 1 for i in range(1, len(table.names) + 1)}
    places |= {name.lower(): i for i, name in reversed(list(enumerate(table.names)))}

    def place(name, flag):
        if name.lower() not in places:
            raise ValueError(f"{table.file}: no column {name!r} among {', '.join(table.names)}; see {flag}")
        return places[name.lower()]
    known = next((pair for pair in PAIRS if set(pair) <= set(places)), None) or next(
        ([name] for name in TEXTS if name in places), [])
    texts = [place(name, "--text_columns") for name in text_columns or known]
    words = any(table.names[i].lower() in WORDS for i in texts)
    likely = TAGS + LABELS if words else LABELS + TAGS
    label = next((places[name] for name in likely if name in places and places[name] not in texts), None)
    if label_column:
        label = place(label_column, "--label_column")
    if not table.named:
        found = columns_by_content(table.rows, {*texts, label})
        texts, label = texts or found[0], found[1] if label is None else label
    if len(texts) not in (1, 2) or label in texts:
        raise ValueError(f"{table.file}: which of the columns {', '.join(table.names)} is the text, or which "
                         "two? name them by --text_columns")
    if labelled and label is None:
        raise ValueError(f"{table.file}: which of the columns {', '.join(table.names)} is the label? name it "
                         "by --label_column")
    return texts, label


def columns_by_content(rows, taken):
    """Without names: texts are the columns of three and more words a cell. The label is the only one of the
    others that has few values, each in many rows; or the only such one with the values 0, 1, and so on."""
    columns = {i: column for i, column in enumerate(zip(*rows)) if i not in taken}
    words = {i: sum(len(cell.split()) for cell in column) / len(column) for i, column in columns.items()}
    few = [i for i, column in columns.items() if words[i] < 3 and "" not in column
           and 2 <= len(set(column)) <= max(2, min(100, len(column) // 5))]
    numbered = [i for i in few if set(columns[i]) == {str(k) for k in range(len(set(columns[i])))}]
    label = few if len(few) == 1 else numbered
    return [i for i in columns if words[i] >= 3], label[0] if len(label) == 1 else None


def is_number(value):
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False

# -----------------------------------------------------------------------------
# Examples -> labels as numbers, checked

@dataclass
class Data:
    kind: str           # "classification", "regression" or "tokens"
    classes: list       # their names, by id; none for a regression
    splits: dict        # {"train", "val", "test"}: Examples, with labels as ids or numbers


def prepare(splits, kind=None, classes=None):
    """{split: Examples} -> Data.

    kind None: tokens where labels are lists, a regression where all are numbers and one has a fraction,
    else classification. classes None: those of the training labels, sorted; where they are given, labels
    may also be their ids. ValueError, with the line, for a label that training lacks, a target that is no
    number, one class only, words and tags of different counts, and a text beside pairs.
    """
    first = next(iter(splits.values()))
    labels = first.labels
    for examples in splits.values():
        for text, where in zip(examples.texts, examples.where):
            if len(text) != len(first.texts[0]):
                raise ValueError(f"{where}: {len(text)} text columns; {first.where[0]} has "
                                 f"{len(first.texts[0])}; see --text_columns")
    if kind is None:
        kind = "classification"
        if any(isinstance(label, list) for label in labels):
            kind = "tokens"
        elif not classes and all(map(is_number, labels)) and any(float(label) % 1 for label in labels):
            kind = "regression"
    if kind == "tokens":
        for examples in splits.values():
            split_words(examples)
    else:
        for examples in splits.values():
            check_strings(examples)
    if kind == "regression":
        for examples in splits.values():
            for label, where in zip(examples.labels or (), examples.where):
                if not is_number(label):
                    raise ValueError(f"{where}: the target of a regression is {label!r}, not a number")
        return Data(kind, [], {name: relabel(examples, float) for name, examples in splits.items()})

    def names(label):
        return [str(tag) for tag in label] if kind == "tokens" else [str(label)]
    used = {split: {name for label in examples.labels for name in names(label)}
            for split, examples in splits.items()}
    if classes is None:
        found = used[next(iter(used))]
        whole = all(re.fullmatch(r"-?\d+", name) for name in found)
        classes = sorted(found, key=int if whole else None)
        ids = dict.fromkeys(used, {name: i for i, name in enumerate(classes)})
    else:
        ids = spelled(classes, used)
    if len(classes) < 2:
        file = splits["train"].where[0].rpartition(", ")[0]
        raise ValueError(f"{file}: every row has the label {classes[0]!r}; there is nothing to learn")
    prepared = {}
    for split, examples in splits.items():
        for label, where in zip(examples.labels, examples.where):
            unknown = set(names(label)) - set(ids[split])
            if unknown:
                raise ValueError(f"{where}: the label {min(unknown)!r} is none of the classes: "
                                 f"{', '.join(classes[:20])}")
        number = lambda label: ([ids[split][name] for name in names(label)] if kind == "tokens"
                                else ids[split][str(label)])
        prepared[split] = relabel(examples, number)
    return Data(kind, classes, prepared)


def spelled(classes, used):
    """{split: its labels} -> {split: {spelling: id}}: in each the names of the classes, in whatever case, or
    their ids, which in all the splits begin at 0, or, as AG News is published, at 1."""
    names = {name: i for i, name in enumerate(classes)}
    lower = {name.lower(): i for name, i in names.items()}
    folded = lambda labels: {name: lower[name.lower()] for name in labels
                             if len(lower) == len(names) and name.lower() in lower}
    found = {split: names if labels & set(names) else folded(labels) for split, labels in used.items()}
    numbers = set().union(*(used[split] for split in used if not found[split]))
    for first in (0, 1):
        ids = {str(i + first): i for i in range(len(classes))}
        if numbers <= set(ids):
            return {split: spelling or ids for split, spelling in found.items()}
    return {split: spelling or names for split, spelling in found.items()}


def relabel(examples, number):
    labels = None if examples.labels is None else [number(label) for label in examples.labels]
    return Examples(examples.texts, labels, examples.where)


def hold_out(examples, kind, share=10):
    """Examples with labels as prepare() leaves them -> training and validation rows: every tenth of a fixed
    shuffle is held out, but for those with a class that training would lack."""
    order = np.random.default_rng(0).permutation(len(examples.texts))
    held = set(order[:len(order) // share].tolist())
    if kind != "regression":
        classes = [set(label) if kind == "tokens" else {label} for label in examples.labels]
        trained = set().union(*(classes[i] for i in range(len(classes)) if i not in held))
        held = {i for i in held if classes[i] <= trained}
    if len(examples.texts) < 2 * share or not held:
        raise ValueError(f"{examples.where[0]}: {len(examples.texts)} rows are too few to hold some out for "
                         "validation; give --val_file")
    pick = lambda inside: Examples(*([value for i, value in enumerate(values) if (i in held) == inside]
                                     for values in (examples.texts, examples.labels, examples.where)))
    return pick(False), pick(True)


def check_strings(examples):
    for text, where in zip(examples.texts, examples.where):
        if not all(isinstance(part, str) for part in text):
            raise ValueError(f"{where}: the text is a list; with a list of tags beside it, say --kind tokens")


def split_words(examples):
    """For tokens: the text a list of words, or words between spaces, and a tag for each."""
    for i, (text, where) in enumerate(zip(examples.texts, examples.where)):
        if len(text) != 1:
            raise ValueError(f"{where}: {len(text)} text columns; tags go with one, see --text_columns")
        words = text[0].split() if isinstance(text[0], str) else text[0]
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"{where}: a word is empty or no string")
        examples.texts[i] = words
        if examples.labels is not None:
            tags = examples.labels[i]
            examples.labels[i] = tags = tags.split() if isinstance(tags, str) else tags
            if not isinstance(tags, list) or len(words) != len(tags):
                raise ValueError(f"{where}: {len(words)} words and "
                                 f"{len(tags) if isinstance(tags, list) else 'no list of'} tags")

# -----------------------------------------------------------------------------
# Rows of tokens

@dataclass
class Row:
    ids: np.ndarray     # (T,) int32, special tokens included
    second: int         # where the second sentence begins; T if there is none
    words: np.ndarray = None  # for tokens: the places of the words' first tokens


def encode(texts, tokenizer, max_length):
    """Texts, as in Examples -> Rows of at most max_length tokens, as transformers makes them.

    One text [CLS] A [SEP]; two [CLS] A [SEP] B [SEP], and in RoBERTa a second [SEP] between. What is too
    long is cut from the end of the longer text. Of a list of words, each is encoded by itself; a row keeps
    those of which the first token fits.
    """
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    between = sep * 2 if isinstance(tokenizer, tokenizers.ByteLevelBPE) else sep
    rows = []
    if isinstance(texts[0], list):
        space = " " if isinstance(tokenizer, tokenizers.ByteLevelBPE) else ""  # with which a word begins
        pieces = iter(tokenizer.encode_batch([space + word for words in texts for word in words]))
        for words in texts:
            parts = [next(pieces) for _ in words]
            parts = [part if len(part) else [tokenizer.unk_id] for part in parts]
            starts = np.cumsum([1, *map(len, parts)])[:-1]
            ids = np.concatenate([cls, *parts])[:max_length - 1]
            rows.append(Row(np.append(ids, sep).astype(np.int32), len(ids) + 1, starts[starts < len(ids)]))
        return rows
    pieces = iter(tokenizer.encode_batch([text for pair in texts for text in pair]))
    for pair in texts:
        if len(pair) == 1:
            ids = np.concatenate([cls, next(pieces)[:max_length - 2], sep])
            rows.append(Row(ids.astype(np.int32), len(ids)))
        else:
            a, b = truncate(next(pieces), next(pieces), max_length - 2 - len(between))
            ids = np.concatenate([cls, a, between, b, sep])
            rows.append(Row(ids.astype(np.int32), 1 + len(a) + len(between)))
    return rows


def truncate(a, b, room):
    """The longer of two is cut to what the shorter leaves, but not below half of the room."""
    if len(a) + len(b) <= room:
        return a, b
    shorter = min(len(a), len(b), room // 2)
    return (a[:shorter], b[:room - shorter]) if len(a) <= len(b) else (a[:room - shorter], b[:shorter])


class Rows:
    """The rows of tokens of one split, and their labels."""

    def __init__(self, examples, kind, tokenizer, max_length, token_types):
        """token_types: whether the model tells the second sentence from the first by them."""
        self.kind, self.tokenizer, self.token_types = kind, tokenizer, token_types
        self.rows = encode(examples.texts, tokenizer, max_length)
        self.lengths = np.array([len(row.ids) for row in self.rows])
        self.labels = examples.labels  # numbers; for tokens lists of them
        self.cut_words = 0
        if kind == "tokens":
            self.cut_words = sum(map(len, examples.texts)) - sum(len(row.words) for row in self.rows)
            if self.labels is not None:  # of the words that fit
                self.labels = [labels[:len(row.words)] for labels, row in zip(self.labels, self.rows)]

    def __len__(self):
        return len(self.rows)

    def flat(self, values):
        """What belongs to rows, or for tokens to the words of rows -> one array."""
        return np.concatenate(values) if self.kind == "tokens" else np.array(values)

    def inputs(self, chosen):
        """Row numbers -> {input_ids, token_type_ids, attention_mask (B, T)}, int64, padded on the right to
        the longest. Without padding there is no mask: attention is faster without one."""
        rows, lengths = [self.rows[i] for i in chosen], self.lengths[chosen]
        T = lengths.max()
        ids = np.full((len(rows), T), self.tokenizer.pad_id)
        for i, row in enumerate(rows):
            ids[i, :len(row.ids)] = row.ids
        batch, place = {"input_ids": ids}, np.arange(T)
        if self.token_types:
            second = np.array([row.second for row in rows])[:, None]
            batch["token_type_ids"] = ((place >= second) & (place < lengths[:, None])).astype(np.int64)
        if lengths.min() < T:
            batch["attention_mask"] = (place < lengths[:, None]).astype(np.int64)
        return batch

    def targets(self, chosen):
        """Row numbers -> labels (B,), or for tokens (B, T) with -100 where no word begins."""
        if self.kind != "tokens":
            dtype = np.float32 if self.kind == "regression" else np.int64
            return np.array([self.labels[i] for i in chosen], dtype)
        targets = np.full((len(chosen), self.lengths[chosen].max()), -100)
        for target, i in zip(targets, chosen):
            target[self.rows[i].words] = self.labels[i]
        return targets


def batches_by_length(lengths, size, rng, window=200):
    """-> arrays of row numbers, every row once. Shuffled, then sorted by length within windows of `window`
    batches, so that a batch needs little padding, then the batches shuffled."""
    order = rng.permutation(len(lengths))
    batches = []
    for i in range(0, len(order), size * window):
        part = order[i:i + size * window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[j:j + size] for j in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]

# -----------------------------------------------------------------------------
# Metrics

METRICS = {  # any of these can choose the best checkpoint; f1 is of class 1, where there are two
    "classification": ("accuracy", "f1", "macro_f1", "macro_precision", "macro_recall", "mcc"),
    "regression": ("pearson", "spearman"),
    "tokens": ("accuracy", "token_f1", "macro_f1", "macro_precision", "macro_recall", "mcc"),
}

def scores(kind, labels, outputs, classes=()):
    """{name: value}. labels (N,), outputs (N, classes), or (N,) for a regression. For tokens N counts the
    words of all rows, and classes are the names of the tags."""
    labels = np.asarray(labels)
    if kind == "regression":
        predicted = np.asarray(outputs, np.float64).reshape(len(labels))
        return {"pearson": pearson(labels, predicted), "spearman": pearson(ranks(labels), ranks(predicted)),
                "mse": float(np.mean((labels - predicted) ** 2))}
    matrix = confusion_matrix(labels, outputs.argmax(-1), outputs.shape[-1])
    precision, recall, f1, present = by_class(matrix)
    means = {f"macro_{name}": float(values[present].mean())
             for name, values in (("f1", f1), ("precision", precision), ("recall", recall))}
    found = {"accuracy": float(np.trace(matrix) / matrix.sum()), **means, "mcc": mcc(matrix)}
    if kind == "tokens":
        found["token_f1"] = token_f1(matrix, classes)
    elif len(matrix) == 2:
        found["f1"] = float(f1[1])
    return found


def confusion_matrix(labels, predicted, classes):
    """(classes, classes): rows are the labels, columns the predictions."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def by_class(matrix):
    """-> precision, recall and F1 of every class, 0 where they are 0 / 0, and which classes occur at all."""
    hits, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    ratio = lambda a, b: np.divide(a, b, out=np.zeros(len(matrix)), where=b > 0)
    return (ratio(hits, predicted), ratio(hits, labelled), ratio(2 * hits, labelled + predicted),
            labelled + predicted > 0)


def mcc(matrix):
    """Matthews' correlation coefficient, of two classes or more (Gorodkin 2004); 0 where it is undefined."""
    n, labelled, predicted = matrix.sum(), matrix.sum(1).astype(float), matrix.sum(0).astype(float)
    spread = (n**2 - labelled @ labelled) * (n**2 - predicted @ predicted)
    return float((n * np.trace(matrix) - labelled @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(x, y):
    """0 where it is undefined."""
    x, y = x - x.mean(), y - y.mean()
    spread = (x @ x) * (y @ y)
    return float(x @ y / np.sqrt(spread)) if spread > 0 else 0.0


def ranks(values):
    """1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def token_f1(matrix, classes):
    """F1 over all words whose tag or prediction is not "O" (micro-averaged; without an "O" the accuracy)."""
    inside = np.array([name != "O" for name in classes])
    hits = np.diag(matrix)[inside].sum()
    total = matrix[inside].sum() + matrix[:, inside].sum()
    return float(2 * hits / total) if total else 0.0
