"""The command line in this process: what it says to good and bad requests. Whole runs are in tests/integration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.config import STEPS, Profile
from pipelines import profiles
from pipelines.cli import main
from pipelines.runs import Run, RunState, default_id

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Exit code, stdout and stderr of a command whose root is `tmp_path / "root"`."""
    monkeypatch.setenv("KUBEALIGN_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("name", list(profiles.shipped()))
def test_every_shipped_profile_is_valid(call: Call, name: str) -> None:
    code, out, err = call("validate", name)
    assert (code, err) == (0, "")
    assert out.startswith(f"{name}: valid")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate", "qwen-7"], "no profile qwen-7; did you mean qwen-7b?"),
        (["validate", "nowhere/x.yaml"], "nowhere/x.yaml: no such profile file; shipped profiles: "),
        (["validate", "qwen-7b", "--set", "ppo.kl_coeficient=1"], " ppo.kl_coeficient; did you mean kl_coefficient?"),
        (["validate", "qwen-7b", "--set", "ppo.clip=-1"], "ppo.clip = -1: input should be greater than 0"),
        (["validate", "qwen-7b", "--set", "ppo"], "--set ppo: write it as section.key=value"),
        (["run"], "give --profile NAME, or --resume RUN; shipped profiles: "),
        (["run", "-p", "qwen-7b", "--data-root", "/nowhere"], "--data-root /nowhere: no such folder"),
        (["run", "-p", "qwen-7b", "--run", "No Spaces"], "run id 'No Spaces'; use 1 to 63"),
        (["run", "-p", "qwen-7b", "--resume", "x", "--set", "a=1"], "leave out --profile, --set"),
        (["run", "--resume", "x"], "no run x; see `kubealign runs`"),
        (["run", "--bogus"], "No such option: --bogus; see `kubealign run --help`"),
        (["run", "--root", "gs://bucket", "-p", "qwen-7b"], "gs://: not a kind of store"),
        (["report"], "no runs; start one with"),
        (["step", "sftt", "--output", "x"], "no step sftt; choose one of base_model, data_prep"),
        (["step", "sft", "-p", "qwen-7b", "--output", "x", "--input", "data"], "--input data; write it as NAME=URI"),
    ],
)  # fmt: skip
def test_bad_request_gets_one_line_and_exit_1(call: Call, arguments: list[str], said: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_bad_request_leaves_nothing_behind(call: Call, tmp_path: Path) -> None:
    call("run", "-p", "qwen-7b", "--set", "sft.bogus=1")
    assert not (tmp_path / "root").exists()


def test_run_id_with_other_settings_names_the_keys_that_differ(call: Call, tmp_path: Path) -> None:
    profile = profiles.load("qwen-7b")
    Run(str(tmp_path / "root"), "mine").begin(profile, "")
    code, _, err = call("run", "-p", "qwen-7b", "--run", "mine", "--set", "ppo.clip=0.3", "--seed", "5")
    assert code == 1
    assert "run mine exists with other settings: ppo.clip (0.2 -> 0.3), seed (0 -> 5)" in err


def test_default_run_id_follows_from_the_settings() -> None:
    profile = profiles.load("qwen-7b")
    other = profiles.load("qwen-7b", ["seed=1"])
    assert default_id(profile, "") == default_id(profiles.load("qwen-7b"), "")
    assert len({default_id(profile, ""), default_id(other, ""), default_id(profile, "/data")}) == 3
    assert default_id(Profile(name="My profile!"), "").startswith("my-profile-")


def test_schema_explains_every_setting(call: Call) -> None:
    code, out, _ = call("config", "schema")
    schema = json.loads(out)
    assert code == 0

    def fields(model: dict[str, Any]) -> None:
        for name, field in model.get("properties", {}).items():
            assert field.get("description"), (model.get("title"), name)
            assert field.get("source"), (model.get("title"), name)
            assert "default" in field or name in model["required"]

    for model in [schema, *schema["$defs"].values()]:
        fields(model)
    assert set(STEPS) <= set(schema["properties"])


def test_runs_lists_state_and_profile(call: Call, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for name, state in (("one", "done"), ("two", "running"), ("three", "failed")):
        run = Run(root, name)
        run.begin(profiles.load("qwen-7b"), "")
        ended_at = None if state == "running" else 9000.0
        run.set_state(RunState(state=state, started_at=len(name) * 1000.0, ended_at=ended_at))
    code, out, _ = call("runs")
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines()[1:]}
    assert code == 0
    # Nobody holds the lock of the one that was running: its process was killed.
    assert rows == {"one": ["done", "qwen-7b"], "two": ["stopped", "qwen-7b"], "three": ["failed", "qwen-7b"]}


def test_running_run_is_known_by_its_lock(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "one")
    run.set_state(RunState(state="running", started_at=0))
    with run.lock():
        assert run.state_name() == "running"
    assert run.state_name() == "stopped"


def test_compile_writes_the_profile_as_defaults(call: Call, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "out" / "ir.yaml"
    code, out, _ = call("compile", "-p", "qwen-14b", "-o", str(path), "--set", "seed=7")
    parameters = next(iter(yaml.safe_load_all(path.read_text())))["root"]["inputDefinitions"]["parameters"]
    assert (code, out) == (0, f"wrote {path}\n")
    assert parameters["seed"]["defaultValue"] == 7
    assert parameters["base_model"]["defaultValue"]["model"] == "Qwen/Qwen2.5-14B"


def test_unexpected_failure_is_one_line_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("something\nbroke")

    monkeypatch.setattr(profiles, "load", fail)
    code, _, err = call("validate", "qwen-7b")
    assert code == 1
    assert err == "error: unexpected ValueError: something broke; set KUBEALIGN_TRACEBACK=1 to see where\n"
