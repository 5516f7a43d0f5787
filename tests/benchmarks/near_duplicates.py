"""Near-duplicates among made-up rows of 30 words: time, memory, and how many planted copies are found.

    python -m tests.benchmarks.near_duplicates [--rows 50000] [--processes 1] [--libraries]

Words are drawn by Zipf's law from 50,000; every tenth row is an edited copy of one of the first rows. Time is that of
the processor, which is that of the clock on an idle machine; drawing the rows does not count. `--libraries` gives the
same rows to datasketch and rensa where they are installed: signatures, candidates, and estimates to confirm them.
"""

import argparse
import itertools
import multiprocessing
import random
import resource
import time
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from components.data_prep.near_duplicates import PERMUTATIONS, near_duplicates, signatures, tokens

BATCH, WORDS, VOCABULARY = 2000, 30, 50_000
MILLION, CORES = 1_000_000, 2
KINDS = ("other", "case and marks", "last word", "one word", "two words")
Signed = tuple[np.ndarray, list[int], float]


@cache
def vocabulary() -> tuple[list[str], list[float]]:
    weights = (1 / (rank + 3) for rank in range(VOCABULARY))
    return [f"w{rank:x}" for rank in range(VOCABULARY)], list(itertools.accumulate(weights))


@lru_cache(maxsize=2)  # the first and the one in work
def batch(number: int) -> tuple[list[str], list[int]]:
    """The rows of a batch, and the kind of each."""
    draw = random.Random(number)
    words, weights = vocabulary()
    flat = draw.choices(words, cum_weights=weights, k=BATCH * WORDS)
    texts = [" ".join(flat[start : start + WORDS]) for start in range(0, len(flat), WORDS)]
    kinds = [0] * BATCH
    for row in range(0, BATCH if number else 0, 10):
        kinds[row] = draw.randrange(1, len(KINDS))
        texts[row] = edited(draw.choice(batch(0)[0]), KINDS[kinds[row]], draw)
    return texts, kinds


def edited(text: str, kind: str, draw: random.Random) -> str:
    if kind == "case and marks":
        return text.upper().replace(" ", ",  ", 3) + "!"
    words = text.split()
    places = [WORDS - 1] if kind == "last word" else draw.sample(range(2, WORDS - 2), 1 if kind == "one word" else 2)
    for place in places:
        words[place] = f"new{draw.randrange(10**9)}"
    return " ".join(words)


def signed(number: int) -> Signed:
    texts, kinds = batch(number)
    start = time.process_time()
    return signatures(texts), kinds, time.process_time() - start


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def ours(rows: int, processes: int) -> None:
    table = np.empty((rows, PERMUTATIONS), np.uint16)
    kinds: list[int] = []
    signing = 0.0
    with multiprocessing.Pool(processes) as pool:
        for number, (some, kind, seconds) in enumerate(pool.imap(signed, range(rows // BATCH))):
            table[number * BATCH : (number + 1) * BATCH] = some
            kinds += kind
            signing += seconds
    before = peak_bytes()
    answer, reducing = timed(lambda: near_duplicates(table))
    print(f"{rows} rows, {processes} processes")
    print(f"signatures: {signing / rows * 1e6:.1f} µs a row; {table.nbytes / rows:.0f} bytes a row")
    print(
        f"reduce: {reducing / rows * 1e6:.1f} µs a row; {(peak_bytes() - before) / rows:.0f} bytes a row more at most"
    )
    print(f"peak: {peak_bytes() / 1e9:.2f} GB, without the processes that sign")
    minutes = (signing / CORES + reducing) / rows * MILLION / 60
    print(f"a million rows: {minutes:.1f} minutes, signed on {CORES} cores and reduced on one")
    found, by_kind = answer >= 0, np.array(kinds)
    for kind, name in enumerate(KINDS):
        of_kind = found[by_kind == kind]
        print(f"  {name}: {int(of_kind.sum())} of {len(of_kind)} refused")


def crowds(rows: int) -> None:
    """What would be quadratic: one text again and again; a common frame of 22 words with 8 of its own in each row."""
    frame = " ".join(vocabulary()[0][:22])
    framed = [f"{frame} {' '.join(f'{row}x{place}' for place in range(8))}" for row in range(rows)]
    same, framed_table = np.repeat(signatures(framed[:1]), rows, axis=0), signatures(framed)
    for name, table in (("the same row", same), ("rows in a frame", framed_table)):
        answer, seconds = timed(lambda table=table: near_duplicates(table))
        print(f"{name}, {rows} times: reduce {seconds / rows * 1e6:.1f} µs a row, {int((answer >= 0).sum())} refused")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def shingled(rows: int) -> Iterator[list[bytes]]:
    for number in range(rows // BATCH):
        for text in batch(number)[0]:
            words = tokens(text)
            yield [" ".join(words[start : start + 3]).encode() for start in range(len(words) - 2)]


def datasketch(shingles: list[list[bytes]]) -> tuple[int, object]:
    from datasketch import MinHash, MinHashLSH

    start, index, kept = time.process_time(), MinHashLSH(num_perm=120, params=(20, 6)), {}
    sketches = MinHash.bulk(shingles, num_perm=120)
    print(f"datasketch: {(time.process_time() - start) / len(shingles) * 1e6:.1f} µs a row for the signatures alone")
    for row, sketch in enumerate(sketches):
        if not any(sketch.jaccard(kept[other]) >= 0.8 for other in index.query(sketch)):
            index.insert(row, sketch)
            kept[row] = sketch
    return len(shingles) - len(kept), (index, kept)


def rensa(shingles: list[list[bytes]]) -> tuple[int, object]:
    from rensa import RMinHashDeduplicator

    index = RMinHashDeduplicator(threshold=0.8, num_perm=120, use_lsh=True, num_bands=20)
    return len(shingles) - sum(index.add_pairs((str(row), found) for row, found in enumerate(shingles))), index


def beside(library: Callable[[list[list[bytes]]], tuple[int, object]], rows: int) -> None:
    shingles = list(shingled(rows))
    before, start = resident_bytes(), time.process_time()
    refused, index = library(shingles)
    seconds, more = time.process_time() - start, resident_bytes() - before
    del index
    print(f"{library.__name__}: {seconds / rows * 1e6:.1f} µs and {more / rows:.0f} bytes a row, {refused} refused")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--libraries", action="store_true")
    options = parser.parse_args()
    rows = options.rows // BATCH * BATCH
    ours(rows, options.processes)
    crowds(min(rows, 100_000))
    for library in (datasketch, rensa):
        if options.libraries and find_spec(library.__name__):
            beside(library, rows)


if __name__ == "__main__":
    main()
