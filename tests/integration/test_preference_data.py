"""The labelling round trip, every step real, on tiny random models: one command from three models to the comparison."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.base_model.init import build_model
from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.config import Init
from components.core.records import Comparison, Prompt
from components.demo_world.generate import rows as demo_rows
from components.reward_model.model import RewardModel
from components.training.models import save_policy
from tests.steps import ORIGIN, chats, comparisons, publish_model, publish_rows

PROFILE = """
extends: preference-demo
name: small
sample_responses:
  resources: &one {processes: 1, threads: 1}
  strategies: [{name: wide, max_new_tokens: 8, samples: 2}, {name: greedy, temperature: 0, max_new_tokens: 8}]
  max_prompts: 30
  # Random models do not know when to stop.
  keep_truncated: true
reward_model: {resources: *one}
evaluate: {bootstrap: 100, resources: *one}
"""
ARMS = ("several", "single")


def kubealign(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)


@pytest.fixture(scope="module")
def command(model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of the run; what it starts from lies beside its root."""
    folder = tmp_path_factory.mktemp("preference")
    base = model_folders("qwen2")
    tokenizer = ChatTokenizer.load(base)
    init = Init(
        vocabulary=320, hidden=16, layers=1, heads=2, key_value_heads=2, intermediate=16, max_positions=256,
        init_std=0.3,
    )  # fmt: skip
    given = {"models.base": publish_model(base, folder / "base")}
    for seed, name in enumerate(("sft", "ppo")):
        torch.manual_seed(seed)
        save_policy(build_model(init, tokenizer), folder / f"{name}-model", base)
        given[f"models.{name}"] = publish_model(folder / f"{name}-model", folder / name)
    torch.manual_seed(9)
    RewardModel.from_base(base, "mlp").save(folder / "start-model", base)
    rows = [
        Prompt(id=f"p{number}", messages=row["messages"], meta=json.dumps(row["meta"]), **ORIGIN)
        for number, row in enumerate(demo_rows("ppo", 0, 40))
    ]
    given |= {
        "start": publish_model(folder / "start-model", folder / "start"),
        "prompts": publish_rows(folder / "p", folder / "prompts", rows),
        "demonstrations": publish_rows(folder / "c", folder / "chats", chats(tokenizer)),
        "heldout": publish_rows(folder / "h", folder / "heldout", comparisons(tokenizer)),
    }
    (folder / "small.yaml").write_text(PROFILE, encoding="utf-8")
    settings = [part for name, uri in given.items() for part in ("--set", f"preference_data.{name}={uri}")]
    return ["run", "-p", str(folder / "small.yaml"), "--root", str(folder / "root"), "--run", "small", *settings]


@pytest.fixture(scope="module")
def run(command: list[str]) -> tuple[Path, str]:
    """(the run's folder, what the command printed)."""
    done = kubealign(*command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Path(command[command.index("--root") + 1]) / "runs" / "small", done.stdout


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_round_trip_ends_in_two_reward_models_and_a_plain_verdict(run: tuple[Path, str]) -> None:
    folder, said = run
    assert "the one from a single model" in said and "report: " in said
    figures = json.loads((folder / "evaluate/output/report/report.json").read_text())
    for judge in ("reward_model", "rival", "pmp"):
        assert {"test", "sampled", "rival-sampled"} <= set(figures[judge]["accuracy"])
    assert figures["headline_set"] == "test"


def test_several_models_answer_in_one_arm_and_one_of_them_as_often_in_the_other(run: tuple[Path, str]) -> None:
    folder, _ = run
    found = {arm: lines(folder / arm / "sample_responses/output/producers/producers.jsonl") for arm in ARMS}
    assert {row["model"] for row in found["several"]} == {"base", "sft", "ppo"}
    assert {row["model"] for row in found["single"]} == {"sft"}
    # Of each model, two sampled responses and a greedy one, which the one model gives but once.
    assert len(found["several"]) == 30 * 3 * (2 + 1) and len(found["single"]) == 30 * (3 * 2 + 1)
    assert {row["prompt"] for row in found["several"]} == {row["prompt"] for row in found["single"]}


def test_annotators_see_nothing_of_who_wrote_what(run: tuple[Path, str]) -> None:
    folder, _ = run
    for arm in ARMS:
        shown = [*(folder / arm).glob("*/output/responses/*"), *(folder / arm).glob("annotate/output/tasks/**/*")]
        texts = [path.read_text(encoding="utf-8") for path in shown if path.is_file()]
        assert len(texts) > 4
        for row in lines(folder / arm / "sample_responses/output/producers/producers.jsonl"):
            assert all(str(row["seed"]) not in text for text in texts)
        for secret in ('"model"', '"strategy"', "greedy", "true_scores"):
            assert all(secret not in text for text in texts)


def test_both_reward_models_learn_from_as_many_pairs_of_the_same_prompts(run: tuple[Path, str]) -> None:
    folder, _ = run
    several, single = (json.loads((folder / arm / "reward_model/result.json").read_text())["metrics"] for arm in ARMS)
    assert (several["prompts"], several["pairs"]) == (single["prompts"], single["pairs"])
    assert several["pairs"] > 0
    specs = [json.loads((folder / arm / "reward_model/spec.json").read_text()) for arm in ARMS]
    assert specs[0]["inputs"]["base_model"] == specs[1]["inputs"]["base_model"]


def test_prompts_that_data_prep_holds_out_train_neither(run: tuple[Path, str]) -> None:
    from components.core.records import read_rows

    folder, _ = run
    for arm in ARMS:
        rows = folder / arm / "data_prep/output/reward_model"
        train = {json.dumps(row.messages) for row in read_rows(rows / "train.parquet", Comparison)}
        held = {json.dumps(row.messages) for row in read_rows(rows / "heldout/sampled.parquet", Comparison)}
        assert train and held and not train & held


def test_repeated_run_skips_everything(command: list[str], run: tuple[Path, str]) -> None:
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.rglob("result.json")}
    assert len(before) == 9
    again = kubealign(*command)
    assert again.returncode == 0 and "all steps are already done" in again.stdout, again.stderr
    assert {path: path.read_bytes() for path in folder.rglob("result.json")} == before


def test_people_hand_their_results_in_and_the_run_goes_on(command: list[str], run: tuple[Path, str]) -> None:
    """The same with mode import: it stops where people are needed, and goes on from there when they are done."""
    folder, _ = run
    changed = [*command, "--set", "annotate.mode=import"]
    changed[changed.index("small")] = "people"
    asked = kubealign(*changed)
    place = folder.parent / "people/annotations/several/annotate"
    assert asked.returncode == 1
    assert asked.stderr.startswith(
        f"error: several/annotate: {place}: no results of annotators yet; hand out the tasks in"
    )
    for arm in ARMS:
        handed_in = place.parents[1] / arm / "annotate"
        handed_in.mkdir(parents=True)
        for path in (folder / arm / "annotate/output/results").glob("annotator*.json"):
            (handed_in / path.name).write_bytes(path.read_bytes())
    done = kubealign(*changed)
    assert done.returncode == 0, done.stderr
    for arm in ARMS:
        ours, theirs = (folder.parent / name / arm / "annotate/output/scored" for name in ("people", "small"))
        assert [row["scores"] for row in lines(ours / "scored.jsonl")] == [
            row["scores"] for row in lines(theirs / "scored.jsonl")
        ]
        assert store.manifest_digest(str(ours)) != store.manifest_digest(str(theirs))  # people know no true scores
