"""The pipeline preference_data from the command line's side: what it starts from, where it runs, what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import UserError
from components.core.spec import StepResult
from pipelines import profiles
from pipelines.cli import main
from pipelines.definitions import DEFINITIONS, definition
from pipelines.figures import verdict
from pipelines.runs import Run
from pipelines.starts import absolute, from_run

OUTPUTS = {
    "base_model": ["model"], "sft": ["model"], "ppo": ["model"], "pmp": ["model"],
    "data_prep": ["ppo", "sft", "reward_model"],
}  # fmt: skip


def finished(root: Path, run: str) -> Run:
    """A run of the alignment pipeline, as far as its results tell."""
    made = Run(str(root), run)
    made.begin(profiles.load("demo"), "")
    for step, outputs in OUTPUTS.items():
        result = StepResult(
            step=step, run=run, fingerprint="f", code="c", metrics={}, started_at=0.0, seconds=1.0, peak_rss_bytes=1,
            versions={}, manifests={}, outputs={name: f"{made.uri}/{step}/output/{name}" for name in outputs},
        )  # fmt: skip
        folder = root / "runs" / run / step
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result.model_dump_json())
    return made


def test_a_run_gives_all_that_the_pipeline_starts_from(tmp_path: Path) -> None:
    profile = profiles.load("preference-demo", from_run(finished(tmp_path, "chain")))
    uri, own = f"{tmp_path}/runs/chain", profile.preference_data
    assert own.models == {
        "base": f"{uri}/base_model/output/model", "sft": f"{uri}/sft/output/model", "ppo": f"{uri}/ppo/output/model",
    }  # fmt: skip
    assert own.prompts == f"{uri}/data_prep/output/ppo" and own.heldout == f"{uri}/data_prep/output/reward_model"
    assert own.start == f"{uri}/pmp/output/model" and own.demonstrations == f"{uri}/data_prep/output/sft"
    definition(profile).check(profile, "")


def test_a_run_that_is_not_there_yet_says_what_is_missing(tmp_path: Path) -> None:
    run = finished(tmp_path, "chain")
    (tmp_path / "runs" / "chain" / "ppo" / "result.json").unlink()
    with pytest.raises(UserError, match="run chain has no model of ppo yet; finish it with `kubealign run --resume"):
        from_run(run)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "pipeline preference_data needs models, prompts, start, demonstrations, heldout; give --from RUN, or"),
        (["--from", "nothing"], "no run nothing"),
        (["--data-root", "."], "pipeline preference_data reads no raw data; leave out --data-root"),
        (["--set", "preference_data.promts=x"], "unknown key preference_data.promts; did you mean prompts?"),
        (["--resume", "x"], "leave out --profile"),
    ],
)
def test_bad_request_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["run", "--root", str(tmp_path), "-p", "preference-demo", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_relative_paths_mean_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["preference_data.models.a=here", "preference_data.prompts=s3://bucket/rows/", "preference_data.start=~/x"]
    own = absolute(profiles.load("preference-demo", given)).preference_data
    assert own.models == {"a": f"{tmp_path}/here"} and own.prompts == "s3://bucket/rows"
    assert own.start == str(Path.home() / "x") and own.heldout == ""


def test_steps_of_the_run_lie_where_the_pipeline_puts_them(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "one")
    assert run.places()[:3] == ["base_model", "data_shards/1-of-1", "data_prep"]
    run.begin(profiles.load("preference-demo"), "")
    assert run.places() == [
        "several/sample_responses", "several/annotate", "several/data_prep", "single/sample_responses",
        "single/annotate", "single/data_prep", "several/reward_model", "single/reward_model", "evaluate",
    ]  # fmt: skip
    assert run.step_folder("several/annotate") == tmp_path / "runs/one/several/annotate"


def test_each_shard_of_the_raw_data_is_a_step_of_the_run(tmp_path: Path) -> None:
    profile = profiles.load("demo", ["data_shards=2"])
    assert DEFINITIONS["alignment"].arguments(profile)["data_shards"] == ["1/2", "2/2"]
    run = Run(str(tmp_path), "one")
    run.begin(profile, "")
    assert run.places()[1:4] == ["data_shards/1-of-2", "data_shards/2-of-2", "data_prep"]


@pytest.mark.parametrize(
    ("ours", "interval", "said"),
    [
        (
            0.9,
            (0.01, 0.19),
            "at least as accurate as the one from a single model: 0.900 against 0.800 of 50 pairs of x",
        ),
        (0.8, (-0.1, 0.1), "at least as accurate as the one from a single model: 0.800 against 0.800"),
        (0.8, (-0.1, 0.1), "a difference of +0.000 [-0.100, +0.100], which may be chance."),
        (0.7, (-0.2, 0.01), "less accurate than the one from a single model: 0.700 against 0.800"),
        (0.7, (-0.2, -0.05), "a difference of -0.100 [-0.200, -0.050]."),
    ],
)
def test_verdict_is_plain(ours: float, interval: tuple[float, float], said: str) -> None:
    def accuracy(value: float) -> dict[str, Any]:
        return {"accuracy": {"x": {"value": value}}}

    gain = {"value": ours - 0.8, "low": interval[0], "high": interval[1], "n": 50}
    figures = {
        "headline_set": "x", "reward_model": accuracy(ours), "rival": accuracy(0.8),
        "reward_model_minus_rival": {"accuracy": {"x": gain}},
    }  # fmt: skip
    assert said in verdict(json.loads(json.dumps(figures)))
    assert verdict({"headline_set": "x"}) == ""
