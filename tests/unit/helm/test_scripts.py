"""The scripts of `helm test` against servers that answer as the real ones do; tests/cluster runs them in their pods."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.launch.backend import TRAINING_STEPS

HOUSE = Path(__file__).resolve().parents[3]
SCRIPTS = HOUSE / "helm" / "kubealign" / "files" / "tests"
Answers = Callable[[str], tuple[int, Any]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """Start a server that answers a request for a path by a function; its URL."""
    started: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, body = answers(self.path)
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def run(script: str, changes: dict[str, str] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """As its pod does; `changes` shorten a wait, and take a port that is free on this machine."""
    text = (SCRIPTS / f"{script}.py").read_text()
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KUBEALIGN_", "KF_"))}
    clean |= {"PYTHONPATH": str(HOUSE), **environment}
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=clean, timeout=120, check=False
    )


def test_store_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    done = run("store", KUBEALIGN_ROOT=str(tmp_path))
    assert done.returncode == 0 and done.stdout.startswith("wrote, read and deleted"), done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_store_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("store", KUBEALIGN_ROOT=str(tmp_path / "file"))
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def api_server(serve: Any, folder: Path, allowed: bool) -> tuple[dict[str, str], list[str]]:
    """The environment of who talks to a Kubernetes that knows PyTorchJobs, and the paths that it was asked for."""
    asked: list[str] = []

    def answers(path: str) -> tuple[int, Any]:
        asked.append(path)
        if path == "/apis/kubeflow.org/v1":
            return 200, {"resources": [{"name": "pytorchjobs"}]}
        return 200, {"status": {"allowed": allowed}, "items": []}

    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "k", "cluster": {"server": serve(answers)}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "training"}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return {"KUBECONFIG": str(path), "KUBEALIGN_BACKEND": "pytorchjob", "KUBEALIGN_ROOT": "s3://bucket"}, asked


def test_jobs_of_every_step_are_asked_for_by_dry_run_alone(serve: Any, tmp_path: Path) -> None:
    environment, asked = api_server(serve, tmp_path, allowed=True)
    (tmp_path / "mine.yaml").write_text("{extends: demo, name: mine, sft: {resources: {gpus: 8}}}")
    done = run("jobs", {"/profiles": str(tmp_path)}, **environment)
    assert done.returncode == 0 and "takes a PyTorchJob of every step" in done.stdout, done.stderr
    made = [path for path in asked if path.startswith("/apis/kubeflow.org/v1/namespaces/training/pytorchjobs")]
    dry = [path for path in made if "dryRun=All" in path]
    assert len(dry) == len(TRAINING_STEPS) + 1
    assert all("dryRun=All" in path or "labelSelector" in path for path in made)


def test_right_that_the_launcher_lacks_is_named(serve: Any, tmp_path: Path) -> None:
    environment, _ = api_server(serve, tmp_path, allowed=False)
    done = run("jobs", {"/profiles": str(tmp_path)}, **environment)
    assert done.returncode == 1
    assert "error: not permitted in namespace training to create" in done.stderr


@pytest.mark.parametrize("several", [False, True])
def test_kfp_that_answers_is_reached(serve: Any, tmp_path: Path, several: bool) -> None:
    asked: list[str] = []

    def answers(path: str) -> tuple[int, Any]:
        asked.append(path)
        return 200, {"multi_user": several} if "healthz" in path else {"experiments": []}

    token = tmp_path / "token"
    token.write_text("token")
    done = run(
        "kfp", ENDPOINT=serve(answers), NAMESPACE="training", MULTI_USER=str(several).lower(), HOME=str(tmp_path),
        KF_PIPELINES_SA_TOKEN_PATH=str(token),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (experiments,) = [path for path in asked if "/experiments" in path]
    assert ("training" in experiments) is several


def test_kfp_that_refuses_is_told_with_its_address(serve: Any, tmp_path: Path) -> None:
    endpoint = serve(lambda path: (200, {}) if "healthz" in path else (403, {"error": "not yours"}))
    done = run("kfp", ENDPOINT=endpoint, NAMESPACE="training", MULTI_USER="false", HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"error: Kubeflow Pipelines at {endpoint}: (403)" in done.stderr


@pytest.fixture
def port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_metrics_are_proved_when_prometheus_has_read_them(serve: Any, port: str) -> None:
    def prometheus(path: str) -> tuple[int, Any]:
        """Reads the pod, and has what it read."""
        (query,) = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)["query"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            served = page.read().decode()
        (token,) = re.findall(r'token="(\w+)"', query)
        return 200, {"data": {"result": [{}] if f'kubealign_helm_test{{token="{token}"}} 1.0' in served else []}}

    done = run(
        "metrics", {"PATIENCE_SECONDS = 180": "PATIENCE_SECONDS = 15", "9464": port}, PROMETHEUS=serve(prometheus)
    )
    assert done.returncode == 0 and "has read this pod's metrics" in done.stdout, done.stderr


def test_metrics_that_nobody_reads_are_told(serve: Any, port: str) -> None:
    url = serve(lambda path: (200, {"data": {"result": []}}))
    done = run("metrics", {"PATIENCE_SECONDS = 180": "PATIENCE_SECONDS = 1", "9464": port}, PROMETHEUS=url)
    assert done.returncode == 1 and "it has not read this pod" in done.stderr
