"""A real S3 server for the tests: versitygw, built once from its pinned Go module, one process a test worker."""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import CannotBuild, program
from tests.s3 import S3Server

READY_SECONDS = 30


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server with an empty store. Skips only where there is no Go to build it with."""
    try:
        versitygw = program("versitygw")
    except CannotBuild as error:
        if shutil.which("go") is None:
            pytest.skip(f"the S3 tests need versitygw: {error}")
        pytest.fail(f"versitygw: {error}", pytrace=False)
    root = tmp_path_factory.mktemp("s3")
    for name in ("data", "sidecar"):
        (root / name).mkdir()
    with (root / "log").open("wb") as log:
        process, endpoint = _start(versitygw, root, log)
        try:
            yield S3Server(endpoint, "testkey", "testsecret1", root / "data")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new bucket; the environment points at its server, and retries are short."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("KUBEALIGN_STORE_BACKOFF_SECONDS", "0.01")
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=bucket)
    return bucket


def _start(versitygw: Path, root: Path, log) -> tuple[subprocess.Popen[bytes], str]:  # type: ignore[no-untyped-def]
    """Start the server on a free port and wait until it answers. Another process may take the port first: try again."""
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        # The sidecar holds metadata that would need extended attributes, which not every file system has.
        options = ["--port", address, "--quiet", "--health", "/health", "posix", "--sidecar", str(root / "sidecar")]
        environment = {**os.environ, "ROOT_ACCESS_KEY": "testkey", "ROOT_SECRET_KEY": "testsecret1"}
        process = subprocess.Popen(
            [str(versitygw), *options, str(root / "data")], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://{address}/health", timeout=1):
                    return process, f"http://{address}"
            except OSError:
                time.sleep(0.05)
        process.kill()
        process.wait()
    pytest.fail(f"versitygw does not answer:\n{(root / 'log').read_text()[-2000:]}", pytrace=False)
