"""
Tokenizers: text to ids and back. Trained here or read from the published files; saved as those files.

    tokenizer = load("out/roberta")            # a directory, or a name on the Hugging Face hub
    tokenizer = train("bpe", texts, 8192)      # on any iterable of strings
    tokenizer.encode("Hello world!")           # plain text; no special tokens are added
    tokenizer.encode("It is <mask>.", specials=True)

ByteLevelBPE is GPT-2's (Radford et al. 2019, section 2.2) and RoBERTa's. Every string can be encoded and
decode(encode(text)) == text: its smallest tokens are the 256 bytes. tiktoken applies the merges.
"""

import hashlib
import heapq
import json
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np


class Tokenizer:
    """The interface that the kinds share; each adds _encode, decode, save, from_directory and train.

    tokens[id] is a token as the published files spell it; vocab_size = len(tokens). pad_id, unk_id, cls_id,
    sep_id and mask_id are None where the vocabulary has no such token. starts_word[id] tells whether a token
    begins a word, for whole-word masking.
    """

    def __init__(self, tokens, special_tokens):
        """special_tokens: {"pad": "<pad>", ...}, of which those in the vocabulary count."""
        self.tokens, self.vocab_size = tokens, len(tokens)
        self.ids = {token: i for i, token in enumerate(tokens)}
        if len(self.ids) != len(tokens):
            raise ValueError(f"the vocabulary has {len(tokens) - len(self.ids)} tokens twice")
        self.special_tokens = {role: token for role, token in special_tokens.items() if token in self.ids}
        for role in ("pad", "unk", "cls", "sep", "mask"):
            setattr(self, role + "_id", self.ids.get(self.special_tokens.get(role)))
        self.special_ids = sorted(self.ids[token] for token in self.special_tokens.values())
        alternatives = sorted(map(re.escape, self.special_tokens.values()), key=len, reverse=True)
        self.special_pattern = re.compile("(" + "|".join(alternatives) + ")") if alternatives else None

    def encode(self, text, specials=False):
        """str -> list of ids. With specials, special tokens written in the text become their ids, as in
        transformers; without, they are text like any other, so that a corpus cannot smuggle in a mask."""
        text = without_surrogates(text)
        if not specials or not self.special_pattern:
            return self._encode(text).tolist()
        ids, mask = [], self.special_tokens.get("mask")
        pieces = self.special_pattern.split(text)  # text, special, text, special, ..., text
        for i, piece in enumerate(pieces):
            if i % 2:
                ids.append(self.ids[piece])
            elif piece:
                before_mask = i + 1 < len(pieces) and pieces[i + 1] == mask
                ids += self._encode(piece.rstrip() if before_mask and self.mask_eats_space else piece).tolist()
        return ids

    mask_eats_space = True  # the published <mask> includes the space before it

    def encode_batch(self, texts):
        """Sequence of str -> list of id arrays, on all cores; plain text only."""
        texts = list(map(without_surrogates, texts))
        size = max(1, len(texts) // (4 * (os.cpu_count() or 1)) + 1)
        chunks = [texts[i:i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [ids for chunk in pool.map(lambda chunk: list(map(self._encode, chunk)), chunks) for ids in chunk]

    def hash(self):
        """Names the vocabulary and its order; two tokenizers with one hash give the same ids."""
        return hashlib.sha256(repr(self.content()).encode()).hexdigest()[:16]

    def content(self):
        """All that decides the ids."""
        return type(self).__name__, self.tokens


def without_surrogates(text):
    """Lone surrogates, which no UTF-8 text has, become U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

# -----------------------------------------------------------------------------
# Byte-level BPE

# GPT-2's split into words, none of which a merge may cross; possessive where that changes only the speed
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# The published files spell a byte as a printable character: itself, or for the other 68 one from U+0100 on.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = PRINTABLE + [b for b in range(256) if b not in PRINTABLE]  # in the order of GPT-2's ids
SPELLING = {b: chr(b) if i < len(PRINTABLE) else chr(256 + i - len(PRINTABLE)) for i, b in enumerate(BYTES)}
BYTE_OF = {character: b for b, character in SPELLING.items()}


class ByteLevelBPE(Tokenizer):
    def __init__(self, tokens, merges):
        """tokens: all, by id. merges: the learned tokens, as bytes, in the order they were learned."""
        super().__init__(tokens, {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>",
                                  "end": "<|endoftext|>"})
        import tiktoken
        ranked = [bytes([b]) for b in BYTES] + merges
        self.merges = merges
        self.encoding = tiktoken.Encoding("bpe", pat_str=WORDS, special_tokens={},
                                          mergeable_ranks={token: rank for rank, token in enumerate(ranked)})
        try:  # tiktoken speaks in ranks; RoBERTa's ids, for one, are a permutation of GPT-2's ranks
            self.id_of_rank = np.array([self.ids[spell(token)] for token in ranked])
        except KeyError as error:
            raise ValueError(f"the merges make {error}, which is not in the vocabulary") from error
        self.bytes_of_id = [token.encode() if token in self.special_tokens.values() else unspell(token)
                            for token in tokens]
        self.starts_word = np.array([token.startswith(b" ") for token in self.bytes_of_id])

    def content(self):
        return *super().content(), self.merges

    def _encode(self, text):
        return self.id_of_rank[self.encoding.encode_to_numpy(text, disallowed_special=())]

    def decode(self, ids):
        return b"".join(self.bytes_of_id[i] for i in ids).decode("utf-8", "replace")

    def save(self, path):
        write_json(os.path.join(path, "vocab.json"), self.ids)
        with open(os.path.join(path, "merges.txt"), "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n")
            for left, right in self.merge_pairs():
                f.write(f"{spell(left)} {spell(right)}\n")
        mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False,
                "single_word": False, "special": True}
        write_json(os.path.join(path, "tokenizer_config.json"),
                   {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "mask_token": mask})

    def merge_pairs(self):
        """The two tokens that each merge joins: what the earlier merges leave of it."""
        rank = {bytes([b]): i for i, b in enumerate(BYTES)}
        for token in self.merges:
            parts = [bytes([b]) for b in token]
            while len(parts) > 2:
                best = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], len(rank)))
                parts[best:best + 2] = [parts[best] + parts[best + 1]]
            yield parts
            rank[token] = len(rank)

    @classmethod
    def from_directory(cls, path):
        """RoBERTa's vocab.json and merges.txt, or GPT-2's encoder.json and vocab.bpe."""
        names = ("vocab.json", "merges.txt")
        if not os.path.exists(os.path.join(path, names[0])):
            names = ("encoder.json", "vocab.bpe")
        vocabulary = read_json(os.path.join(path, names[0]))
        tokens = sorted(vocabulary, key=vocabulary.get)
        if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError(f"{path}/{names[0]}: the ids are not 0 to {len(tokens) - 1}")
        with open(os.path.join(path, names[1]), encoding="utf-8") as f:
            lines = f.read().split("\n")
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        try:
            return cls(tokens, [unspell("".join(pair)) for pair in merges])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: {names[0]} and {names[1]} do not fit together: {error}") from error

    @classmethod
    def train(cls, texts, vocab_size):
        """texts: iterable of str. vocab_size counts the bytes and RoBERTa's five special tokens."""
        if vocab_size < 256 + 5:
            raise ValueError(f"a vocabulary of {vocab_size} has no room for 256 bytes and 5 special tokens")
        import regex  # comes with tiktoken; the standard library's re has no \p{L}
        words, find = Counter(), regex.compile(WORDS).findall
        for text in texts:
            words.update(find(without_surrogates(text)))
        merges = learn_merges(words, vocab_size - 256 - 5)
        tokens = [spell(bytes([b])) for b in BYTES] + [spell(token) for token in merges]
        return cls(["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"], merges)


def learn_merges(words, number):
    """{word: count} -> the `number` most frequent merges, one after the other (Sennrich et al. 2016, algorithm 1).

    Counts are kept, not recounted: a merge changes the pairs of the words it occurs in and no others. Of two
    pairs with the same count the one with the smaller symbols wins. Pairs seen once are not merged.
    """
    order = {b: i for i, b in enumerate(BYTES)}
    symbols = [bytes([b]) for b in BYTES]
    counts = list(words.values())
    words = [[order[b] for b in word.encode()] for word in words]
    pairs, where = Counter(), defaultdict(set)  # {pair: count}, {pair: words that have it, or had it}
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += counts[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(symbols) < 256 + number:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:  # an old entry: the count has fallen since
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -count < 2:
            break
        new = len(symbols)
        symbols.append(symbols[pair[0]] + symbols[pair[1]])
        risen = set()
        for w in where.pop(pair):
            word = words[w]
            for old in zip(word, word[1:]):
                pairs[old] -= counts[w]
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i:i + 2] = [new]
                i += 1
            for fresh in zip(word, word[1:]):
                pairs[fresh] += counts[w]
                if new in fresh:
                    where[fresh].add(w)
                    risen.add(fresh)
        for fresh in risen:
            heapq.heappush(heap, (-pairs[fresh], fresh))
    return symbols[256:]


def spell(token):
    return "".join(SPELLING[b] for b in token)


def unspell(text):
    return bytes(BYTE_OF[character] for character in text)

# -----------------------------------------------------------------------------
# Any kind

KINDS = {"bpe": ByteLevelBPE}

def train(kind, texts, vocab_size):
    return KINDS[kind].train(texts, vocab_size)


def load(path_or_name):
    """The tokenizer in a directory or of a name on the hub. ValueError or OSError where there is none."""
    path = local_directory(path_or_name)
    present = set(os.listdir(path))
    if {"vocab.json", "merges.txt"} <= present or {"encoder.json", "vocab.bpe"} <= present:
        return ByteLevelBPE.from_directory(path)
    raise FileNotFoundError(f"{path} has no tokenizer: vocab.json with merges.txt, or encoder.json with vocab.bpe")


def local_directory(path_or_name):
    """A directory is itself; anything else is a name on the hub, downloaded once."""
    if os.path.isdir(path_or_name):
        return path_or_name
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_name):
        raise FileNotFoundError(f"{path_or_name}: no such directory")
    from huggingface_hub import snapshot_download
    patterns = ["*.json", "*.txt", "*.model", "*.bpe"]
    try:
        return snapshot_download(path_or_name, allow_patterns=patterns)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such name, no access
        raise FileNotFoundError(f"{path_or_name}: no such directory here, and the hub did not give it: "
                                f"{str(error).splitlines()[0]}") from error


def read_json(path):
    with open(path, encoding="utf-8") as f:
        try:
            return json.load(f)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=0)
        f.write("\n")
