"""
Labelled data for fine-tuning: GLUE and AG News, your own files, and a task that every machine has. Metrics.

    train = read_file("train.csv")                            # columns and header are found, or named
    task_data = prepare({"train": train, "val": read_file("dev.csv")})   # classes, kind, checks
    rows = Rows(task_data.splits["train"], task_data.kind, tokenizer, max_length=128, token_types=True)
    for chosen in batches_by_length(rows.lengths, 32, rng):   # rows of about one length: little padding
        rows.inputs(chosen), rows.targets(chosen)
    rows.scores(logits_of(model, rows, 32, host), task_data.classes)  # accuracy, F1, MCC, ...
"""

import re
import sys
from dataclasses import dataclass, replace

import numpy as np
import torch

import data
import files
import tokenizer as tokenizers

# -----------------------------------------------------------------------------
# The tasks

@dataclass
class Task:
    hub: str = ""       # data set[:configuration] on the hub, where there is one
    text: tuple = ()    # its text columns
    labels: tuple = ()  # in the order of their ids; none: a regression, or found in the data
    metric: str = "accuracy"  # that chooses the best checkpoint, one of those that scores() gives
    epochs: float = 3
    validation: str = "validation"  # the split
    kind: str = "classification"    # one of KINDS; None: by the labels

GLUE, PAIR, ENTAILMENT = "nyu-mll/glue:", ("sentence1", "sentence2"), ("entailment", "not_entailment")
TASKS = {
    "sst2": Task(GLUE + "sst2", ("sentence",), ("negative", "positive")),
    "ag_news": Task("fancyzhx/ag_news", ("text",), ("World", "Sports", "Business", "Sci/Tech"),
                    validation="test"),
    "mnli": Task(GLUE + "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
                 validation="validation_matched"),
    "cola": Task(GLUE + "cola", ("sentence",), ("unacceptable", "acceptable"), "mcc", epochs=5),
    "mrpc": Task(GLUE + "mrpc", PAIR, ("not_equivalent", "equivalent"), "f1", epochs=5),
    "qqp": Task(GLUE + "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "f1"),
    "qnli": Task(GLUE + "qnli", ("question", "sentence"), ENTAILMENT),
    "rte": Task(GLUE + "rte", PAIR, ENTAILMENT, epochs=8),
    "stsb": Task(GLUE + "stsb", PAIR, (), "spearman", epochs=5, kind="regression"),
    "wnli": Task(GLUE + "wnli", PAIR, ("not_entailment", "entailment"), epochs=5),
    # which package a paragraph of documentation comes from: no network, nothing downloaded
    "pydoc": Task(text=("text",), epochs=4, kind=None),
}
# the kinds of labels, and what applies to your own files of each
KINDS = {"classification": Task(), "regression": Task(metric="spearman", epochs=5),
         "tokens": Task(metric="token_f1", epochs=5), "multilabel": Task(metric="micro_f1", epochs=5)}


@dataclass
class Examples:
    """The rows of one split, as read."""
    texts: list         # tuples of one or two strings; for tokens: lists of words
    labels: list        # strings, numbers with a fraction, or lists of these; None: not labelled
    where: list         # the file and line of each row, for errors
    rows: list = None   # of a file without labels: every row as it came, {column: cell}
    columns: tuple = ([], [])  # of a file: the names of the text columns, and of the label's


def read_task(name):
    """A task of TASKS -> {"train", "val"}: Examples. FileNotFoundError if the hub does not give it."""
    if name == "pydoc":
        return read_pydoc()
    task, splits = TASKS[name], {}
    problem = f"{name}: give --train_file and --val_file, as the hub did not give {task.hub}"
    for ours, theirs in (("train", "train"), ("val", task.validation)):
        table = data.hub_split(task.hub, theirs, problem)
        names = dict(enumerate(task.labels))  # in a tuple -1, SNLI's mark for no label, would be the last
        labels = [names.get(i, str(i)) if names else float(i) for i in table["label"]]
        where = [f"{task.hub}, {theirs}, row {i}" for i in range(1, len(table) + 1)]
        splits[ours] = Examples(list(zip(*(table[column] for column in task.text))), labels, where)
    return splits


def read_pydoc(smallest=400, largest=1000):
    """Which package a paragraph comes from -> {"train", "val"}: Examples.

    The packages with at least `smallest` paragraphs; of each at most `largest`, drawn with a fixed seed. A
    paragraph that says a package's name is left out. Every fifth module, whole, is for validation.
    """
    print("reading the documentation of the installed packages ...", flush=True)
    names = re.compile("|".join(("python", *data.PYDOC)), re.IGNORECASE)
    modules = {}
    for package, document in data.pydoc_modules():
        modules.setdefault(package, []).append([text for text in document if not names.search(text)])
    splits = {"train": Examples([], [], []), "val": Examples([], [], [])}
    for package, documents in sorted(modules.items()):
        if sum(map(len, documents)) < smallest:
            continue
        for split, limit in (("train", largest), ("val", largest // 5)):
            texts = [text for i, document in enumerate(documents)
                     if (i % 5 == 4) == (split == "val") for text in document]
            chosen = sorted(np.random.default_rng(0).permutation(len(texts))[:limit])
            splits[split].texts += [(texts[i],) for i in chosen]
            splits[split].labels += [package] * len(chosen)
            splits[split].where += [f"pydoc, {package}"] * len(chosen)
    return splits

# -----------------------------------------------------------------------------
# Files

LABELS = ("label", "labels", "gold_label", "class", "category", "target", "sentiment", "quality",
          "is_duplicate", "score", "rating", "stars", "topic", "intent")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")  # beside a column of words
WORDS = ("tokens", "words")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
         ("question", "sentence"), ("#1 string", "#2 string"), ("text_a", "text_b"), ("text1", "text2"),
         ("sentence_a", "sentence_b"))
TEXTS = ("text", "sentence", *WORDS, "review", "comment", "message", "content", "body", "tweet", "document",
         "description", "title")
KNOWN = {*LABELS, *TAGS, *TEXTS, *sum(PAIRS, ())}
NO_HEADER = "; line 1 has none of the usual names and is read as a row; if it names the columns, say --header"


def read_file(file, header=None, text_columns=None, label_column=None, labelled=True, kind=None, like=None):
    """A .csv, .tsv, .jsonl or .parquet file -> Examples.

    header: whether the first line of a .csv or .tsv names the columns; None: it does if one of the names is
    known, given, or in `like`. Columns are given by name, or counted from 1; or else they are those of
    `like`, (texts, labels) of another file, if all are here; or they are found by the known names, or without
    names by what is in them.
    kind "multilabel": a row may have no label, and label_column name several columns, commas between, of
    zeros and ones. ValueError for a missing column, an empty text, no label, and what files.records raises.
    """
    if not file.endswith(files.TABLES):
        raise ValueError(f"{file}: not one of {', '.join(files.TABLES)}")
    label_columns = [name.strip() for name in label_column.split(",")] if label_column else []
    if labelled and len(label_columns) > 1 and kind != "multilabel":
        raise ValueError(f"--label_column {label_column}: several columns go with the kind multilabel alone")
    named = [*(text_columns or []), *label_columns, *sum(like or (), [])]
    known = KNOWN.union(name.lower() for name in named if not name.isdigit())
    records = lambda: files.records(file, header, known)  # read twice: it may be too large to be kept
    where, first = next(records())
    names, may_lack_names = list(first), file.endswith((".csv", ".tsv"))
    no_header = may_lack_names and names == [str(i + 1) for i in range(len(names))]
    alike = sorted(known & {cell.strip().lower() for cell in first.values()}) if no_header else []
    if len(alike) > 1:
        raise ValueError(f"{where}: {', '.join(alike)} look like names of columns; leave --no-header out")
    texts, labels = find_columns(file, names, text_columns, label_columns, like,
                                 records if no_header else None)
    if labelled and not labels:
        raise ValueError(f"{file}: which of the columns {', '.join(names)} is the label? name it by "
                         "--label_column" + NO_HEADER * no_header)

    examples = Examples([], [] if labelled else None, [], None if labelled else [], (texts, labels))
    for where, row in records():
        examples.where.append(where)
        examples.texts.append(tuple(row.get(name) for name in texts))
        for name, cell in zip(texts, examples.texts[-1]):
            if cell in (None, [], "") or str(cell).isspace():
                raise ValueError(f"{where}: the text in column {name!r} is empty")
            if not isinstance(cell, (str, list)):
                raise ValueError(f"{where}: the text in column {name!r} is {cell!r}, no string")
        if labelled:
            examples.labels.append(read_label(row, labels, kind, where))
        else:
            examples.rows.append(row)
    if header is None and may_lack_names:
        check_header(file, examples, names, no_header)
    return examples


def check_header(file, examples, names, no_header):
    """Point out a first line that was perhaps taken wrongly, for names of columns or for a row; ValueError
    where its label is that of no other row."""
    if no_header and examples.labels:
        label, where = examples.labels[0], examples.where[0]
        if examples.labels.count(label) == 1 and not is_number(label):
            raise ValueError(f"{where}: no other row has the label {label!r}; if this line names the "
                             "columns, say --header, if not --no-header")
    elif no_header or any(len(name.split()) > 4 for name in names):
        taken = ("a row, not for the names of the columns; else say --header" if no_header else
                 "the names of the columns; else say --no-header")
        print(f"{file}: line 1 is taken for {taken}", file=sys.stderr)


def read_label(row, columns, kind, where):
    """-> the label of a row, as clean_label makes it; of several columns the names of those that are 1."""
    cells = [clean_label(row.get(name)) for name in columns]
    if len(columns) > 1:
        for name, cell in zip(columns, cells):
            if cell not in ("0", "1", "False", "True"):
                raise ValueError(f"{where}: {row.get(name)!r} in column {name!r} is neither 0 nor 1")
        return [name for name, cell in zip(columns, cells) if cell in ("1", "True")]
    name, label, cell = columns[0], cells[0], row.get(columns[0])
    is_list = isinstance(label, list)
    names = label if is_list else [label] if label != "" else []
    # "" and [] may say that no label applies; null says that nobody has labelled the row
    if not names and not (kind == "multilabel" and isinstance(cell, (str, list))):
        raise ValueError(f"{where}: no label in column {name!r}"
                         + "; a row may have none if the kind is multilabel" * (cell == []))
    if not all(name and isinstance(name, (str, float)) for name in names):
        raise ValueError(f"{where}: {cell!r} in column {name!r} is no label, nor a list of labels")
    if is_list and kind == "classification":
        raise ValueError(f"{where}: a list of labels in column {name!r} goes with the kind multilabel")
    return label


def clean_label(cell):
    """-> a string, "" if there is none; a list of these; a number with a fraction stays, and 1.0 and "1.0",
    as pandas writes a whole number beside an empty cell, are "1"."""
    if cell is None or str(cell) in ("nan", "NaN"):
        return ""
    if isinstance(cell, list):
        return [clean_label(part) for part in cell]
    if isinstance(cell, dict) or isinstance(cell, float) and not cell.is_integer():
        return cell  # read_label refuses a dict
    return str(int(cell)) if isinstance(cell, float) else re.sub(r"^(-?\d+)\.0$", r"\1", str(cell).strip())


def find_columns(file, names, text_columns, label_columns, like, records):
    """-> the text columns, one or two, and the label's, [] where there is none. records: None where the
    columns have names; else a function that reads the rows again."""
    columns = {str(i): name for i, name in enumerate(names, 1)}
    columns |= {name.lower(): name for name in reversed(names)}  # of two that differ in case the first

    def given(name, flag):
        if name in names:
            return name
        if name.lower() not in columns:
            raise ValueError(f"{file}: no column {name!r} among {', '.join(names)}; see {flag}")
        return columns[name.lower()]
    choices = [*PAIRS, *((name,) for name in TEXTS)]
    known = next((choice for choice in choices if set(choice) <= set(columns)), ())
    texts = [given(name, "--text_columns") for name in text_columns or known]
    likely = TAGS + LABELS if any(name.lower() in WORDS for name in texts) else LABELS + TAGS
    labels = [columns[name] for name in likely if name in columns and columns[name] not in texts][:1]
    if label_columns:
        labels = [given(name, "--label_column") for name in label_columns]
    if records:
        found = columns_by_content([row for _, row in records()], {*texts, *labels})
        texts, labels = texts or found[0], labels or found[1]
    like_texts, like_labels = like or ([], [])
    agrees = not records or not texts or set(like_texts) <= set(texts)  # without names, by the content
    if like_texts and agrees:
        if not text_columns and set(like_texts) <= set(names):
            texts = like_texts
        if not label_columns and set(like_labels) <= set(names):
            labels = like_labels
    if len(texts) not in (1, 2) or set(labels) & set(texts):
        raise ValueError(f"{file}: which of the columns {', '.join(names)} is the text, or which two? name "
                         "them by --text_columns" + NO_HEADER * bool(records))
    return texts, labels


def columns_by_content(rows, taken):
    """-> of the columns not taken those of texts, with three or more words a cell; and the label's: the only
    other one of few values, each in many rows, or the only such one with the values 0, 1, ...; else []."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in taken}
    words = {name: sum(len(cell.split()) for cell in cells) / len(cells) for name, cells in columns.items()}
    few = [name for name, cells in columns.items() if words[name] < 3 and "" not in cells
           and 2 <= len(set(cells)) <= max(2, min(100, len(cells) // 5))]
    numbered = [name for name in few if set(columns[name]) == set(map(str, range(len(set(columns[name])))))]
    labels = few if len(few) == 1 else numbered
    return [name for name in columns if words[name] >= 3], labels if len(labels) == 1 else []


def is_number(value):
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False

# -----------------------------------------------------------------------------
# Examples -> labels as numbers, checked

@dataclass
class Data:
    kind: str           # one of KINDS
    classes: list       # their names, by id; none for a regression
    splits: dict        # {"train", "val", "test"}: Examples, with labels as ids, numbers, or bool (classes,)


def prepare(splits, kind=None, classes=None):
    """{split: Examples} -> Data.

    kind None: by guess_kind. classes: those of the training labels, sorted, if none are given; else labels
    may also be their ids. ValueError, with the line, for a label that training lacks, a target that is no
    number, one class only, words and tags of different counts, and a text beside pairs.
    """
    first = next(iter(splits.values()))
    for examples in splits.values():
        for text, where in zip(examples.texts, examples.where):
            if len(text) != len(first.texts[0]):
                raise ValueError(f"{where}: {len(text)} text columns; {first.where[0]} has "
                                 f"{len(first.texts[0])}; see --text_columns")
    kind = kind or guess_kind(first, classes)
    for examples in splits.values():
        check_texts(examples, kind)
    if kind == "regression":
        for examples in splits.values():
            for label, where in zip(examples.labels, examples.where):
                if not is_number(label):
                    raise ValueError(f"{where}: the target of a regression is {label!r}, not a number")
        return Data(kind, [], {split: replace(examples, labels=list(map(float, examples.labels)))
                               for split, examples in splits.items()})

    if kind == "multilabel":
        split_labels(splits, set(classes or ()))
    has_lists = kind in ("tokens", "multilabel")
    names = {split: [list(map(str, label)) if has_lists else [str(label)] for label in examples.labels]
             for split, examples in splits.items()}
    used = {split: set().union(*labels) for split, labels in names.items()}
    if classes:
        ids = ids_of_labels(classes, used)
    else:
        trained = next(iter(used.values()))
        if kind == "multilabel" and len(first.columns[1]) > 1:  # each class has a column
            trained = trained.union(first.columns[1])
        classes = sorted_classes(first, trained)
        ids = dict.fromkeys(used, {name: i for i, name in enumerate(classes)})
    if len(classes) < (1 if kind == "multilabel" else 2):
        file = first.where[0].rpartition(", ")[0]
        which = f"every row has the label {classes[0]!r}" if classes else "no row has a label"
        raise ValueError(f"{file}: {which}; there is nothing to learn")
    return Data(kind, list(classes), {
        split: replace(examples, labels=to_ids(names[split], ids[split], examples.where, kind, classes))
        for split, examples in splits.items()})


def sorted_classes(examples, used):
    """The labels used, numbers by size."""
    if {"-", "entailment"} <= used and "-" in examples.labels:  # SNLI's mark for no agreement
        where = examples.where[examples.labels.index("-")]
        raise ValueError(f"{where}: '-' says that there is no gold label; leave such rows out")
    are_numbers = all(re.fullmatch(r"-?\d+", name) for name in used)
    return sorted(used, key=(lambda name: (int(name), name)) if are_numbers else None)


def to_ids(names, ids, where, kind, classes):
    """A list of names for each row -> its id; for tokens a list of ids, for multilabel bool (classes,)"""
    labels = []
    for row, place in zip(names, where):
        if unknown := [name for name in row if name not in ids]:
            raise ValueError(f"{place}: the label {min(unknown)!r} is none of the classes: "
                             f"{', '.join(classes[:20])}" + ", ..." * (len(classes) > 20)
                             + "; of amounts the kind is regression" * all(map(is_number, classes)))
        numbers = [ids[name] for name in row]
        if kind == "multilabel":
            numbers = np.isin(np.arange(len(classes)), numbers)
        labels.append(numbers[0] if kind == "classification" else numbers)
    return labels


def guess_kind(examples, classes):
    """tokens where labels are lists; a regression where all are numbers, one has a fraction, and no classes
    are given; else classification. ValueError for a list in one cell, as pandas writes it."""
    words, tags = examples.columns
    are_words = all(names and {name.lower() for name in names} <= {*usual}  # strings of words
                    for names, usual in ((words, WORDS), (tags, TAGS)))
    if are_words or any(isinstance(label, list) for label in examples.labels):
        return "tokens"
    if not classes and all(map(is_number, examples.labels)) and any(float(x) % 1 for x in examples.labels):
        return "regression"
    for label, where in zip(examples.labels, examples.where):
        if re.match(r"""\[\s*['"].*\]$""", str(label)):
            raise ValueError(f"{where}: {label!r} is a list; several labels a text are --kind multilabel")
    return "classification"


def split_labels(splits, known):
    """For multilabel, in place: "a|b" becomes ["a", "b"]. In all splits the first of | ; and , that any cell
    has stands between labels; brackets and quotes around them, as pandas writes a list, are dropped. known:
    classes, which stay whole."""
    cells = {label for examples in splits.values() for label in examples.labels if isinstance(label, str)}
    separator = next((mark for mark in "|;," if any(mark in cell for cell in cells - known)), "|")
    for examples in splits.values():
        for i, (label, where) in enumerate(zip(examples.labels, examples.where)):
            if isinstance(label, str) and re.match(r"""\[\s*('[^',]*'|"[^",]*")\s+['"]""", label):
                raise ValueError(f"{where}: {label!r} is a list without commas")
            if not isinstance(label, list):
                parts = [label] if label in known else str(label).strip("[]").split(separator)
                examples.labels[i] = [part.strip(" '\"") for part in parts if part.strip(" '\"")]
            if len(set(examples.labels[i])) < len(examples.labels[i]):
                raise ValueError(f"{where}: a label is twice in {label!r}; write names, not zeros and ones")
    lists = [label for examples in splits.values() for label in examples.labels]
    if {len(label) for label in lists} == {2} and set().union(*lists) == {"0", "1"}:
        where = next(iter(splits.values())).where[0]
        raise ValueError(f"{where}: every row has the labels 0 and 1; write names, not zeros and ones")


def folding(classes):
    """-> the function that makes names of classes alike: str.lower, unless it would make two of them one."""
    return str.lower if len({name.lower() for name in classes}) == len(classes) else str


def ids_of_labels(classes, used):
    """{split: its labels} -> {split: {label: id}}. A split has the names of the classes, in whatever case, or
    their ids, which in all the splits begin at 0 or, as AG News is published, at 1."""
    fold = folding(classes)
    names, ids = {fold(name): i for i, name in enumerate(classes)}, {}
    for split, labels in used.items():
        if known := {name: names[fold(name)] for name in labels if fold(name) in names}:
            ids[split] = known
    numbers = set().union(*(labels for split, labels in used.items() if split not in ids))
    start = 0 if "0" in numbers or numbers <= set(map(str, range(len(classes)))) else 1
    if start == 0 and numbers and "0" not in numbers:
        least = min(map(int, numbers))
        print(f"no label is 0; they are taken as ids that begin there, {least} as {classes[least]!r}",
              file=sys.stderr)
    return {split: ids.get(split, {str(i + start): i for i in range(len(classes))}) for split in used}


def hold_out(examples, kind):
    """Examples with labels as prepare() leaves them -> training and validation rows: a tenth, drawn with a
    fixed seed, is held out, but for rows of a class that training would lack."""
    order = np.random.default_rng(0).permutation(len(examples.texts))
    held = set(order[:len(order) // 10].tolist())
    if kind != "regression":
        ids = np.flatnonzero if kind == "multilabel" else np.atleast_1d
        classes = [set(ids(label).tolist()) for label in examples.labels]
        trained = set().union(*(classes[i] for i in range(len(classes)) if i not in held))
        held = {i for i in held if classes[i] <= trained}
    if len(order) < 20:
        raise ValueError(f"{examples.where[0]}: {len(order)} rows are too few to split; give --val_file")
    if not held:
        raise ValueError(f"{examples.where[0]}: no row can be held out, as each has a class of its own; of "
                         "amounts the kind is regression")

    def pick(rows):
        return replace(examples, texts=[examples.texts[i] for i in rows],
                       labels=[examples.labels[i] for i in rows], where=[examples.where[i] for i in rows])
    return pick([i for i in range(len(order)) if i not in held]), pick(sorted(held))


def check_texts(examples, kind):
    """Strings; for tokens, in place, a list of words, which may stand between spaces, and a tag for each."""
    for i, (text, where) in enumerate(zip(examples.texts, examples.where)):
        if kind != "tokens":
            if not all(isinstance(part, str) for part in text):
                raise ValueError(f"{where}: the text is a list; with a list of tags beside it, the kind is "
                                 "tokens")
            continue
        if len(text) != 1:
            raise ValueError(f"{where}: {len(text)} text columns; tags go with one, see --text_columns")
        words = text[0].split() if isinstance(text[0], str) else text[0]
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"{where}: a word is empty or no string")
        examples.texts[i] = words
        if examples.labels is not None:
            tags = examples.labels[i]
            examples.labels[i] = tags = tags.split() if isinstance(tags, str) else tags
            if not isinstance(tags, list):
                raise ValueError(f"{where}: {tags!r} is no list of tags")
            if len(words) != len(tags):
                hint = "; with several labels to a text the kind is multilabel" * isinstance(text[0], str)
                raise ValueError(f"{where}: {len(words)} words and {len(tags)} tags{hint}")

# -----------------------------------------------------------------------------
# Rows of tokens

@dataclass
class Row:
    ids: np.ndarray     # (T,) int32, special tokens included
    second: int         # where the second sentence begins; T if there is none
    words: np.ndarray = None  # for tokens: the places of the words' first tokens
    cut: bool = False   # whether the text was longer


def encode(texts, tokenizer, max_length):
    """Texts, as in Examples -> Rows of at most max_length tokens, as transformers makes them.

    One text [CLS] A [SEP]; two [CLS] A [SEP] B [SEP], and in RoBERTa a second [SEP] between. Special tokens
    written in a text become their ids. What is too long is cut from the end of the longer text. Of a list of
    words, each is encoded by itself; a row keeps those of which the first token fits.
    """
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    is_bpe = isinstance(tokenizer, tokenizers.ByteLevelBPE)
    between = sep * 2 if is_bpe else sep
    strings = [part for text in texts for part in text]
    is_words = bool(texts) and isinstance(texts[0], list)
    if is_bpe and is_words:  # a word begins with a space
        is_special = tokenizer.special_pattern.match
        strings = [word if is_special(word) else " " + word.removeprefix(" ") for word in strings]
    pieces = iter(tokenizer.encode_batch(strings, specials=True))
    rows = []
    for text in texts:
        parts = [next(pieces) for _ in text]
        if is_words:  # one of characters that the tokenizer drops has a tag, too
            parts = [part if len(part) else [tokenizer.unk_id] for part in parts]
        if len(parts) == 2 and not is_words:
            room = max_length - 2 - len(between)
            a, b = truncate(*parts, room)
            ids, second = np.concatenate([cls, a, between, b, sep]), 1 + len(a) + len(between)
        else:
            room = max_length - 2
            ids = np.append(np.concatenate([cls, *parts])[:1 + room], sep)
            second = len(ids)
        starts = np.cumsum([1, *map(len, parts)])[:-1]
        words = starts[starts < len(ids) - 1] if is_words else None
        rows.append(Row(ids.astype(np.int32), second, words, cut=sum(map(len, parts)) > room))
    return rows


def truncate(a, b, room):
    """The longer of two is cut to what the shorter leaves, but not below half of the room."""
    half = room // 2 if len(a) <= len(b) else room - room // 2
    return a[:max(half, room - len(b))], b[:max(room - half, room - len(a))]


class Rows:
    """The rows of tokens of one split, and their labels."""

    def __init__(self, examples, kind, tokenizer, max_length, token_types):
        """token_types: whether the model tells the second sentence from the first by them."""
        self.kind, self.tokenizer = kind, tokenizer
        # transformers' RoBERTa tokenizer gives none, whatever types the model has
        self.token_types = token_types and not isinstance(tokenizer, tokenizers.ByteLevelBPE)
        self.rows = encode(examples.texts, tokenizer, max_length)
        self.lengths = np.array([len(row.ids) for row in self.rows])
        self.labels = examples.labels  # numbers; for tokens lists of them
        self.cut_texts, self.cut_words = sum(row.cut for row in self.rows), 0
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
        """Row numbers -> labels (B,), for multilabel (B, classes) with 0 and 1, for tokens (B, T) with -100
        where no word begins."""
        if self.kind != "tokens":
            dtype = np.int64 if self.kind == "classification" else np.float32
            return np.array([self.labels[i] for i in chosen], dtype)
        targets = np.full((len(chosen), self.lengths[chosen].max()), -100)
        for target, i in zip(targets, chosen):
            target[self.rows[i].words] = self.labels[i]
        return targets

    def scores(self, outputs, classes, threshold=0.5):
        """outputs: an array for each row, as logits_of() gives them -> {name: value}"""
        return scores(self.kind, self.flat(self.labels), self.flat(outputs), classes, threshold)


def batches_by_length(lengths, size, rng):
    """-> arrays of row numbers, every row once. Shuffled, then sorted by length within windows of 200
    batches, so that a batch needs little padding, then the batches shuffled."""
    order, batches, window = rng.permutation(len(lengths)), [], 200 * size
    for i in range(0, len(order), window):
        part = order[i:i + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[j:j + size] for j in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@torch.no_grad()
def logits_of(model, rows, batch_size, host):
    """-> an array for each row, in order: (classes,), of a regression (1,), for tokens (words, classes). The
    processes of `host` share the work, and all get the whole."""
    was_training = model.training
    model.eval()
    order = np.argsort(-rows.lengths, kind="stable")  # the longest first: if they fit the memory, all do
    batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
    numbered = []
    for chosen in batches[host.rank::host.world]:
        inputs = rows.inputs(chosen)
        with host.autocast(inputs["input_ids"].shape[1]):
            logits, _ = model(**host.to_device(inputs))
        for i, output in zip(chosen, logits.float().cpu().numpy()):
            numbered.append((i, output[rows.rows[i].words] if rows.kind == "tokens" else output))
    model.train(was_training)
    return [output for _, output in sorted(host.gather(numbered), key=lambda pair: pair[0])]

# -----------------------------------------------------------------------------
# Metrics

METRICS = {  # any of these can choose the best checkpoint; f1 is of class 1, where there are two
    "classification": ("accuracy", "f1", "macro_f1", "macro_precision", "macro_recall", "mcc"),
    "regression": ("pearson", "spearman"),
    "tokens": ("accuracy", "token_f1", "macro_f1", "macro_precision", "macro_recall", "mcc"),
    "multilabel": ("micro_f1", "macro_f1", "micro_precision", "micro_recall", "subset_accuracy"),
}

def scores(kind, labels, outputs, classes=(), threshold=0.5):
    """{name: value}. labels (N,), outputs (N, classes), or (N,) for a regression. For tokens N counts the
    words of all rows, and classes are the names of the tags. For multilabel labels are (N, classes), and what
    has a probability above the threshold is predicted."""
    labels = np.asarray(labels)
    if kind == "regression":
        predicted = np.asarray(outputs, np.float64).reshape(len(labels))
        values = {"pearson": pearson(labels, predicted), "spearman": pearson(ranks(labels), ranks(predicted)),
                  "mse": np.mean((labels - predicted) ** 2)}
    elif kind == "multilabel":
        counts, _ = count(kind, labels, outputs, threshold)
        [precision], [recall], [f1], _ = by_class(*counts.sum(1, keepdims=True))
        values = {"micro_f1": f1, "macro_f1": by_class(*counts)[2].mean(), "micro_precision": precision,
                  "micro_recall": recall,
                  "subset_accuracy": (labels == above(outputs, threshold)).all(-1).mean()}
    else:
        counts, matrix = count(kind, labels, outputs, threshold)
        precision, recall, f1, present = by_class(*counts)
        values = {"accuracy": np.trace(matrix) / matrix.sum(), "macro_f1": f1[present].mean(),
                  "macro_precision": precision[present].mean(), "macro_recall": recall[present].mean(),
                  "mcc": mcc(matrix)}
        if kind == "tokens":  # micro-averaged over the tags but "O"; where there is no "O", the accuracy
            hits, labelled, predicted = counts[:, [name != "O" for name in classes]].sum(1)
            values["token_f1"] = 2 * hits / max(1, labelled + predicted)
        elif len(matrix) == 2:
            values["f1"] = f1[1]
    return {name: float(value) for name, value in values.items()}


def count(kind, labels, outputs, threshold):
    """-> (3, classes): how many of every class are right, labelled, predicted; and the confusion matrix, None
    where a text has several labels."""
    if kind == "multilabel":
        predicted = above(outputs, threshold)
        return np.stack([(labels & predicted).sum(0), labels.sum(0), predicted.sum(0)]), None
    matrix = confusion_matrix(labels, outputs.argmax(-1), outputs.shape[-1])
    return np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)]), matrix


def by_class(hits, labelled, predicted):
    """How many of every class are right, labelled, predicted -> precision, recall and F1 of every class, 0
    where they are 0 / 0, and which classes occur at all."""
    ratio = lambda a, b: np.divide(a, b, out=np.zeros(len(hits)), where=b > 0)
    return (ratio(hits, predicted), ratio(hits, labelled), ratio(2 * hits, labelled + predicted),
            labelled + predicted > 0)


def confusion_matrix(labels, predicted, classes):
    """(classes, classes): rows are the labels, columns the predictions."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def above(outputs, threshold):
    """Logits -> whether their probability is above the threshold."""
    return np.asarray(outputs) > np.log(threshold / (1 - threshold))  # sigmoid(x) > t


def best_threshold(rows, outputs):
    """-> of 0.01, 0.02, ... the threshold of the best micro F1, the nearest to 0.5 of equal ones; this F1."""
    labels, outputs = rows.flat(rows.labels), rows.flat(outputs)
    f1 = {threshold: scores("multilabel", labels, outputs, threshold=threshold)["micro_f1"]
          for threshold in (np.arange(1, 100) / 100).tolist()}
    best = max(f1, key=lambda threshold: (f1[threshold], -abs(threshold - 0.5)))
    return best, f1[best]


def report(rows, outputs, classes, threshold=0.5):
    """Print precision, recall and F1 of every class, and the confusion matrix where it fits the screen."""
    if rows.kind == "regression":
        return
    labels, outputs = rows.flat(rows.labels), rows.flat(outputs)
    counts, matrix = count(rows.kind, labels, outputs, threshold)
    precision, recall, f1, _ = by_class(*counts)
    width, fits = max(map(len, classes)), matrix is not None and len(classes) <= 12
    print(f"  {'':{width}}  precision  recall     f1   count" + ("   predicted as" if fits else ""))
    for i, name in enumerate(classes):
        predicted = "".join(f"{n:7}" for n in matrix[i]) if fits else ""
        print(f"  {name:{width}}      {precision[i]:.3f}   {recall[i]:.3f}  {f1[i]:.3f} {counts[1][i]:7}"
              f"  {predicted}")


def mcc(matrix):
    """Matthews' correlation coefficient, of two classes or more (Gorodkin 2004); 0 where it is undefined."""
    n, labelled, predicted = matrix.sum(), matrix.sum(1).astype(float), matrix.sum(0).astype(float)
    spread = (n**2 - labelled @ labelled) * (n**2 - predicted @ predicted)
    return (n * np.trace(matrix) - labelled @ predicted) / np.sqrt(spread) if spread > 0 else 0.0


def pearson(x, y):
    """0 where it is undefined."""
    return np.corrcoef(x, y)[0, 1] if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def ranks(values):
    """1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
