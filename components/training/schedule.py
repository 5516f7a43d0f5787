"""Learning-rate schedules as pure functions of the step."""

import math


def learning_rate(step: int, *, peak: float, warmup: int, total: int = 0, shape: str = "constant") -> float:
    """Rate for optimiser step `step` (0-based), which counts as the (step)-th of `warmup` on a line from 0.

    constant: stays at the peak (our reading of the report, recipe.md §1.4). cosine_to_10pct: falls to a tenth of the
    peak at `total` (pretraining, report §2.4). Step 0 of a warm-up has rate 0, step `warmup` the peak.
    """
    if step < warmup:
        return peak * step / warmup
    if shape == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
