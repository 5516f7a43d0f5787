"""Benchmarks stay out of training: a row that shares n words in a row with one of theirs is refused.

n is 13, as in the report (§2.1, for its instruction data). Words are those that near-duplicates are told by, without
symbols: a character of a script that is written without spaces is a word by itself, so Chinese goes by characters.
"""

import hashlib
from collections.abc import Iterable, Iterator

from components.data_prep.near_duplicates import tokens


def words(text: str) -> list[str]:
    return [token for token in tokens(text) if token[:1].isalnum()]


def ngrams(text: str, n: int) -> Iterator[bytes]:
    """8-byte digests of all runs of n words."""
    found = words(text)
    for start in range(len(found) - n + 1):
        yield hashlib.blake2b(" ".join(found[start : start + n]).encode(), digest_size=8).digest()


class Benchmarks:
    """The n-grams of all texts of the benchmarks; texts of fewer words say too little to tell them by."""

    def __init__(self, texts: Iterable[str], n: int = 13) -> None:
        self.n = n
        self._ngrams = {found for text in texts for found in ngrams(text, n)}

    def contain(self, text: str) -> bool:
        """Whether the text shares n words in a row with a benchmark."""
        return bool(self._ngrams) and any(found in self._ngrams for found in ngrams(text, self.n))
