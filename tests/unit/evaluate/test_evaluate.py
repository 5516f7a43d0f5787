"""The whole step on tiny random models, as its caller starts it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.base_model.init import build_model, train_tokenizer
from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.config import Init
from components.core.records import Comparison, Prompt
from components.core.spec import StepResult, make_spec
from components.core.step import main
from components.demo_world.generate import rows as demo_rows
from components.evaluate.run import work
from components.reward_model.model import RewardModel
from components.training.models import save_policy
from tests.steps import ORIGIN, chats, comparisons, publish_model, publish_rows, run_step

CONFIG: dict[str, Any] = {
    "ground_truth": "demo_world", "prompts": 8, "max_new_tokens": 6, "bootstrap": 100, "conversations": 4,
    "batch_tokens": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything a run gives to evaluate. The three policies and both judges are random models of one tokenizer."""
    tmp_path = tmp_path_factory.mktemp("inputs")
    folder = model_folders("qwen2")
    tokenizer = ChatTokenizer.load(folder)
    init = Init(
        vocabulary=320,
        hidden=32,
        layers=2,
        heads=4,
        key_value_heads=2,
        intermediate=48,
        max_positions=256,
        init_std=0.2,
    )
    found = {}
    for seed, name in enumerate(("base_model", "sft", "ppo")):
        torch.manual_seed(seed)
        save_policy(build_model(init, tokenizer), tmp_path / f"{name}-model", folder)
        found[name] = publish_model(tmp_path / f"{name}-model", tmp_path / name)
    for seed, name in enumerate(("pmp", "reward_model")):
        torch.manual_seed(seed)
        RewardModel.from_base(folder, "mlp").save(tmp_path / f"{name}-model", folder)
        found[name] = publish_model(tmp_path / f"{name}-model", tmp_path / name)
    found["sft_data"] = publish_rows(tmp_path / "a", tmp_path / "sft-data", chats(tokenizer))
    found["pmp_data"] = publish_rows(tmp_path / "b", tmp_path / "pmp-data", comparisons(tokenizer, 4))
    found["reward_model_data"] = publish_rows(tmp_path / "c", tmp_path / "rm-data", comparisons(tokenizer, 6))
    found["ppo_data"] = publish_rows(tmp_path / "d", tmp_path / "ppo-data", demo_prompts(40))
    found["run"] = str(fake_run(tmp_path / "runs" / "test"))
    return found


def demo_prompts(count: int) -> list[Prompt]:
    found = []
    for index, row in enumerate(demo_rows("ppo", 0, count)):
        found.append(Prompt(id=str(index), messages=row["messages"], meta=json.dumps(row["meta"]), **ORIGIN))
    return found


def fake_run(folder: Path) -> Path:
    for name in ("sft", "ppo"):
        result = StepResult(
            step=name, run="test", fingerprint="f", code="c", outputs={}, manifests={}, metrics={}, started_at=0.0,
            seconds=12.5, peak_rss_bytes=1000, versions={},
        )  # fmt: skip
        (folder / name).mkdir(parents=True)
        (folder / name / "result.json").write_text(result.model_dump_json())
        lines = [{"training_step": i, "training_loss": 1 / (i + 1), "ppo_kl": 0.1 * i} for i in range(5)]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def figures_of(result: StepResult) -> dict[str, Any]:
    folder = store.fetch(result.outputs["report"], Path())
    figures: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert figures == result.metrics
    return figures


def test_every_figure_that_the_command_line_promises(inputs: dict[str, str], tmp_path: Path):
    result = run_step("evaluate", tmp_path / "out", inputs, CONFIG)
    figures = figures_of(result)
    for step in ("sft", "ppo", "evaluate"):
        assert set(figures["steps"][step]) == {"seconds", "peak_rss_bytes"}
    # Both roles hold a set called test, so one of them carries its role.
    for name in ("test", "pmp-test"):
        for judge in ("reward_model", "pmp"):
            found = figures[judge]["accuracy"][name]
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
            assert 0 <= figures[judge]["calibration"][name]["ece"] <= 1
        for baseline in ("coin", "longer_is_better"):
            assert {"value", "low", "high", "n"} <= set(figures["baselines"][baseline]["accuracy"][name])
        assert {"value", "low", "high", "n"} <= set(figures["reward_model_minus_pmp"]["accuracy"][name])
    for figure in ("ground_truth", "correctness", "form", "reward"):
        for policy in ("base", "sft", "ppo", "ppo_minus_sft"):
            assert {"value", "low", "high"} <= set(figures[figure][policy])
    for figure in ("lengths", "truncated", "repetition"):
        assert set(figures[figure]) == {"base", "sft", "ppo"}
    assert {"harmful", "harmless"} <= set(figures["refusal"]["n"])
    for policy in ("base", "sft", "ppo"):
        assert figures["language_model"][policy]["perplexity"] > 1
    assert isinstance(figures["ppo"]["kl"], float)
    page = (Path(result.outputs["report"]) / "report.html").read_text()
    for heading in ("Preference models", "Calibration", "Policies", "Sample conversations", "Learning curves", "Steps"):
        assert f">{heading}<" in page
    assert len((Path(result.outputs["report"]) / "answers.jsonl").read_text().splitlines()) == 24


def test_longer_is_better_is_found_on_data_where_it_is_true(inputs: dict[str, str], tmp_path: Path):
    given = {name: inputs[name] for name in ("reward_model", "reward_model_data")}
    figures = figures_of(run_step("evaluate", tmp_path / "out", given, CONFIG))
    assert figures["baselines"]["longer_is_better"]["accuracy"]["test"]["value"] == 1.0


def test_a_policy_does_not_differ_from_itself(inputs: dict[str, str], tmp_path: Path):
    """Same model, same prompts, same seeds: KL and every difference are zero."""
    given = {"sft": inputs["sft"], "ppo": inputs["sft"], "ppo_data": inputs["ppo_data"]}
    figures = figures_of(run_step("evaluate", tmp_path / "out", given, CONFIG))
    assert figures["ppo"]["kl"] == pytest.approx(0, abs=1e-6)
    assert figures["ground_truth"]["ppo_minus_sft"] == {"value": 0, "low": 0, "high": 0, "n": 8}
    assert "base" not in figures["ground_truth"]
    assert "reward_model" not in figures
    assert any(item["part"] == "the base policy" for item in figures["missing"])


def test_kl_is_measured_on_ppo_samples_against_sft(inputs: dict[str, str], tmp_path: Path):
    """Random models differ a lot: both estimates are clearly positive, and a flipped sign would make k1 negative."""
    given = {name: inputs[name] for name in ("sft", "ppo", "ppo_data")}
    figures = figures_of(run_step("evaluate", tmp_path / "out", given, CONFIG))
    assert figures["ppo"]["kl_low"] > 0
    assert figures["ppo"]["kl_k3"] > 0


def test_somebody_elses_reward_model_and_files(inputs: dict[str, str], tmp_path: Path):
    path = tmp_path / "theirs.jsonl"
    rows = [{"instruction": f"q{i}?", "output_1": "blue", "output_2": "red", "preference": 1 + i % 2} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"reward_model": inputs["reward_model"], "comparisons": str(path)}
    figures = figures_of(run_step("evaluate", tmp_path / "out", given, {**CONFIG, "ground_truth": "none"}))
    assert figures["reward_model"]["accuracy"]["theirs"]["n"] == 6
    assert figures["sets"]["theirs"]["role"] == "comparisons"


def test_each_model_reads_text_with_its_own_tokenizer(inputs: dict[str, str], tmp_path: Path):
    """A reward model of another vocabulary scores just what it would score by itself."""
    folder = tmp_path / "other-tokenizer"
    folder.mkdir()
    train_tokenizer(iter(["zebra blue is the sky question colour answer " * 9]), 300, folder)
    tokenizer = ChatTokenizer.load(folder)
    init = Init(vocabulary=300, hidden=32, layers=1, heads=4, key_value_heads=2, intermediate=48, max_positions=256)
    torch.manual_seed(5)
    save_policy(build_model(init, tokenizer), tmp_path / "other", folder)
    model = RewardModel.from_base(tmp_path / "other", "mlp")
    model.save(tmp_path / "other-rm", folder)
    given = {
        "reward_model": publish_model(tmp_path / "other-rm", tmp_path / "rm"),
        "reward_model_data": inputs["reward_model_data"],
    }
    figures = figures_of(run_step("evaluate", tmp_path / "out", given, CONFIG))

    rows = comparisons(tokenizer, 6)
    scores = [model.eval().score(row.input_ids, 512) for row in rows]
    gaps = [scores[i][pair["chosen"]] - scores[i][pair["rejected"]] for i, row in enumerate(rows) for pair in row.pairs]
    loss = sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps)
    assert figures["reward_model"]["calibration"]["test"]["loss"] == pytest.approx(loss, abs=1e-5)
    assert figures["reward_model"]["accuracy"]["test"]["value"] == sum(gap > 0 for gap in gaps) / len(gaps)


def test_the_same_seed_gives_the_same_figures(inputs: dict[str, str], tmp_path: Path):
    given = {name: inputs[name] for name in ("ppo", "ppo_data", "reward_model", "reward_model_data")}
    first, second = (figures_of(run_step("evaluate", tmp_path / name, given, CONFIG)) for name in ("one", "two"))
    for figures in (first, second):
        del figures["steps"]
    assert first == second
    other = figures_of(run_step("evaluate", tmp_path / "three", given, CONFIG, seed=1))
    assert other["reward"] != first["reward"]
    assert other["reward_model"]["accuracy"]["test"]["value"] == first["reward_model"]["accuracy"]["test"]["value"]


def test_comparisons_that_are_too_long_are_counted(inputs: dict[str, str], tmp_path: Path):
    row = Comparison(
        id="1", messages=[{"role": "user", "content": "?"}], responses=["no " * 300, "yes", "ok"],
        pairs=[{"chosen": 0, "rejected": 1, "gap": 1.0}, {"chosen": 1, "rejected": 2, "gap": 1.0}], **ORIGIN,
    )  # fmt: skip
    given = {"pmp": inputs["pmp"], "pmp_data": publish_rows(tmp_path / "x", tmp_path / "y", [row])}
    figures = figures_of(run_step("evaluate", tmp_path / "out", given, CONFIG))
    assert figures["pmp"]["accuracy"]["test"]["n"] == 1
    assert any("1 of 2 pairs are longer" in item["why"] for item in figures["missing"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no model was given"),
        (("sft",), "nothing to evaluate them on"),
        (("reward_model", "sft_data"), "nothing to evaluate them on"),
    ],
)
def test_nothing_to_evaluate(
    names: tuple[str, ...], message: str, inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in refused({name: inputs[name] for name in names}, CONFIG, tmp_path, capsys)


def test_prompts_of_another_world_have_no_ground_truth(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    messages = [{"role": "user", "content": "hello"}]
    data = publish_rows(tmp_path / "x", tmp_path / "y", [Prompt(id="7", messages=messages, **ORIGIN)])
    said = refused({"ppo": inputs["ppo"], "ppo_data": data}, CONFIG, tmp_path, capsys)
    assert "prompt 7" in said
    assert "evaluate.ground_truth=none" in said


def test_no_prompt_leaves_room_for_an_answer(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = {name: inputs[name] for name in ("ppo", "ppo_data")}
    assert "evaluate.max_new_tokens" in refused(given, {**CONFIG, "max_new_tokens": 256}, tmp_path, capsys)


def test_a_policy_is_no_reward_model(inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = {"reward_model": inputs["sft"], "reward_model_data": inputs["reward_model_data"]}
    assert "no reward head" in refused(given, CONFIG, tmp_path, capsys)


def refused(given: dict[str, str], config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Exit 1, one line, nothing published."""
    spec = make_spec("evaluate", run="test", seed=0, config=config, inputs=given, output=str(tmp_path / "refused"))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    assert main("evaluate", work, ["--spec", spec.uri]) == 1
    assert not (tmp_path / "refused" / "output").exists()
    assert not (tmp_path / "refused" / "result.json").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_rival_is_judged_on_the_same_pairs_and_the_difference_is_reported(inputs: dict[str, str], tmp_path: Path):
    """The reward model, held against PMP's model in the rival's place, and against itself."""
    judges = {name: inputs[name] for name in ("pmp", "reward_model", "reward_model_data")}
    given = judges | {"rival": inputs["pmp"], "rival_data": inputs["pmp_data"]}
    result = run_step("evaluate", tmp_path / "out", given, CONFIG)
    figures = figures_of(result)
    assert figures["rival"] == figures["pmp"]
    for name in ("test", "rival-test"):
        gain = figures["reward_model_minus_rival"]["accuracy"][name]
        ours, theirs = (figures[judge]["accuracy"][name]["value"] for judge in ("reward_model", "rival"))
        assert gain["value"] == pytest.approx(ours - theirs) and gain["n"] == figures["sets"][name]["pairs"]
    assert figures["headline_set"] == "test"
    page = (Path(result.outputs["report"]) / "report.html").read_text()
    assert "At least as accurate as its rival" in page and "gain over Rival" in page

    same = run_step("evaluate", tmp_path / "same", judges | {"rival": inputs["reward_model"]}, CONFIG)
    gain = figures_of(same)["reward_model_minus_rival"]["accuracy"]["test"]
    assert (gain["value"], gain["low"], gain["high"]) == (0.0, 0.0, 0.0)
