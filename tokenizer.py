"""
Tokenizers: text to token ids and back. A tokenizer is trained here or read from the published files, and
saved as files that transformers.AutoTokenizer opens.

    tokenizer = load("out/roberta")            # a directory, or a name on the Hugging Face hub
    tokenizer = train("bpe", texts, 8192)      # on any iterable of strings
    tokenizer.encode("Hello world!")           # plain text; no special tokens are added
    tokenizer.encode("It is <mask>.", specials=True)

"bpe"        ByteLevelBPE, of GPT-2 (Radford et al. 2019, section 2.2) and RoBERTa. Its smallest tokens are
             the 256 bytes, so nothing is lost: decode(encode(text)) == text. tiktoken applies the merges.
"wordpiece"  WordPiece, of BERT (Devlin et al. 2018): the longest match from the left, within words.
"unigram"    Unigram, of ALBERT (Lan et al. 2019): the most probable segmentation of each word (Kudo 2018).
"""

import base64
import hashlib
import heapq
import json
import math
import os
import re
import struct
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import regex  # comes with tiktoken; the standard library's re has no \p{L}
import tiktoken

# White space as Unicode and Rust define it; Python's str.isspace() adds four control characters.
SPACES = "".join(regex.findall(r"\s", "".join(map(chr, range(0x3001)))))


class Tokenizer:
    """What the kinds share. Each adds _encode, decode, files, from_files and train.

    tokens[id] is a token as the published files spell it; vocab_size = len(tokens). pad_id, unk_id, cls_id,
    sep_id and mask_id are None where the vocabulary has no such token. starts_word[id] tells whether a token
    begins a word, for whole-word masking. settings is what the ids depend on, besides the tokens. max_length
    is model_max_length of its files, the longest row, special tokens included; None where they do not say.
    mask_lstrip: whether RoBERTa's mask includes the spaces before it, as the published one does.
    """
    max_length = None
    mask_lstrip = True
    symbols = ()

    def __init__(self, tokens, special_tokens, required):
        """special_tokens: {"pad": "<pad>", ...}, of which those not in tokens are ignored. ValueError if a
        required token is missing, or one is there twice."""
        self.tokens, self.vocab_size = tokens, len(tokens)
        self.ids = {token: i for i, token in enumerate(tokens)}
        if missing := sorted(set(required) - set(tokens)):
            raise ValueError(f"the vocabulary has no {', '.join(missing[:5])}")
        if len(self.ids) != len(tokens):
            repeated = Counter(tokens).most_common(1)[0][0]
            raise ValueError(f"the vocabulary has {repeated!r} more than once")
        self.special_tokens = {role: token for role, token in special_tokens.items() if token in self.ids}
        for role in ("pad", "unk", "cls", "sep", "mask"):
            setattr(self, role + "_id", self.ids.get(self.special_tokens.get(role)))
        self.special_ids = sorted(self.ids[token] for token in self.special_tokens.values())
        alternatives = sorted(map(re.escape, self.special_tokens.values()), key=len, reverse=True)
        self.special_pattern = re.compile(f"({'|'.join(alternatives) or '(?!)'})")  # (?!) never matches

    def encode(self, text, specials=False):
        """str -> list of ids. With specials, special tokens written in the text become their ids, as in
        transformers; without, they are text like any other, so that a corpus cannot inject a mask."""
        return self._ids(text, specials).tolist()

    def encode_batch(self, texts, specials=False):
        """Sequence of str -> list of id arrays (int32)."""
        return [self._ids(text, specials) for text in texts]

    def _ids(self, text, specials):
        text = without_surrogates(text)
        if not (specials and self.special_pattern.search(text)):
            return self._encode(text)
        ids, mask = [], self.special_tokens.get("mask")
        parts = self.special_pattern.split(text)  # text, special, text, special, ..., text
        for part, special in zip(parts[::2], parts[1::2] + [""]):
            if special == mask and self.mask_lstrip:  # kinds that are not RoBERTa's ignore spaces anyway
                part = part.rstrip(SPACES)
            ids += self._encode(part).tolist()
            if special:
                ids.append(self.ids[special])
        return np.array(ids, np.int32)

    def hash(self):
        """16 hex digits; tokenizers with equal ones give equal ids, but for the spaces before a mask."""
        content = json.dumps([type(self).__name__, self.tokens, self.settings])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def save(self, path, max_length=None):
        """Writes files(), {name: str or JSON content}, into a directory, which must exist. max_length: the
        longest row, at which transformers truncates; None: the tokenizer's own, or no limit."""
        files, max_length = self.files(), max_length or self.max_length
        if max_length:
            files["tokenizer_config.json"]["model_max_length"] = max_length
        for name, content in files.items():
            if not isinstance(content, str):
                content = json.dumps(content, ensure_ascii=False, indent=0) + "\n"
            with open(os.path.join(path, name), "w", encoding="utf-8") as f:
                f.write(content)


def without_surrogates(text):
    """The text with U+FFFD for lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def count_matches(pattern, texts):
    """Compiled pattern, iterable of str -> Counter of the matches."""
    counts = Counter()
    for text in texts:
        counts.update(pattern.findall(without_surrogates(text)))
    return counts

# -----------------------------------------------------------------------------
# Byte-level BPE

# GPT-2's words, which no merge may cross: a contraction; letters, digits or other characters, each with the
# space before them; other white space. The possessive ++ matches the same as + and is faster. White space is
# cut after 100,000 characters: tiktoken's engine cannot go back over a million.
WORD = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$"
                     r"|\s{1,100000}(?!\S)|\s")

# The published files spell a byte as a printable character: itself, or for 68 of them one from U+0100 on.
PRINTABLE = [b for b in range(ord("!"), 256) if chr(b).isprintable()]
BYTES = PRINTABLE + [b for b in range(256) if b not in PRINTABLE]  # in the order of GPT-2's ids
SPELLING = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(BYTES[len(PRINTABLE):])}
BYTE_OF = {character: b for b, character in SPELLING.items()}


class ByteLevelBPE(Tokenizer):
    ROLES = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}

    def __init__(self, tokens, merges, prefix_space=False):
        """tokens: all, by id. merges: the pairs of tokens, as bytes, in the order they were learned.
        prefix_space: a text that begins without a space gets one: its first word is like the others."""
        ranked = [bytes([b]) for b in BYTES] + [left + right for left, right in merges]
        spelled = [spell(token) for token in ranked]
        super().__init__(tokens, self.ROLES if "<s>" in tokens else {"end": "<|endoftext|>"}, spelled)
        self.merges, self.prefix_space = merges, prefix_space
        self.settings = spelled[256:] + ["prefix_space"] * prefix_space
        self.encoding = tiktoken.Encoding("bpe", pat_str=WORD.pattern, special_tokens={},
                                          mergeable_ranks={token: rank for rank, token in enumerate(ranked)})
        # tiktoken returns ranks; the ids of RoBERTa, for one, are a permutation of GPT-2's ranks
        self.id_of_rank = np.array([self.ids[token] for token in spelled], np.int32)
        self.bytes_of_id = [token.encode() if token in self.special_tokens.values() else unspell(token)
                            for token in tokens]
        self.starts_word = np.array([token.startswith(b" ") for token in self.bytes_of_id])

    def _encode(self, text):
        if self.prefix_space and text and text[0] != " ":
            text = " " + text
        return self.id_of_rank[self.encoding.encode_to_numpy(text, disallowed_special=())]

    def encode_batch(self, texts, specials=False):
        """Sequence of str -> list of id arrays (int32), on all cores: tiktoken releases the GIL."""
        size = len(texts) // (4 * (os.cpu_count() or 1)) + 1
        chunks = [texts[i:i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            encoded = pool.map(lambda chunk: [self._ids(text, specials) for text in chunk], chunks)
            return [ids for chunk in encoded for ids in chunk]

    def decode(self, ids):
        """ids -> str. Bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return b"".join(self.bytes_of_id[i] for i in ids).decode("utf-8", "replace")

    def files(self):
        merges = "".join(f"{spell(left)} {spell(right)}\n" for left, right in self.merges)
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": self.prefix_space}
        if self.mask_id is not None:
            mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": self.mask_lstrip, "rstrip": False,
                    "normalized": False, "single_word": False, "special": True}
            config |= {"tokenizer_class": "RobertaTokenizer", "mask_token": mask}
        return {"vocab.json": self.ids, "merges.txt": "#version: 0.2\n" + merges,
                "tokenizer_config.json": config}

    @classmethod
    def from_files(cls, path, config, content):
        """Reads tokenizer.json, or else vocab.json and merges.txt, or encoder.json and vocab.bpe (GPT-2).
        config, content: see read_tokenizer."""
        if content is None:
            gpt2 = not os.path.exists(os.path.join(path, "merges.txt"))
            vocabulary = read_json(os.path.join(path, "encoder.json" if gpt2 else "vocab.json"))
            lines = read_text(os.path.join(path, "vocab.bpe" if gpt2 else "merges.txt")).split("\n")
            merges = [line for line in map(str.rstrip, lines) if line and not line.startswith("#version")]
        else:
            pre_tokenizer = content.get("pre_tokenizer") or {}
            if (pre_tokenizer.get("type") != "ByteLevel" or not pre_tokenizer.get("use_regex", True)
                    or content.get("normalizer")):
                raise ValueError("tokenizer.json is of a BPE that is not GPT-2's, of bytes")
            if config is None:
                config = pre_tokenizer  # it, too, has add_prefix_space
            added = {token["content"]: token["id"] for token in content["added_tokens"]}
            vocabulary, merges = content["model"]["vocab"] | added, content["model"]["merges"]
        # a merge is "left right", or in newer tokenizer.json ["left", "right"]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        for number, pair in enumerate(pairs, 1):
            if len(pair) != 2:
                raise ValueError(f"merge {number} is of {pair}, which are not two tokens")
        return cls(tokens_by_id(vocabulary), [(unspell(left), unspell(right)) for left, right in pairs],
                   config.get("add_prefix_space") is True)

    @classmethod
    def train(cls, texts, vocab_size):
        """texts: iterable of str. A small text may give fewer tokens than vocab_size. ValueError if that has
        no room for the 256 bytes and the five special tokens of RoBERTa."""
        if vocab_size < 256 + 5:
            raise ValueError(f"vocab_size {vocab_size} has no room for 256 bytes and 5 special tokens")
        counts, symbols = count_matches(WORD, texts), [bytes([b]) for b in BYTES]
        words = [[bytes([b]) for b in word.encode()] for word in counts]
        merges = learn_merges(words, list(counts.values()), symbols, vocab_size - 256 - 5)
        tokens = [spell(token) for token in symbols + [left + right for left, right in merges]]
        return cls(["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"], merges)


def spell(token):
    """bytes -> str, as the published files write it."""
    return "".join(SPELLING[b] for b in token)


def unspell(text):
    """The bytes that spell() wrote. KeyError for a character that stands for no byte."""
    return bytes(BYTE_OF[character] for character in text)


def learn_merges(words, counts, symbols, number, prefix=0):
    """-> the `number` most frequent merges as pairs of symbols (Sennrich et al. 2016, algorithm 1).

    words: lists of symbols (bytes or str); counts: how often each word occurs; symbols: all of them; prefix:
    how many characters of its second symbol a merge drops, 2 for the ## of WordPiece. Of pairs with the same
    count, the one first in the order of `symbols` wins; pairs that occur once are not merged.
    """
    index = {symbol: i for i, symbol in enumerate(symbols)}
    words = [[index[symbol] for symbol in word] for word in words]
    symbols, merges = list(symbols), []
    # A merge changes only the pairs of the words it applies to. So pairs are counted once, and each merge
    # corrects the counts for words_with[pair], the words that have the pair or had it.
    pair_counts, words_with = Counter(), defaultdict(set)
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += counts[w]
            words_with[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(merges) < number:
        count, pair = heap[0]
        if -count != pair_counts[pair]:  # it has fallen since the entry was made
            heapq.heapreplace(heap, (-pair_counts[pair], pair))
            continue
        if -count < 2:
            break
        left, right = symbols[pair[0]], symbols[pair[1]]
        merges.append((left, right))
        merged = len(symbols)
        symbols.append(left + right[prefix:])
        new_pairs = set()
        for w in words_with.pop(pair):
            word = words[w]
            for old_pair in zip(word, word[1:]):
                pair_counts[old_pair] -= counts[w]
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i:i + 2] = [merged]
                i += 1
            for new_pair in zip(word, word[1:]):
                pair_counts[new_pair] += counts[w]
                if merged in new_pair:
                    words_with[new_pair].add(w)
                    new_pairs.add(new_pair)
        for new_pair in new_pairs:
            heapq.heappush(heap, (-pair_counts[new_pair], new_pair))
    return merges

# -----------------------------------------------------------------------------
# WordPiece and unigram work on chunks: parts of a text whose tokens do not depend on what is around them.
# Most chunks occur many times, so the ids of a chunk are computed once and cached. Ids are those of
# transformers, except for some characters added or changed by Unicode 9 and later: its tables are older.

class ChunkTokenizer(Tokenizer):
    """Each kind adds chunk_pattern, normalize_character, words (of a chunk, normalized) and word_ids."""

    def __init__(self, tokens, special_tokens, symbols=()):
        super().__init__(tokens, special_tokens, [*special_tokens.values(), *symbols])
        self.longest_token = max(map(len, tokens))
        self.chunk_bytes = Cache(self.encode_chunk)
        self.normalized = Cache(self.normalize_character)

    def encode_chunk(self, chunk):
        if chunk in self.symbols:
            ids = [self.ids[chunk]]
        else:
            ids = [i for word in self.words(chunk) for i in self.word_ids(word)]
        return np.array(ids, np.int32).tobytes()

    def _encode(self, text):
        chunks = self.chunk_pattern.findall(text)
        # joined as bytes, much faster than np.concatenate; a bytearray makes the array writable
        return np.frombuffer(bytearray().join(map(self.chunk_bytes.__getitem__, chunks)), np.int32)


class Cache(dict):
    """cache[string] is function(string), computed once. Emptied when full; long strings are not kept."""

    def __init__(self, function, limit=500_000, longest=100):
        self.function, self.limit, self.longest = function, limit, longest

    def __missing__(self, key):
        value = self.function(key)
        if len(key) <= self.longest:
            if len(self) >= self.limit:
                self.clear()
            self[key] = value
        return value


def count_parts(words, cut):
    """{word: count}, a function from a word to its parts -> Counter of the parts."""
    counts = Counter()
    for word, count in words.items():
        for part in cut(word):
            counts[part] += count
    return counts


def count_characters(words):
    """{word: count} -> [(character, count), ...], the most frequent first."""
    return sorted(count_parts(words, list).items(), key=lambda item: (-item[1], item[0]))

# -----------------------------------------------------------------------------
# WordPiece

ASCII_PUNCTUATION = r"!-/:-@\[-`{-~"
BERT_WORD = regex.compile(rf"[{ASCII_PUNCTUATION}\p{{P}}]|[^\s{ASCII_PUNCTUATION}\p{{P}}]+")
IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
                       "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]")  # as transformers has them


class WordPiece(ChunkTokenizer):
    """Words are divided by white space; a punctuation character and an ideograph are words of their own."""

    ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    # ASCII white space and punctuation divide words whatever is next to them
    chunk_pattern = re.compile(rf"[{ASCII_PUNCTUATION}]|[^ \t\n\r{ASCII_PUNCTUATION}]+")

    def __init__(self, tokens, lowercase=True, strip_accents=None, split_ideographs=True):
        """strip_accents: None means "as lowercase", as published."""
        super().__init__(tokens, self.ROLES)
        self.lowercase, self.split_ideographs = lowercase, split_ideographs
        self.strip_accents = lowercase if strip_accents is None else strip_accents
        self.settings = [self.lowercase, self.strip_accents, self.split_ideographs]
        self.starts_word = np.array([not token.startswith("##") for token in tokens])

    def normalize_character(self, character):
        """What a character becomes before the split into words: nothing, itself, or several characters."""
        if character not in "\t\n\r" and regex.match(r"[\p{Cc}\p{Cf}\p{Co}\ufffd]", character):
            return ""
        if character in SPACES:
            return " "
        text = f" {character} " if self.split_ideographs and IDEOGRAPH.match(character) else character
        if self.strip_accents:
            text = regex.sub(r"\p{Mn}", "", unicodedata.normalize("NFD", text))
        return text.lower() if self.lowercase else text

    def words(self, chunk):
        return BERT_WORD.findall("".join(self.normalized[character] for character in chunk))

    def word_ids(self, word):
        """The longest token that begins the word, then the longest that continues it, and so on; [UNK] for
        the whole word where there is none, or where it has more than 100 characters."""
        if len(word) > 100:
            return [self.unk_id]
        ids, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self.longest_token), start, -1):
                i = self.ids.get("##" + word[start:end] if start else word[:end])
                if i is not None:
                    break
            else:
                return [self.unk_id]
            ids.append(i)
            start = end
        return ids

    def decode(self, ids):
        """ids -> str: words with a space between them, except before . , ? and ! as in transformers."""
        return re.sub(" (##|(?=[.,?!]))", "", " ".join(self.tokens[i] for i in ids))

    def files(self):
        return {"vocab.txt": "".join(token + "\n" for token in self.tokens), "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer", "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents, "tokenize_chinese_chars": self.split_ideographs}}

    @classmethod
    def from_files(cls, path, config, content):
        """Reads tokenizer.json, or else vocab.txt. config, content: see read_tokenizer."""
        if content is None:
            lines = read_text(os.path.join(path, "vocab.txt")).removesuffix("\n").split("\n")
            tokens = [line.rstrip(SPACES) for line in lines]
        else:
            model, normalizer = content["model"], content["normalizer"]
            foreign = (normalizer.get("type") != "BertNormalizer"
                       or content["pre_tokenizer"].get("type") != "BertPreTokenizer"
                       or model.get("continuing_subword_prefix") != "##")
            if config is None:
                config = {"do_lower_case": normalizer.get("lowercase", True),
                          "strip_accents": normalizer.get("strip_accents"),
                          "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True)}
                foreign |= (normalizer.get("clean_text") is False or model.get("unk_token") != "[UNK]"
                            or model.get("max_input_chars_per_word") != 100)
            if foreign:
                raise ValueError("tokenizer.json is of a WordPiece that is not BERT's")
            tokens = tokens_by_id(model["vocab"])
        return cls(tokens, config.get("do_lower_case", True), config.get("strip_accents"),
                   config.get("tokenize_chinese_chars", True))

    @classmethod
    def train(cls, texts, vocab_size, lowercase=True):
        """texts: iterable of str. Merges as in BPE, of characters that have ## before them unless they begin
        the word: Hugging Face's way, for Google's was not published. Only the 1,000 most frequent characters
        are used. ValueError if they do not fit vocab_size."""
        specials = list(cls.ROLES.values())
        counts = count_parts(count_matches(cls.chunk_pattern, texts), cls(specials, lowercase).words)
        common = {character for character, _ in count_characters(counts)[:1000]}
        words = [["##" * (i > 0) + character for i, character in enumerate(word) if character in common]
                 for word in counts]
        symbols = sorted(common) + sorted({symbol for word in words for symbol in word} - common)
        smallest = len(specials) + len(symbols)
        if vocab_size < smallest:
            raise ValueError(f"vocab_size {vocab_size} has no room for {smallest} specials and characters")
        merges = learn_merges(words, list(counts.values()), symbols, vocab_size - smallest, prefix=2)
        return cls(specials + symbols + [left + right[2:] for left, right in merges], lowercase)

# -----------------------------------------------------------------------------
# Unigram

ALBERT_WORD = regex.compile(r"▁?[^\s▁]+|▁")  # no token has a ▁ inside, so that divides words, too
# What a trained token may lie in: letters, digits or other characters, with the ▁ before them
RUN = regex.compile(r"▁?(?:[\p{L}\p{M}]+|\p{N}+|[^\p{L}\p{M}\p{N}▁]+)|▁")


class Unigram(ChunkTokenizer):
    """Words begin with ▁, are divided by white space, and cut into the tokens of the highest total score."""

    ROLES = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}

    def __init__(self, tokens, scores, lowercase=True, keep_accents=False, charsmap=b"", symbols=()):
        """scores: log probabilities of the tokens. charsmap: SentencePiece's compiled table of character
        replacements. symbols: tokens that divide the text before anything else is done to it."""
        super().__init__(tokens, self.ROLES, symbols)
        if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
            raise ValueError("the score of a token is not a finite number")
        if self.unk_id != 1:
            raise ValueError(f"<unk> has id {self.unk_id}; ALBERT's has 1, and transformers knows no other")
        self.scores, self.lowercase, self.keep_accents = list(scores), lowercase, keep_accents
        self.charsmap, self.symbols = charsmap, sorted(symbols, key=len, reverse=True)
        charsmap_hash = hashlib.sha256(charsmap).hexdigest()
        self.settings = [self.scores, lowercase, keep_accents, charsmap_hash, self.symbols]
        if charsmap:
            self.replacement = Cache(Charsmap(charsmap).replacement)
            self.unreplaced = {c for c in map(chr, range(128)) if self.replacement[c] is None}
        self.chunk_pattern = re.compile(r"[^ \t\n\r]+")
        if symbols:  # they divide words as white space does, whatever is next to them
            symbol = "|".join(map(re.escape, self.symbols))
            self.chunk_pattern = re.compile(rf"{symbol}|(?:(?!{symbol})[^ \t\n\r])+")
        self.entries = {token: (score, i) for i, (token, score) in enumerate(zip(tokens, scores))
                        if i not in self.special_ids}  # plain text never becomes a special token
        self.unk_score = min(scores) - 10  # SentencePiece's penalty
        self.starts_word = np.array([token.startswith("▁") for token in tokens])

    def normalize_character(self, character):
        if not self.keep_accents:
            character = regex.sub(r"\p{M}", "", unicodedata.normalize("NFKD", character))
        return character.lower() if self.lowercase else character

    def normalize(self, chunk):
        text = chunk.replace("``", '"').replace("''", '"')  # as in ALBERT's training data
        text = "".join(self.normalized[character] for character in text)
        if not self.charsmap or self.unreplaced.issuperset(text):
            return text
        parts = []
        for grapheme in regex.findall(r"\X", text):  # such as a letter with its accents
            # transformers replaces a short grapheme as a whole if it can, others by character
            whole = len(grapheme.encode()) < 6 and self.replacement[grapheme] is not None
            for part in [grapheme] if whole else grapheme:
                new = self.replacement[part]
                parts.append(part if new is None else new)
        return "".join(parts)

    def words(self, chunk):
        words = ALBERT_WORD.findall(self.normalize(chunk))
        return [word if word[0] == "▁" else "▁" + word for word in words]

    def word_ids(self, word):
        """The cut with the highest total score (Viterbi). Neighbouring unknown characters are one <unk>."""
        totals, last = [0.0], [None]  # of the best cut of word[:end], for each end: last is (id, start)
        for end in range(1, len(word) + 1):
            total = -np.inf
            for start in range(max(0, end - self.longest_token), end):
                entry = self.entries.get(word[start:end])
                if entry and totals[start] + entry[0] > total:
                    total, piece = totals[start] + entry[0], (entry[1], start)
            # a character that is no token by itself may be <unk>
            if word[end - 1] not in self.entries and totals[end - 1] + self.unk_score > total:
                total, piece = totals[end - 1] + self.unk_score, (self.unk_id, end - 1)
            totals.append(total)
            last.append(piece)
        ids, end = [], len(word)
        while end:
            i, end = last[end]
            if not (ids and i == ids[-1] == self.unk_id):
                ids.append(i)
        return ids[::-1]

    def decode(self, ids):
        """ids -> str. What normalization removed, such as case and accents, does not come back."""
        return "".join(self.tokens[i] for i in ids).replace("▁", " ").removeprefix(" ")

    def files(self):
        """tokenizer.json, which transformers reads without the library sentencepiece."""
        added = [{"id": self.ids[token], "content": token, "single_word": False, "lstrip": token == "[MASK]",
                  "rstrip": False, "normalized": False, "special": token not in self.symbols}
                 for token in [*self.special_tokens.values(), *self.symbols]]
        steps = [{"type": "Replace", "pattern": {"String": quote}, "content": '"'} for quote in ("``", "''")]
        if not self.keep_accents:
            steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
        if self.lowercase:
            steps.append({"type": "Lowercase"})
        if self.charsmap:
            charsmap = base64.b64encode(self.charsmap).decode()
            steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        frame = {"type": "BertProcessing", "cls": ["[CLS]", self.cls_id], "sep": ["[SEP]", self.sep_id]}
        return {"tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": sorted(added, key=lambda token: token["id"]),
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
            "post_processor": frame, "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": self.unk_id, "vocab": list(zip(self.tokens, self.scores)),
                      "byte_fallback": False}
        }, "tokenizer_config.json": {
            "tokenizer_class": "AlbertTokenizer", "do_lower_case": self.lowercase,
            "keep_accents": self.keep_accents,
            # transformers 5 leaves ALBERT's token types out of a pair unless they are asked for
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}}

    @classmethod
    def from_files(cls, path, config, content):
        """Reads tokenizer.json, or else spiece.model. Of those published for ALBERT only the second has
        symbols, and the first scores digits with a comma lower. config, content: see read_tokenizer."""
        if content is None:
            with open(os.path.join(path, "spiece.model"), "rb") as f:
                tokens, scores, charsmap, symbols = read_sentencepiece(f.read())
        else:
            steps, pre_tokenizer = content["normalizer"]["normalizers"], json.dumps(content["pre_tokenizer"])
            types = [step["type"] for step in steps]
            foreign = "WhitespaceSplit" not in pre_tokenizer or types.count("Replace") < 2
            if config is None:
                names = "/".join("".join(step.get("pattern", {}).values()) or step["type"] for step in steps)
                published = r"``/''(/NFKD/StripAccents)?(/Lowercase)?(/Precompiled)?(/ \{2,\})?"
                foreign |= (not re.fullmatch(published, names)
                            # Metaspace's prepend_scheme
                            or '"first"' in pre_tokenizer or '"never"' in pre_tokenizer)
            if foreign:
                raise ValueError("tokenizer.json is of a unigram model that is not ALBERT's")
            tokens = [token for token, _ in content["model"]["vocab"]]
            scores = [score for _, score in content["model"]["vocab"]]
            charsmap = b"".join(base64.b64decode(step["precompiled_charsmap"], validate=True)
                                for step in steps if step["type"] == "Precompiled")
            symbols = [token["content"] for token in content["added_tokens"] if token["special"] is False]
            config = {"do_lower_case": "Lowercase" in types, "keep_accents": "StripAccents" not in types
                      } | (config or {})
        if config.get("add_prefix_space") is False:
            raise ValueError("add_prefix_space is false; here every word begins with ▁, as ALBERT's do")
        return cls(tokens, scores, config.get("do_lower_case", True), config.get("keep_accents", False),
                   charsmap, symbols)

    @classmethod
    def train(cls, texts, vocab_size):
        """texts: iterable of str; trained lowercase and without accents, as ALBERT. The rarest characters,
        together up to 0.05 % of the text, become <unk>. ValueError if the others do not fit vocab_size."""
        specials = list(cls.ROLES.values())
        untrained = cls(specials, [0.0] * len(specials))
        words = count_parts(count_matches(untrained.chunk_pattern, texts), untrained.words)
        if not words:
            return untrained
        runs = count_parts(words, RUN.findall)
        characters, counts = zip(*count_characters(runs))
        rest = np.cumsum(counts[::-1])[::-1]  # how often the character or a rarer one occurs
        covered = "".join(c for c, count in zip(characters, rest) if count > 0.0005 * rest[0])
        smallest = len(specials) + len(covered)
        if vocab_size < smallest:
            raise ValueError(f"vocab_size {vocab_size} has no room for {smallest} specials and characters")
        # cut at rare characters, and where they are so long that their probabilities would underflow
        runs = count_parts(runs, re.compile(f"[{re.escape(covered)}]{{1,32}}").findall)
        words = dict(runs.most_common(300_000))
        lost = set(covered).difference(*words)  # characters of rarer words only
        words |= {c: count for c, count in zip(characters, counts) if c in lost}
        pieces, scores = learn_pieces(words, vocab_size - len(specials))
        return cls(specials + pieces, [0.0] * len(specials) + scores)


class Charsmap:
    """SentencePiece's table of character replacements: the size of a trie; the trie; the replacements, each
    with a zero byte after it. The trie has UTF-8 keys and is a double array (Aoe 1989), as Darts-clone writes
    it: a unit of 32 bits for each node. The child for a byte is at the node's place ^ its offset ^ the byte.
    """

    def __init__(self, data):
        size = int.from_bytes(data[:4], "little")
        self.units, self.strings = np.frombuffer(data, "<u4", size // 4, 4).tolist(), data[4 + size:]

    def replacement(self, text):
        """The replacement of the shortest key that text begins with, or None."""
        place, unit = 0, self.units[0]
        for byte in text.encode() + b"\0":
            offset = unit >> 10 << (unit >> 6 & 8)  # bits 10 and up, times 256 if bit 9 is set
            if unit & 256:  # bit 8: a key ends here, and its value is the child for byte 0
                start = self.units[place ^ offset] & 0x7FFFFFFF
                return self.strings[start:self.strings.index(b"\0", start)].decode()
            place ^= offset ^ byte
            unit = self.units[place] if place < len(self.units) else 0
            if byte == 0 or unit & 0x800000FF != byte:  # bits 0 to 7: the node's byte; bit 31: a value
                return None


def read_sentencepiece(data):
    """The bytes of spiece.model, a ModelProto of sentencepiece_model.proto -> tokens, scores, charsmap and
    symbols of a Unigram. For its errors see load."""
    tokens, scores, symbols, specs = [], [], [], {}
    for number, value in protobuf_fields(data):
        if number == 1:  # one of the pieces, which has a piece (1), score (2) and type (3)
            piece = {1: b"", 2: bytes(4), 3: 1} | dict(protobuf_fields(value))
            tokens.append(piece[1].decode())
            scores += struct.unpack("<f", piece[2])
            if piece[3] == 4:  # USER_DEFINED
                symbols.append(tokens[-1])
        elif number in (2, 3):
            specs[number] = dict(protobuf_fields(value))
    if len(specs) < 2:
        raise ValueError("spiece.model is cut short")
    if specs[2].get(3, 1) != 1:  # the model_type of trainer_spec
        raise ValueError("spiece.model is not of a unigram model")
    return tokens, scores, specs[3].get(2, b""), symbols  # the precompiled_charsmap of normalizer_spec


def protobuf_fields(data):
    """The bytes of a protocol buffer -> yields the (number, value) of each field; values are int or bytes."""
    position = 0
    while position < len(data):
        key, position = varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, len(data))  # types not in use: too large, so an error
            if wire_type == 2:
                size, position = varint(data, position)
            value, position = data[position:position + size], position + size
            if position > len(data):
                raise ValueError("spiece.model is cut short, or not a SentencePiece model")
        yield number, value


def varint(data, position):
    """-> the integer at that position, 7 bits a byte and the lowest first; and the position after it."""
    value = shift = 0
    while data[position] >= 128:  # its last byte is less
        value |= (data[position] & 127) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1

# Training of a unigram model (Kudo 2018, section 3.2): begin with many pieces; by turns estimate their
# probabilities (EM) and drop those that the text needs least. Each step is done in arrays, for all words at
# once: Python's loops would take hours.

def learn_pieces(words, number, longest=16):
    """{word: count} -> at most `number` pieces, all characters among them, and their log probabilities."""
    text = "".join(word + "\0" for word in words)
    lengths = np.array([len(word) for word in words])
    counts = np.array(list(words.values()), float)
    # weight and score are (pieces,), of which the single characters come first and are never dropped
    lattice, weight, characters = seed_lattice(text, lengths, counts, longest, 12 * number)
    while True:
        for _ in range(2):  # EM; pieces that are expected less than half a time are dropped
            weight = lattice.expected_counts(weight / weight.sum(), counts)
            keep = weight >= 0.5
            keep[:characters] = True
            lattice, weight = lattice.only(keep), np.maximum(weight[keep], 0.5)
        score = np.log(weight / weight.sum())
        if len(score) <= 1.1 * number:
            break
        # The loss without a piece: its uses in the best cuts of the words, times how much its score is above
        # that of the best cut of the piece itself into others.
        word, piece = lattice.best_cuts(score)
        uses = np.bincount(piece, counts[word], len(score))
        start, end = lattice.occurrences()
        whole, part = lattice.substrings(start[characters:], end[characters:]).best_cuts(score)
        replacement_score = np.bincount(characters + whole, score[part], len(score))
        loss = uses * (score - replacement_score)
        keep = largest(loss, max(int(1.1 * number), int(0.75 * len(score))), characters)
        lattice, weight = lattice.only(keep), weight[keep]
    best = np.flatnonzero(largest(weight, number, characters))
    best = best[np.argsort(-score[best], kind="stable")]
    start, end = lattice.occurrences()
    return [text[start[i]:end[i]] for i in best], score[best].tolist()


def seed_lattice(text, lengths, counts, longest, seeds):
    """The pieces to begin with: all characters, and the substrings that cover most of the text.

    text: the words, with one more character after each; lengths, counts: (words,) -> the Lattice of the
    words; (pieces,) how many characters each piece covers; how many pieces are single characters.
    """
    alphabet, character = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    rest = np.repeat(np.cumsum(lengths + 1) - 1, lengths + 1) - np.arange(len(text))  # characters to word end
    weight = np.repeat(counts, lengths + 1)
    # Substrings of n characters come from those of n - 1 that occur more than once, at first the empty one.
    # `position` is where they are, `substring` the number of each, frequency[substring] how often it occurs.
    position = np.flatnonzero(rest)
    substring, frequency = np.zeros(len(position), int), np.array([2.0])
    arcs, covers, pieces = [], [], 0
    for n in range(1, longest + 1):
        longer = (rest[position] >= n) & (frequency[substring] > 1)
        position, substring = position[longer], substring[longer]
        key = substring * len(alphabet) + character[position + n - 1]
        _, substring = np.unique(key, return_inverse=True)
        frequency = np.bincount(substring, weight[position])
        arcs.append(np.stack([position, position + n, pieces + substring]))
        covers.append(n * frequency * (frequency > 1))
        pieces += len(frequency)
    characters = len(covers[0])
    (start, end, piece), cover = np.concatenate(arcs, axis=1), np.concatenate(covers)
    keep = largest(cover, seeds, characters)
    kept, new_number = keep[piece], np.cumsum(keep) - 1
    lattice = Lattice(start[kept], end[kept], new_number[piece[kept]], lengths)
    return lattice, np.maximum(cover[keep], 0.5), characters


def largest(values, number, characters):
    """(pieces,) -> (pieces,) bool: the single characters, and those others with the largest values above 0,
    `number` in all; of equal ones, the first."""
    values = np.where(np.arange(len(values)) < characters, np.inf, values)
    mask = np.zeros(len(values), bool)
    mask[np.argsort(-values, kind="stable")[:number]] = True
    return mask & (values > 0)


class Lattice:
    """All ways to cut each of many words into pieces, as one graph in arrays.

    Its nodes are the places between characters, numbered through all words: word w, of lengths[w] characters,
    has the nodes from first[w], before its first character, to last[w], after its last. Arc k says that
    piece[k] covers the characters from node start[k] to end[k]; so a path from first[w] to last[w] is a cut.

    Arcs are sorted by depth: how far their end is from the first node of their word. An arc starts where arcs
    of lower depth end. So dynamic programming needs no loop over words: it does all arcs of a depth, a slice
    in `levels`, in one call, and goes on to the next depth.
    """

    def __init__(self, start, end, piece, lengths):
        """start, end, piece: (arcs,), in any order; lengths: (words,)."""
        self.lengths, self.last = lengths, np.cumsum(lengths + 1) - 1
        self.first = self.last - lengths
        depth = end - np.repeat(self.first, lengths + 1)[end]
        order = np.argsort(depth.astype(np.int16), kind="stable")  # NumPy has a radix sort for 16 bits
        self.start, self.end, self.piece = start[order], end[order], piece[order]
        bounds = np.cumsum(np.bincount(depth))
        self.levels = [slice(low, high) for low, high in zip(bounds, bounds[1:])]

    def only(self, keep):
        """-> the Lattice of the pieces in keep, (pieces,) bool, which are numbered anew."""
        kept, new_number = keep[self.piece], np.cumsum(keep) - 1
        return Lattice(self.start[kept], self.end[kept], new_number[self.piece[kept]], self.lengths)

    def expected_counts(self, probability, counts):
        """How often each piece is expected in the words, over all ways to cut them (forward-backward).
        probability: (pieces,); counts: how often each word occurs, (words,). -> (pieces,)"""
        p = probability[self.piece]
        forward, backward = np.zeros((2, self.last[-1] + 1))  # by node: sums over the paths to and from it
        forward[self.first] = 1
        for level in self.levels:
            np.add.at(forward, self.end[level], forward[self.start[level]] * p[level])
        backward[self.last] = counts / forward[self.last]  # forward[last] is the probability of the word
        for level in reversed(self.levels):
            np.add.at(backward, self.start[level], backward[self.end[level]] * p[level])
        return np.bincount(self.piece, forward[self.start] * p * backward[self.end], len(probability))

    def best_cuts(self, score):
        """The cut of each word with the highest sum of scores (Viterbi). score: (pieces,) -> word, piece: an
        entry for each piece of each cut."""
        arc_score = score[self.piece]
        total = np.full(self.last[-1] + 1, -np.inf)  # by node: of the best path to it
        total[self.first] = 0
        for level in self.levels:
            np.maximum.at(total, self.end[level], total[self.start[level]] + arc_score[level])
        best = np.flatnonzero(total[self.start] + arc_score == total[self.end])
        last_arc = np.zeros(len(total), int)  # by node: the last arc of that path
        last_arc[self.end[best]] = best
        words, pieces = [], []
        word, node = np.arange(len(self.last)), self.last  # all words in step, from their last nodes back
        while len(word):
            arc = last_arc[node]
            words.append(word)
            pieces.append(self.piece[arc])
            unfinished = self.start[arc] > self.first[word]
            word, node = word[unfinished], self.start[arc][unfinished]
        return np.concatenate(words), np.concatenate(pieces)

    def occurrences(self):
        """-> start, end, (pieces,): the nodes of one arc of each piece."""
        start, end = np.zeros((2, self.piece.max() + 1), int)
        start[self.piece], end[self.piece] = self.start, self.end
        return start, end

    def substrings(self, start, end):
        """-> the Lattice of the strings from node start[i] to end[i], without the arcs over a whole one."""
        by_start = np.argsort(self.start, kind="stable")
        bounds = np.searchsorted(self.start[by_start], np.arange(self.last[-1] + 2))
        # the arcs that start within string i are by_start[bounds[start[i]]:bounds[end[i]]]
        size = bounds[end] - bounds[start]
        word = np.repeat(np.arange(len(start)), size)
        arc = by_start[np.arange(size.sum()) + np.repeat(bounds[end] - np.cumsum(size), size)]
        lengths = end - start
        inside = (self.end[arc] <= end[word]) & (self.end[arc] - self.start[arc] < lengths[word])
        word, arc = word[inside], arc[inside]
        shift = (np.cumsum(lengths + 1) - 1 - end)[word]  # from nodes here to nodes there
        return Lattice(self.start[arc] + shift, self.end[arc] + shift, self.piece[arc], lengths)

# -----------------------------------------------------------------------------
# Any kind

KINDS = {"bpe": ByteLevelBPE, "wordpiece": WordPiece, "unigram": Unigram}


def train(kind, texts, vocab_size):
    """A tokenizer of one of KINDS, trained on an iterable of str. ValueError if vocab_size is too small."""
    return KINDS[kind].train(texts, vocab_size)


def load(path_or_name):
    """The tokenizer in a directory or of a name on the hub. FileNotFoundError if there is none, ValueError if
    its files are damaged or of a tokenizer that is not one of KINDS."""
    path = local_directory(path_or_name)
    try:
        return read_tokenizer(path)
    except (OSError, MemoryError):  # these say themselves what is wrong
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(os.path.join(path, ''))}") from error
    except Exception as error:  # damage makes the readers raise errors of every kind
        raise ValueError(f"{path}: damaged, or of another kind ({type(error).__name__}: {error})") from error


def read_tokenizer(path):
    """The tokenizer in a directory, as transformers reads it: the vocabulary from tokenizer.json, or if there
    is none, from the older files; the settings from tokenizer_config.json, or if that names a generic class,
    from tokenizer.json. One difference: a mask that no file describes includes the spaces before it, as the
    published one does; in transformers 5 it does not. from_files gets the path and both contents: config is
    None if the class is generic, content is None where there is no tokenizer.json."""
    config = read_json(os.path.join(path, "tokenizer_config.json"), {})
    model_config = read_json(os.path.join(path, "config.json"), {})  # some name the class only there
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class") or "BertTokenizer"
    generic = name in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if not generic and not re.fullmatch("((Distil)?Bert|Electra|Roberta|GPT2|Albert)Tokenizer(Fast)?", name):
        raise ValueError(f"tokenizer_class: a {name} is not BERT's, RoBERTa's or ALBERT's tokenizer")
    file = os.path.join(path, "tokenizer.json")
    content = read_json(file) if generic or os.path.exists(file) else None
    tokenizer = published_class(path, content).from_files(path, None if generic else config, content)
    if generic and "cls" in tokenizer.special_tokens:
        check_frame(content["post_processor"] or {}, tokenizer)
    described = described_tokens(path, config, content or {})
    known = {*tokenizer.special_tokens.values(), *tokenizer.symbols}
    if unknown := {token["content"] for token in described} - known:
        raise ValueError(f"the token {min(unknown)!r} is special, and texts would have to be cut at it; that "
                         "is not done here")
    if odd := [token["content"] for token in described if token.get("single_word")
               or token.get("rstrip") and isinstance(tokenizer, ByteLevelBPE)
               or token.get("normalized") and getattr(tokenizer, "lowercase", False)]:
        raise ValueError(f"the token {odd[0]!r} is single_word, rstrip or normalized; that is not done here")
    mask = tokenizer.special_tokens.get("mask")
    tokenizer.mask_lstrip = all(token.get("lstrip", True) for token in described if token["content"] == mask)
    tokenizer.max_length = config.get("model_max_length")
    return tokenizer


def published_class(path, content):
    """The class whose published files are in the directory. content: see read_tokenizer."""
    if content is None:
        for name, tokenizer_class in (("vocab.txt", WordPiece), ("spiece.model", Unigram),
                                      ("merges.txt", ByteLevelBPE), ("vocab.bpe", ByteLevelBPE)):
            if os.path.exists(os.path.join(path, name)):
                return tokenizer_class
        raise FileNotFoundError(f"{path} has no tokenizer: vocab.txt, spiece.model, vocab.json with "
                                "merges.txt, encoder.json with vocab.bpe, or tokenizer.json")
    model = content["model"]
    if "merges" in model:
        return ByteLevelBPE
    if isinstance(model["vocab"], list):
        return Unigram
    if "continuing_subword_prefix" in model:
        return WordPiece
    raise ValueError(f"tokenizer.json is of a {model.get('type')}, not of a BPE, WordPiece or Unigram")


def described_tokens(path, config, content):
    """The tokens that the files describe, which are cut out of a text before anything else: dicts with
    "content" and perhaps "lstrip", "rstrip", "single_word" and "normalized"."""
    named = read_json(os.path.join(path, "special_tokens_map.json"), {}) | config
    extra = named.get("extra_special_tokens") or []
    described = [*named.get("added_tokens_decoder", {}).values(),
                 *(named.get("additional_special_tokens") or []),
                 *(extra.values() if isinstance(extra, dict) else extra),
                 *(token for name, token in named.items() if name.endswith("_token")),  # mask_token, ...
                 *content.get("added_tokens", []),
                 *read_json(os.path.join(path, "added_tokens.json"), {})]
    return [{"content": token} if isinstance(token, str) else token for token in described
            if isinstance(token, (str, dict))]  # add_bos_token is a bool


def check_frame(post_processor, tokenizer):
    """ValueError for a post_processor of tokenizer.json that does not put [CLS] and [SEP] around a text, and
    one [SEP] between two, of a BPE </s></s>."""
    cls, sep = tokenizer.special_tokens["cls"], tokenizer.special_tokens.get("sep")
    between = [sep] * (2 if isinstance(tokenizer, ByteLevelBPE) else 1)
    if "single" in post_processor:  # lists of steps; one without a special token is a text
        one, two = ([step.get("SpecialToken", {}).get("id") for step in post_processor[name]]
                    for name in ("single", "pair"))
    else:
        first, last = (post_processor.get(name, [None])[0] for name in ("cls", "sep"))
        middle = [last] * (2 if post_processor.get("type") == "RobertaProcessing" else 1)
        one, two = [first, None, last], [first, None, *middle, None, last]
    if one != [cls, None, sep]:
        raise ValueError(f"tokenizer.json does not put {cls} before a text and {sep} after it")
    if two != [cls, None, *between, None, sep]:
        raise ValueError(f"tokenizer.json does not put {''.join(between)} between two texts")


def local_directory(path_or_name):
    """A directory is itself; a name on the hub is downloaded, once. FileNotFoundError for anything else."""
    if os.path.isdir(path_or_name):
        return path_or_name
    try:
        from huggingface_hub import snapshot_download
        return snapshot_download(str(path_or_name), allow_patterns=["*.json", "*.txt", "*.model", "*.bpe"])
    except Exception as error:  # no network, no such name, no access, a proxy: errors of every kind
        raise FileNotFoundError(f"{path_or_name}: no such directory here, and the hub did not give it: "
                                f"{(str(error) or type(error).__name__).splitlines()[0]}") from error


def read_text(path, parse=str):
    """The content of a UTF-8 file, parsed. ValueError that names the file if it is damaged."""
    try:
        with open(path, encoding="utf-8", newline="\n") as f:  # a \r may be a token
            return parse(f.read())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError, too deep a nesting
        raise ValueError(f"{path} is damaged: {error}") from error


def read_json(path, default=None):
    """The object in a JSON file; a list if the default is one. Where there is no such file, the default, if
    one is given."""
    if default is not None and not os.path.exists(path):
        return default
    content = read_text(path, json.loads)
    if not isinstance(content, list if isinstance(default, list) else dict):
        raise ValueError(f"{path} holds no {'list' if default == [] else 'object'}")
    return content


def tokens_by_id(vocabulary):
    """{token: id} -> [token of id 0, token of id 1, ...]. ValueError if the ids are not 0, 1, 2 and so on."""
    if set(vocabulary.values()) != set(range(len(vocabulary))):
        raise ValueError("the ids of the vocabulary are not 0, 1, 2 and so on: one is missing or there twice")
    return sorted(vocabulary, key=vocabulary.get)
