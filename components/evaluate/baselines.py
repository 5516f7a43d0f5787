"""Two judges that know nothing: whoever does not beat them has learned nothing about quality."""

from typing import Any

from components.evaluate.sets import ComparisonSet
from components.evaluate.statistics import Resampling, accuracy, wilson


def coin(data: ComparisonSet) -> dict[str, Any]:
    """A coin is right half the time; its interval is where 95 % of the coins that toss for every pair would land."""
    return {
        **wilson(len(data.pairs) / 2, len(data.pairs))._asdict(),
        "n": len(data.pairs),
        "prompts": data.prompt_count,
    }


def longer_is_better(data: ComparisonSet, resampling: Resampling) -> dict[str, Any]:
    """Prefers the response with more characters; equal lengths are a tie and count a half."""
    differences = [float(len(pair.chosen) - len(pair.rejected)) for pair in data.pairs]
    return accuracy(differences, data.clusters, resampling, "longer_is_better", data.name)


BASELINES = ("coin", "longer_is_better")


def baselines(data: ComparisonSet, resampling: Resampling) -> dict[str, dict[str, Any]]:
    return {"coin": coin(data), "longer_is_better": longer_is_better(data, resampling)}
