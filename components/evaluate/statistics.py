"""Numbers with their uncertainty: pairwise accuracy, calibration, paired differences. No torch, no text.

Samples and pairs of one prompt resemble each other, so intervals are over prompts, never over rows: a bootstrap draws
whole prompts. Every draw is seeded by the run's seed and the figure's own name, so that a figure does not change when
another one is added.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from components.core.seeds import seed_for

CONFIDENCE = 0.95
_Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
_DRAWS_AT_ONCE = 2_000_000  # random numbers held in memory at a time


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


class Resampling(NamedTuple):
    """How intervals are drawn: the run's seed and the number of resamples."""

    seed: int
    resamples: int

    def generator(self, *name: str) -> np.random.Generator:
        return np.random.default_rng(seed_for(self.seed, "bootstrap", *name))


def wilson(successes: float, count: int) -> Interval:
    """Share of successes among independent trials, with Wilson's score interval (ties may count as half a success)."""
    if count <= 0:
        return Interval(math.nan, math.nan, math.nan)
    share = successes / count
    scale = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    # Rounding may push a bound past the share itself at 0 and 1.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def outcomes(differences: Sequence[float]) -> np.ndarray:
    """1 where the chosen response scores higher, 0 where lower, a half on a tie. `differences` = chosen - rejected."""
    values = np.asarray(differences, dtype=np.float64)
    return np.where(values > 0, 1.0, np.where(values < 0, 0.0, 0.5))


def mean_by_cluster(
    values: Sequence[float], clusters: Sequence[Hashable], resampling: Resampling, *name: str
) -> Interval:
    """Mean of all values, with a percentile bootstrap that draws whole clusters (prompts)."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Interval(math.nan, math.nan, math.nan)
    _, index = np.unique(_codes(clusters), return_inverse=True)
    sums, counts = np.bincount(index, weights=array), np.bincount(index)
    generator, groups = resampling.generator(*name), len(sums)
    chunk = max(1, _DRAWS_AT_ONCE // groups)
    means = []
    for start in range(0, resampling.resamples, chunk):
        drawn = generator.integers(0, groups, size=(min(chunk, resampling.resamples - start), groups))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(array.mean())
    return Interval(value, min(float(low), value), max(float(high), value))


def share_by_cluster(
    values: Sequence[float], clusters: Sequence[Hashable], resampling: Resampling, *name: str
) -> Interval:
    """The same for values in [0, 1]. Where no prompt differs from another a bootstrap has nothing to draw from and
    would claim certainty; then Wilson's interval over prompts is taken.
    """
    found = mean_by_cluster(values, clusters, resampling, *name)
    if found.low == found.high:
        prompts = len(set(clusters))
        return wilson(found.value * prompts, prompts)
    return found


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], clusters: Sequence[Hashable], resampling: Resampling, *name: str
) -> Interval:
    """Mean of `ours - theirs` on the same items, bootstrapped over clusters. Positive means that ours is higher."""
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return mean_by_cluster(differences.tolist(), clusters, resampling, *name)


def accuracy(
    differences: Sequence[float], clusters: Sequence[Hashable], resampling: Resampling, *name: str
) -> dict[str, Any]:
    """Pairwise accuracy over all pairs, ties a half, with an interval over prompts."""
    found = share_by_cluster(outcomes(differences).tolist(), clusters, resampling, *name)
    ties = sum(1 for difference in differences if difference == 0)
    return {**found._asdict(), "n": len(differences), "prompts": len(set(clusters)), "ties": ties}


def calibration(differences: Sequence[float], bins: int) -> dict[str, Any]:
    """How far sigma(|difference|), the model's confidence in its own pick, is from how often that pick is right.

    A pair has no natural first response, so it is counted once, from the side that the model prefers: confidence
    sigma(|r_c - r_r|) in [0.5, 1], outcome 1 where the preferred response is the chosen one, 0 where not, a half on a
    tie. Bins divide [0.5, 1] evenly; ECE = sum over bins of n_b / n * |mean confidence - mean outcome|. `loss` is the
    Bradley-Terry loss, -log sigma(r_c - r_r); a coin has ln 2.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if not count:
        return {"ece": math.nan, "loss": math.nan, "confidence": math.nan, "n": 0, "bins": []}
    confidence = sigmoid(np.abs(values))
    right = outcomes(differences)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for number in range(bins):
        inside = place == number
        total = int(inside.sum())
        row: dict[str, Any] = {"from": 0.5 + number / (2 * bins), "to": 0.5 + (number + 1) / (2 * bins), "n": total}
        if total:
            said, share = float(confidence[inside].mean()), wilson(float(right[inside].sum()), total)
            error += total / count * abs(said - share.value)
            row |= {"confidence": said, "accuracy": share.value, "low": share.low, "high": share.high}
        rows.append(row)
    loss = float(np.logaddexp(0.0, -values).mean())
    return {"ece": error, "loss": loss, "confidence": float(confidence.mean()), "n": count, "bins": rows}


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def finite(value: Any) -> Any:
    """The same figures with null for what JSON cannot say (NaN, infinity) and plain Python numbers."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _codes(clusters: Sequence[Hashable]) -> list[int]:
    """Clusters as integers in order of appearance: names of any kind, and no dependence on how they sort."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(cluster, len(seen)) for cluster in clusters]
