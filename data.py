"""
Text -> token files -> batches.

    corpus = open_corpus(["pydoc"])                          # or files, a folder, a name on the hub
    folder = prepare(corpus, None, "bpe", 8192, "cache")     # token files, made once
    tokens, tokenizer = load(folder)
    rows = Rows(tokens["train"], tokenizer, length=128, task="sop", seed=0)
    batch = rows.batch(range(32), mask_prob=0.15)            # arrays, ready for a model's forward

Nothing here has a state. The order of rows, the pairs and the masks of a batch follow from
(seed, epoch, row), so that a run can be resumed, split over processes or repeated to the bit.
"""

import ast
import csv
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import shutil
import signal
import sys
import sysconfig
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Callable

import numpy as np

import tokenizer as tokenizers

# -----------------------------------------------------------------------------
# Corpora. A document is a list of paragraphs; a corpus is documents that can be read again and again.

@dataclass
class Corpus:
    name: str
    fingerprint: str     # changes when the text does
    documents: Callable  # () -> iterator of documents
    size: int = 0        # bytes, about; 0 if unknown
    validation: "Corpus | None" = None  # of its own, if it brings one


HUB = {  # short names; a row of these is a line, of other data sets on the hub a document
    "wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1",
    "wikitext103": "Salesforce/wikitext:wikitext-103-raw-v1",
}
FILES = (".txt", ".jsonl", ".csv", ".parquet")


def open_corpus(names, text_field="text"):
    """names: ["pydoc"], files and folders, or one name on the hub. ValueError or OSError for bad ones."""
    if names == ["pydoc"]:
        return Corpus("pydoc", pydoc_fingerprint(), lambda: (document for _, document in pydoc_modules()))
    hub_name = names[0] in HUB or re.fullmatch(r"[\w.-]+/[\w.:-]+", names[0])
    if len(names) == 1 and hub_name and not os.path.exists(names[0]) and not names[0].endswith(FILES):
        return hub_corpus(names[0], text_field)
    files = []
    for name in names:
        inside = sorted(os.path.join(folder, file) for folder, _, found in os.walk(name) for file in found
                        if file.endswith(FILES)) if os.path.isdir(name) else [name]
        if not inside:
            raise ValueError(f"{name}: no {', '.join(FILES)} files in this folder")
        files += inside
    digest = hashlib.sha256(text_field.encode())
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: no such file; --data takes pydoc, files, folders, wikitext2, "
                                    "wikitext103 or a hub data set as owner/name[:config]")
        if not file.endswith(FILES):
            raise ValueError(f"{file}: not one of {', '.join(FILES)}")
        if os.path.getsize(file) == 0:
            raise ValueError(f"{file} is empty")
        digest.update(f"{os.path.splitext(file)[1]} {os.path.getsize(file)} ".encode())
        with open(file, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return Corpus(" ".join(names), digest.hexdigest(),
                  lambda: (document for file in files for document in read_file(file, text_field)),
                  sum(map(os.path.getsize, files)))


def read_file(file, text_field):
    if file.endswith(".txt"):
        yield from group_lines(line for _, line in decoded_lines(file))
    elif file.endswith(".jsonl"):
        for number, line in decoded_lines(file):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[text_field]
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not JSON: {error}") from error
            except (KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: no field {text_field!r}; name it with "
                                 "--text_field") from error
            yield paragraphs(text, f"{file}, line {number}")
    elif file.endswith(".csv"):
        csv.field_size_limit(2**31 - 1)  # the default of 128 kB is less than a long article
        reader = csv.DictReader(line + "\n" for _, line in decoded_lines(file))
        try:
            for row in reader:
                if text_field not in row:
                    raise ValueError(f"{file}: no column {text_field!r} among "
                                     f"{', '.join(reader.fieldnames)}; name it with --text_field")
                if None in row:
                    raise ValueError(f"{file}, line {reader.line_num}: more columns than the header has; a "
                                     "text with commas wants quotes")
                yield paragraphs(row[text_field], f"{file}, line {reader.line_num}")
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
    else:
        import pyarrow
        import pyarrow.parquet
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file}: {error}") from error
        if text_field not in table.schema_arrow.names:
            raise ValueError(f"{file}: no column {text_field!r} among {', '.join(table.schema_arrow.names)}; "
                             "name it with --text_field")
        for group in table.iter_batches(batch_size=1000, columns=[text_field]):
            for text in group.column(0).to_pylist():
                yield paragraphs(text, file)


def decoded_lines(file):
    """(line number, line without its end), strictly UTF-8; a byte order mark is dropped."""
    with open(file, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}, line {number}: not UTF-8 ({error.reason})") from error


def paragraphs(text, where):
    if not isinstance(text, str):
        raise ValueError(f"{where}: the text is {text!r}, not a string")
    return [line.strip() for line in text.split("\n") if line.strip()]


def group_lines(lines):
    """Lines -> documents. A blank line ends a document, unless the text has WikiText's headings, `= Title =`:
    then a document runs from one of those to the next. One of 10,000 lines is cut, to bound the memory."""
    document, headings = [], False
    for line in lines:
        line = line.strip()
        heading = re.fullmatch(r"= [^=].*[^=] =|= [^=] =", line) is not None
        headings |= heading
        if document and (heading or (not line and not headings) or len(document) == 10_000):
            yield document
            document = []
        if line:
            document.append(line)
    if document:
        yield document


def hub_corpus(name, text_field):
    import datasets  # here, as everything but the hub works without it
    path, _, config = HUB.get(name, name).partition(":")
    def rows(split):
        try:
            return datasets.load_dataset(path, config or None, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileNotFoundError(f"{name}: no such file, and the hub did not give it: {reason}") from error

    def corpus(split):
        table = rows(split)
        if text_field not in table.column_names:
            raise ValueError(f"{name}: no column {text_field!r} among {', '.join(table.column_names)}; "
                             "name it with --text_field")
        texts = lambda: (row[text_field] for row in table)
        documents = (lambda: group_lines(texts())) if name in HUB else (
            lambda: (paragraphs(text, name) for text in texts()))
        return Corpus(name, table._fingerprint, documents)
    train = corpus("train")
    if name in HUB:
        train.validation = corpus("validation")
    return train

# -----------------------------------------------------------------------------
# pydoc, the corpus that every machine has: the English in its own Python packages

PYDOC = ("torch", "numpy", "pandas", "sympy", "networkx", "mpmath", "datasets", "huggingface_hub", "fsspec",
         "pyarrow", "jinja2", "filelock", "requests", "tqdm")

def pydoc_fingerprint():
    found = [name for name in PYDOC if importlib.util.find_spec(name)]
    return " ".join(["pydoc", sys.version.split()[0]]
                    + [f"{name}-{importlib.metadata.version(name)}" for name in found])


@functools.cache
def pydoc_modules():
    """[(package, document)], one a module: its docstrings, and those that torch and numpy attach to compiled
    functions. The standard library's package is "python"."""
    roots = [("python", sysconfig.get_paths()["stdlib"])]
    for name in PYDOC:
        spec = importlib.util.find_spec(name)
        roots += [(name, root) for root in spec.submodule_search_locations] if spec else []
    packages, files = [], []
    for package, root in roots:
        for folder, inside, names in os.walk(root):
            inside[:] = sorted(set(inside) - {"site-packages", "dist-packages", "test", "tests"})
            files += [os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")]
        packages += [package] * (len(files) - len(packages))
    from pydoc_data.topics import topics  # the language reference
    modules, seen = [], set()
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    with ProcessPoolExecutor(initializer=signal.signal, initargs=ignore) as pool:
        found = zip(packages, pool.map(docstrings, files, chunksize=50))
        for package, texts in [*(("python", [topics[name]]) for name in sorted(topics)), *found]:
            document = []
            for paragraph in (p for text in texts for p in prose(text)):
                if paragraph not in seen:  # packages repeat their own documentation, and each other's
                    seen.add(paragraph)
                    document.append(paragraph)
            if document:
                modules.append((package, document))
    return modules


def docstrings(file):
    """The docstrings of a Python file, in order; none if it is not Python of this version."""
    try:
        with open(file, encoding="utf-8") as f:
            tree = ast.parse(f.read())
    except (SyntaxError, UnicodeDecodeError, ValueError):  # templates and test data are not all Python
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node, clean=False))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("add_docstr", "add_newdoc"):
            found += [part.value for part in ast.walk(node)
                      if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return [text for text in found if text]


def prose(text):
    """A docstring -> its paragraphs that are sentences, each on one line; no examples, no tables."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        line = " ".join(paragraph.split())
        letters = sum(map(str.isalpha, line)) + line.count(" ")
        if len(line) >= 40 and letters > 0.8 * len(line) and ">>>" not in line:
            yield line

# -----------------------------------------------------------------------------
# Token files. A folder: for train and val the tokens, where sentences and documents begin, and the tokenizer.

FORMAT = 1                      # raise it when the files change
SAMPLE = 24_000_000             # characters that a tokenizer is trained on, taken evenly from the corpus
BUFFER = 2_000_000              # characters encoded at a time: what bounds the memory
# A sentence ends at . ! or ?, with a quote or bracket after it or none, before a space and a capital.
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\]]))(?= ["'(\[]?[A-Z])""")


def prepare(corpus, validation, tokenizer, vocab_size, cache_dir):
    """Make the token files of a corpus, unless they are there; returns their folder.

    validation: a Corpus, or None: the corpus's own, or else every twentieth document (with fewer than twenty,
    the last twentieth of the paragraphs). tokenizer: a Tokenizer, or a kind to train with vocab_size ids.
    """
    validation = validation or corpus.validation
    trained_here = isinstance(tokenizer, str)
    key = json.dumps([FORMAT, corpus.fingerprint, validation and validation.fingerprint,
                      [tokenizer, vocab_size] if trained_here else tokenizer.hash()])
    name = re.sub(r"[^\w.-]+", "-", corpus.name)[-40:].strip("-.")
    folder = os.path.join(cache_dir, f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}")
    if os.path.isdir(folder):
        return folder
    if validation:
        splits = {"train": corpus.documents, "val": validation.documents}
    else:
        splits = hold_out(corpus)
    if trained_here:
        print(f"training a {tokenizer} tokenizer of {vocab_size:,} ids on {corpus.name}", flush=True)
        start = time.time()
        tokenizer = tokenizers.train(tokenizer, sample(splits["train"]), vocab_size)
        print(f"  {tokenizer.vocab_size:,} ids in {time.time() - start:.0f} s", flush=True)
    if tokenizer.sep_id is None or tokenizer.mask_id is None:
        raise ValueError("the tokenizer has no mask token or no separator (GPT-2's has none; RoBERTa's does)")
    temporary = f"{folder}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    os.makedirs(temporary)
    try:
        meta = {"format": FORMAT, "corpus": corpus.name, "fingerprint": corpus.fingerprint,
                "tokenizer": tokenizer.hash(), "vocab_size": tokenizer.vocab_size,
                "dtype": "uint16" if tokenizer.vocab_size <= 65536 else "uint32"}
        tokenizer.save(temporary)
        for split, documents in splits.items():
            meta[split] = write_tokens(os.path.join(temporary, split), documents(), tokenizer, meta["dtype"],
                                       corpus.size if split == "train" else 0)
            if not meta[split]["tokens"]:
                raise ValueError(f"{corpus.name}: no text for {split}")
        with open(os.path.join(temporary, "meta.json"), "w") as f:
            json.dump(meta, f, indent=2)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not os.path.isdir(folder):  # else another process was as fast, with the same result
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def hold_out(corpus):
    """{"train": () -> documents, "val": () -> documents} of a corpus without validation text of its own."""
    n_documents = n_paragraphs = 0
    for document in corpus.documents():
        n_documents += 1
        n_paragraphs += len(document)
    if n_paragraphs < 2:
        raise ValueError(f"{corpus.name}: {n_paragraphs} paragraphs are too few to hold some out for "
                         "validation; give --val_data")
    if n_documents >= 20:
        return {"train": lambda: (d for i, d in enumerate(corpus.documents()) if i % 20 != 19),
                "val": lambda: (d for i, d in enumerate(corpus.documents()) if i % 20 == 19)}
    cut = n_paragraphs - max(1, n_paragraphs // 20)

    def part(first, last):
        n = 0
        for document in corpus.documents():
            inside = document[max(0, first - n):max(0, last - n)]
            n += len(document)
            if inside:
                yield inside
    return {"train": lambda: part(0, cut), "val": lambda: part(cut, n_paragraphs)}


def sample(documents):
    """Paragraphs for a tokenizer to learn from: all of them, or every k-th document of a large corpus."""
    total = sum(len(p) for document in documents() for p in document)
    step = -(-total // SAMPLE)
    return (p for i, document in enumerate(documents()) if i % max(1, step) == 0 for p in document)


def write_tokens(path, documents, tokenizer, dtype, total):
    """Encode documents into path.bin, path.sentences.bin and path.documents.bin; returns the counts.

    The stream is each document's tokens and one sep_id. The other files are offsets into it (uint64): where a
    document begins, and where a sentence begins that is not a document's first.
    """
    counts = {"tokens": 0, "bytes": 0, "documents": 0, "sentences": 0}
    start = shown = time.time()
    with open(path + ".bin", "wb") as tokens_file, open(path + ".documents.bin", "wb") as documents_file, \
            open(path + ".sentences.bin", "wb") as sentences_file:
        for block in blocks(documents):
            block = [[s for paragraph in document for s in SENTENCE_END.split(paragraph)]
                     for document in block]
            encoded = iter(tokenizer.encode_batch([sentence for document in block for sentence in document]))
            stream, opening, inside, at = [], [], [], counts["tokens"]
            for document in block:
                first = at
                for sentence, ids in zip(document, encoded):
                    counts["bytes"] += len(sentence.encode("utf-8", "replace"))
                    if len(ids):
                        (opening if at == first else inside).append(at)
                        stream.append(ids)
                        at += len(ids)
                if at > first:
                    stream.append([tokenizer.sep_id])
                    at += 1
            tokens_file.write(np.concatenate([np.empty(0, dtype), *stream]).astype(dtype).tobytes())
            documents_file.write(np.array(opening, dtype=np.uint64).tobytes())
            sentences_file.write(np.array(inside, dtype=np.uint64).tobytes())
            counts["tokens"] = at
            counts["documents"] += len(opening)
            counts["sentences"] += len(inside)
            if time.time() - shown > 5:
                shown, speed = time.time(), counts["bytes"] / (time.time() - start)
                left = f", {max(0, total - counts['bytes']) / speed:.0f} s left" if total else ""
                print(f"  {counts['bytes'] / 1e6:.0f} MB encoded, {speed / 1e6:.1f} MB/s{left}", flush=True)
        for f in (tokens_file, documents_file, sentences_file):
            f.flush()
            os.fsync(f.fileno())
    return counts


def blocks(documents):
    """Documents -> lists of documents of about BUFFER characters."""
    block, size = [], 0
    for document in documents:
        block.append(document)
        size += sum(map(len, document))
        if size > BUFFER:
            yield block
            block, size = [], 0
    yield block


@dataclass
class Tokens:
    """One split of a prepared corpus: three memory-mapped arrays and the size of the text."""
    tokens: np.ndarray
    documents: np.ndarray
    sentences: np.ndarray
    bytes: int


def load(folder):
    """A folder from prepare -> {"train": Tokens, "val": Tokens}, tokenizer. ValueError if it is damaged."""
    remedy = f"delete {folder} and run again"
    try:
        with open(os.path.join(folder, "meta.json")) as f:
            meta = json.load(f)
        tokenizer = tokenizers.load(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is damaged ({error}); {remedy}") from error
    if meta["format"] != FORMAT or meta["tokenizer"] != tokenizer.hash():
        raise ValueError(f"{folder} was made with another tokenizer than it holds; {remedy}")

    def read(split, name, dtype, count):
        file = os.path.join(folder, f"{split}{name}.bin")
        found = os.path.getsize(file) if os.path.exists(file) else None
        if found != count * np.dtype(dtype).itemsize:
            raise ValueError(f"{file} has {found} bytes, not {count * np.dtype(dtype).itemsize}; {remedy}")
        return np.memmap(file, dtype=dtype, mode="r") if count else np.empty(0, dtype)
    splits = {split: Tokens(read(split, "", meta["dtype"], meta[split]["tokens"]),
                            read(split, ".documents", "uint64", meta[split]["documents"]),
                            read(split, ".sentences", "uint64", meta[split]["sentences"]),
                            meta[split]["bytes"]) for split in ("train", "val")}
    return splits, tokenizer

# -----------------------------------------------------------------------------
# Rows, pairs and masks

ORDER, PAIRS, MASKS, DROPOUT = 1, 2, 3, 4  # what a random number is for

def random_numbers(seed, purpose, epoch, row=0):
    """Philox is a counter run through a cipher: with a key and a counter of its own, every row of every epoch
    has a stream of its own, at no cost and with nothing to remember."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, row, epoch]))


class Rows:
    """The rows of `length` tokens that a split is cut into, numbered in the order of training, without end.

    Every row is full. Windows of W tokens are laid over the stream end to end, and when it ends they run on
    from its beginning: window w holds the tokens (w W + j) mod N. So N tokens of training see every token
    once, and no two epochs cut the text in the same places. The order is keyed by (seed, epoch).

    task None: [CLS] window [SEP], RoBERTa's FULL-SENTENCES: documents run on, with a [SEP] between them
    task "nsp": [CLS] A [SEP] B [SEP], the window cut at a sentence; label 1: B is another document's
    task "sop": the same; label 1: the sentences of A and those of B have changed places
    """

    def __init__(self, tokens, tokenizer, length, task=None, seed=0, static=False):
        self.tokens, self.tokenizer, self.length, self.task, self.seed = tokens, tokenizer, length, task, seed
        self.width = length - (3 if task else 2)
        self.static = static  # the same windows, pairs and masks in every epoch, as the first BERT
        self.pairs = functools.lru_cache(2)(self.pairs)
        self.order = functools.lru_cache(2)(self.order)
        if self.width < 2:
            raise ValueError(f"rows of {length} tokens leave no room for text")
        if len(tokens.tokens) < self.width:
            raise ValueError(f"{len(tokens.tokens)} tokens of text do not fill one row of {length}")

    def windows(self, epoch):
        """The first window of an epoch, and the first of the next."""
        N, W = len(self.tokens.tokens), self.width
        return (0, -(-N // W)) if self.static else (-(-epoch * N // W), -(-(epoch + 1) * N // W))

    def epoch(self, row):
        N, W = len(self.tokens.tokens), self.width
        return row // -(-N // W) if self.static else row * W // N

    def __len__(self):
        """Rows in the first epoch."""
        return self.windows(0)[1]

    def order(self, epoch):
        first, last = self.windows(epoch)
        return random_numbers(self.seed, ORDER, epoch).permutation(last - first)

    def pairs(self, epoch):
        """For each window of an epoch: where it is cut, whose second part it gets, its label, and for SOP the
        two ends of the text in which the parts change places."""
        first, last = self.windows(epoch)
        N, W = len(self.tokens.tokens), self.width
        start = np.arange(first, last) * W % N
        rng = random_numbers(self.seed, PAIRS, epoch)
        sentences = self.tokens.sentences
        low = np.searchsorted(sentences, (start + 1).astype(np.uint64))
        high = np.searchsorted(sentences, (start + W).astype(np.uint64))
        own, draw = np.arange(len(start)), rng.random(len(start))

        def choose(low, high, cut):
            """Where in the window one of the sentences low to high - 1 begins; at `cut` if there is none."""
            found = high > low
            chosen = (low + (draw * (high - low)).astype(np.int64))[found]
            cut[found] = sentences[chosen].astype(np.int64) - start[found]
            return cut
        if self.task == "sop":
            # A window begins and ends within sentences. Were A and B to change places whole, a first part
            # that begins with a capital would give the label away. So the broken sentences stay where they
            # are, and the whole ones between them change places; without two of those, any two parts do.
            whole = high - low >= 3
            first, last = np.zeros_like(own), np.full_like(own, W)
            first[whole] = sentences[low[whole]].astype(np.int64) - start[whole]
            last[whole] = sentences[high[whole] - 1].astype(np.int64) - start[whole]
            anywhere = 1 + (draw * (W - 1)).astype(np.int64)
            cut = choose(low + 1, np.where(whole, high - 1, low), anywhere)
            return cut, own, (rng.random(len(start)) < 0.5).astype(np.int64), first, last
        cut = choose(low, high, np.full_like(own, W // 2))
        # Two windows cut at the same place, in different documents, can exchange their second parts: both
        # rows stay full, and no token is lost or seen twice. As many do so as make every second row a 1.
        shuffled = rng.permutation(len(start))
        by_cut = shuffled[np.argsort(cut[shuffled], kind="stable")]
        place = own - np.searchsorted(cut[by_cut], cut[by_cut])  # of a window among those cut alike
        a, b = by_cut[:-1], by_cut[1:]
        document = np.searchsorted(self.tokens.documents, (start + cut).astype(np.uint64), side="right")
        can = (place[:-1] % 2 == 0) & (cut[a] == cut[b]) & (document[a] != document[b])
        a, b = a[can], b[can]
        does = rng.random(len(a)) < len(start) / max(1, 4 * len(a))
        partner = own.copy()
        partner[a[does]], partner[b[does]] = b[does], a[does]
        return cut, partner, (partner != own).astype(np.int64), np.zeros_like(own), np.full_like(own, W)

    def batch(self, rows, mask_prob=0.15, unit="token"):
        """Row numbers -> {input_ids, token_type_ids (B, T); positions, labels (B, K); sentence_labels (B,)},
        int64; token_type_ids and sentence_labels only with a task."""
        N, W, T = len(self.tokens.tokens), self.width, self.length
        rows = np.asarray(rows)
        epochs = self.epoch(rows)
        B, j = len(rows), np.arange(W)
        window, other, cut, label, first_end, last_end = np.zeros((6, B), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            epoch = int(epoch)
            first, last = self.windows(epoch)
            index = self.order(epoch)[(rows[here] % last) if self.static else rows[here] - first]
            window[here] = first + index
            if self.task:
                cuts, partners, labels, *ends = self.pairs(0 if self.static else epoch)
                cut[here], other[here], label[here] = cuts[index], first + partners[index], labels[index]
                first_end[here], last_end[here] = ends[0][index], ends[1][index]
        if self.static:
            epochs = np.zeros_like(epochs)

        ids = np.full((B, T), self.tokenizer.sep_id)
        ids[:, 0] = self.tokenizer.cls_id
        if not self.task:
            ids[:, 1:-1] = self.tokens.tokens[(window[:, None] * W + j) % N]
        else:
            if self.task == "nsp":
                source = np.where(j < cut[:, None], window[:, None], other[:, None]) * W + j
            else:  # to change places is to rotate what lies between the ends
                length = (last_end - first_end)[:, None]
                turned = first_end[:, None] + (j - first_end[:, None] + (cut - first_end)[:, None]) % length
                turns = (label == 1)[:, None] & (j >= first_end[:, None]) & (j < last_end[:, None])
                source = window[:, None] * W + np.where(turns, turned, j)
                cut = np.where(label == 1, first_end + last_end - cut, cut)
            text = self.tokens.tokens[source % N]
            first_part = j < cut[:, None]
            ids[:, 1:-2][first_part] = text[first_part]
            ids[:, 2:-1][~first_part] = text[~first_part]
        streams = [random_numbers(self.seed, MASKS, int(e), int(w)) for e, w in zip(epochs, window)]
        k = max(1, round(mask_prob * W))
        ids, positions, labels = mask_tokens(ids, k, streams, self.tokenizer, unit)
        batch = {"input_ids": ids, "positions": positions, "labels": labels}
        if self.task:
            batch["token_type_ids"] = (np.arange(T) > cut[:, None] + 1).astype(np.int64)
            batch["sentence_labels"] = label
        return batch


def mask_tokens(ids, k, streams, tokenizer, unit="token"):
    """BERT's masking (Devlin et al. 2018, section 3.1) of k tokens in every row.

    ids (B, T), not changed; streams: B random generators. Of the chosen tokens 80 % become [MASK], 10 % a
    random token, 10 % stay. Special tokens are neither chosen nor drawn. unit "token" chooses k tokens,
    "word" whole words (in byte-level BPE those begin with a space, as in fairseq), "ngram" spans of one to
    three words, of n with a probability in proportion to 1/n (ALBERT, section 4.1).

    Returns input_ids (B, T); positions (B, k), ascending; labels (B, k), the tokens that stood there, and
    -100 where a row has fewer tokens to choose or the next word would be too long.
    """
    B, T = ids.shape
    special = np.isin(ids, tokenizer.special_ids)
    regular = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    if unit == "token":
        draws = np.stack([stream.random(T + 2 * k) for stream in streams])
        score = np.where(special, 2.0, draws[:, :T])  # the k smallest are chosen
        positions = np.argpartition(score, k - 1, axis=1)[:, :k]
        draws = draws[:, T:]
        unused = np.take_along_axis(special, positions, axis=1)
    else:
        begins = tokenizer.starts_word[ids] | special
        begins[:, 1:] |= special[:, :-1]
        chosen = [choose_words(b, s, k, stream, 3 if unit == "ngram" else 1)
                  for b, s, stream in zip(begins, special, streams)]
        positions = np.stack([np.pad(c, (0, k - len(c))) for c in chosen])
        unused = np.arange(k) >= np.array([len(c) for c in chosen])[:, None]
        draws = np.stack([stream.random(2 * k) for stream in streams])

    labels = np.where(unused, -100, np.take_along_axis(ids, positions, axis=1))
    action, which = draws[:, :k], draws[:, k:]
    fate = np.where(action < 0.8, tokenizer.mask_id,
                    np.where(action < 0.9, regular[(which * len(regular)).astype(np.int64)], labels))
    masked = ids.copy()
    row, column = np.nonzero(~unused)
    masked[row, positions[row, column]] = fate[row, column]
    order = np.argsort(np.where(unused, T, positions), axis=1)
    return masked, np.take_along_axis(positions, order, axis=1), np.take_along_axis(labels, order, axis=1)


def choose_words(begins, special, k, stream, longest):
    """Up to k positions of one row that make whole words, in spans of up to `longest` words."""
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, len(begins)))
    free = ~special[first]
    p = 1 / np.arange(1, longest + 1)
    spans = stream.choice(longest, size=len(first), p=p / p.sum())  # 0: one word
    chosen = []
    for word in stream.permutation(len(first)):
        for end in range(word + spans[word] + 1, word, -1):  # too long for the row or the budget: shorter
            if end <= len(first) and free[word:end].all() and len(chosen) + length[word:end].sum() <= k:
                chosen += range(first[word], first[word] + length[word:end].sum())
                free[word:end] = False
                break
        if len(chosen) == k:
            break
    if not chosen and free.any():  # every word is longer than the budget: a part of the first
        chosen = range(first[free][0], first[free][0] + k)
    return np.array(chosen, dtype=np.int64)


def unigram_nats(labels):
    """The entropy of the targets' own frequencies: a model that ignores the context cannot be under it."""
    _, counts = np.unique(labels[labels != -100], return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())
