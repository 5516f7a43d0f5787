"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Mining of Massive Datasets, chapter 3).

`signatures` looks at one text at a time, so any number of processes may work on any shards of the rows.
`near_duplicates` takes all signatures in order of priority, held-out rows first, and says which row repeats which
earlier one. A row is compared with rows that stay, never with refused ones: chains of ever less similar rows would take
whole sources with them (marin-community/marin#6854, where character n-grams added to it).

Shingles are runs of 3 tokens: words, or characters of scripts that are written without spaces; three Chinese characters
are about two words. In a short prompt another word is another question, and character n-grams hardly see it: in 4,905
prompts of alpaca_eval, GSM8K and HH, 106 pairs are similar by words and by character 5-grams, 24 by the latter alone,
and 23 of those ask for the recipes of different dishes. Of 30 words one may differ, of 100 three, until two texts are
less similar than 0.8.

Why not a library's index: datasketch's takes 8.5 kB a row, rensa's 2.5 kB (tests/benchmarks/near_duplicates.py), and
both compare a row with all others in its buckets, which a common frame of words makes quadratic. The hash functions are
datasketch's, bit for bit.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from components.data_prep.checks import normalised

SHINGLE = 3
BANDS, BAND_VALUES = 20, 6  # texts of similarity 0.8 share a band in 99.8 of 100 cases, of 0.7 in 92, of 0.3 in 1.5
PERMUTATIONS = BANDS * BAND_VALUES  # the estimate's standard deviation at 0.8 is 0.037
MOST_COMPARED = 32  # rows of a bucket, the first ones: rows around a common frame of words would cost their square
_CHUNK = 2048  # texts whose shingles are in memory at a time


def _characters(*categories: str) -> str:
    """All characters of Unicode categories, or of their first letters, within the Basic Multilingual Plane."""
    found = map(chr, range(0x10000))
    return "".join(character for character in found if unicodedata.category(character).startswith(categories))


# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer: no spaces between words.
_ALONE = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
# "C" is not "C++", nor "3 + 4" "3 - 4". Beyond the plane: emoji.
_SYMBOLS = re.escape(_characters("S") + "#%&*-/@\\") + "\U0001f000-\U0001faff"
_BETWEEN = re.escape(_characters("P", "Z", "Cc"))
_TOKEN = re.compile(rf"[^{_ALONE}{_SYMBOLS}{_BETWEEN}]+|[{_SYMBOLS}]+|(?![{_BETWEEN}])[{_ALONE}]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")

# Those of datasketch.MinHash(120, seed=1, scheme="affine32"). RandomState's numbers never change with numpy's version.
_random = np.random.RandomState(1)
_FACTORS = _random.randint(0, 2**31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_SUMMANDS = _random.randint(0, 2**32, PERMUTATIONS, dtype=np.uint32)
_WEIGHTS = _random.randint(0, 2**64, BAND_VALUES, dtype=np.uint64) | np.uint64(1)


def tokens(text: str) -> list[str]:
    """Words, characters of scripts without spaces, and runs of symbols; at least `SHINGLE` of them, empty at the end.

    Case, white space, punctuation, invisible characters and the Unicode normal form make no difference; a text of
    nothing else is one token.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    text = text.casefold()
    found: list[str] = _TOKEN.findall(text) or [normalised(text)]
    return found + [""] * (SHINGLE - len(found))


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """(texts, PERMUTATIONS): 16 bits of the least hash of each text's shingles under each permutation.

    Two texts agree in each value with a probability that is their similarity (Jaccard, of the sets of shingles), or by
    chance, 1 in 65,536 (b-bit minwise hashing, Li and König 2010).
    """
    found = np.empty((len(texts), PERMUTATIONS), np.uint16)
    for start in range(0, len(texts), _CHUNK):
        hashes, starts = shingle_hashes(texts[start : start + _CHUNK])
        for column, (factor, summand) in enumerate(zip(_FACTORS, _SUMMANDS, strict=True)):
            # One permutation after another: the hashes stay in the processor's cache.
            least = np.minimum.reduceat(hashes * factor + summand, starts)
            # Mixed, for an affine map's low bits depend on the low bits alone: 16 that are the same in two texts of one
            # shingle would be the same in all permutations.
            found[start : start + _CHUNK, column] = _mixed(least).astype(np.uint16)
    return found


def shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Hashes of all shingles, text after text, and where each text's begin: (shingles,), (texts,)."""
    by_text = [tokens(text) for text in texts]
    lengths = np.fromiter(map(len, by_text), np.intp, len(by_text))
    words = list(chain.from_iterable(by_text))
    hash_of = {word: _hash(word) for word in set(words)}
    hashes = np.fromiter(map(hash_of.__getitem__, words), np.uint64, len(words))
    ends = len(hashes) - SHINGLE + 1
    mixed = sum((hashes[at : at + ends] * _WEIGHTS[at] for at in range(SHINGLE)), np.zeros(ends, np.uint64))
    within = np.ones(len(mixed), bool)
    for back in range(1, SHINGLE):  # those that begin in one text and end in the next
        within[np.cumsum(lengths)[:-1] - back] = False
    counts = lengths - (SHINGLE - 1)
    return _mixed((mixed[within] >> np.uint64(32)).astype(np.uint32)), np.cumsum(counts) - counts


@lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    # A row that is to be refused for half a surrogate pair may be hashed before it is.
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's finaliser: every bit of the input moves every bit of the output."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def near_duplicates(rows: NDArray[np.uint16], *, references: int = 0, threshold: float = 0.8) -> NDArray[np.int64]:
    """(rows,): the earlier row that each is a near-duplicate of, the same one before a similar one; -1 where it stays.

    `rows` are signatures, (rows, PERMUTATIONS), which may be a memory map. The first `references` of them always stay,
    for a held-out set is as it was given, and later rows are compared with each.

    The same text is always found; others where they share a band and their signatures agree in `threshold` of the
    values. Memory: 240 bytes a row for the signatures and at most 400 beside them.
    """
    buckets, starts = _shared_buckets(rows)
    members = np.empty(starts[-1], np.int32)
    filled = np.zeros(len(starts) - 1, np.int32)
    duplicate_of = np.full(len(rows), -1, np.int64)
    for row in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        same = buckets[row, BANDS]
        if same >= 0 and filled[same]:
            # A second reference that is the same would only take the place of others.
            duplicate_of[row] = -1 if row < references else members[starts[same]]
            continue
        shared = buckets[row][buckets[row] >= 0]
        begins, counts = starts[shared], filled[shared]
        if row >= references and counts.any():
            spans = zip(begins.tolist(), counts.tolist(), strict=True)
            candidates = np.unique(np.concatenate([members[begin : begin + count] for begin, count in spans if count]))
            alike = (rows[candidates] == rows[row]).mean(axis=1) >= threshold
            if alike.any():
                duplicate_of[row] = candidates[alike.argmax()]
                continue
        free = begins + counts < starts[shared + 1]
        members[(begins + counts)[free]] = row
        filled[shared[free]] += 1
    return duplicate_of


def _shared_buckets(rows: NDArray[np.uint16]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The bucket of each row in each band, (rows, BANDS + 1), -1 where it is alone; where a bucket's members will lie.

    The last band is the whole signature, whose bucket has one row that stays and so is never full.
    """
    buckets = np.full((len(rows), BANDS + 1), -1, np.int32)
    sizes = [np.zeros(1, np.uint16)]
    total = 0
    for band, keys in enumerate(_keys(rows)):
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        shared = counts > 1
        numbers = np.where(shared, total + np.cumsum(shared) - 1, -1)
        buckets[:, band] = numbers[inverse]
        sizes.append(np.minimum(counts[shared], MOST_COMPARED).astype(np.uint16))
        total += int(shared.sum())
    return buckets, np.cumsum(np.concatenate(sizes), dtype=np.int64)


def _keys(rows: NDArray[np.uint16]) -> Iterator[NDArray[np.uint64]]:
    """A hash of each band, then of the whole signature: BANDS + 1 times (rows,)."""
    whole = np.zeros(len(rows), np.uint64)
    for start in range(0, PERMUTATIONS, BAND_VALUES):
        keys = rows[:, start : start + BAND_VALUES].astype(np.uint64) @ _WEIGHTS
        whole = whole * _WEIGHTS[0] + keys
        yield keys
    yield whole
