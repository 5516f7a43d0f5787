"""What the pipeline's components call: the last task of a run."""

import os
import subprocess
import sys

import pytest

from components.core.errors import RetryableError
from components.launch.cluster import janitor
from components.launch.pipeline_step import clean_up_run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(janitor, "clean_run", lambda *arguments: made.append(arguments))
    return made


@pytest.mark.parametrize("backend", ["pytorchjob", "trainjob", "auto"])
def test_last_task_cleans_up_in_the_place_of_the_run(
    backend: str, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEALIGN_BACKEND", backend)
    clean_up_run("s3://bucket/team/", "r")
    assert calls == [("r", "s3://bucket/team/runs/r")]


@pytest.mark.parametrize("backend", [None, "local"])
def test_last_task_on_this_machine_does_not_even_import_kubernetes(backend: str | None) -> None:
    program = """
import sys
from components.launch.pipeline_step import clean_up_run
clean_up_run("/nowhere", "r")
sys.exit("kubernetes" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "KUBEALIGN_BACKEND"}
    environment |= {"KUBEALIGN_BACKEND": backend} if backend else {}
    assert subprocess.run([sys.executable, "-c", program], check=False, env=environment).returncode == 0


def test_last_task_that_fails_says_why_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: str) -> None:
        raise RetryableError("the Kubernetes API server does not answer", fix="check that it runs")

    monkeypatch.setenv("KUBEALIGN_BACKEND", "auto")
    monkeypatch.setattr(janitor, "clean_run", fail)
    with pytest.raises(SystemExit) as ended:
        clean_up_run("s3://bucket", "r")
    assert ended.value.code == 75
    assert capsys.readouterr().err == (
        "error: clean_up: the Kubernetes API server does not answer; check that it runs\n"
    )
