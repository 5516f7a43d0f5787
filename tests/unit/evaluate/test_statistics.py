"""Accuracy, calibration and intervals against numbers worked out by hand, and their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.metrics import repeated_ngrams
from components.evaluate.statistics import (
    Resampling,
    accuracy,
    calibration,
    finite,
    mean_by_cluster,
    outcomes,
    paired_difference,
    share_by_cluster,
    wilson,
)

RESAMPLING = Resampling(seed=0, resamples=300)
differences = st.lists(st.floats(-40, 40), min_size=1, max_size=40)


def test_a_tie_counts_a_half():
    assert outcomes([1.0, 0.0, -2.0, 3.0]).tolist() == [1.0, 0.5, 0.0, 1.0]
    found = accuracy([1.0, 0.0, -2.0, 3.0], ["a", "b", "c", "d"], RESAMPLING, "test")
    assert (found["value"], found["n"], found["prompts"], found["ties"]) == (0.625, 4, 4, 1)


def test_wilson_of_eight_in_ten():
    # p = .8, z = 1.96: centre (.8 + .19207)/(1.38415) = .71674, half 1.96/1.38415 * sqrt(.016 + .0096036) = .22658
    found = wilson(8, 10)
    assert found == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)


def test_wilson_at_the_ends_and_of_nothing():
    assert wilson(0, 10) == pytest.approx((0, 0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((1, 0.72247, 1), abs=1e-5)
    assert all(math.isnan(value) for value in wilson(0, 0))


def test_calibration_by_hand():
    # sigma(1) = .731059, sigma(2) = .880797; two bins: [.5, .75) and [.75, 1].
    # First bin: d = 1, -1, 0 -> confidences .731059, .731059, .5, right 1, 0, .5: |.654039 - .5| = .154039
    # Second bin: d = 2 -> |.880797 - 1| = .119203; ECE = 3/4 * .154039 + 1/4 * .119203
    found = calibration([1.0, -1.0, 0.0, 2.0], bins=2)
    assert found["ece"] == pytest.approx(0.145330, abs=1e-6)
    assert [row["n"] for row in found["bins"]] == [3, 1]
    assert found["bins"][0]["confidence"] == pytest.approx(0.654039, abs=1e-6)
    assert (found["bins"][0]["accuracy"], found["bins"][1]["accuracy"]) == (0.5, 1.0)
    # -log sigma: .313262, 1.313262, .693147, .126928
    assert found["loss"] == pytest.approx(0.611650, abs=1e-6)


def test_a_model_that_is_sure_and_right_is_calibrated_and_one_that_is_sure_and_wrong_is_not():
    assert calibration([30.0] * 5, bins=10)["ece"] == pytest.approx(0, abs=1e-9)
    assert calibration([-30.0] * 5, bins=10)["ece"] == pytest.approx(1, abs=1e-9)


def test_calibration_does_not_overflow_and_an_empty_set_is_null():
    assert math.isfinite(calibration([-1e4, 1e4], bins=10)["loss"])
    assert finite(calibration([], bins=10))["ece"] is None


def test_the_bootstrap_draws_prompts_not_rows():
    """A hundred copies of each prompt's row say nothing new: the interval must not shrink."""
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    once = mean_by_cluster(values, range(8), RESAMPLING, "same name")
    often = mean_by_cluster(np.repeat(values, 100).tolist(), np.repeat(range(8), 100).tolist(), RESAMPLING, "same name")
    assert often == pytest.approx(once)


def test_the_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    found = mean_by_cluster(values.tolist(), range(400), Resampling(0, 4000), "normal")
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_every_prompt_can_be_drawn():
    """Of two prompts, each is drawn twice in a quarter of the resamples."""
    assert mean_by_cluster([0.0, 1.0], ["a", "b"], RESAMPLING, "x") == (0.5, 0.0, 1.0)


def test_large_prompts_weigh_by_their_pairs():
    """Accuracy is over pairs, as in the report's Table 4: three of four, whatever prompt they belong to."""
    assert mean_by_cluster([1, 1, 1, 0], ["a", "a", "a", "b"], RESAMPLING, "x").value == 0.75


def test_prompts_that_all_agree_leave_doubt():
    """A bootstrap of equal values would claim certainty."""
    found = share_by_cluster([1.0] * 20, list(range(10)) * 2, RESAMPLING, "x")
    assert found == pytest.approx((1, 0.72247, 1), abs=1e-5)


def test_paired_difference_is_exact_where_all_prompts_gain_alike():
    found = paired_difference([0.7, 0.9, 0.4], [0.5, 0.7, 0.2], ["a", "b", "c"], RESAMPLING, "x")
    assert found == pytest.approx((0.2, 0.2, 0.2))


def test_pairing_takes_out_what_prompts_differ_by():
    hardness = np.random.default_rng(2).normal(0, 10, 100)
    paired = paired_difference((hardness + 1).tolist(), hardness.tolist(), range(100), RESAMPLING, "x")
    assert paired == pytest.approx((1, 1, 1))


def test_equal_seeds_draw_equal_intervals_and_others_do_not():
    values = np.random.default_rng(3).random(50).tolist()
    first = mean_by_cluster(values, range(50), Resampling(1, 200), "x")
    assert first == mean_by_cluster(values, range(50), Resampling(1, 200), "x")
    assert first != mean_by_cluster(values, range(50), Resampling(2, 200), "x")
    assert first != mean_by_cluster(values, range(50), Resampling(1, 200), "y")


@given(differences)
def test_swapping_chosen_and_rejected_mirrors_the_accuracy(values: list[float]):
    there, back = outcomes(values), outcomes([-value for value in values])
    assert (there + back == 1).all()


@given(differences, st.integers(2, 20))
def test_calibration_counts_each_pair_once_and_stays_in_bounds(values: list[float], bins: int):
    found = calibration(values, bins)
    assert sum(row["n"] for row in found["bins"]) == len(values)
    assert 0 <= found["ece"] <= 1
    for row in found["bins"]:
        if row["n"]:
            assert row["from"] - 1e-9 <= row["confidence"] <= row["to"] + 1e-9
            assert row["low"] <= row["accuracy"] <= row["high"]


@given(differences)
def test_intervals_hold_their_value_and_stay_in_bounds(values: list[float]):
    clusters = [index // 2 for index in range(len(values))]
    found = share_by_cluster(outcomes(values).tolist(), clusters, Resampling(0, 100), "x")
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(st.permutations(range(8)))
def test_the_order_of_responses_in_a_pair_does_not_matter_to_calibration(order: list[int]):
    values = [3.0, -1.0, 0.5, 0.0, -2.0, 1.0, 4.0, -0.1]
    assert calibration([values[i] for i in order], 5)["ece"] == pytest.approx(calibration(values, 5)["ece"])


@given(st.floats(0, 200), st.integers(1, 200))
def test_wilson_stays_in_bounds(share: float, count: int):
    successes = min(share, count)
    found = wilson(successes, count)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_repeated_ngrams():
    assert repeated_ngrams([1, 2, 3, 4]) == 0
    assert repeated_ngrams([1, 2]) == 0
    # 123 231 312 123 231: five 3-grams, three different
    assert repeated_ngrams([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(0.4)
    assert repeated_ngrams([7] * 10) == pytest.approx(7 / 8)


def test_json_gets_null_for_what_it_cannot_say():
    assert finite({"a": [math.nan, math.inf, 1, np.float64(2)], 3: "x"}) == {"a": [None, None, 1, 2.0], "3": "x"}
