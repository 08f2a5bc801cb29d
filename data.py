"""
Text -> token files -> batches.

    corpus = open_corpus(["pydoc"])                          # or files, a folder, a name on the hub
    folder = prepare(corpus, None, "bpe", 8192, "cache")     # token files, made once
    splits, tokenizer = load(folder)
    rows = Rows(splits["train"], tokenizer, length=128, task="sop", seed=0)
    batch = rows.batch(range(32), mask_prob=0.15)            # arrays, ready for a model's forward

Nothing here has a state. The order of rows, the pairs and the masks of a batch follow from
(seed, epoch, row), so that a run can be resumed, split over processes or repeated to the bit.
"""

import ast
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import logging
import os
import re
import signal
import sys
import sysconfig
import tempfile
import time
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable

import numpy as np
import regex

import files
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


def files_below(folder):
    """Paths of the files in a folder and those inside, but not of what is hidden, nor of token files."""
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if os.path.islink(os.path.join(path, name))]:
            raise ValueError(f"{os.path.join(path, links[0])} is a link to a folder, which is not followed: "
                             "name that folder, too, and move the link away")
        if not TOKEN_FILES <= set(names):
            yield from (os.path.join(path, name) for name in names if not name.startswith("."))


def open_corpus(names, text_field="text"):
    """names: ["pydoc"], files and folders, or one name on the hub -> Corpus. Files are hashed here, and read
    by documents(). FileNotFoundError, or ValueError for what has no text."""
    if names == ["pydoc"]:
        packages = [f"{package}-{importlib.metadata.version(package)}" for package in PYDOC
                    if importlib.util.find_spec(package)]
        return Corpus("pydoc", " ".join(["pydoc", sys.version.split()[0], *packages]),
                      lambda: (document for _, document in pydoc_modules()))
    if len(names) == 1 and not os.path.exists(names[0]) and not names[0].endswith(files.FORMATS):
        if names[0] in HUB or re.fullmatch(r"[\w.-]+/[\w.:-]+", names[0]):
            return hub_corpus(names[0], text_field)
    paths = []
    for name in names:
        if not os.path.exists(name):
            raise FileNotFoundError(f"{name}: no such file; --data takes files and folders, or one of pydoc, "
                                    f"{', '.join(HUB)} and hub data sets, owner/name[:config], alone")
        found = sorted(files_below(name))
        inside = [path for path in found if path.lower().endswith(files.FORMATS)]
        if os.path.isdir(name) and not inside:
            raise ValueError(f"{name}: no {', '.join(files.FORMATS)} files in this folder")
        if len(inside) < len(found):
            print(f"{name}: {len(found) - len(inside):,} files there are not read, as they are no "
                  f"{', '.join(files.FORMATS)}", flush=True)
        paths += inside or [name]
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise ValueError(f"{' '.join(names)}: a file is there twice")
    digest = hashlib.sha256(text_field.encode())
    for path in paths:
        files.check(path)
        digest.update(f"{os.path.splitext(path)[1]} {os.path.getsize(path)} ".encode())
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)

    def documents():
        for path in paths:
            if path.endswith(".txt"):
                yield from group_lines(line for _, line in files.lines(path))
            else:
                yield from row_documents(files.records(path, columns=[text_field]), text_field)
    return Corpus(" ".join(names), digest.hexdigest(), documents, sum(map(os.path.getsize, paths)))


def row_documents(records, text_field):
    """(where, {column: cell}) of each row -> documents, one a row."""
    for where, row in records:
        if text_field not in row:
            raise ValueError(f"{where}: no column {text_field!r} among {', '.join(row)}; see --text_field")
        if not isinstance(row[text_field], str):
            raise ValueError(f"{where}: the text is {repr(row[text_field])[:60]}, not a string")
        if document := [line.strip() for line in row[text_field].split("\n") if line.strip()]:
            yield document


def group_lines(lines):
    """Lines -> documents. A blank line ends a document, unless the first line is a heading of WikiText's,
    `= Title =`: then a document runs from one heading to the next. One of 10,000 lines is cut, to bound the
    memory."""
    document, headings = [], None
    for line in map(str.strip, lines):
        heading = re.fullmatch(r"= [^=].*[^=] =|= [^=] =", line) is not None
        if line and headings is None:
            headings = heading
        ends = heading if headings else not line
        if document and (ends or len(document) == 10_000):
            yield document
            document = []
        if line:
            document.append(line)
    if document:
        yield document


def hub_corpus(name, text_field, split="train"):
    """One split; WikiText brings its validation split."""
    table = hub_split(HUB.get(name, name), split, f"{name}: no such file, and the hub did not give it")

    def documents():
        if name in HUB:
            return group_lines(row["text"] for row in table)
        return row_documents(((f"{name}, row {i}", row) for i, row in enumerate(table, 1)), text_field)
    validation = hub_corpus(name, text_field, "validation") if name in HUB and split == "train" else None
    fingerprint = table._fingerprint + ("" if name in HUB else f" {text_field}")  # WikiText has one column
    return Corpus(name, fingerprint, documents, validation=validation)


def hub_split(source, split, problem):
    """A split of "owner/name" or "owner/name:config" -> datasets.Dataset. FileNotFoundError that begins with
    `problem` if the hub does not give it."""
    import datasets  # here, as everything but the hub works without it
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are ten lines
    path, _, config = source.partition(":")
    try:
        return datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # no network, no such name, a proxy: errors of every kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{problem}: {reason}") from error

# -----------------------------------------------------------------------------
# pydoc, the corpus that every machine has: the English in its own Python packages

PYDOC = ("torch", "numpy", "pandas", "sympy", "networkx", "mpmath", "datasets", "huggingface_hub", "fsspec",
         "pyarrow", "jinja2", "filelock", "requests", "tqdm")


@functools.cache
def pydoc_modules():
    """[(package, document)], one a module: its docstrings, and those that torch and numpy attach to compiled
    functions. The standard library's package is "python"."""
    roots = [("python", sysconfig.get_paths()["stdlib"])]
    for name in PYDOC:
        spec = importlib.util.find_spec(name)
        roots += [(name, root) for root in spec.submodule_search_locations] if spec else []
    paths = []
    for package, root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "test", "tests"})
            paths += [(package, os.path.join(folder, name)) for name in sorted(names) if name.endswith(".py")]
    from pydoc_data.topics import topics  # the language reference
    sources = [("python", [topics[name]]) for name in sorted(topics)]
    with ProcessPoolExecutor(initializer=start_reader) as pool:
        texts_of_files = pool.map(docstrings, [path for _, path in paths], chunksize=50)
        sources += [(package, texts) for (package, _), texts in zip(paths, texts_of_files)]
    modules, seen = [], set()
    for package, texts in sources:
        document = []
        for paragraph in (p for text in texts for p in prose(text)):
            if paragraph not in seen:  # packages repeat their own documentation, and each other's
                seen.add(paragraph)
                document.append(paragraph)
        if document:
            modules.append((package, document))
    return modules


def start_reader():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    gc.disable()  # a third of the time, and a syntax tree has no cycles


def docstrings(file):
    """The docstrings of a Python file, in order; none if it cannot be read, or by this version of Python."""
    try:
        with open(file, encoding="utf-8") as f:
            tree = ast.parse(f.read())
    # templates and test data are not all Python, or nest too deeply for it; a dead link
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []
    texts, nodes = [], [tree]
    for node in nodes:  # it grows; ast.walk would visit every expression, too
        nodes += [child for child in ast.iter_child_nodes(node)
                  if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case))
                  or isinstance(node, ast.Expr) and isinstance(child, ast.Call)]
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            texts.append(ast.get_docstring(node, clean=False))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("add_docstr", "add_newdoc"):
            texts += [part.value for part in ast.walk(node)
                      if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return [text for text in texts if text]


def prose(text):
    """A docstring -> its paragraphs that are sentences, each on one line; no examples, no tables."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        line = " ".join(paragraph.split())
        letters = sum(map(str.isalpha, line)) + line.count(" ")
        if len(line) >= 40 and letters > 0.8 * len(line) and ">>>" not in line:
            yield line

# -----------------------------------------------------------------------------
# Token files. A folder: for train and val the tokens, where sentences and documents begin, and the tokenizer.

FORMAT = 3                      # raise it when the files change
TOKEN_FILES = {"meta.json", "train.bin", "val.bin"}  # a folder with them is one of ours
ENDINGS = {"tokens": ".bin", "documents": ".documents.bin", "sentences": ".sentences.bin"}
SAMPLE = 24_000_000             # characters that a tokenizer is trained on, taken evenly from the corpus
BUFFER = 2_000_000              # characters encoded at a time: what bounds the memory
# A sentence ends at . ! or ?, with a quote or bracket after it or none, before a space and a capital
# or, in scripts that have none, a letter.
SENTENCE_END = regex.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\]]))(?= ["'(\[]?[\p{Lu}\p{Lo}])""")


@dataclass
class Tokens:
    """One split of a prepared corpus: three memory-mapped arrays, each a file, and the size of the text."""
    tokens: np.ndarray     # those of each document, then one sep_id
    documents: np.ndarray  # the places in `tokens` where documents begin, int64
    sentences: np.ndarray  # and where the other sentences of documents begin, int64
    bytes: int


def prepare(corpus, validation, tokenizer, vocab_size, cache_dir):
    """Make the token files of a corpus, unless they are there; returns their folder.

    validation: a Corpus, of which the validation split is taken if it brings one, as WikiText does; None:
    the corpus's own, or else a part of it is held out. tokenizer: a Tokenizer, or a kind to train, with
    vocab_size ids. ValueError for a tokenizer without a mask, and for too little or bad text.
    """
    validation = (validation.validation or validation) if validation else corpus.validation
    trained_here = isinstance(tokenizer, str)
    key = json.dumps([FORMAT, corpus.fingerprint, validation and validation.fingerprint,
                      [tokenizer, vocab_size] if trained_here else [tokenizer.hash(), tokenizer.mask_lstrip]])
    name = re.sub(r"[^\w.-]+", "-", corpus.name)[-40:].strip("-.")
    folder = os.path.join(cache_dir, f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}")
    if os.path.isdir(folder):
        return folder
    print(f"reading {corpus.name} ...", flush=True)
    splits = {"train": corpus.documents, "val": validation.documents} if validation else hold_out(corpus)
    for warning in warnings_about(splits["train"]()):
        print(f"  {corpus.name}: {warning}", flush=True)
    if trained_here:
        print(f"training a {tokenizer} tokenizer of {vocab_size:,} ids on {corpus.name}", flush=True)
        start = time.time()
        tokenizer = tokenizers.train(tokenizer, sample(splits["train"]), vocab_size)
        print(f"  {tokenizer.vocab_size:,} ids in {time.time() - start:.0f} s", flush=True)
    if tokenizer.sep_id is None or tokenizer.mask_id is None:
        raise ValueError("the tokenizer has no mask token or no separator (GPT-2's has none; RoBERTa's does)")
    os.makedirs(cache_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".") as temporary:
        made = os.path.join(temporary, "made")
        os.mkdir(made)
        meta = {"format": FORMAT, "corpus": corpus.name, "fingerprint": corpus.fingerprint,
                "tokenizer": tokenizer.hash(), "vocab_size": tokenizer.vocab_size,
                "dtype": "uint16" if tokenizer.vocab_size <= 65536 else "uint32"}
        tokenizer.save(made)
        for split, documents in splits.items():
            meta[split] = write_tokens(os.path.join(made, split), documents(), tokenizer, meta["dtype"],
                                       corpus.size if split == "train" else 0)
            if not meta[split]["tokens"]:
                name = validation.name if validation and split == "val" else corpus.name
                raise ValueError(f"{name}: no text for {split}")
        with open(os.path.join(made, "meta.json"), "w") as f:
            json.dump(meta, f, indent=2)
        try:
            os.rename(made, folder)
        except OSError:
            if not os.path.isdir(folder):  # else another process was as fast, with the same result
                raise
    return folder


def warnings_about(documents, n=20_000):
    """What may be wrong with a text, judged by its first n paragraphs -> a list of sentences."""
    paragraphs = ((i, paragraph) for i, document in enumerate(documents) for paragraph in document)
    sizes, seen, repeated, letters = {}, set(), 0, 0  # sizes: of each document, in characters
    for i, paragraph in itertools.islice(paragraphs, n):
        sizes[i] = sizes.get(i, 0) + len(paragraph)
        repeated += len(paragraph) * (hash(paragraph) in seen)
        letters += sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
        seen.add(hash(paragraph))
    total, found = sum(sizes.values()), []
    if repeated > 0.1 * total:
        found.append(f"{100 * repeated / total:.0f}% of the text are paragraphs that were there before; a "
                     "masked language model learns them by heart, and its validation loss stays high")
    if total and np.median(list(sizes.values())) < 40:
        found.append("half of the documents have less than 40 characters; a blank line is to stand between "
                     "documents, not between lines")
    if letters < 0.6 * total:
        found.append(f"{100 * letters / total:.0f}% of the characters are letters and spaces; is it text?")
    return found


def hold_out(corpus):
    """Every twentieth document of a corpus for validation; of fewer than twenty documents the last twentieth
    of the paragraphs -> {"train": () -> documents, "val": () -> documents}."""
    n_documents = n_paragraphs = 0
    for document in corpus.documents():
        n_documents += 1
        n_paragraphs += len(document)
    if n_paragraphs < 2:
        raise ValueError(f"{corpus.name}: {n_paragraphs} paragraphs are too few to split; give --val_data")
    cut = n_paragraphs - max(1, n_paragraphs // 20)

    def part(is_val):
        number = itertools.count()  # of a paragraph
        for i, document in enumerate(corpus.documents()):
            if n_documents < 20:
                document = [paragraph for paragraph in document if (next(number) >= cut) == is_val]
            elif (i % 20 == 19) != is_val:
                continue
            if document:
                yield document
    return {"train": lambda: part(False), "val": lambda: part(True)}


def sample(documents):
    """Paragraphs for a tokenizer to learn from: all of them, or every k-th of a large corpus. documents: a
    function, as they are read twice."""
    paragraphs = lambda: itertools.chain.from_iterable(documents())
    k = max(1, -(-sum(map(len, paragraphs())) // SAMPLE))
    return itertools.islice(paragraphs(), 0, None, k)


def write_tokens(path, documents, tokenizer, dtype, total):
    """Encode documents into the files of Tokens, path.bin and so on; returns their lengths and the bytes of
    text. total: how many these will be, or 0."""
    counts = dict.fromkeys(("tokens", "bytes", "documents", "sentences"), 0)
    began = shown = time.time()
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open(path + end, "wb")) for name, end in ENDINGS.items()}
        for block in blocks(documents):
            by_document = [[s for text in document for s in SENTENCE_END.split(text)] for document in block]
            encoded = iter(tokenizer.encode_batch([s for sentences in by_document for s in sentences]))
            stream, starts = [np.empty(0, dtype)], {"documents": [], "sentences": []}
            position = counts["tokens"]
            for sentences in by_document:
                start = position
                for sentence, ids in zip(sentences, encoded):
                    counts["bytes"] += len(sentence.encode("utf-8", "replace"))
                    if len(ids):
                        starts["documents" if position == start else "sentences"].append(position)
                        stream.append(ids)
                        position += len(ids)
                if position > start:
                    stream.append([tokenizer.sep_id])
                    position += 1
            arrays = {name: np.array(places, np.int64) for name, places in starts.items()}
            arrays["tokens"] = np.concatenate(stream).astype(dtype)
            for name, array in arrays.items():
                opened[name].write(array.tobytes())
                counts[name] += len(array)
            if time.time() - shown > 5:
                shown, speed = time.time(), counts["bytes"] / (time.time() - began)
                left = f", {max(0, total - counts['bytes']) / speed:.0f} s left" if total else ""
                print(f"  {counts['bytes'] / 1e6:.0f} MB encoded, {speed / 1e6:.1f} MB/s{left}", flush=True)
        for f in opened.values():
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


def load(folder):
    """A folder from prepare -> {"train": Tokens, "val": Tokens}, tokenizer. ValueError if it is damaged."""
    try:
        tokenizer, splits = tokenizers.load(folder), {}
        meta = tokenizers.read_json(os.path.join(folder, "meta.json"))
        if meta["format"] != FORMAT or meta["tokenizer"] != tokenizer.hash():
            raise ValueError("it was made with another tokenizer than it holds")
        for split in ("train", "val"):
            arrays = {}
            for name, end in ENDINGS.items():
                file, count = os.path.join(folder, split + end), meta[split][name]
                dtype, size = meta["dtype"] if name == "tokens" else "int64", os.path.getsize(file)
                if size != count * {"uint16": 2, "uint32": 4, "int64": 8}[dtype]:
                    raise ValueError(f"{os.path.basename(file)} has {size} bytes, not {count} {dtype}")
                arrays[name] = np.memmap(file, dtype=dtype, mode="r") if count else np.empty(0, dtype)
            splits[split] = Tokens(**arrays, bytes=int(meta[split]["bytes"]))
            if (largest := splits[split].tokens.max(initial=0)) >= tokenizer.vocab_size:
                raise ValueError(f"{split}.bin has the id {largest}, and the tokenizer no such token")
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{folder} is damaged ({type(error).__name__}: {error}); delete it and run again"
                         ) from error
    return splits, tokenizer

# -----------------------------------------------------------------------------
# Rows, pairs and masks

ORDER, PAIRS, MASKS, DROPOUT = 1, 2, 3, 4  # what a random number is for

class Key(np.random.bit_generator.ISeedSequence):
    """A key for Philox as it is; its own argument `key` has it ask the system for entropy first, which takes
    twice as long as all else here."""

    def __init__(self, *key):
        self.key = np.array(key, np.uint64)

    def generate_state(self, n_words, dtype=None):
        return self.key


def random_numbers(seed, purpose, epoch, row=0):
    """Philox is a counter run through a cipher: with a key and a counter of its own, every row of every epoch
    has a stream of its own, and there is nothing to remember."""
    return np.random.Generator(np.random.Philox(Key(seed, purpose), counter=[0, 0, row, epoch]))


def dropout_seed(seed, step, rank):
    """For torch.manual_seed(). 32 bits, as the CPU's generator takes no more."""
    return int(random_numbers(seed, DROPOUT, step, rank).integers(2**32))


def sentence_windows(bounds, W):
    """Starts of windows of W tokens that cover a stream. A window begins with the sentence that the one
    before cut off; in a sentence longer than W, where that one ended. bounds: sentence starts, and the
    stream's end."""
    starts, at, i, bounds = [], 0, 0, memoryview(bounds)  # a list would take 5 times the memory
    while at < bounds[-1]:
        starts.append(at)
        i = bisect_right(bounds, at + W, i) - 1
        at = bounds[i] if bounds[i] > at else at + W
    return np.array(starts)


class Rows:
    """The rows of `length` tokens that a split is cut into, numbered in training order, epoch after epoch.

    The stream is the split's N tokens. A row holds a window, W successive tokens of it, and its special
    tokens, so that W = length - 2, or with a task length - 3. No row has padding.

    task None: [CLS] window [SEP], as RoBERTa's FULL-SENTENCES, but a window may begin and end inside a
        sentence, and documents run on, with a [SEP] between them. Windows lie end to end, and from the
        stream's end go on at its start: window w holds the tokens (w W + j) mod N. So epochs cut the text in
        other places, unless W divides N.
    task "nsp": [CLS] A [SEP] B [SEP], a window cut where a sentence begins. Label 1: B is from another
        document; 0: it follows A.
    task "sop": the same rows. Label 1: the sentences of A and those of B have changed places; 0: they are in
        order; -100: the window has no two whole sentences of one document.
    With a task a window begins where a sentence does and ends anywhere; the next one begins with the sentence
        that was cut. So the cut parts are seen twice (a quarter of the text in rows of 64 tokens, a sixth in
        rows of 128). Only a sentence of more than W tokens is cut into windows.
    static: every epoch has the same windows, pairs and masks, in another order, as the first BERT's.
    """

    def __init__(self, split, tokenizer, length, task=None, seed=0, static=False):
        self.split, self.tokenizer, self.length, self.task = split, tokenizer, length, task
        self.seed, self.static, self.width = seed, static, length - (3 if task else 2)
        N, W = len(split.tokens), self.width
        if W < 2:
            raise ValueError(f"rows of {length} tokens leave no room for text")
        if N < W:
            raise ValueError(f"{N} tokens of text do not fill one row of {length}")
        self.plan = functools.lru_cache(maxsize=2)(self.plan)  # of two epochs: a batch may have rows of both
        if task:
            # where sentences begin, and the end of the last one
            self.bounds = np.append(np.union1d(split.documents, split.sentences), N)
            self.starts = sentence_windows(self.bounds, W)
            self.epoch_length = len(self.starts) * W  # in tokens
        else:  # N, so that no token is seen twice; but only whole windows can be the same in every epoch
            self.epoch_length = -(-N // W) * W if static else N

    @functools.cached_property
    def unigram_probs(self):
        """(V,): the unigram probability of each id, with add-one smoothing: none is 0."""
        tokens, V = self.split.tokens, self.tokenizer.vocab_size
        parts = np.array_split(tokens, 1 + len(tokens) // 10**7)  # to keep the memory small
        counts = 1 + sum(np.bincount(part, minlength=V) for part in parts)
        return counts / counts.sum()

    def window_range(self, epoch):
        """-> start, end: an epoch's windows have the numbers from start to end - 1, and so have its rows."""
        L, W = self.epoch_length, self.width
        return -(-epoch * L // W), -(-(epoch + 1) * L // W)

    def offsets(self, windows):
        """Window numbers -> the places of their first tokens in the stream."""
        if self.task:
            return self.starts[windows % len(self.starts)]
        return windows * self.width % len(self.split.tokens)

    def __len__(self):
        """Rows in the first epoch."""
        return self.window_range(0)[1]

    def plan(self, epoch):
        """For the rows of an epoch, in order -> (1, rows): their windows; with a task (6, rows): those, and
        what pairs() gives."""
        start, end = self.window_range(epoch)
        order = random_numbers(self.seed, ORDER, epoch).permutation(end - start)
        windows = order if self.static else start + order
        pairs = self.pairs(0 if self.static else epoch)[:, order] if self.task else ()
        return np.stack([windows, *pairs])

    def pairs(self, epoch):
        """For the windows of an epoch -> (5, windows), int64: where A ends and B begins; the window that B is
        from; the label; and for SOP, where the label is not -100, the two ends of the text in which A and B
        change places."""
        start, end = self.window_range(epoch)
        own, W, sentences = np.arange(end - start), self.width, self.split.sentences
        first = self.offsets(start + own)
        rng = random_numbers(self.seed, PAIRS, epoch)
        # A window is cut where a sentence begins that begins no document: at one of sentences[low:high],
        # drawn at random, or in its middle if there is none. For SOP those on both sides of it are whole.
        if self.task == "sop":
            place = np.searchsorted(self.bounds, sentences)
            low = np.searchsorted(self.bounds[place - 1], first)
            high = np.searchsorted(self.bounds[place + 1], first + W, side="right")
        else:
            low, high = np.searchsorted(sentences, first + 1), np.searchsorted(sentences, first + W)
        has_cut, draw = high > low, rng.random(len(own))
        # a middle at a [SEP] moves back by one, at a document's first token by two: both to the last token
        # before that [SEP], so that B goes on with A's last document
        begins = lambda at: np.isin(at % len(self.split.tokens), self.split.documents)
        middle = first + W // 2
        cut = (W // 2 - begins(middle + 1) - 2 * begins(middle)).clip(min=1)
        cut[has_cut] = (sentences[low[has_cut] + (draw * (high - low))[has_cut].astype(np.int64)]
                        - first[has_cut])
        if self.task == "nsp":
            partner = self.nsp_partners((first + cut) % len(self.split.tokens), cut, rng)
            return np.stack([cut, start + partner, partner != own, np.zeros_like(cut), np.full_like(cut, W)])
        head, tail = self.sop_ends(first, first + cut)
        label = np.where(has_cut, rng.random(len(own)) < 0.5, -100)
        return np.stack([cut, start + own, label, head, tail])

    def sentence_labels(self):
        """Of the windows of the first epoch: 0 or 1, -100 where there is nothing to judge."""
        return self.pairs(0)[2]

    def nsp_partners(self, at, cut, rng):
        """Windows cut at the places `at` of the stream, `cut` counted in the window -> of each the window
        that its B is from.

        Two windows cut at the same place, in different documents, can exchange their second parts: both rows
        stay full, and no token is lost or seen twice. As many do so as make every second row a 1.
        """
        n, partner = len(cut), np.arange(len(cut))
        shuffled = rng.permutation(n)
        by_cut = shuffled[np.argsort(cut[shuffled], kind="stable")]
        rank = np.arange(n) - np.searchsorted(cut[by_cut], cut[by_cut])  # of a window among those cut alike
        a, b = by_cut[:-1], by_cut[1:]
        document = np.searchsorted(self.split.documents, at, side="right")
        # the first with the second, the third with the fourth: nobody is in two exchanges
        eligible = (rank[:-1] % 2 == 0) & (cut[a] == cut[b]) & (document[a] != document[b])
        a, b = a[eligible], b[eligible]
        swapped = rng.random(len(a)) < n / max(1, 4 * len(a))
        partner[a[swapped]], partner[b[swapped]] = b[swapped], a[swapped]
        return partner

    def sop_ends(self, first, at):
        """Windows from the places `first` of the stream, cut at sentences that begin at `at` -> where, in the
        window, the text begins and ends whose two parts can change places.

            ... end of s1 | s2 | s3 | s4 | beginning of s5 ...
                      head^    ^cut      ^tail

        It is the whole sentences of the document in which the cut is. What the window has around them stays,
        so that no broken sentence and no [SEP] gives the label away.
        """
        bounds, documents = self.bounds, np.append(self.split.documents, self.bounds[-1])
        after = np.searchsorted(documents, at, side="right").clip(max=len(documents) - 1)
        head = np.maximum(documents[after - 1], bounds[np.searchsorted(bounds, first)])
        last = bounds[np.searchsorted(bounds, first + self.width, side="right") - 1]
        return head - first, np.minimum(documents[after] - 1, last) - first

    def text(self, windows):
        """Window numbers (B,) -> their tokens (B, W)."""
        places = self.offsets(windows)[:, None] + np.arange(self.width)
        return self.split.tokens[places % len(self.split.tokens)]

    def batch(self, rows, mask_prob=0.15, unit="token"):
        """Row numbers -> {input_ids, token_type_ids (B, T); positions, labels (B, K); sentence_labels (B,)},
        int64; token_type_ids and sentence_labels only with a task."""
        rows, j = np.asarray(rows), np.arange(self.width)
        epochs = rows * self.width // self.epoch_length
        window, *pairs = np.stack([self.plan(epoch)[:, row - self.window_range(epoch)[0]]
                                   for epoch, row in zip(epochs.tolist(), rows.tolist())], axis=1)

        text, cut = self.text(window), np.full(len(rows), self.width)  # without a task A is all there is
        if self.task:
            cut, partner, label, head, tail = pairs
        if self.task == "nsp":
            text = np.where(j < cut[:, None], text, self.text(partner))
        if self.task == "sop":
            for i in np.flatnonzero(label == 1):
                text[i, head[i]:tail[i]] = np.roll(text[i, head[i]:tail[i]], tail[i] - cut[i])
            cut = np.where(label == 1, head + tail - cut, cut)
        ids = np.full((len(rows), self.length), self.tokenizer.sep_id)
        ids[:, 0] = self.tokenizer.cls_id
        np.put_along_axis(ids, 1 + j + (j >= cut[:, None]), text, axis=1)  # a [SEP] before B

        streams = [random_numbers(self.seed, MASKS, 0 if self.static else e, w)
                   for e, w in zip(epochs.tolist(), window.tolist())]
        k = max(1, round(mask_prob * self.width))
        ids, positions, labels = mask_tokens(ids, k, streams, self.tokenizer, unit)
        batch = {"input_ids": ids, "positions": positions, "labels": labels}
        if self.task:
            batch["token_type_ids"] = (np.arange(self.length) > cut[:, None] + 1).astype(np.int64)
            batch["sentence_labels"] = label
        return batch


def mask_tokens(ids, k, streams, tokenizer, unit="token"):
    """BERT's masking (Devlin et al. 2018, section 3.1) of k tokens in every row.

    ids (B, T), not changed; streams: B random generators. Of the chosen tokens 80 % become [MASK], 10 % a
    random token, 10 % stay. Special tokens are neither chosen nor drawn. unit "token" chooses k tokens,
    "word" whole words (in byte-level BPE those begin with a space, as in fairseq), "ngram" spans of one to
    three words, of n with a probability in proportion to 1/n (ALBERT, section 4.1).

    Returns input_ids (B, T); positions (B, k), ascending, those without a target last; labels (B, k), the
    tokens that stood there, and -100 where a row has fewer tokens to choose or the next word would be too
    long.
    """
    T = ids.shape[1]
    special = np.isin(ids, tokenizer.special_ids)
    regular = np.delete(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    if unit == "token":
        draws = np.stack([stream.random(T) for stream in streams])
        score = np.where(special, 1 + np.arange(T), draws)  # the k smallest are chosen; none are equal
        # sorted, as argpartition leaves them in another order on another processor
        positions = np.sort(np.argpartition(score, k - 1, axis=1)[:, :k], axis=1)
        unused = np.take_along_axis(special, positions, axis=1)
    else:
        begins = tokenizer.starts_word[ids] | special
        begins[:, 1:] |= special[:, :-1]
        chosen = np.stack([choose_words(b, s, k, stream, 3 if unit == "ngram" else 1)
                           for b, s, stream in zip(begins, special, streams)])
        positions, unused = np.maximum(chosen, 0), chosen < 0

    labels = np.where(unused, -100, np.take_along_axis(ids, positions, axis=1))
    action, draw = np.split(np.stack([stream.random(2 * k) for stream in streams]), 2, axis=1)
    random_ids = regular[(draw * len(regular)).astype(np.int64)]
    inputs = np.where(action < 0.8, tokenizer.mask_id, np.where(action < 0.9, random_ids, labels))
    masked = ids.copy()
    row, column = np.nonzero(~unused)
    masked[row, positions[row, column]] = inputs[row, column]
    order = np.argsort(np.where(unused, T, positions), axis=1, kind="stable")
    return masked, np.take_along_axis(positions, order, axis=1), np.take_along_axis(labels, order, axis=1)


def choose_words(begins, special, k, stream, longest):
    """k positions of one row that make whole words, in spans of up to `longest` words; then -1s if fewer."""
    first = np.flatnonzero(begins)
    free = (~special[first]).tolist()  # lists, as NumPy is slow on few elements
    first, n = [*first.tolist(), len(begins)], len(first)
    p = 1 / np.arange(1, longest + 1)
    spans = stream.choice(longest, size=n, p=p / p.sum()).tolist()  # 0: one word
    chosen = []
    for word in stream.permutation(n).tolist():
        for end in range(min(word + spans[word] + 1, n), word, -1):  # too long for the budget: shorter
            if all(free[word:end]) and len(chosen) + first[end] - first[word] <= k:
                chosen += range(first[word], first[end])
                free[word:end] = [False] * (end - word)
                break
        if len(chosen) == k:
            break
    if not chosen and any(free):  # every word is longer than the budget: a part of the first
        at = first[free.index(True)]
        chosen = range(at, at + k)
    return np.array([*chosen, *[-1] * (k - len(chosen))])


def sampled_softmax(labels, unigram_probs):
    """A softmax over only the ids that a step predicts saves most of the work at the output. But frequent ids
    are in every such sample and rare ones in few, and then as the label, so that they would come out too
    likely. An id of unigram probability q is among n labels with the probability p = 1 - (1 - q)^n; with
    -log p added to its logit (logQ correction) the model learns the softmax over the whole vocabulary (Jean
    et al. 2015, section 3.2; with the labels of a batch: Yi et al. 2019).

    labels (B, k), of all rows of the step, -100 ignored; unigram_probs (V,). Returns candidates (C,),
    ascending; corrections (C,), the -log p, float32; and labels as places in candidates.
    """
    real = labels != -100
    candidates = np.unique(labels[real])
    p = -np.expm1(real.sum() * np.log1p(-unigram_probs[candidates]))  # 1 - (1 - q)^n, of tiny q, too
    corrections = -np.log(p).astype(np.float32)
    return candidates, corrections, np.where(real, np.searchsorted(candidates, labels), -100)


def unigram_nats(rows):
    """Entropy in nats of the targets' unigram distribution over an epoch: the lowest loss without input."""
    counts = np.zeros(rows.tokenizer.vocab_size, np.int64)
    for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 256)):
        labels = rows.batch(part)["labels"]
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
