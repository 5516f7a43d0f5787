"""The local backend: signals, last words, exit codes. The steps here are small scripts."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.config import Resources
from components.core.errors import Cancelled, KubealignError, RetryableError, UserError
from components.core.spec import StepSpec, make_spec
from components.launch.local import LocalBackend

# `ready()` tells the process id through the named pipe that is the first argument.
PRELUDE = "import os, signal, sys\ndef ready(): open(sys.argv[1], 'w').write(str(os.getpid()))\n"


class ScriptBackend(LocalBackend):
    """The real backend with a script in place of a step."""

    def __init__(self, script: str, pipe: Path, grace_seconds: float = 30.0) -> None:
        super().__init__(grace_seconds)
        self.command = [sys.executable, "-c", PRELUDE + script, str(pipe)]

    def _command(self, step: str, spec_uri: str, resources: Resources) -> list[str]:
        return self.command


def run_script(script: str, folder: Path) -> None:
    ScriptBackend(script, folder / "pid").run(spec_in(folder))


def spec_in(folder: Path, **resources: int) -> StepSpec:
    return make_spec("sft", run="r", seed=0, config={"resources": resources}, inputs={}, output=str(folder))


def last_words(code: int, message: str) -> str:
    return f"open(os.environ['KUBEALIGN_TERMINATION_LOG'], 'w').write('{code} {message}\\n'); sys.exit({code})"


@pytest.mark.parametrize(("code", "kind"), [(1, UserError), (75, RetryableError), (143, Cancelled)])
def test_last_words_become_the_error_of_their_exit_code(tmp_path: Path, code: int, kind: type[KubealignError]) -> None:
    with pytest.raises(kind, match="the data is empty; give it rows") as raised:
        run_script(last_words(code, "the data is empty; give it rows"), tmp_path)
    assert raised.value.exit_code == code


def test_without_last_words_the_last_line_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sft failed with exit code 3; its last line: something broke"):
        run_script("print('something broke\\n====\\n'); sys.exit(3)", tmp_path)


def test_killed_child_is_told_as_a_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"signal 9.*memory"):
        run_script("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)


def test_last_words_of_an_earlier_attempt_are_not_believed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        run_script(last_words(1, "empty"), tmp_path)
    with pytest.raises(UserError, match="exit code 4"):
        run_script("sys.exit(4)", tmp_path)


def test_output_of_the_child_passes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("print('step 1'); print('warned', file=sys.stderr)", tmp_path)
    assert sorted(capsys.readouterr().out.split()) == ["1", "step", "warned"]


def test_environment_of_the_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "OMP_NUM_THREADS TOKENIZERS_PARALLELISM HF_HUB_DISABLE_TELEMETRY KUBEALIGN_METRICS_ADDRESS"
    backend = ScriptBackend(f"print(*(os.environ[name] for name in {names.split()!r}))", tmp_path / "pid")
    backend.run(spec_in(tmp_path, threads=3))
    assert capsys.readouterr().out.split() == ["3", "false", "1", "127.0.0.1"]


def test_training_steps_go_through_torchrun_and_others_do_not() -> None:
    backend = LocalBackend()
    training = backend._command("sft", "/x/spec.json", Resources(processes=2))
    assert training[1:3] == ["-m", "torch.distributed.run"]
    assert "--nproc-per-node=2" in training
    assert training[-4:] == ["-m", "components.sft", "--spec", "/x/spec.json"]
    assert backend._command("data_prep", "/x", Resources())[1:] == ["-m", "components.data_prep", "--spec", "/x"]


LAUNCHER = """
import sys, pathlib
sys.path[:0] = {paths!r}
from test_local import ScriptBackend, spec_in
from components.core.errors import KubealignError
try:
    ScriptBackend({script!r}, pathlib.Path({pipe!r}), {grace}).run(spec_in(pathlib.Path({work!r})))
except KubealignError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""
WAIT_FOR_SIGTERM = """
import threading
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
ready()
asked.wait()
print('saved a checkpoint', flush=True)
sys.exit(143)
"""
DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready()
signal.pause()
"""


class Launched:
    """A launcher process with a step that has said its process id and that it is ready."""

    def __init__(self, script: str, folder: Path, grace: float = 30.0) -> None:
        pipe = folder / "pipe"
        os.mkfifo(pipe)
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
        code = LAUNCHER.format(paths=paths, script=script, pipe=str(pipe), work=str(folder), grace=grace)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        self.descriptor = os.pidfd_open(int(pipe.read_text()))

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever a failed test has left behind goes with it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)
        os.close(self.descriptor)

    def wait_for_step(self) -> None:
        select.select([self.descriptor], [], [])


def test_sigterm_is_passed_on_and_the_step_ends_in_good_order(tmp_path: Path) -> None:
    with Launched(WAIT_FOR_SIGTERM, tmp_path) as launched:
        launched.process.terminate()
        out, _ = launched.process.communicate()
        assert launched.process.returncode == 143
        assert "saved a checkpoint" in out
        assert "Cancelled sft was cancelled" in out


def test_ctrl_c_is_passed_on_as_sigterm(tmp_path: Path) -> None:
    with Launched(WAIT_FOR_SIGTERM, tmp_path) as launched:
        launched.process.send_signal(signal.SIGINT)
        out, _ = launched.process.communicate()
        assert launched.process.returncode == 143
        assert "saved a checkpoint" in out


def test_step_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    with Launched(DEAF, tmp_path, grace=-4.9) as launched:  # torchrun's five seconds are added to it
        launched.process.terminate()
        assert launched.process.wait() == 143
        launched.wait_for_step()


def test_step_gets_sigterm_when_its_launcher_is_killed(tmp_path: Path) -> None:
    with Launched(WAIT_FOR_SIGTERM, tmp_path) as launched:
        launched.process.kill()
        launched.wait_for_step()


def test_process_left_by_a_killed_launcher_is_ended_before_the_next_attempt(tmp_path: Path) -> None:
    with Launched(DEAF, tmp_path) as launched:
        launched.process.kill()
        launched.process.wait()
        run_script("pass", tmp_path)
        launched.wait_for_step()
