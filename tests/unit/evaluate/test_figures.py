"""From judged pairs and answers to the figures' exact paths."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.config import EvaluateConfig, Source
from components.core.errors import UserError
from components.core.metrics import parse_metrics
from components.core.records import Comparison, Prompt
from components.evaluate.baselines import baselines
from components.evaluate.figures import Findings, build_figures, policy_figures
from components.evaluate.inputs import choose_prompts
from components.evaluate.language_model import perplexity
from components.evaluate.policies import Answer, Policies
from components.evaluate.preferences import Judgement, gain, judge_figures
from components.evaluate.raw_comparisons import read_raw_comparisons
from components.evaluate.report import primary_set
from components.evaluate.run_records import read_run
from components.evaluate.sets import ComparisonSet
from components.evaluate.statistics import Resampling, wilson

RESAMPLING = Resampling(0, 200)


def comparison_set(name: str = "set", role: str = "reward_model") -> ComparisonSet:
    """Two prompts, three pairs: the longer response is chosen, rejected, and of equal length."""
    origin: dict[str, Any] = {"source": name, "licence": "none"}
    first = Comparison(
        id="1",
        messages=[{"role": "user", "content": "a?"}],
        responses=["long one", "no", "ok"],
        pairs=[{"chosen": 0, "rejected": 1, "gap": 1.0}, {"chosen": 2, "rejected": 0, "gap": 1.0}],
        **origin,
    )
    second = Comparison(
        id="2",
        messages=[{"role": "user", "content": "b?"}],
        responses=["ab", "cd"],
        pairs=[{"chosen": 0, "rejected": 1, "gap": 1.0}],
        **origin,
    )
    return ComparisonSet(name, role, [first, second])


def answers(refused: bool, correct: float, categories: list[str]) -> list[Answer]:
    truth = {"correctness": correct, "form": 0.5, "total": 0.6 * correct + 0.2, "refused": refused, "kind": "sum"}
    return [
        Answer(i, 0, "x", [1, 2, 3], False, {**truth, "category": category}, reward=correct)
        for i, category in enumerate(categories)
    ]


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=str(i), source="s", licence="none", messages=[{"role": "user", "content": f"q{i}"}])
        for i in range(count)
    ]


def test_baselines():
    found = baselines(comparison_set(), RESAMPLING)
    assert found["longer_is_better"]["value"] == 0.5  # right, wrong, tie
    assert found["longer_is_better"]["ties"] == 1
    assert (found["coin"]["value"], found["coin"]["n"]) == (0.5, 3)
    assert found["coin"]["low"] < 0.5 < found["coin"]["high"]


def test_pairs_that_a_model_cannot_read_are_left_out_of_its_figures():
    data = comparison_set()
    found = judge_figures(Judgement("pmp", {"set": [1.0, None, -1.0]}), [data], 10, RESAMPLING)
    assert found["accuracy"]["set"]["n"] == 2
    assert found["accuracy"]["set"]["value"] == 0.5


def test_gain_is_over_pairs_that_both_could_read():
    data = comparison_set()
    ours, theirs = Judgement("reward_model", {"set": [1.0, 2.0, 1.0]}), Judgement("pmp", {"set": [-1.0, None, 0.0]})
    assert gain(ours, theirs, [data], RESAMPLING)["set"]["value"] == 0.75
    assert gain(ours, theirs, [data], RESAMPLING)["set"]["n"] == 2


def test_refusals_are_counted_by_category():
    categories = ["harmful", "harmful", "lookalike", "plain"]
    sft = answers(True, 0.0, categories)
    sft[3].truth["refused"] = False
    found = policy_figures(
        Policies(prompts=prompts(4), answers={"sft": sft, "ppo": answers(False, 1.0, categories)}),
        RESAMPLING,
    )
    assert found["refusal"]["harmful"] == {"sft": 1.0, "ppo": 0.0}
    assert found["refusal"]["harmless"] == {"sft": 1.0, "ppo": 0.0}
    assert found["refusal"]["ordinary"] == {"sft": 0.0, "ppo": 0.0}
    assert found["refusal"]["n"] == {"harmful": 2, "harmless": 1, "ordinary": 1}
    assert found["correctness"]["ppo_minus_sft"]["value"] == 1.0
    assert found["ground_truth"]["ppo_minus_sft"]["value"] == pytest.approx(0.6)
    assert found["form"]["ppo_minus_sft"]["value"] == 0.0
    # All four answers are right, which does not make the policy infallible.
    assert found["correctness"]["ppo"]["low"] == pytest.approx(wilson(4, 4).low)
    assert found["by_kind"]["sum"] == {"n": 4, "sft": 0.0, "ppo": 1.0}


def test_policies_are_compared_on_answers_that_all_have_a_reward():
    sft, ppo = answers(False, 0.0, ["plain"] * 3), answers(False, 1.0, ["plain"] * 3)
    sft[0].reward = None
    found = policy_figures(Policies(prompts=prompts(3), answers={"sft": sft, "ppo": ppo}), RESAMPLING)
    assert found["reward"]["ppo"]["n"] == found["reward"]["sft"]["n"] == 2


def test_samples_of_a_prompt_are_averaged_before_prompts_are_drawn():
    items = [Answer(0, n, "x", [1], False, reward=float(n)) for n in range(4)]
    found = policy_figures(Policies(prompts=prompts(1), answers={"ppo": items}), RESAMPLING)
    assert found["reward"]["ppo"] == {"value": 1.5, "low": 1.5, "high": 1.5, "n": 4}


def test_without_a_scorer_there_is_no_ground_truth():
    found = policy_figures(Policies(prompts=prompts(1), answers={"ppo": [Answer(0, 0, "x", [1], True)]}), RESAMPLING)
    assert not {"ground_truth", "refusal", "reward"} & set(found)
    assert found["truncated"] == {"ppo": 1.0}


def test_figures_hold_only_what_json_can_say():
    policies = Policies(language_model={"base": perplexity(1e9, 1)})
    figures = build_figures(Findings(policies=policies), EvaluateConfig(), run="r", seed=0)
    assert figures["language_model"]["base"] == {"loss": 1e9, "perplexity": None}
    json.dumps(figures, allow_nan=False)


def test_perplexity():
    assert perplexity(6.0, 4)["loss"] == 1.5
    assert perplexity(6.0, 4)["perplexity"] == pytest.approx(4.4816891)


def test_the_headline_names_the_reward_models_own_true_order():
    sets = {
        "careful": {"role": "reward_model", "pairs": 10},
        "careful-true": {"role": "reward_model", "pairs": 10},
        "broad-true": {"role": "pmp", "pairs": 900},
    }
    assert primary_set({"sets": sets, "reward_model": {"accuracy": dict.fromkeys(sets)}}) == "careful-true"
    assert primary_set({"sets": {}}) is None


def test_the_same_prompts_are_chosen_whatever_their_order_and_each_once():
    rows = prompts(30)
    chosen = [row.id for row in choose_prompts(rows + rows[:5], 7)]
    assert chosen == [row.id for row in choose_prompts(rows[::-1], 7)]
    assert len(set(chosen)) == 7


def test_raw_comparisons_become_sets(tmp_path: Path):
    rows = [
        {"instruction": "a?", "output_1": "x", "output_2": "y", "preference": 2},
        {"instruction": "a?", "output_1": "x", "output_2": "z", "preference": 1},
        {"instruction": "b?", "output_1": "same", "output_2": "same", "preference": 1},
        {"instruction": "c?", "output_1": "p", "output_2": "q", "preference": 1.5},
    ]
    path = tmp_path / "theirs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\nbroken\n")
    sets, missing = read_raw_comparisons(str(path), Source(adapter="comparison"))
    assert [(data.name, len(data.pairs), data.prompt_count) for data in sets] == [("theirs", 2, 1)]
    assert {(pair.chosen, pair.rejected) for pair in sets[0].pairs} == {("y", "x"), ("x", "z")}
    assert all(rule in missing[0].why for rule in ("broken_json: 1", "identical_responses: 1", "tie: 1"))


def test_raw_comparisons_with_true_scores_become_two_sets(tmp_path: Path):
    row = {"prompt": "a?", "responses": ["x", "y"], "scores": [1, 0], "true_scores": [0, 1]}
    (tmp_path / "k.json").write_text(json.dumps([row]))
    sets, _ = read_raw_comparisons(str(tmp_path / "k.json"), Source(adapter="scored_responses", name="mine"))
    assert [(data.name, data.pairs[0].chosen) for data in sets] == [("mine", "x"), ("mine-true", "y")]


def test_raw_comparisons_without_a_pair_say_why(tmp_path: Path):
    path = tmp_path / "ties.jsonl"
    path.write_text(json.dumps({"instruction": "c?", "output_1": "p", "output_2": "q", "preference": 1.5}))
    with pytest.raises(UserError, match=r"no usable pair.*tie: 1"):
        read_raw_comparisons(str(path), Source(adapter="comparison"))


def test_a_run_with_broken_records_leaves_them_out(tmp_path: Path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "result.json").write_text("{")
    found = read_run(str(tmp_path))
    assert not found.steps
    assert any("sft" in item.part and "cannot be read" in item.why for item in found.missing)


def test_a_curve_ends_before_a_broken_line():
    assert parse_metrics(b'{"training_step": 1}\n{"training_') == [{"training_step": 1}]
