import pytest

from components.training.schedule import learning_rate


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (715, 1e-6), (1430, 2e-6), (4000, 2e-6)])
def test_linear_warmup_then_constant_at_the_reports_numbers(step: int, rate: float) -> None:
    assert learning_rate(step, peak=2e-6, warmup=1430, total=4000) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (715, 1e-6), (1430, 2e-6), (2715, 1.1e-6), (4000, 2e-7), (5000, 2e-7)]
)
def test_cosine_falls_to_a_tenth(step: int, rate: float) -> None:
    found = learning_rate(step, peak=2e-6, warmup=1430, total=4000, shape="cosine_to_10pct")
    assert found == pytest.approx(rate)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, peak=3e-6, warmup=0) == 3e-6
