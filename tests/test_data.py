"""Corpora, token files, rows, pairs and masks."""

import json
import os
from collections import Counter

import numpy as np
import pytest

import data
import tokenizer as tokenizers


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def documents(*names, **options):
    return list(data.open_corpus([str(name) for name in names], **options).documents())


def streams(n, seed=0):
    return [data.random_numbers(seed, data.MASKS, 0, row) for row in range(n)]

# -----------------------------------------------------------------------------
# random numbers

def test_a_row_has_the_stream_of_its_key_and_counter():
    philox = np.random.Philox(key=[2**63 - 1, data.PAIRS], counter=[0, 0, 7, 3])
    ours = data.random_numbers(2**63 - 1, data.PAIRS, epoch=3, row=7)
    assert (ours.random(9) == np.random.Generator(philox).random(9)).all()

# -----------------------------------------------------------------------------
# reading text

def test_text_files_have_a_paragraph_a_line_and_blank_lines_between_documents(tmp_path):
    file = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\n\n\n  three  \n")
    assert documents(file) == [["one", "two"], ["three"]]


def test_wikitext_headings_begin_documents(tmp_path):
    text = " = Title = \n\n first \n\n = = Section = = \n second\n\n= A =\n\nthird"
    assert documents(write(tmp_path / "a.txt", text)) == [
        ["= Title =", "first", "= = Section = =", "second"], ["= A =", "third"]]


def test_a_line_like_a_heading_is_none_in_another_text(tmp_path):
    text = "one\n\nsee\n\n= x + y =\n\ntwo\n\nthree\n"
    assert documents(write(tmp_path / "a.txt", text)) == [["one"], ["see"], ["= x + y ="], ["two"], ["three"]]


def test_the_formats_and_folders_give_the_same_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet
    texts = ["one\ntwo", 'say "three", four', "größe\n"]
    expected = [["one", "two"], ['say "three", four'], ["größe"]]
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"body": text}) for text in texts))
    rows = [text.replace('"', '""') for text in texts]
    write(tmp_path / "b.csv", "id,body\n" + "".join(f'1,"{row}"\n' for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        assert documents(tmp_path / name, text_field="body") == expected, name
    assert documents(tmp_path, text_field="body") == expected * 3
    write(tmp_path / "d.tsv", 'id\tbody\n1\tone "two\n2\tthree\n')
    assert documents(tmp_path / "d.tsv", text_field="body") == [['one "two'], ["three"]]
    assert len(documents(tmp_path, text_field="body")) == 3 * 3 + 2


def test_hidden_files_are_not_read_and_unknown_ones_are_refused(tmp_path):
    (tmp_path / ".git").mkdir()
    for name in ("a.txt", ".b.txt", ".git/c.txt"):
        write(tmp_path / name, name)
    assert documents(tmp_path) == [["a.txt"]]
    write(tmp_path / "D.TXT", "one")  # as alone
    with pytest.raises(ValueError, match="D.TXT"):
        documents(tmp_path)


def test_no_text_is_left_out_or_read_twice_in_silence(tmp_path):
    folder = tmp_path / "text"
    (folder / "more").mkdir(parents=True)
    a, b = write(folder / "a.txt", "one"), write(folder / "more" / "b.txt", "two")
    for names in ([a, a], [str(folder), b]):
        with pytest.raises(ValueError, match="a file is there twice"):
            data.open_corpus(names)
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="link is a link to a folder"):
        data.open_corpus([str(folder)])


def test_a_tokenizer_learns_from_all_parts_of_a_large_corpus(monkeypatch):
    """Three documents of a thousand paragraphs each, and room for a third of them."""
    monkeypatch.setattr(data, "SAMPLE", 3000)
    read = Counter(data.sample(lambda: iter([[letter * 3] * 1000 for letter in "abc"])))
    assert set(read) == {"aaa", "bbb", "ccc"} and all(333 <= count <= 334 for count in read.values())


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path, capsys):
    for name in ("a.txt", "b.md", "c.json", ".hidden.md"):
        write(tmp_path / name, "one")
    assert documents(tmp_path) == [["one"]]
    assert "2 files there are not read, as they are no .txt, " in capsys.readouterr().out


def test_the_token_files_of_a_cache_in_the_folder_are_no_text(tmp_path):
    write(tmp_path / "a.txt", "\n".join(f"Number {i} goes on and on." for i in range(60)))
    (tmp_path / "cache").mkdir()
    before = documents(tmp_path)
    data.prepare(data.open_corpus([str(tmp_path)]), None, "wordpiece", 100, str(tmp_path / "cache"))
    assert list(tmp_path.glob("cache/*/vocab.txt")) and documents(tmp_path) == before
    for name in ("meta.json", "train.bin"):  # in a folder of somebody else
        write(tmp_path / name, "{}")
    assert documents(tmp_path) == before


def test_a_tsv_can_be_pretrained_on(tmp_path):
    rows = [f'Row {i} has a "quote.\t{i}' for i in range(40)]
    corpus = data.open_corpus([write(tmp_path / "a.tsv", "\n".join(["text\tn", *rows]))])
    splits, tokenizer = data.load(data.prepare(corpus, None, "bpe", 270, str(tmp_path / "cache")))
    text = tokenizer.decode(splits["val"].tokens.tolist())
    assert text == 'Row 19 has a "quote.</s>Row 39 has a "quote.</s>'
    assert data.Rows(splits["train"], tokenizer, 16).batch([0])["input_ids"].shape == (1, 16)


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", "", "is empty"),
    ("a.txt", b"fine\n\xff\xfe\n", "line 2: not UTF-8"),
    ("a.jsonl", '{"text": "x"}\n{"text": \n', "line 2: not JSON"),
    ("a.jsonl", '{"text": "x"}\n\n{"body": "x"}\n', "line 3: no column 'text' among body; .* --text_field"),
    ("a.jsonl", '{"text": 7}\n', "line 1: the text is 7"),
    ("a.csv", "id,body\n1,x\n", "line 2: no column 'text' among id, body; .* --text_field"),
    ("a.csv", 'text,n\nfine,1\n"x,2\ny,3\n', "a.csv, line 3: unexpected end of data; is a quote of this row"),
    ("a.csv", "text,n\none, two,1\n", "a.csv, line 2: 3 columns; the first line has 2; a text with commas"),
    ("a.parquet", "not parquet at all", "a.parquet"),
    ("a.doc", "x", "not one of .txt"),
])
def test_bad_files_are_named_with_the_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        documents(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.txt: no such file"):
        data.open_corpus([str(tmp_path / "nothing.txt")])
    with pytest.raises(ValueError, match="no .txt"):
        data.open_corpus([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="pydoc: no such file; .* or one of pydoc, .*, alone"):
        data.open_corpus(["pydoc", write(tmp_path / "a.txt", "a")])


def test_a_hub_name_without_network_is_one_line():
    with pytest.raises(FileNotFoundError, match="nobody/nothing: no such file, and the hub did not give it"):
        data.open_corpus(["nobody/nothing"])


def test_wikitext_as_validation_text_is_its_validation_split(tmp_path, monkeypatch):
    import datasets
    words = lambda split: " ".join(f"{split} {i} goes on and on." for i in range(60))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, split: datasets.Dataset.from_dict(
        {"text": ["= A title =", words(split), ""]}))
    mine = data.open_corpus([write(tmp_path / "a.txt", words("mine"))])
    wikitext = data.open_corpus(["wikitext2"])
    for corpus, validation, own in ((mine, wikitext, "mine 7"), (wikitext, None, "train 7")):
        splits, tokenizer = data.load(data.prepare(corpus, validation, "bpe", 300, str(tmp_path / "cache")))
        texts = [tokenizer.decode(splits[split].tokens.tolist()) for split in ("train", "val")]
        assert f"{own} goes" in texts[0] and "validation" not in texts[0]
        assert "validation 7 goes" in texts[1] and "train" not in texts[1]


def test_rows_of_the_hub_without_the_column(monkeypatch):
    import datasets
    table = datasets.Dataset.from_dict({"body": ["one\ntwo", "three"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, split: table)
    assert documents("some/body", text_field="body") == [["one", "two"], ["three"]]
    with pytest.raises(ValueError, match="some/body, row 1: no column 'text' among body; see --text_field"):
        documents("some/body")


def test_another_column_of_the_hub_is_another_corpus(monkeypatch):
    import datasets
    table = datasets.Dataset.from_dict({"body": ["one"], "summary": ["two"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, split: table)
    body, summary = (data.open_corpus(["some/body"], column) for column in ("body", "summary"))
    assert body.fingerprint != summary.fingerprint


def test_pydoc_is_prose_from_docstrings(tmp_path):
    file = write(tmp_path / "m.py", (
        '"""Module text that is long enough to be kept, surely.\n\n>>> f(1)\n2\n"""\n'
        'def f():\n    """A function text that is long enough\n    to be kept as well, joined."""\n'
        'add_docstr(f, "Attached text that is long enough to be kept, too.")\n'))
    lines = [line for text in data.docstrings(file) for line in data.prose(text)]
    assert sorted(lines) == ["A function text that is long enough to be kept as well, joined.",
                             "Attached text that is long enough to be kept, too.",
                             "Module text that is long enough to be kept, surely."]
    for other in ("this is not Python", 100_000 * "-", "x = 1" + 20_000 * " + 1"):
        assert data.docstrings(write(tmp_path / "n.py", other)) == []

# -----------------------------------------------------------------------------
# token files

def test_the_stream_is_the_documents_and_the_offsets_are_their_sentences(tmp_path):
    text = 'One is here. Two is "there." Three?\nA new paragraph.\n\nSecond document. With two.\n'
    file = write(tmp_path / "a.txt", text)
    corpus = data.open_corpus([file])
    folder = data.prepare(corpus, corpus, "bpe", 270, str(tmp_path / "cache"))
    splits, tokenizer = data.load(folder)
    train = splits["train"]
    ends = np.sort(np.concatenate([train.documents, train.sentences, [len(train.tokens)]])).astype(int)
    pieces = [tokenizer.decode(train.tokens[a:b].tolist()) for a, b in zip(ends, ends[1:])]
    assert pieces == ["One is here.", ' Two is "there."', " Three?", "A new paragraph.</s>",
                      "Second document.", " With two.</s>"]
    assert [int(np.searchsorted(ends, d)) for d in train.documents] == [0, 4]
    assert train.bytes == len(text.replace("\n", ""))


def test_sentences_alone_have_the_ids_of_the_whole(prepared, text_file):
    """Cutting at sentences must not change what the words become."""
    _, tokenizer = data.load(prepared)
    for paragraph in text_file.read_text(encoding="utf-8").split("\n")[:300]:
        alone = [i for sentence in data.SENTENCE_END.split(paragraph) for i in tokenizer.encode(sentence)]
        assert alone == tokenizer.encode(paragraph)


@pytest.mark.parametrize("text, sentences", [
    ("One. Two! 'Three?' (Four.) five", ["One.", " Two!", " 'Three?'", " (Four.) five"]),
    ("Он ушёл. «Да». Она нет.", ["Он ушёл. «Да».", " Она нет."]),
    ("Er kam. Über Nacht.", ["Er kam.", " Über Nacht."]),
    ("Ήρθε. Έφυγε.", ["Ήρθε.", " Έφυγε."]),
    ("यह है. वह है.", ["यह है.", " वह है."]),
    ("about 3.5 e.g. this", ["about 3.5 e.g. this"]),
])
def test_where_sentences_begin(text, sentences):
    assert data.SENTENCE_END.split(text) == sentences


def test_a_text_that_is_missing_is_named(tmp_path, prepared):
    _, tokenizer = data.load(prepared)
    text, blank = (data.open_corpus([write(tmp_path / f"{name}.txt", content)])
                   for name, content in (("text", "Some text."), ("blank", "\n \n")))
    with pytest.raises(ValueError, match="blank.txt: no text for val"):
        data.prepare(text, blank, tokenizer, None, tmp_path / "cache")
    with pytest.raises(ValueError, match="blank.txt: no text for train"):
        data.prepare(blank, text, tokenizer, None, tmp_path / "cache")


def test_every_twentieth_document_is_held_out(tmp_path):
    corpus = data.open_corpus([write(tmp_path / "a.txt", "\n\n".join(f"document {i}" for i in range(45)))])
    parts = {name: list(read()) for name, read in data.hold_out(corpus).items()}
    assert parts["val"] == [["document 19"], ["document 39"]] and len(parts["train"]) == 43
    rows = "".join(f'{{"text": "row {i}"}}\n{{"text": " "}}\n' for i in range(20))  # blank ones do not count
    corpus = data.open_corpus([write(tmp_path / "a.jsonl", rows)])
    assert list(data.hold_out(corpus)["val"]()) == [["row 19"]]


def test_one_document_has_its_end_held_out(tmp_path):
    corpus = data.open_corpus([write(tmp_path / "a.txt", "\n".join(f"paragraph {i}" for i in range(40)))])
    parts = {name: list(read()) for name, read in data.hold_out(corpus).items()}
    assert parts["val"] == [["paragraph 38", "paragraph 39"]] and len(parts["train"][0]) == 38


def test_prepared_once_and_anew_when_text_or_tokenizer_change(tmp_path, capsys):
    file, cache = tmp_path / "a.txt", str(tmp_path / "cache")
    def prepare(vocab_size=270):
        return data.prepare(data.open_corpus([str(file)]), None, "bpe", vocab_size, cache)
    write(file, "Some text.\nMore text.\n")
    first = prepare()
    assert capsys.readouterr().out.startswith(f"reading {file} ...\n")  # before it takes its time
    made = os.path.getmtime(os.path.join(first, "train.bin"))
    assert prepare() == first and os.path.getmtime(os.path.join(first, "train.bin")) == made
    assert not capsys.readouterr().out
    assert prepare(265) != first
    write(file, "Some text.\nMore test.\n")
    assert prepare() != first
    assert not [name for name in os.listdir(cache) if name.startswith(".")]


def test_tokenizers_whose_masks_take_spaces_or_not_have_files_of_their_own(tmp_path):
    """The ids of a text are the same; the tokenizer that is saved with a checkpoint is not."""
    file = write(tmp_path / "a.txt", "Some text.\nMore text.\n")
    tokenizer = tokenizers.train("bpe", ["a"], 270)
    for takes_spaces in (True, False):
        tokenizer.mask_lstrip = takes_spaces
        folder = data.prepare(data.open_corpus([file]), None, tokenizer, None, str(tmp_path / "cache"))
        assert data.load(folder)[1].mask_lstrip == takes_spaces


def test_the_fingerprint_knows_kinds_and_ends_of_files(tmp_path):
    write(tmp_path / "a.txt", '{"text": "x"}')
    write(tmp_path / "b.txt", "more")
    prints = [data.open_corpus([str(tmp_path)]).fingerprint]
    (tmp_path / "a.txt").rename(tmp_path / "a.jsonl")
    prints.append(data.open_corpus([str(tmp_path)]).fingerprint)
    (tmp_path / "a.jsonl").unlink()
    write(tmp_path / "b.txt", '{"text": "x"}more')
    prints.append(data.open_corpus([str(tmp_path)]).fingerprint)
    assert len(set(prints)) == 3


def test_damaged_token_files_are_refused(tmp_path, prepared):
    import shutil
    damages = [("train.bin", lambda b: b[:-2]), ("val.bin", lambda b: b[:-1] + b"\xff"),
               ("val.documents.bin", lambda b: b + b"\0" * 8),
               ("meta.json", lambda b: b[:40]), ("meta.json", lambda b: b.replace(b'uint16', b'(,uint16')),
               ("merges.txt", lambda b: b.replace(b"\n\xc4\xa0 t\n", b"\n")), ("vocab.json", lambda b: b"{}")]
    for i, (name, damage) in enumerate(damages):
        folder = tmp_path / str(i)
        shutil.copytree(prepared, folder)
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(ValueError, match="delete .* and run again") as error:
            data.load(str(folder))
        assert "\n" not in str(error.value)


def test_interrupted_preparation_leaves_nothing(tmp_path, text_file, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(data, "write_tokens", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(data.open_corpus([str(text_file)]), None, "bpe", 300, str(tmp_path / "cache"))
    assert os.listdir(tmp_path / "cache") == []

# -----------------------------------------------------------------------------
# rows

@pytest.fixture(params=[None, "nsp", "sop"], ids=["mlm", "nsp", "sop"])
def rows(request, prepared):
    splits, tokenizer = data.load(prepared)
    return data.Rows(splits["train"], tokenizer, 32, request.param, seed=5)


def unmasked(batch):
    ids = batch["input_ids"].copy()
    used = batch["labels"] != -100
    row, column = np.nonzero(used)
    ids[row, batch["positions"][used]] = batch["labels"][used]
    return ids


def test_every_token_is_seen_exactly_once_an_epoch(rows):
    """Nothing is dropped and nothing repeated; an epoch ends inside a row, whose rest belongs to the next.
    With a sentence task a sentence that a row cuts off is seen again, whole."""
    N, W = len(rows.split.tokens), rows.width
    start = 0
    for epoch in range(3):
        first, end = rows.window_range(epoch)
        assert first == start and sorted(rows.plan(epoch)[0]) == list(range(first, end))
        start = end
    places = (rows.offsets(np.arange(start))[:, None] + np.arange(W)) % N
    seen = np.bincount(places.ravel(), minlength=N)
    if rows.task:
        assert set(seen) <= {3, 6}
    else:
        assert seen.min() >= 3 and seen.max() <= 4 and (seen == 4).sum() < W
    batch = rows.batch(np.arange(len(rows)))
    ours = Counter(unmasked(batch).ravel().tolist())
    separators = Counter({rows.tokenizer.cls_id: len(rows),
                          rows.tokenizer.sep_id: len(rows) * (2 if rows.task else 1)})
    assert ours == Counter(rows.split.tokens[places[:len(rows)].ravel()].tolist()) + separators


@pytest.mark.parametrize("length", [16, 48])
def test_windows_begin_at_sentences(prepared, length):
    """All but those inside a sentence that is longer than a window; none begins later than it could."""
    splits, tokenizer = data.load(prepared)
    rows = data.Rows(splits["train"], tokenizer, length, "nsp")
    W, N = rows.width, len(rows.split.tokens)
    bounds = sorted({*rows.split.documents.tolist(), *rows.split.sentences.tolist()}) + [N]
    assert rows.starts[0] == 0 and max(rows.starts) + W >= N
    for before, start in zip(rows.starts.tolist(), rows.starts[1:].tolist()):
        reachable = [bound for bound in bounds if before < bound <= before + W]
        assert start == (reachable[-1] if reachable else before + W)


def test_order_pairs_and_masks_follow_from_seed_epoch_and_row(rows):
    again = data.Rows(rows.split, rows.tokenizer, 32, rows.task, seed=5)
    other = data.Rows(rows.split, rows.tokenizer, 32, rows.task, seed=6)
    a, b, c = (r.batch(np.arange(40, 60)) for r in (rows, again, other))
    for name in a:
        assert np.array_equal(a[name], b[name])
    assert not np.array_equal(a["input_ids"], c["input_ids"])
    one_by_one = [rows.batch([i]) for i in range(40, 60)]  # a row does not depend on its company
    for name in a:
        assert np.array_equal(a[name], np.concatenate([batch[name] for batch in one_by_one]))
    order = [rows.plan(epoch)[0] - rows.window_range(epoch)[0] for epoch in (0, 1)]
    assert not np.array_equal(order[0][:20], order[1][:20])


def test_the_plans_of_two_epochs_are_kept(rows):
    for row in (0, 3 * len(rows), 0, 7 * len(rows)):
        again = data.Rows(rows.split, rows.tokenizer, 32, rows.task, seed=5)
        assert np.array_equal(rows.batch([row])["input_ids"], again.batch([row])["input_ids"])
        assert rows.plan.cache_info().currsize <= 2
    assert rows.plan(7) is rows.plan(7)


def test_seeds_of_the_dropout_differ():
    """Also those of large seeds."""
    seeds = {data.dropout_seed(seed, step, rank)
             for seed in (0, 1, 2**40) for step in range(50) for rank in (0, 1)}
    assert len(seeds) == 300 and 0 <= min(seeds) and max(seeds) < 2**32


def test_rows_may_straddle_epochs(rows):
    end = len(rows)
    together = rows.batch([end - 1, end, end + 1])
    for i, row in enumerate((end - 1, end, end + 1)):
        assert np.array_equal(together["input_ids"][i:i + 1], rows.batch([row])["input_ids"])


def test_rows_are_full(rows):
    ids = rows.batch(np.arange(100))["input_ids"]
    assert (ids != rows.tokenizer.pad_id).all()
    assert (ids[:, 0] == rows.tokenizer.cls_id).all() and (ids[:, -1] == rows.tokenizer.sep_id).all()


def test_static_masks_are_the_same_in_every_epoch(prepared):
    splits, tokenizer = data.load(prepared)
    for task in (None, "nsp", "sop"):
        static = data.Rows(splits["train"], tokenizer, 32, task, static=True)
        R = len(static)
        first, second = (static.batch(np.arange(e * R, (e + 1) * R)) for e in (0, 1))
        assert not np.array_equal(first["input_ids"], second["input_ids"])  # another order
        assert Counter(map(bytes, first["input_ids"])) == Counter(map(bytes, second["input_ids"]))


def test_dynamic_masks_differ_between_epochs(prepared):
    """The stream is cut to a whole number of rows, so that both epochs have the same windows."""
    splits, tokenizer = data.load(prepared)
    tokens = splits["train"]
    whole = data.Tokens(tokens.tokens[:30 * 500], tokens.documents, tokens.sentences, tokens.bytes)
    rows = data.Rows(whole, tokenizer, 32)
    first, second = (rows.batch(np.arange(e * 500, (e + 1) * 500)) for e in (0, 1))
    texts = [{row.tobytes(): masks.tobytes() for row, masks in zip(unmasked(b), b["positions"])}
             for b in (first, second)]
    assert texts[0].keys() == texts[1].keys()
    assert sum(texts[0][row] == texts[1][row] for row in texts[0]) < 5


def test_a_window_that_goes_on_at_the_start_of_the_text_has_true_labels():
    """The first document is long, and has the second half of the last window."""
    tokenizer = tokenizers.train("wordpiece", ["some text"], 40)
    wrong = 0
    for seed in range(40):
        lengths = [60, *np.random.default_rng(seed).integers(6, 14, 10)]
        documents = np.cumsum([0, *lengths])
        N = documents[-1]
        split = data.Tokens(np.full(N, 9, np.uint16), documents[:-1], np.empty(0, np.int64), 0)
        rows = data.Rows(split, tokenizer, 23, "nsp", seed)
        cut, partner, label, _, _ = rows.pairs(0)
        document = np.searchsorted(documents, (rows.starts + cut) % N, side="right")
        wrong += np.sum((label == 1) & (document == document[partner % len(rows.starts)]))
    assert wrong == 0


@pytest.mark.parametrize("task", ["nsp", "sop"])
def test_pairs_are_cut_at_sentences_and_labelled_truly(prepared, task):
    splits, tokenizer = data.load(prepared)
    rows = data.Rows(splits["train"], tokenizer, 48 if task == "nsp" else 128, task, seed=1)
    stream = rows.split.tokens.astype(np.int64)
    W, N, n, tested = rows.width, len(stream), len(rows), Counter()
    batch = rows.batch(np.arange(n))
    ids, types, labels = unmasked(batch), batch["token_type_ids"], batch["sentence_labels"]
    order, (cut, partner, _, head, tail) = rows.plan(0)[0], rows.pairs(0)
    sentences, documents = rows.split.sentences.tolist(), [*rows.split.documents.tolist(), N]
    for row in range(n):
        w = order[row]
        start = rows.starts[w]
        a, b = ids[row][types[row] == 0][1:-1], ids[row][types[row] == 1][:-1]
        window = stream[(start + np.arange(W)) % N]
        at = start + cut[w]
        if task == "nsp":
            cuts = [s for s in sentences if start < s < start + W]
        else:  # of whole sentences that follow each other in one document
            bounds = [s for s in sorted(sentences + documents) if start <= s <= start + W]
            cuts = [s for s in bounds[1:-1] if s not in documents]
        assert at in cuts if cuts else labels[row] == -100 or task == "nsp"
        if task == "sop" and cuts:
            low, high = max(d for d in documents if d <= at), min(d for d in documents if d > at)
            part = [s for s in bounds if low <= s <= high]
            assert start + head[w] == part[0] and part[0] < at
            assert start + tail[w] == (high - 1 if part[-1] == high else part[-1]) > at  # without its [SEP]
        if labels[row] in (0, -100):
            assert np.array_equal(np.concatenate([a, b]), window) and len(a) == cut[w]
        elif task == "sop":
            one, two = window[head[w]:cut[w]], window[cut[w]:tail[w]]
            assert np.array_equal(a, np.concatenate([window[:head[w]], two]))
            assert np.array_equal(b, np.concatenate([one, window[tail[w]:]]))
        else:
            other = rows.starts[partner[w]] + cut[w]
            assert np.array_equal(a, window[:cut[w]])
            assert np.array_equal(b, stream[(other + np.arange(len(b))) % N])
            place = [np.searchsorted(documents, position, side="right") for position in (at, other)]
            assert place[0] != place[1]
        tested[int(labels[row])] += 1
    used = tested[0] + tested[1]
    assert used == n if task == "nsp" else used > n / 2
    assert abs(tested[1] / used - 0.5) < 3 * 0.5 / used ** 0.5 + 0.02


def test_the_second_part_goes_on_where_documents_have_one_sentence(tmp_path):
    """No window has a place between two sentences: it is cut inside of one."""
    rng = np.random.default_rng(0)
    text = "\n\n".join(" ".join(rng.choice(list("abcdefgh"), rng.integers(3, 11))) for _ in range(500))
    corpus = data.open_corpus([write(tmp_path / "a.txt", text)])
    splits, tokenizer = data.load(data.prepare(corpus, None, "wordpiece", 40, str(tmp_path / "cache")))
    rows = data.Rows(splits["train"], tokenizer, 32, "nsp")
    assert not len(rows.split.sentences)
    document = np.repeat(np.arange(len(rows.split.documents)),
                         np.diff(rows.split.documents, append=len(rows.split.tokens)))
    cut, partner, label, _, _ = rows.pairs(0)
    for w in np.flatnonzero(label == 0):
        at = (rows.starts[w] + cut[w]) % len(rows.split.tokens)
        assert partner[w] == w and document[at - 1] == document[at]
        assert rows.split.tokens[at] != tokenizer.sep_id


def test_the_sop_label_cannot_be_read_off_the_edges(prepared):
    """Both parts of every labelled row begin and end at whole sentences, whatever their order."""
    splits, tokenizer = data.load(prepared)
    rows = data.Rows(splits["train"], tokenizer, 128, "sop")
    cut, _, label, head, tail = rows.pairs(0)
    ends = {*rows.split.sentences.tolist(), *rows.split.documents.tolist()}
    ends |= {end - 1 for end in ends} | {len(rows.split.tokens) - 1}  # at the [SEP] of a document
    for w in np.flatnonzero(label != -100):
        assert {rows.starts[w] + head[w], rows.starts[w] + cut[w], rows.starts[w] + tail[w]} <= ends
    assert rows.tokenizer.sep_id not in [
        token for w in np.flatnonzero(label != -100)
        for token in rows.split.tokens[rows.starts[w] + head[w]:rows.starts[w] + tail[w]]]


def test_too_little_text_for_a_row_is_said(prepared):
    splits, tokenizer = data.load(prepared)
    with pytest.raises(ValueError, match="do not fill one row"):
        data.Rows(splits["val"], tokenizer, 10**6)

# -----------------------------------------------------------------------------
# masks

@pytest.fixture(scope="module")
def masked_million(prepared):
    """10,000 rows of 100 tokens, ids over the whole vocabulary, specials and padding among them."""
    _, tokenizer = data.load(prepared)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, tokenizer.vocab_size, (10_000, 100))
    ids[:, 0], ids[:, -1] = tokenizer.cls_id, tokenizer.sep_id
    ids[::2, 80:] = tokenizer.pad_id
    before = ids.copy()
    masked, positions, labels = data.mask_tokens(ids, 15, streams(10_000), tokenizer)
    assert np.array_equal(ids, before)  # pure
    return tokenizer, ids, masked, positions, labels


def test_masks_are_80_10_10(masked_million):
    tokenizer, ids, masked, positions, labels = masked_million
    at = np.take_along_axis(masked, positions, 1)
    share = [(at == tokenizer.mask_id).mean(), (at == labels).mean()]
    n = labels.size
    assert n == 150_000 and (labels != -100).all()
    # a random token is the old one once in 595 times
    for measured, expected in zip(share, (0.8, 0.1 + 0.1 / 595)):
        assert abs(measured - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_unselected_tokens_are_untouched_and_labels_are_what_stood_there(masked_million):
    _, ids, masked, positions, labels = masked_million
    assert np.array_equal(np.take_along_axis(ids, positions, 1), labels)
    chosen = np.zeros_like(ids, dtype=bool)
    np.put_along_axis(chosen, positions, True, 1)
    assert (chosen.sum(1) == 15).all() and np.array_equal(ids[~chosen], masked[~chosen])
    assert (np.diff(positions, axis=1) > 0).all()


def test_specials_and_padding_are_never_selected(masked_million):
    tokenizer, _, _, _, labels = masked_million
    assert not np.isin(labels, tokenizer.special_ids).any()


def test_every_token_is_selected_equally_often(masked_million):
    tokenizer, ids, _, positions, _ = masked_million
    full = ids[1::2]  # the rows without padding
    free = ~np.isin(full, tokenizer.special_ids)
    expected = (15 * free / free.sum(1, keepdims=True)).sum(0)[1:-1]
    counts = np.bincount(positions[1::2].ravel(), minlength=100)[1:-1]
    assert (abs(counts - expected) < 5 * expected ** 0.5).all()


def test_random_tokens_are_never_special_and_cover_the_vocabulary(masked_million):
    tokenizer, ids, masked, positions, labels = masked_million
    at = np.take_along_axis(masked, positions, 1)
    drawn = set(at[(at != labels) & (at != tokenizer.mask_id)].tolist())
    assert drawn == set(range(tokenizer.vocab_size)) - set(tokenizer.special_ids)


def test_id_zero_can_be_a_target():
    class Letters:  # a vocabulary whose id 0 is a word
        vocab_size, special_ids, mask_id = 10, [9], 9
    _, positions, labels = data.mask_tokens(np.zeros((4, 20), dtype=int), 3, streams(4), Letters)
    assert (labels == 0).all() and positions.shape == (4, 3)


def test_a_row_with_too_few_tokens_has_ignored_labels(prepared):
    _, tokenizer = data.load(prepared)
    ids = np.full((2, 12), tokenizer.pad_id)
    ids[:, 1:3] = 50
    for unit in ("token", "word", "ngram"):
        masked, positions, labels = data.mask_tokens(ids, 4, streams(2), tokenizer, unit)
        assert ((labels != -100).sum(1) == 2).all() and (masked[:, 3:] == tokenizer.pad_id).all()
        assert set(labels.ravel().tolist()) <= {-100, 50} and (unit != "token" or (labels[:, :2] == 50).all())


@pytest.mark.parametrize("mask_prob", [0.15, 0.999])  # more than there are ordinary tokens
def test_every_processor_draws_the_same_masks(mask_prob, rows, monkeypatch):
    """np.argpartition is other code with AVX2, AVX-512 or neither: the same are chosen, in another order."""
    here = rows.batch(np.arange(64), mask_prob)
    def other_order(score, k, axis):
        places = np.argsort(score[:, ::-1], axis=axis, kind="stable")  # of equal ones the last
        places[:, :k + 1] = places[:, k::-1]
        return score.shape[1] - 1 - places
    monkeypatch.setattr(np, "argpartition", other_order)
    for name, array in rows.batch(np.arange(64), mask_prob).items():
        np.testing.assert_array_equal(array, here[name])


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_words_are_masked_whole(prepared, unit):
    splits, tokenizer = data.load(prepared)
    rows = data.Rows(splits["train"], tokenizer, 64)
    batch = rows.batch(np.arange(200), unit=unit)
    ids, selected = unmasked(batch), np.zeros((200, 64), dtype=bool)
    row, column = np.nonzero(batch["labels"] != -100)
    selected[row, batch["positions"][row, column]] = True
    special = np.isin(ids, tokenizer.special_ids)
    inside = ~tokenizer.starts_word[ids] & ~special
    inside[:, 1:] &= ~special[:, :-1]  # the first token after a special one begins a word
    assert np.array_equal(selected[:, 1:][inside[:, 1:]], selected[:, :-1][inside[:, 1:]])
    assert not (selected & special).any() and selected.sum() > 0.9 * 200 * 9


def test_ngrams_have_lengths_in_proportion_to_one_over_n():
    """The first span of a row of 600 one-token words: no other is in its way, and hardly ever the end."""
    begins, special = np.ones(600, dtype=bool), np.zeros(600, dtype=bool)
    lengths, n = Counter(), 6_000
    for stream in streams(n):
        chosen = data.choose_words(begins, special, 30, stream, 3).tolist()  # in the order of choice
        length = 1
        while chosen[length] == chosen[0] + length and length < 3:
            length += 1
        lengths[length] += 1
    for length, expected in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
        assert abs(lengths[length] / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 0.003


def test_what_may_be_wrong_with_a_text_is_said():
    good = [["The first paragraph of a document has words enough.", "The second one, too."]]
    assert data.warnings_about(good) == []
    repeated, = data.warnings_about(good * 4)  # three quarters were there before
    assert repeated.startswith("75% of the text are paragraphs that were there before")
    short, = data.warnings_about([["A line of words."], ["Another one."], good[0]])
    assert "half of the documents have less than 40 characters" in short
    numbers, = data.warnings_about([["1.5 2.5 a 3.5 4.5 5.5 6.5 7.5 8.5 9.5 10.5"]])
    assert "26% of the characters are letters and spaces" in numbers  # 1 letter, 10 spaces, of 43


def test_preparing_says_it_once(tmp_path, capsys):
    file = write(tmp_path / "a.txt", "The same line with words enough to be a document.\n\n" * 300)
    for expected in (1, 0):  # the second time the token files are there
        data.prepare(data.open_corpus([file]), None, "wordpiece", 60, str(tmp_path / "cache"))
        said = capsys.readouterr().out
        assert said.count("% of the text are paragraphs that were there before") == expected


def test_a_sampled_softmax_is_over_the_labels():
    """How often an id is a candidate, when the labels are tokens of the text, is what corrections says."""
    rng, shares = np.random.default_rng(0), 1 / np.arange(1, 201)
    shares /= shares.sum()
    seen, p = np.zeros(200), 1 - (1 - shares) ** 20
    for step in range(4000):
        labels = np.insert(rng.choice(200, (4, 5), p=shares), 2, -100, axis=1)
        candidates, corrections, places = data.sampled_softmax(labels, shares)
        real = labels >= 0
        assert (candidates[places[real]] == labels[real]).all() and (places[~real] == -100).all()
        assert set(candidates) == set(labels[real]) and (np.diff(candidates) > 0).all()
        np.testing.assert_allclose(corrections, -np.log(p[candidates]), rtol=1e-5, atol=1e-6)
        seen[candidates] += 1
    np.testing.assert_allclose(seen / 4000, p, atol=4 * np.sqrt(0.25 / 4000))


def test_a_sampled_softmax_teaches_the_full_one():
    """One context and logits alone, without a model: where the loss is lowest they are the true distribution
    of the label, whatever the shares of the text are, a rare id's probability of 0.3, too. The other 39
    labels of a step are tokens of the text."""
    import torch
    rng, steps = np.random.default_rng(0), 20_000
    shares = np.array([0.45, 0.3, 0.1, 0.05, 0.03, 0.03, 0.03, 0.01])
    truth = np.array([0.1, 0.05, 0.15, 0.02, 0.2, 0.1, 0.08, 0.3])
    labels, others = rng.choice(8, (steps, 1), p=truth), rng.choice(8, (steps, 39), p=shares)
    added = np.full((steps, 8), -np.inf, np.float32)
    for row, of_step in zip(added, np.append(labels, others, axis=1)):
        candidates, corrections, _ = data.sampled_softmax(of_step[None], shares)
        row[candidates] = corrections
    added, labels = torch.from_numpy(added), torch.from_numpy(labels[:, 0])
    logits = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)
    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits + added, labels)
        loss.backward()
        return loss
    optimizer.step(closure)
    np.testing.assert_allclose(logits.detach().softmax(0), truth, atol=0.02)


def test_unigram_nats_by_hand(prepared):
    """Over the targets of all rows, in however many batches they are read."""
    splits, tokenizer = data.load(prepared)
    rows = data.Rows(splits["train"], tokenizer, 32)
    assert len(rows) > 300
    targets = Counter(rows.batch(np.arange(len(rows)))["labels"].ravel().tolist())
    assert -100 not in targets
    p = np.array(list(targets.values())) / targets.total()
    assert data.unigram_nats(rows) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
