from pathlib import Path
from typing import Any

import pytest
import torch

import components.ppo.train as ppo
from components.core.config import PPOConfig
from components.core.metrics import read_metrics, repeated_ngrams
from components.ppo import rollout
from components.ppo.rewards import KLCoefficient, RunningMoments
from components.ppo.rollout import Experience, reward
from components.training.engine import Engine
from components.training.scoring import response_tokens, token_nll
from tests.steps import run_step, weights


def lines(output: Path) -> list[dict[str, Any]]:
    return read_metrics(output / "metrics.jsonl")


def test_value_warmup_leaves_policy_bit_identical(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path
) -> None:
    result = run_step("ppo", tmp_path / "out", ppo_inputs, ppo_config | {"value_warmup_iterations": 3})
    before, after = weights(ppo_inputs["policy"]), weights(result.outputs["model"])
    assert all(torch.equal(before[name], after[name]) for name in before)
    for line in lines(tmp_path / "out"):
        assert line["ppo_kl"] == 0.0
        assert line["ppo_value_only"] == 1.0
        assert line["ppo_value_grad_norm"] > 0


def test_policy_moves_after_the_warmup(ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path) -> None:
    result = run_step("ppo", tmp_path / "out", ppo_inputs, ppo_config | {"value_warmup_iterations": 1})
    before, after = weights(ppo_inputs["policy"]), weights(result.outputs["model"])
    assert any(not torch.equal(before[name], after[name]) for name in before)
    found = lines(tmp_path / "out")
    assert [line["ppo_value_only"] for line in found] == [1.0, 0.0, 0.0]
    assert found[1]["ppo_kl"] == 0.0
    assert found[2]["ppo_kl"] != 0.0


def test_first_pass_has_ratio_one_and_clips_nothing(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path
) -> None:
    config = ppo_config | {"iterations": 1, "mini_batch_size": 8, "micro_batch_tokens": 60}
    run_step("ppo", tmp_path / "out", ppo_inputs, config)
    line = lines(tmp_path / "out")[0]
    assert line["ppo_ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert line["ppo_clip_fraction_ratio"] == 0.0
    assert line["ppo_kl"] == 0.0
    assert line["ppo_entropy"] > 0


@pytest.mark.parametrize(("epochs", "size", "expected"), [(1, 2, 4), (2, 2, 8), (1, 3, 3), (3, 8, 3)])
def test_optimiser_steps_are_rollouts_times_epochs_times_mini_batches(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    epochs: int, size: int, expected: int,
) -> None:  # fmt: skip
    """Every rollout, the last of a pass over the prompts too (trl#5645 took a step a micro-batch there)."""
    steps: list[int] = []
    original = Engine.step

    def counted(self: Engine, learning_rate: float) -> float:
        steps.append(id(self))
        return original(self, learning_rate)

    monkeypatch.setattr(Engine, "step", counted)
    config = ppo_config | {"epochs": epochs, "mini_batch_size": size, "micro_batch_tokens": 40}
    run_step("ppo", tmp_path / "out", ppo_inputs, config)
    assert len(steps) == 3 * expected * 2
    assert {steps.count(engine) for engine in set(steps)} == {3 * expected}


def test_micro_batches_do_not_change_the_weights(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path
) -> None:
    config = ppo_config | {
        "iterations": 1,
        "mini_batch_size": 4,
        "ptx": {"coefficient": 0.1, "sequences_per_response": 1.5},
    }
    one = weights(run_step("ppo", tmp_path / "a", ppo_inputs, config).outputs["model"])
    other = weights(run_step("ppo", tmp_path / "b", ppo_inputs, config | {"micro_batch_tokens": 30}).outputs["model"])
    for name in one:
        assert torch.allclose(one[name], other[name], atol=1e-5), name


ONE_STEP = {"mini_batch_size": 8, "iterations": 2}  # of all eight responses, in one micro-batch


@pytest.mark.parametrize("changes", [{}, {"ptx": {"coefficient": 0.1}, "entropy_coefficient": 0.1}])
def test_kept_passes_give_the_weights_of_passes_done_again(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    """Where scoring's graphs serve the update, and only there, each trained model is run once an iteration."""
    passes: list[object] = []
    original = Engine.__call__

    def counted(self: Engine, function: Any, *arguments: Any, **named: Any) -> Any:
        if function is not token_nll:
            passes.append(function)
        return original(self, function, *arguments, **named)

    def no_pass(*_: Any) -> list[torch.Tensor]:
        raise AssertionError("scored once more")

    config = ppo_config | ONE_STEP | changes
    apart = tmp_path / "apart"
    with monkeypatch.context() as patch:
        patch.setattr(ppo.PPO, "_one_pass", lambda *_: False)
        again = weights(run_step("ppo", apart, ppo_inputs, config).outputs["model"])
    monkeypatch.setattr(Engine, "__call__", counted)
    monkeypatch.setattr(rollout, "response_values", no_pass)
    kept = weights(run_step("ppo", tmp_path / "kept", ppo_inputs, config).outputs["model"])
    assert passes == [response_tokens, rollout.token_values] * 2
    assert any(not torch.equal(kept[name], value) for name, value in weights(ppo_inputs["policy"]).items())
    for name in again:
        assert torch.allclose(kept[name], again[name], rtol=0, atol=1e-5), name
    for one, other in zip(lines(tmp_path / "kept"), lines(apart), strict=True):
        for name in ("ppo_value_grad_norm", "ppo_policy_grad_norm", "ppo_value_loss", "ppo_entropy", "ppo_kl"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 2}, {"mini_batch_size": 7}, {"micro_batch_tokens": 40}, {"gradient_checkpointing": True},
        {"lora": {"rank": 2}}, {"value_warmup_iterations": 2},
    ],
)  # fmt: skip
def test_no_pass_is_kept_that_the_update_cannot_use(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    def kept(*_: Any) -> None:
        raise AssertionError("kept")

    monkeypatch.setattr(rollout, "passes_with_graph", kept)
    run_step("ppo", tmp_path / "out", ppo_inputs, ppo_config | ONE_STEP | changes)
    assert len(lines(tmp_path / "out")) == 2


def test_pretraining_gradient_is_taken_and_measured(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path
) -> None:
    config = ppo_config | {"iterations": 2, "value_warmup_iterations": 1}
    plain = weights(run_step("ppo", tmp_path / "plain", ppo_inputs, config).outputs["model"])
    with_text = config | {"ptx": {"coefficient": 5.0, "sequences_per_response": 2.0}}
    mixed = weights(run_step("ppo", tmp_path / "mixed", ppo_inputs, with_text).outputs["model"])
    assert any(not torch.equal(plain[name], mixed[name]) for name in plain)
    warmup, joint = lines(tmp_path / "mixed")
    assert "ppo_ptx_loss" not in warmup
    assert joint["ppo_ptx_loss"] > 0
    assert joint["ppo_ptx_grad_norm"] > 0


def test_reward_lands_on_the_last_token_and_moments_skip_the_unfinished() -> None:
    """Padding beside shorter responses must not shift the score; a cut response has no score to normalise by."""

    def item(length: int, score: float, truncated: bool) -> Experience:
        zeros = torch.zeros(length)
        return Experience(
            sequence=[1] * (2 + length), start=2, truncated=truncated, raw_score=score,
            log_probs=zeros, reference=zeros, values=zeros,
        )  # fmt: skip

    experience = [item(2, 1.0, False), item(4, 50.0, True), item(3, 3.0, False)]
    moments = RunningMoments()
    config = PPOConfig(whiten_advantages=False, gae_lambda=0.5)
    reward(experience, moments, KLCoefficient(0.04), config)
    assert (moments.count, moments.mean) == (2, 2.0)
    # With zero values the advantage is the discounted later reward: the score's power-of-two trail leads to its place.
    assert experience[0].advantages.tolist() == pytest.approx([-0.5, -1.0])
    assert experience[1].advantages.tolist() == pytest.approx([-0.125, -0.25, -0.5, -1.0])
    assert experience[2].advantages.tolist() == pytest.approx([0.25, 0.5, 1.0])


def test_other_tokenizers_are_refused(ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path) -> None:
    import json
    import shutil

    from components.core import store
    from components.core.spec import make_spec
    from components.core.step import main

    folder = tmp_path / "other"
    shutil.copytree(ppo_inputs["reward_model"], folder, ignore=shutil.ignore_patterns("MANIFEST.json"))
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = settings["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    store.publish(folder, str(tmp_path / "other-rm"))
    inputs = ppo_inputs | {"reward_model": str(tmp_path / "other-rm")}
    spec = make_spec("ppo", run="t", seed=0, config=ppo_config, inputs=inputs, output=str(tmp_path / "out"))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    assert main("ppo", ppo.work, ["--spec", spec.uri]) == 1
    assert not (tmp_path / "out" / "result.json").exists()


def test_repetition_counts_ngrams_seen_before() -> None:
    assert repeated_ngrams([1, 2, 3, 1, 2, 3]) == pytest.approx(0.25)
    assert repeated_ngrams([1, 2]) == 0.0


def test_sampling_differs_between_the_two_responses_of_a_prompt(
    ppo_inputs: dict[str, str], ppo_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Experience]] = []
    original = ppo.reward

    def spy(experience: list[Experience], *rest: Any) -> None:
        seen.append(experience)
        original(experience, *rest)

    monkeypatch.setattr(ppo, "reward", spy)
    run_step("ppo", tmp_path / "out", ppo_inputs, ppo_config | {"max_new_tokens": 12})
    pairs = [(a, b) for rollout in seen for a, b in zip(rollout[::2], rollout[1::2], strict=True)]
    assert all(a.sequence[: a.start] == b.sequence[: b.start] for a, b in pairs)
    assert sum(a.response != b.response for a, b in pairs) > len(pairs) // 2
