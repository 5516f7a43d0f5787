"""The demo itself, every step real: the newcomer's command from profile to report.

At a minute's size; or, with KUBEALIGN_LOCAL_RUN, the finished run of `make demo` that it names.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROFILE = """
extends: demo
name: small
base_model:
  resources: &one {processes: 1, threads: 1}
  sources: &sources
    sft: [{adapter: demo_world, name: demo-conversations, max_rows: 200}]
    pmp: [{adapter: demo_world, name: demo-votes, max_rows: 120}]
    reward_model: [{adapter: demo_world, name: demo-annotations, max_rows: 120}]
    ppo: [{adapter: demo_world, name: demo-prompts, max_rows: 600}]
    pretrain: [{adapter: demo_world, name: demo-text, max_rows: 300}]
  init: {layers: 1, hidden: 32, intermediate: 64, vocabulary: 600, steps: 10}
data_prep: {sources: *sources}
sft: {resources: *one}
pmp: {resources: *one}
reward_model: {resources: *one}
ppo: {resources: *one, iterations: 2, value_warmup_iterations: 1, prompts_per_iteration: 4, mini_batch_size: 4}
evaluate: {prompts: 40, bootstrap: 100, resources: *one}
"""


def kubealign(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True, timeout=540, check=False,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )  # fmt: skip


def leaf(figures: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        figures = figures[part]
    return figures


@dataclass(frozen=True)
class Finished:
    """A finished run and what started it."""

    root: Path
    profile: str
    id: str
    seed: int

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.id

    def again(self) -> subprocess.CompletedProcess[str]:
        return kubealign(
            "run", "--profile", self.profile, "--root", str(self.root), "--run", self.id, "--seed", str(self.seed)
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    if there := os.environ.get("KUBEALIGN_LOCAL_RUN"):
        return Finished(Path(there).parents[1], "demo", Path(there).name, 0)
    folder = tmp_path_factory.mktemp("demo")
    profile = folder / "small.yaml"
    profile.write_text(PROFILE, encoding="utf-8")
    run = Finished(folder / "root", str(profile), "small", 7)
    done = run.again()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return run


def test_run_ends_with_a_report_and_all_its_figures(finished: Finished) -> None:
    asked = kubealign("report", finished.id, "--root", str(finished.root), "--json")
    figures = json.loads(asked.stdout)
    for step in ("base_model", "data_prep", "sft", "pmp", "reward_model", "ppo", "evaluate"):
        assert leaf(figures, f"steps.{step}.seconds") > 0
        assert leaf(figures, f"steps.{step}.peak_rss_bytes") > 2**20
    for name in ("demo-annotations", "demo-annotations-true", "demo-votes", "demo-votes-true"):
        for model in ("reward_model", "pmp", "baselines.coin", "baselines.longer_is_better"):
            found = leaf(figures, f"{model}.accuracy")[name]
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
            assert found["n"] > 0
    for kind in ("ground_truth", "correctness"):
        for policy in ("base", "sft", "ppo", "ppo_minus_sft"):
            found = leaf(figures, f"{kind}.{policy}")
            assert found["low"] <= found["value"] <= found["high"]
    for kind in ("harmful", "harmless"):
        assert {"sft", "ppo"} <= set(leaf(figures, f"refusal.{kind}"))
    assert isinstance(leaf(figures, "ppo.kl"), float)
    html = (finished.folder / "evaluate/output/report/report.html").read_text(encoding="utf-8")
    assert "<svg" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_repeated_run_skips_everything(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in finished.folder.glob("*/result.json")}
    assert len(before) == 7
    again = finished.again()
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in finished.folder.glob("*/result.json")} == before


def test_one_step_by_itself_judges_someones_reward_model_on_raw_files(finished: Finished, tmp_path: Path) -> None:
    rows = [
        {"instruction": f"what is {i} plus one?", "output_1": "it is more.", "output_2": "no.", "preference": 1 + i % 2}
        for i in range(6)
    ]
    (tmp_path / "theirs.json").write_text(json.dumps(rows), encoding="utf-8")
    model = finished.folder / "reward_model/output/model"
    done = kubealign(
        "step", "evaluate", "--profile", finished.profile, "--input", f"reward_model={model}",
        "--input", f"comparisons={tmp_path / 'theirs.json'}", "--output", str(tmp_path / "judged"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads((tmp_path / "judged/output/report/report.json").read_text(encoding="utf-8"))
    assert figures["reward_model"]["accuracy"]["theirs"]["n"] == 6
