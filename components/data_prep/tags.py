"""Tags from an open set become a tag set, in the four stages of InsTag (Lu et al., 2308.07074; recipe.md §3.1).

    frequency    tags of fewer than `min_count` rows are dropped, before anything is merged
    rules        lower case, special characters to spaces, stems: tags with the same stems are one
    meaning      DBSCAN over the embeddings of what is left
    association  a tag that (nearly) never comes without another one becomes that other one

Whatever is merged is called by its most frequent member, the first in the alphabet among equals, so that neither the
order of the rows nor how they are sharded matters. What a shard has to send is two counters that add up: `count_tags`
and, when all shards know the mapping so far, `count_together`.
"""

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import snowballstemmer

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Tags in, an array (tags, dimensions) out. Its rows need not have length 1; a tag whose row is 0 is like no other."""
Together = Counter[tuple[str, str]]
"""Rows that have both tags of a pair, the first of the alphabet first; (tag, tag) counts the rows that have one."""


_TAGS_COUNTED_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Settings:
    """Thresholds of the stages; all are InsTag's."""

    min_count: int = 20
    """Alpha: rows that a raw tag needs."""
    max_distance: float = 0.05
    """Cosine distance up to which two tags mean the same."""
    min_support: int = 40
    """Rows that the two tags of a rule share."""
    min_confidence: float = 0.99
    """Share of the rows with a rule's left tag that have the right one too."""


@dataclass(frozen=True)
class Normalisation:
    """`mapping` leads from a raw tag to its normal one; a raw tag that is not in it is dropped."""

    mapping: dict[str, str]
    stages: dict[str, int]
    """Tags that each stage leaves, from "raw" on."""
    rules: list[tuple[str, str]] = field(default_factory=list)
    """Association rules, left tag before right tag, as found: those that the mapping did not need too."""

    def tags(self, raw: Iterable[str]) -> list[str]:
        """A row's normal tags, each once, in the order of their first raw tag. Their number is the row's complexity."""
        return list(dict.fromkeys(self.mapping[tag] for tag in raw if tag in self.mapping))


def normalise(rows: Collection[Iterable[str]], embed: Embed, settings: Settings = Settings()) -> Normalisation:
    """All stages over rows of raw tags."""
    counts = count_tags(rows)
    merged = merge_alike(counts, embed, settings)
    return merge_associated(merged, count_together(rows, merged, counts, settings), settings)


def count_tags(rows: Iterable[Iterable[str]]) -> Counter[str]:
    """In how many rows each raw tag is."""
    return Counter(tag for row in rows for tag in set(row))


def merge_alike(counts: Mapping[str, int], embed: Embed, settings: Settings = Settings()) -> Normalisation:
    """The first three stages, which need to know no more than how frequent each raw tag is."""
    frequent = {tag: number for tag, number in counts.items() if number >= settings.min_count}
    clean = {tag: name for tag in frequent if (name := cleaned(tag))}
    spellings = _totals(clean, frequent)
    by_rule = _named_by_most_frequent({name: stems(name) for name in spellings}, spellings)
    totals = _totals(by_rule, spellings)
    names = sorted(totals)
    cluster = dict(zip(names, clusters(embed(names), settings.max_distance), strict=True)) if names else {}
    by_meaning = _named_by_most_frequent(cluster, totals)
    mapping = {tag: by_meaning[by_rule[name]] for tag, name in clean.items()}
    left = {"raw": len(counts), "frequency": len(frequent), "rules": len(names), "meaning": len(set(mapping.values()))}
    return Normalisation(mapping, left)


def count_together(
    rows: Iterable[Iterable[str]], merged: Normalisation, counts: Mapping[str, int], settings: Settings = Settings()
) -> Together:
    """How many rows have each normal tag and each two of them. Tags that cannot reach the support are left out, judged
    by `counts`, the raw tags of all rows."""
    most = _totals(merged.mapping, counts)
    names = sorted(tag for tag, number in most.items() if number >= settings.min_support)
    number = {name: index for index, name in enumerate(names)}
    of_raw = {raw: number[tag] for raw, tag in merged.mapping.items() if tag in number}
    together: Together = Counter()
    waiting: dict[int, list[int]] = defaultdict(list)  # by their number in a row, the tags of rows

    def count(length: int) -> None:
        table = np.array(waiting.pop(length), np.int64).reshape(-1, length)
        one, other = np.triu_indices(length)
        codes, times = np.unique(table[:, one] * len(names) + table[:, other], return_counts=True)
        for code, found in zip(codes.tolist(), times.tolist(), strict=True):
            together[names[code // len(names)], names[code % len(names)]] += found

    for row in rows:
        found = sorted({of_raw[tag] for tag in row if tag in of_raw})
        if found:
            waiting[len(found)] += found
            if len(waiting[len(found)]) >= _TAGS_COUNTED_AT_ONCE:
                count(len(found))
    for length in list(waiting):
        count(length)
    return together


def merge_associated(merged: Normalisation, together: Together, settings: Settings = Settings()) -> Normalisation:
    """The last stage. A rule's left tag becomes the right one, and that one's right one in turn.

    Tags that imply each other become the more frequent one. Of a tag's several rules the surest counts, among equals
    the one with the most frequent right tag.
    """
    support = {one: number for (one, other), number in together.items() if one == other}
    by_support = sorted(support, key=lambda tag: (-support[tag], tag))
    place = {tag: index for index, tag in enumerate(by_support)}
    rules = sorted(association_rules(together, settings))
    best: dict[str, tuple[float, int]] = {}
    for left, right in rules:
        # A right tag that is the rarer one implies the left one just as surely, and that rule does the work.
        if place[right] < place[left]:
            confidence = together[min(left, right), max(left, right)] / support[left]
            best[left] = min(best.get(left, (0.0, 0)), (-confidence, place[right]))
    mapping = {}
    for raw, tag in merged.mapping.items():
        while tag in best:
            tag = by_support[best[tag][1]]
        mapping[raw] = tag
    stages = {**merged.stages, "association": len(set(mapping.values()))}
    return replace(merged, mapping=mapping, stages=stages, rules=rules)


def association_rules(together: Together, settings: Settings = Settings()) -> Iterator[tuple[str, str]]:
    """(left, right): where the left tag is, the right one is as well.

    These are FP-Growth's rules with one tag on each side. They alone can be carried out by a mapping of tags (a group
    on the left would lose its tags in rows where they stand alone), and they follow from the counts of sets of one and
    two tags, for which no tree of patterns is needed.
    """
    for (one, other), number in together.items():
        if one == other or number < settings.min_support:
            continue
        for left, right in ((one, other), (other, one)):
            if number / together[left, left] >= settings.min_confidence:
                yield left, right


def clusters(vectors: Vectors, max_distance: float, block_rows: int = 1024) -> list[int]:
    """Of every vector, the first one of its cluster by DBSCAN on cosine distance; (tags, dimensions) in.

    With two points for a core (the paper gives no number; a default of ours) DBSCAN's clusters are all that hangs
    together by distances up to the limit. They are compared with a slack of 1e-5, so that what is at the limit is
    within it however a machine rounds its 32-bit sums.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    first = list(range(len(unit)))

    def root(point: int) -> int:
        while first[point] != point:
            first[point] = first[first[point]]
            point = first[point]
        return point

    for start in range(0, len(unit), block_rows):
        near = unit[start : start + block_rows] @ unit[start:].T >= 1 - max_distance - 1e-5
        for row, column in np.argwhere(near):
            one, other = sorted((root(start + int(row)), root(start + int(column))))
            first[other] = one
    return [root(point) for point in range(len(unit))]


_SPECIAL = re.compile(r"(?:(?<![\w+#])[+#]+|[^\w+#]|_)+")
_stemmer = snowballstemmer.stemmer("english")


def cleaned(tag: str) -> str:
    """Lower case, with a blank for every run of special characters, as in InsTag; only in names such as C++ and C# the
    signs stay (ours), or three languages would be one."""
    return _SPECIAL.sub(" ", unicodedata.normalize("NFKC", tag).casefold()).strip()


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a word in lower case: Snowball's English stemmer in place of NLTK's (InsTag), which it succeeds. It
    changes words of Latin letters alone."""
    return str(_stemmer.stemWord(word))


def stems(clean: str) -> str:
    return " ".join(stem(word) for word in clean.split())


def hashed_ngrams(tags: Sequence[str], dimensions: int = 2048) -> Vectors:
    """The offline baseline for a phrase model such as InsTag's PhraseBERT: every word's runs of 2 to 4 letters, its
    ends marked, hashed into signed places. It sees spellings and orders of words ("text writing", "writing texts"), not
    meanings.
    """
    vectors = np.zeros((len(tags), dimensions), np.float32)
    for vector, tag in zip(vectors, tags, strict=True):
        for word in stems(cleaned(tag)).split():
            ended = f"<{word}>"
            for length in (2, 3, 4):
                for start in range(len(ended) - length + 1):
                    place = zlib.crc32(ended[start : start + length].encode("utf-8", "surrogatepass"))
                    vector[(place >> 1) % dimensions] += 1 if place & 1 else -1
    return vectors


def _named_by_most_frequent(group: Mapping[str, object], counts: Mapping[str, int]) -> dict[str, str]:
    """The name of every tag's group: its most frequent member, the first in the alphabet among equals."""
    name: dict[object, str] = {}
    for tag in sorted(group, key=lambda tag: (-counts[tag], tag)):
        name.setdefault(group[tag], tag)
    return {tag: name[key] for tag, key in group.items()}


def _totals(mapping: Mapping[str, str], counts: Mapping[str, int]) -> Counter[str]:
    """The summed counts of what each name stands for: no fewer rows than have the name."""
    totals: Counter[str] = Counter()
    for tag, name in mapping.items():
        totals[name] += counts[tag]
    return totals
