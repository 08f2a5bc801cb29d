"""
Tokenizers: text to ids and back. Trained here or read from the published files; saved as files that
transformers.AutoTokenizer opens.

    tokenizer = load("out/roberta")            # a directory, or a name on the Hugging Face hub
    tokenizer = train("bpe", texts, 8192)      # on any iterable of strings
    tokenizer.encode("Hello world!")           # plain text; no special tokens are added
    tokenizer.encode("It is <mask>.", specials=True)

"bpe"        ByteLevelBPE, of GPT-2 (Radford et al. 2019, section 2.2) and RoBERTa. Its smallest tokens are
             the 256 bytes, so nothing is lost: decode(encode(text)) == text. tiktoken runs the merges.
"wordpiece"  WordPiece, of BERT (Devlin et al. 2018): longest match from the left, within words.
"unigram"    Unigram, of ALBERT (Lan et al. 2019): the most likely pieces of each word (Kudo 2018).
"""

import base64
import hashlib
import heapq
import json
import os
import re
import struct
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import regex  # comes with tiktoken; the standard library's re has no \p{L}

# White space as Unicode and Rust define it; Python's str.isspace() adds four control characters.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a" \
         "\u2028\u2029\u202f\u205f\u3000"


class Tokenizer:
    """The interface that the kinds share; each adds _encode, _spans, decode, save, _read, train and settings.

    tokens[id] is a token as the published files spell it; vocab_size = len(tokens). pad_id, unk_id, cls_id,
    sep_id and mask_id are None where the vocabulary has no such token. starts_word[id] tells whether a token
    begins a word, for whole-word masking.
    """

    mask_eats_space = False  # whether the mask, written in a text, includes the space before it

    def __init__(self, tokens, special_tokens):
        """special_tokens: {"pad": "<pad>", ...}, of which those in the vocabulary count."""
        self.tokens, self.vocab_size = tokens, len(tokens)
        self.ids = {token: i for i, token in enumerate(tokens)}
        if not tokens:
            raise ValueError("the vocabulary is empty")
        if len(self.ids) != len(tokens):
            (twice, _), = Counter(tokens).most_common(1)
            raise ValueError(f"the vocabulary has {twice!r} more than once")
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
                piece = piece.rstrip(SPACES) if before_mask and self.mask_eats_space else piece
                ids += self._encode(piece).tolist()
        return ids

    def encode_batch(self, texts):
        """Sequence of str -> list of id arrays (int32); plain text only."""
        return [self._encode(without_surrogates(text)) for text in texts]

    def encode_with_offsets(self, text):
        """str -> ids, and for each the (start, end) of the characters it stands for; plain text only."""
        spans = list(self._spans(without_surrogates(text)))
        return [i for i, _, _ in spans], [(start, end) for _, start, end in spans]

    def hash(self):
        """Names everything that decides about ids; two tokenizers with one hash give the same ids."""
        everything = json.dumps([type(self).__name__, self.tokens, self.settings()])
        return hashlib.sha256(everything.encode()).hexdigest()[:16]

    @classmethod
    def from_directory(cls, path):
        """Reads the published files. ValueError in one line where they are damaged."""
        with naming(path):
            return cls._read(path)


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
    mask_eats_space = True

    def __init__(self, tokens, merges):
        """tokens: all, by id. merges: the learned tokens, as bytes, in the order they were learned."""
        roberta = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        super().__init__(tokens, roberta if "<s>" in tokens else {"end": "<|endoftext|>"})
        import tiktoken
        ranked = [bytes([b]) for b in BYTES] + merges
        self.merges = merges
        self.encoding = tiktoken.Encoding("bpe", pat_str=WORDS, special_tokens={},
                                          mergeable_ranks={token: rank for rank, token in enumerate(ranked)})
        try:  # tiktoken speaks in ranks; RoBERTa's ids, for one, are a permutation of GPT-2's ranks
            self.id_of_rank = np.array([self.ids[spell(token)] for token in ranked], np.int32)
        except KeyError as error:
            raise ValueError(f"the merges make {error}, which is not in the vocabulary") from error
        self.bytes_of_id = [token.encode() if token in self.special_tokens.values() else unspell(token)
                            for token in tokens]
        self.starts_word = np.array([token.startswith(b" ") for token in self.bytes_of_id])

    def _encode(self, text):
        return self.id_of_rank[self.encoding.encode_to_numpy(text, disallowed_special=())]

    def encode_batch(self, texts):
        """On all cores: tiktoken lets go of the interpreter while it works."""
        texts = list(map(without_surrogates, texts))
        size = max(1, len(texts) // (4 * (os.cpu_count() or 1)) + 1)
        chunks = [texts[i:i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            encoded = pool.map(lambda chunk: list(map(self._encode, chunk)), chunks)
            return [ids for chunk in encoded for ids in chunk]

    def _spans(self, text):
        """Spaces at the ends of a token are not part of its span. A token that is a part of a character has
        the span of the whole character."""
        first_bytes = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
        character = (np.cumsum(first_bytes) - 1).tolist()  # of each byte
        at = 0
        for i in self._encode(text).tolist():
            token = self.bytes_of_id[i]
            start, end = character[at], character[at + len(token) - 1] + 1
            at += len(token)
            start = min(start + len(token) - len(token.lstrip(b" ")), end)
            yield i, start, max(end - (len(token) - len(token.rstrip(b" "))), start)

    def settings(self):
        return [spell(token) for token in self.merges]

    def decode(self, ids):
        """Bytes that are not UTF-8, as half a character is, become U+FFFD."""
        return b"".join(self.bytes_of_id[i] for i in ids).decode("utf-8", "replace")

    def save(self, path):
        write_json(os.path.join(path, "vocab.json"), self.ids)
        with open(os.path.join(path, "merges.txt"), "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n")
            for left, right in self.merge_pairs():
                f.write(f"{spell(left)} {spell(right)}\n")
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
        if self.mask_id is not None:
            mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False,
                    "normalized": False, "single_word": False, "special": True}
            config |= {"tokenizer_class": "RobertaTokenizer", "mask_token": mask}
        write_json(os.path.join(path, "tokenizer_config.json"), config)

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
    def _read(cls, path):
        """RoBERTa's vocab.json and merges.txt, GPT-2's encoder.json and vocab.bpe, or a tokenizer.json."""
        for vocabulary_file, merges_file in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if os.path.exists(os.path.join(path, vocabulary_file)):
                vocabulary = read_json(os.path.join(path, vocabulary_file))
                lines = read_text(os.path.join(path, merges_file)).split("\n")
                merges = [line for line in lines if line and not line.startswith("#version")]
                break
        else:
            published = read_json(os.path.join(path, "tokenizer.json"))
            model = member(published, "model", dict)
            if '"ByteLevel"' not in json.dumps(published.get("pre_tokenizer")) or published.get("normalizer"):
                raise ValueError("tokenizer.json is of a BPE that is not byte-level")
            vocabulary, merges = member(model, "vocab", dict), member(model, "merges", list)
            vocabulary |= {member(token, "content", str): member(token, "id", int)
                           for token in member(published, "added_tokens", list)}
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        bad = next((pair for pair in pairs if len(pair) != 2), None)
        if bad:
            raise ValueError(f"a merge is of two tokens, not of {bad}")
        try:
            return cls(tokens_by_id(vocabulary), [unspell("".join(pair)) for pair in pairs])
        except KeyError as error:
            raise ValueError(f"{error} is not a byte of a byte-level vocabulary") from error

    @classmethod
    def train(cls, texts, vocab_size):
        """texts: iterable of str. vocab_size counts the bytes and RoBERTa's five special tokens."""
        if vocab_size < 256 + 5:
            raise ValueError(f"a vocabulary of {vocab_size} has no room for 256 bytes and 5 special tokens")
        counts, find = Counter(), regex.compile(WORDS).findall
        for text in texts:
            counts.update(find(without_surrogates(text)))
        order = {b: i for i, b in enumerate(BYTES)}
        words = [[order[b] for b in word.encode()] for word in counts]
        symbols = [bytes([b]) for b in BYTES]
        merges = learn_merges(words, list(counts.values()), symbols, vocab_size - 256 - 5)
        tokens = [spell(token) for token in symbols + merges]
        return cls(["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"], merges)


def learn_merges(words, counts, symbols, number, prefix=0):
    """-> the `number` most frequent merges, one after the other (Sennrich et al. 2016, algorithm 1).

    words: lists of indices into symbols, which are bytes or str; counts: how often each word occurs.
    prefix: how many characters of a merge's second symbol are only a mark, such as WordPiece's ##.
    Counts are kept, not recounted: a merge changes the pairs of the words it occurs in and no others. Of two
    pairs with the same count the one with the smaller symbols wins. Pairs seen once are not merged.
    """
    words, symbols, first = list(map(list, words)), list(symbols), len(symbols)
    pairs, where = Counter(), defaultdict(set)  # {pair: count}, {pair: words that have it, or had it}
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += counts[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(symbols) < first + number:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:  # an old entry: the count has fallen since
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -count < 2:
            break
        new = len(symbols)
        symbols.append(symbols[pair[0]] + symbols[pair[1]][prefix:])
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
    return symbols[first:]


def spell(token):
    return "".join(SPELLING[b] for b in token)


def unspell(text):
    return bytes(BYTE_OF[character] for character in text)

# -----------------------------------------------------------------------------
# WordPiece and unigram go by chunks: parts of a text whose tokens do not depend on what stands around them.
# A text has far more chunks than different ones, so each is worked out once and then only looked up.
# Ids are those of transformers, except for some characters that Unicode 9 and later have added or put in
# another class: the tables there are older than Python's.

class ByChunk(Tokenizer):
    """For kinds with a chunk_pattern, normalize_letter(letter) and pieces(chunk) -> [(id, start, end)]."""

    def __init__(self, tokens, special_tokens):
        super().__init__(tokens, special_tokens)
        missing = sorted(set(special_tokens.values()) - set(tokens))
        if missing:
            raise ValueError(f"the vocabulary has no {', '.join(missing)}")
        self.longest = max(map(len, tokens))
        self.bytes_of_chunk = Cache(self.encode_chunk)
        self.letters = Cache(self.normalize_letter)

    def encode_chunk(self, chunk):
        return np.array([i for i, _, _ in self.pieces(chunk)], np.int32).tobytes()

    def _encode(self, text):
        chunks = self.chunk_pattern.findall(text)
        return np.frombuffer(bytearray().join(map(self.bytes_of_chunk.__getitem__, chunks)), np.int32)

    def _spans(self, text):
        for chunk in self.chunk_pattern.finditer(text):
            for i, start, end in self.pieces(chunk[0]):
                yield i, chunk.start() + start, chunk.start() + end


class Cache(dict):
    """Remembers what function gave for a string. Starts afresh when full; does not keep long strings."""

    def __init__(self, function, limit=500_000, longest=100):
        self.function, self.limit, self.longest = function, limit, longest

    def __missing__(self, key):
        value = self.function(key)
        if len(key) <= self.longest:
            if len(self) >= self.limit:
                self.clear()
            self[key] = value
        return value


def count_matches(find, texts):
    """{match: how often it is in the texts}"""
    counts = Counter()
    for text in texts:
        counts.update(find(without_surrogates(text)))
    return counts


def count_letters(words):
    """{word: count} -> [(letter, count)], the most frequent first."""
    counts = Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

# -----------------------------------------------------------------------------
# WordPiece

ASCII_PUNCTUATION = r"!-/:-@\[-`{-~"
BERT_WORD = regex.compile(rf"[{ASCII_PUNCTUATION}\p{{P}}]|[^\s{ASCII_PUNCTUATION}\p{{P}}]+")
IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
                       "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]")  # as transformers has them


class WordPiece(ByChunk):
    """Words are between white space; a punctuation character and a Chinese one is a word by itself."""

    # ASCII white space and punctuation divide words whatever stands beside them
    chunk_pattern = re.compile(rf"[{ASCII_PUNCTUATION}]|[^ \t\n\r{ASCII_PUNCTUATION}]+")
    ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}

    def __init__(self, tokens, lowercase=True, strip_accents=None, split_ideographs=True):
        """strip_accents: None is "as lowercase", as published."""
        super().__init__(tokens, self.ROLES)
        self.lowercase, self.split_ideographs = lowercase, split_ideographs
        self.strip_accents = lowercase if strip_accents is None else strip_accents
        self.starts_word = np.array([not token.startswith("##") for token in tokens])

    def settings(self):
        return [self.lowercase, self.strip_accents, self.split_ideographs]

    def normalize_letter(self, letter):
        """What a character becomes before the split into words: nothing, itself, or several characters."""
        if letter in "\0\ufffd" or letter not in "\t\n\r" and regex.match(r"[\p{Cc}\p{Cf}\p{Co}]", letter):
            return ""
        if letter in SPACES:
            return " "
        if self.split_ideographs and IDEOGRAPH.match(letter):
            letter = f" {letter} "
        if self.strip_accents:
            letter = regex.sub(r"\p{Mn}", "", unicodedata.normalize("NFD", letter))
        return lower(letter) if self.lowercase else letter

    def words(self, chunk):
        """-> (word, [place in the chunk of each of its characters]) for each word."""
        letters = [self.letters[letter] for letter in chunk]
        places = [i for i, letter in enumerate(letters) for _ in letter]
        for word in BERT_WORD.finditer("".join(letters)):
            yield word[0], places[word.start():word.end()]

    def pieces(self, chunk):
        return [(i, places[start], places[end - 1] + 1)
                for word, places in self.words(chunk) for i, start, end in self.longest_matches(word)]

    def longest_matches(self, word):
        """The longest token that begins the word, then the longest that goes on, and so forth; [UNK] for the
        whole word where there is none, or where it has more than 100 characters."""
        pieces, start = [], 0
        while start < len(word) <= 100:
            for end in range(min(len(word), start + self.longest), start, -1):
                i = self.ids.get("##" + word[start:end] if start else word[:end])
                if i is not None:
                    break
            else:
                break
            pieces.append((i, start, end))
            start = end
        return pieces if start == len(word) else [(self.unk_id, 0, len(word))]

    def decode(self, ids):
        """Words with a space between them, save before . , ? and ! as transformers has it."""
        text = ""
        for i in ids:
            token = self.tokens[i]
            if text and not token.startswith("##") and token not in (".", ",", "?", "!"):
                text += " "
            text += token[2:] if text and token.startswith("##") else token
        return text

    def save(self, path):
        with open(os.path.join(path, "vocab.txt"), "w", encoding="utf-8") as f:
            f.writelines(token + "\n" for token in self.tokens)
        write_json(os.path.join(path, "tokenizer_config.json"), {
            "tokenizer_class": "BertTokenizer", "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents, "tokenize_chinese_chars": self.split_ideographs})

    @classmethod
    def _read(cls, path):
        """vocab.txt or else tokenizer.json. tokenizer_config.json has the last word, as in transformers."""
        config, vocabulary_file = read_config(path), os.path.join(path, "vocab.txt")
        if os.path.exists(vocabulary_file):
            lines = read_text(vocabulary_file).removesuffix("\n").split("\n")
            tokens = [line.rstrip(SPACES) for line in lines]
        else:
            published = read_json(os.path.join(path, "tokenizer.json"))
            model, normalizer = member(published, "model", dict), member(published, "normalizer", dict)
            if normalizer.get("type") != "BertNormalizer" or model.get("continuing_subword_prefix") != "##":
                raise ValueError("tokenizer.json is of a WordPiece that is not BERT's")
            config = {"do_lower_case": normalizer.get("lowercase", True),
                      "strip_accents": normalizer.get("strip_accents"),
                      "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True), **config}
            tokens = tokens_by_id(member(model, "vocab", dict))
        return cls(tokens, config.get("do_lower_case", True), config.get("strip_accents"),
                   config.get("tokenize_chinese_chars", True))

    @classmethod
    def train(cls, texts, vocab_size, lowercase=True):
        """texts: iterable of str. Merges as in BPE, of characters that have ## before them unless they begin
        the word: Hugging Face's way, for Google's was not published. 1,000 different characters count."""
        specials = list(cls.ROLES.values())
        blank, counts = cls(specials, lowercase), Counter()
        for chunk, count in count_matches(cls.chunk_pattern.findall, texts).items():
            for word, _ in blank.words(chunk):
                counts[word] += count
        common = {letter for letter, _ in count_letters(counts)[:1000]}
        words = [["##" * (i > 0) + letter for i, letter in enumerate(word) if letter in common]
                 for word in counts]
        symbols = sorted(common) + sorted({symbol for word in words for symbol in word} - common)
        room = vocab_size - len(specials) - len(symbols)
        if room < 0:
            raise ValueError(f"a vocabulary of {vocab_size} has no room for {vocab_size - room} special "
                             f"tokens and characters, with and without ##")
        order = {symbol: i for i, symbol in enumerate(symbols)}
        words = [[order[symbol] for symbol in word] for word in words]
        merges = learn_merges(words, list(counts.values()), symbols, room, prefix=2)
        return cls(specials + symbols + merges, lowercase)


def lower(letters):
    """Character by character: str.lower() would look at what stands around a sigma."""
    return "".join(letter.lower() for letter in letters)

# -----------------------------------------------------------------------------
# Unigram

USER_DEFINED = 4  # of SentencePiece's types of pieces


class Unigram(ByChunk):
    """Words are between white space and begin with ▁. Their pieces are those with the best sum of scores."""

    ROLES = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}

    def __init__(self, tokens, scores, lowercase=True, keep_accents=False, charsmap=b"", symbols=()):
        """scores: the logarithms of the tokens' probabilities. charsmap: SentencePiece's precompiled table of
        character replacements. symbols: tokens that divide the text before anything else is done to it."""
        super().__init__(tokens, self.ROLES)
        self.scores, self.lowercase, self.keep_accents = list(scores), lowercase, keep_accents
        self.charsmap, self.symbols = charsmap, sorted(symbols, key=len, reverse=True)
        if not set(symbols) <= set(tokens):
            raise ValueError(f"the vocabulary has no {', '.join(sorted(set(symbols) - set(tokens)))}")
        if self.unk_id != 1:
            raise ValueError(f"<unk> has id {self.unk_id}; ALBERT's has 1, and transformers knows no other")
        if charsmap:
            self.replacement = Cache(Charsmap(charsmap).find)
            self.unreplaced = {c for c in map(chr, range(128)) if self.replacement[c] is None}
        self.chunk_pattern = re.compile(r"[^ \t\n\r]+")
        if symbols:  # they divide words as white space does, whatever stands beside them
            symbol = "|".join(map(re.escape, self.symbols))
            first = "".join(re.escape(symbol[0]) for symbol in self.symbols)
            self.chunk_pattern = re.compile(rf"{symbol}|(?:[^ \t\n\r{first}]+|(?!{symbol})[{first}])+")
        specials = set(self.special_tokens.values())  # which no plain text may be taken for
        self.entries = {token: (score, i) for i, (token, score) in enumerate(zip(tokens, scores))
                        if token not in specials}
        self.unk_score = min(scores) - 10  # SentencePiece's penalty
        self.starts_word = np.array([token.startswith("▁") for token in tokens])

    def settings(self):
        charsmap = hashlib.sha256(self.charsmap).hexdigest()
        return [self.scores, self.lowercase, self.keep_accents, charsmap, self.symbols]

    def normalize_letter(self, letter):
        if not self.keep_accents:
            letter = regex.sub(r"\p{M}", "", unicodedata.normalize("NFKD", letter))
        return lower(letter) if self.lowercase else letter

    def normalize(self, chunk):
        """-> text, [place in the chunk of each of its characters]. `` and '' become " as in ALBERT's data."""
        letters, places = chunk, range(len(chunk))
        if "``" in chunk or "''" in chunk:
            matches = list(re.finditer(r"``|''|(?s:.)", chunk))
            letters = [match[0] if len(match[0]) == 1 else '"' for match in matches]
            places = [match.end() - 1 for match in matches]
        letters = [self.letters[letter] for letter in letters]
        text, places = "".join(letters), [place for place, letter in zip(places, letters) for _ in letter]
        if not self.charsmap or self.unreplaced.issuperset(text):
            return text, places
        replaced = []  # transformers looks up short clusters of characters whole, others by character
        for cluster in regex.finditer(r"\X", text):
            whole = len(cluster[0].encode()) < 6 and self.replacement[cluster[0]] is not None
            for i, letters in enumerate([cluster[0]] if whole else cluster[0]):
                new = self.replacement[letters]
                replaced.append((letters if new is None else new, places[cluster.start() + i]))
        return "".join(new for new, _ in replaced), [place for new, place in replaced for _ in new]

    def pieces(self, chunk):
        if chunk in self.symbols:
            return [(self.ids[chunk], 0, len(chunk))]
        text, places = self.normalize(chunk)
        pieces = []
        for word in regex.finditer(r"\S+", text):
            marked, at = word[0], places[word.start():word.end()]
            if not marked.startswith("▁"):
                marked, at = "▁" + marked, at[:1] + at
            for part in re.finditer("▁?[^▁]+|▁", marked):
                for i, start, end in self.best_path(part[0]):
                    pieces.append((i, at[part.start() + start], at[part.start() + end - 1] + 1))
        return pieces

    def best_path(self, word):
        """The pieces with the best sum of scores (Viterbi). Unknown characters side by side are one <unk>."""
        totals, last = [0.0], [None]  # for each end: the best sum up to there, and the last piece of it
        for end in range(1, len(word) + 1):
            total = -np.inf
            for start in range(max(0, end - self.longest), end):
                entry = self.entries.get(word[start:end])
                if entry and totals[start] + entry[0] > total:
                    total, piece = totals[start] + entry[0], (entry[1], start, end)
            if not entry and totals[end - 1] + self.unk_score > total:  # this character is no piece
                total, piece = totals[end - 1] + self.unk_score, (self.unk_id, end - 1, end)
            totals.append(total)
            last.append(piece)
        pieces, end = [], len(word)
        while end:
            i, start, _ = piece = last[end]
            if pieces and i == pieces[-1][0] == self.unk_id:
                pieces[-1] = (i, start, pieces[-1][2])
            else:
                pieces.append(piece)
            end = start
        return pieces[::-1]

    def decode(self, ids):
        """What the normalization took away, such as case and accents, does not come back."""
        tokens = [self.tokens[i] for i in ids]
        return "".join(tokens[:1]).replace("▁", "") + "".join(tokens[1:]).replace("▁", " ")

    def save(self, path):
        """As tokenizer.json: transformers needs no other library to read it."""
        added = [{"id": self.ids[token], "content": token, "single_word": False, "lstrip": token == "[MASK]",
                  "rstrip": False, "normalized": False, "special": token not in self.symbols}
                 for token in [*self.special_tokens.values(), *self.symbols]]
        steps = [{"type": "Replace", "pattern": {"String": quote}, "content": '"'} for quote in ("``", "''")]
        steps += [] if self.keep_accents else [{"type": "NFKD"}, {"type": "StripAccents"}]
        steps += [{"type": "Lowercase"}] if self.lowercase else []
        if self.charsmap:
            charsmap = base64.b64encode(self.charsmap).decode()
            steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        cls, sep, end = [{"SpecialToken": {"id": token, "type_id": segment}}
                         for token, segment in (("[CLS]", 0), ("[SEP]", 0), ("[SEP]", 1))]
        first, second = [{"Sequence": {"id": name, "type_id": segment}} for segment, name in enumerate("AB")]
        template = {"type": "TemplateProcessing",
                    "single": [cls, first, sep], "pair": [cls, first, sep, second, end],
                    "special_tokens": {token: {"id": token, "ids": [self.ids[token]], "tokens": [token]}
                                       for token in ("[CLS]", "[SEP]")}}
        write_json(os.path.join(path, "tokenizer.json"), {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": sorted(added, key=lambda token: token["id"]),
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
            "post_processor": template, "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": self.unk_id, "vocab": list(zip(self.tokens, self.scores)),
                      "byte_fallback": False}})
        write_json(os.path.join(path, "tokenizer_config.json"), {
            "tokenizer_class": "AlbertTokenizer", "do_lower_case": self.lowercase,
            "keep_accents": self.keep_accents,
            # transformers 5 leaves ALBERT's token types out of a pair unless they are asked for
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]})

    @classmethod
    def _read(cls, path):
        """tokenizer.json or else spiece.model. Where a directory has both they differ (the published
        tokenizer.json lowers the scores of digits with a comma, and has no symbols), and transformers takes
        the first. tokenizer_config.json has the last word, as in transformers."""
        config, json_file = read_config(path), os.path.join(path, "tokenizer.json")
        if not os.path.exists(json_file):
            with open(os.path.join(path, "spiece.model"), "rb") as f:
                tokens, scores, types, charsmap = read_sentencepiece(f.read())
            symbols = [token for token, kind in zip(tokens, types) if kind == USER_DEFINED]
            lowercase, keep_accents = True, False
        else:
            published = read_json(json_file)
            steps = member(member(published, "normalizer", dict), "normalizers", list)
            kinds = [member(step, "type", str) for step in steps]
            splits = json.dumps(published.get("pre_tokenizer"))
            if "WhitespaceSplit" not in splits or kinds.count("Replace") < 2:
                raise ValueError("tokenizer.json is of a unigram model that is not ALBERT's")
            vocabulary = member(member(published, "model", dict), "vocab", list)
            if not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
                       and isinstance(entry[1], (int, float)) for entry in vocabulary):
                raise ValueError("tokenizer.json has a vocabulary of other things than [token, score]")
            tokens, scores = [token for token, _ in vocabulary], [score for _, score in vocabulary]
            charsmap = b"".join(base64.b64decode(member(step, "precompiled_charsmap", str))
                                for step, kind in zip(steps, kinds) if kind == "Precompiled")
            symbols = [member(token, "content", str) for token in member(published, "added_tokens", list)
                       if not member(token, "special", bool)]
            lowercase, keep_accents = "Lowercase" in kinds, "StripAccents" not in kinds
        return cls(tokens, scores, config.get("do_lower_case", lowercase),
                   config.get("keep_accents", keep_accents), charsmap, symbols)

    @classmethod
    def train(cls, texts, vocab_size):
        """texts: iterable of str. Lower-case and without accents, as ALBERT's. A piece is of letters, of
        digits or of others. The rarest characters, together up to 0.05 % of the text, become <unk>."""
        specials = list(cls.ROLES.values())
        blank, words = cls(specials, [0.0] * len(specials)), Counter()
        for chunk, count in count_matches(blank.chunk_pattern.findall, texts).items():
            for word in regex.findall(r"\S+", blank.normalize(chunk)[0]):
                for run in regex.findall(r"▁?(?:[\p{L}\p{M}]+|\p{N}+|[^\p{L}\p{M}\p{N}▁]+)|▁", "▁" + word):
                    words[run] += count
        if not words:
            return blank
        letters, covered = count_letters(words), ""
        missing = sum(count for _, count in letters)
        enough = 0.0005 * missing
        for letter, count in letters:
            if missing > enough:
                covered, missing = covered + letter, missing - count
        room = vocab_size - len(specials)
        if room < len(covered):
            raise ValueError(f"a vocabulary of {vocab_size} has no room for {len(covered)} characters and "
                             f"{len(specials)} special tokens")
        # without the rare characters, and not so long that probabilities get too small
        runs, find = Counter(), re.compile(f"[{re.escape(covered)}]{{1,32}}").findall
        for word, count in words.items():
            for run in find(word):
                runs[run] += count
        pieces, scores = learn_pieces(dict(runs.most_common(300_000)), room)
        return cls(specials + pieces, [0.0] * len(specials) + scores)


class Charsmap:
    """SentencePiece's table of replacements: a double-array trie of keys, then the replacements in UTF-8."""

    def __init__(self, data):
        size = int.from_bytes(data[:4], "little")
        if not size or size % 4 or size + 4 > len(data):
            raise ValueError("the table of character replacements is damaged")
        self.units, self.strings = np.frombuffer(data, "<u4", size // 4, 4).tolist(), data[4 + size:]

    def find(self, letters):
        """The replacement of the shortest key that letters begin with, or None."""
        def offset(unit):
            return unit >> 10 << ((unit & 512) >> 6)
        at = offset(self.units[0])
        for byte in letters.encode():
            at ^= byte
            unit = self.units[at] if at < len(self.units) else 0
            if byte == 0 or unit & 0x800000FF != byte:
                return None
            at ^= offset(unit)
            if unit & 256:  # a key ends here
                start = self.units[at] & 0x7FFFFFFF
                return self.strings[start:self.strings.index(b"\0", start)].decode()
        return None


def read_sentencepiece(data):
    """The bytes of spiece.model -> tokens, scores, types, charsmap. It is a protocol buffer, of which this
    reads ModelProto's pieces (1), trainer_spec (2) and normalizer_spec (3)."""
    tokens, scores, types, specs = [], [], [], {}
    for number, value in fields(data):
        if number == 1:
            piece = {1: b"", 2: bytes(4), 3: 1} | dict(fields(value))
            if [type(piece[n]) for n in (1, 2, 3)] != [bytes, bytes, int] or len(piece[2]) != 4:
                raise ValueError(f"piece {len(tokens)} of spiece.model is damaged")
            tokens.append(piece[1].decode())
            scores.append(struct.unpack("<f", piece[2])[0])
            types.append(piece[3])
        elif number in (2, 3):
            specs[number] = dict(fields(value))
    if len(specs) < 2:
        raise ValueError("spiece.model is cut short")
    charsmap = specs[3].get(2, b"")
    if specs[2].get(3, 1) != 1 or not isinstance(charsmap, bytes):
        raise ValueError("spiece.model is not of a unigram model")
    return tokens, scores, types, charsmap


def fields(data):
    """The bytes of a protocol buffer -> (number, int or bytes) of each field."""
    def varint(at):
        value = shift = 0
        while True:
            byte = data[at]
            value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
            if byte < 128:
                return value, at
    at = 0
    try:
        while at < len(data):
            key, at = varint(at)
            if key & 7 == 0:
                value, at = varint(at)
            else:
                size, at = varint(at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
                value, at = data[at:at + size], at + size
                if at > len(data):
                    raise IndexError
            yield key >> 3, value
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("spiece.model is cut short, or is not a SentencePiece model") from error

# The training of a unigram model (Kudo 2018, section 3.2): begin with many pieces; by turns estimate their
# probabilities and drop those the text needs least. Arrays hold all words at once: loops would take hours.


def learn_pieces(words, number, longest=16):
    """{word: count} -> at most `number` pieces, all letters among them, and their log probabilities."""
    lattice, place, length, weight = seed_lattice(words, longest, 12 * number)
    while True:
        for _ in range(2):  # EM
            weight = lattice.expected(weight / weight.sum())
            keep = (weight >= 0.5) | (length == 1)
            lattice, place, length, weight = lattice.only(keep), place[keep], length[keep], weight[keep]
            weight = np.maximum(weight, 0.5)
        score = np.log(weight / weight.sum())
        if len(score) <= 1.1 * number:
            break
        # the loss without a piece: how much less likely is the next best way to write it, times its use
        word, piece = lattice.best(score)
        used = np.bincount(piece, lattice.weight[word], len(score))
        longer = np.flatnonzero(length > 1)
        word, piece = lattice.within(place[longer], length[longer]).best(score)
        loss = np.full(len(score), np.inf)
        loss[longer] = used[longer] * (score[longer] - np.bincount(word, score[piece], len(longer)))
        keep = np.zeros(len(score), bool)
        keep[np.argsort(-loss, kind="stable")[:max(int(1.1 * number), int(0.75 * len(score)))]] = True
        keep &= loss > 0
        lattice, place, length, weight = lattice.only(keep), place[keep], length[keep], weight[keep]
    order = np.lexsort((-score, length > 1))[:number]  # all letters, then the best of the others
    order = order[np.argsort(-score[order], kind="stable")]
    return [lattice.text[place[i]:place[i] + length[i]] for i in order], score[order].tolist()


def seed_lattice(words, longest, seeds):
    """-> the Lattice of the words, whose pieces are their letters and the `seeds` substrings that cover most;
    and of each piece: a place where it is in lattice.text, its length, and how many letters it covers."""
    text = "\0".join(words) + "\0"
    letters, letter = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    last = np.flatnonzero(letter == 0)
    lengths = np.diff(last, prepend=-1) - 1
    counts = np.array(list(words.values()), float)
    left = np.repeat(last, lengths + 1) - np.arange(len(text))  # letters from here to the end of the word
    weight = np.repeat(counts, lengths + 1)
    # substrings of n letters from those of n - 1: where they are is `start`, `which` numbers different ones
    start, which, frequency, arcs, pieces, seen = np.flatnonzero(left), 0, np.array([2]), [], [], 0
    for n in range(1, longest + 1):
        more = (left[start] >= n) & (frequency[which] > 1)
        key = (which * len(letters))[more] if n > 1 else 0
        start = start[more]
        _, first, which = np.unique(key + letter[start + n - 1], return_index=True, return_inverse=True)
        frequency = np.bincount(which, weight[start])
        arcs.append((start, start + n, which + seen))
        pieces.append((start[first], np.full(len(first), n), n * frequency * (frequency > 1)))
        seen += len(first)
    start, end, piece = map(np.concatenate, zip(*arcs))
    place, length, covers = map(np.concatenate, zip(*pieces))
    rank = np.argsort(np.where(length == 1, -np.inf, -covers), kind="stable")
    keep = np.zeros(len(covers), bool)
    keep[rank[:seeds]] = True
    keep &= (covers > 0) | (length == 1)
    arcs = keep[piece]
    start, end, piece = start[arcs], end[arcs], (np.cumsum(keep) - 1)[piece[arcs]]
    begin = last - lengths
    depth = end - np.repeat(begin, lengths + 1)[end]
    lattice = Lattice.sorted(depth, start, end, piece, begin, last, counts, text)
    return lattice, place[keep], length[keep], np.maximum(covers[keep], 0.5)


class Lattice:
    """All ways to cut words into pieces. Places are counted through all words; a word goes from begin[w] to
    last[w]; arc k says that piece[k] fills the places from start[k] to end[k]. Arcs are sorted by depth: how
    far from the word's begin they end. So one depth after the other can be done for all words at once."""

    def __init__(self, depth, start, end, piece, begin, last, weight, text=""):
        self.depth, self.start, self.end, self.piece = depth, start, end, piece
        self.begin, self.last, self.weight, self.text = begin, last, weight, text
        bounds = np.searchsorted(depth, np.arange(1, depth[-1] + 2))
        self.levels = [slice(low, high) for low, high in zip(bounds, bounds[1:])]

    @classmethod
    def sorted(cls, depth, start, end, piece, *rest):
        order = np.argsort(depth.astype(np.int16), kind="stable")
        return cls(depth[order], start[order], end[order], piece[order], *rest)

    def only(self, keep):
        """Without the arcs of the other pieces; those kept are numbered anew."""
        arcs, number = keep[self.piece], np.cumsum(keep) - 1
        return Lattice(self.depth[arcs], self.start[arcs], self.end[arcs], number[self.piece[arcs]],
                       self.begin, self.last, self.weight, self.text)

    def expected(self, probability):
        """How often each piece is expected in the words (the forward-backward algorithm)."""
        step = probability[self.piece]
        forward, backward = np.zeros((2, self.last[-1] + 1))
        forward[self.begin] = 1
        for level in self.levels:
            np.add.at(forward, self.end[level], forward[self.start[level]] * step[level])
        backward[self.last] = self.weight / forward[self.last]
        for level in reversed(self.levels):
            np.add.at(backward, self.start[level], backward[self.end[level]] * step[level])
        return np.bincount(self.piece, forward[self.start] * step * backward[self.end], len(probability))

    def best(self, score):
        """-> word, piece: the pieces of the best way to cut each word (the Viterbi algorithm)."""
        step = score[self.piece]
        total = np.full(self.last[-1] + 1, -np.inf)
        total[self.begin] = 0
        for level in self.levels:
            np.maximum.at(total, self.end[level], total[self.start[level]] + step[level])
        last_arc = np.zeros(len(total), int)
        best = np.flatnonzero(total[self.start] + step == total[self.end])
        last_arc[self.end[best]] = best
        word, place, found = np.arange(len(self.last)), self.last, []
        while len(word):
            arc = last_arc[place]
            found.append((word, self.piece[arc]))
            more = self.start[arc] > self.begin[word]
            word, place = word[more], self.start[arc][more]
        return map(np.concatenate, zip(*found))

    def within(self, place, length):
        """The Lattice of the substrings that begin at these places, each without the arc that fills it."""
        order = np.argsort(self.start, kind="stable")
        bounds = np.searchsorted(self.start[order], np.arange(self.last[-1] + 2))  # of each place's arcs
        begin, arcs = np.cumsum(length + 1) - length - 1, []
        for offset in range(length.max()):
            word = np.flatnonzero(length > offset)
            low, many = bounds[place[word] + offset], np.diff(bounds)[place[word] + offset]
            arc = np.arange(many.sum()) + np.repeat(low - np.cumsum(many) + many, many)  # low, low + 1, ...
            word, arc = np.repeat(word, many), order[arc]
            depth = self.end[arc] - place[word]
            inside = (depth <= length[word]) & ((offset > 0) | (depth < length[word]))
            word, arc, depth = word[inside], arc[inside], depth[inside]
            arcs.append((depth, begin[word] + offset, begin[word] + depth, self.piece[arc]))
        return Lattice.sorted(*map(np.concatenate, zip(*arcs)), begin, begin + length, None)

# -----------------------------------------------------------------------------
# Any kind

KINDS = {"bpe": ByteLevelBPE, "wordpiece": WordPiece, "unigram": Unigram}


def train(kind, texts, vocab_size):
    return KINDS[kind].train(texts, vocab_size)


def load(path_or_name):
    """The tokenizer in a directory or of a name on the hub. ValueError or OSError where there is none."""
    path = local_directory(path_or_name)
    with naming(path):
        kind = kind_of(path)
    return KINDS[kind].from_directory(path)


def kind_of(path):
    present = set(os.listdir(path))
    if "vocab.txt" in present:
        return "wordpiece"
    if "spiece.model" in present:
        return "unigram"
    if {"vocab.json", "merges.txt"} <= present or {"encoder.json", "vocab.bpe"} <= present:
        return "bpe"
    if "tokenizer.json" not in present:
        raise FileNotFoundError(f"{path} has no tokenizer: vocab.txt, spiece.model, vocab.json with "
                                f"merges.txt, encoder.json with vocab.bpe, or tokenizer.json")
    model = member(read_json(os.path.join(path, "tokenizer.json")), "model", dict)
    guess = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"
    kinds = {"BPE": "bpe", "WordPiece": "wordpiece", "Unigram": "unigram"}
    if model.get("type", guess) not in kinds:  # older files do not name it
        raise ValueError(f"tokenizer.json is of a {model['type']}, not of a {', '.join(kinds)}")
    return kinds[model.get("type", guess)]


@contextmanager
def naming(path):
    """Errors about damaged files say where they are."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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


def read_text(path):
    with open(path, encoding="utf-8") as f:
        try:
            return f.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{os.path.basename(path)} is not UTF-8: {error}") from error


def read_json(path):
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{os.path.basename(path)} is not JSON: {error}") from error


def read_config(path):
    """tokenizer_config.json, or {} where there is none."""
    path = os.path.join(path, "tokenizer_config.json")
    config = read_json(path) if os.path.exists(path) else {}
    if not isinstance(config, dict):
        raise ValueError("tokenizer_config.json is not an object")
    return config


def member(value, key, kind):
    """value[key], which must be of that type."""
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise ValueError(f"tokenizer.json has no {key}, or one that is not a {kind.__name__}")
    return value[key]


def tokens_by_id(vocabulary):
    """{token: id} -> [token of id 0, token of id 1, ...]"""
    if not isinstance(vocabulary, dict) or not all(isinstance(i, int) for i in vocabulary.values()):
        raise ValueError("the vocabulary is not an object of tokens and ids")
    if set(vocabulary.values()) != set(range(len(vocabulary))):
        raise ValueError("the ids of the vocabulary are not 0, 1, 2 and so on: one is twice or missing")
    return sorted(vocabulary, key=vocabulary.get)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=0)
        f.write("\n")
