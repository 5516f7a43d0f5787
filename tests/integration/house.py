"""A copy of the house with hollow steps: the real launcher, pipeline and command line over steps that take a moment."""

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

_REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = ("base_model", "data_prep", "sft", "pmp", "reward_model", "ppo", "evaluate")

_STUB = '''
"""What every hollow step does; `behaviour.json` beside the rooms says what is different about one."""
import json, os, pathlib, signal, sys, threading, time
from components.core.errors import RetryableError, UserError
from components.core.metrics import Metrics
from components.core.step import Step

HOUSE = pathlib.Path(__file__).resolve().parent.parent
DATA = ("sft", "pmp", "reward_model", "ppo", "pretrain")


def work(step: Step) -> None:
    name = step.spec.step
    behaviour = json.loads((HOUSE / "behaviour.json").read_text()).get(name, "")
    for key, digest in step.spec.input_digests.items():
        if digest:
            step.input(key)
    if behaviour == "user_error":
        raise UserError("the data is empty", where="sft.jsonl", fix="give it rows")
    if behaviour == "retryable":
        raise RetryableError("the store cannot be reached", fix="try again")
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if step.rank == 0:
        metrics = Metrics(step.work / "metrics.jsonl", step=name, run=step.spec.run)
        checkpoints = step.work / "checkpoints"
        for number in range(1, 4):
            metrics.log(number, training_steps_planned=3, training_loss=1 / number, training_tokens_per_second=1234.0)
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / "step-3").write_text("state")
    if behaviour == "hang":
        (HOUSE / f"pid-{name}").write_text(str(os.getpid()))
        os.mkfifo(HOUSE / f"hanging-{name}") if not (HOUSE / f"hanging-{name}").exists() else None
        (HOUSE / f"hanging-{name}").open("w").close()  # whoever waits reads it
        while not step.cancelled:
            signal.pause()
        (HOUSE / f"orderly-{name}").touch()
        from components.core.errors import Cancelled
        raise Cancelled(f"{name} was cancelled")
    if step.rank != 0:
        return
    folders = {}
    parts = ("report",) if name == "evaluate" else ("model",)
    if name == "data_prep":
        parts = ("shard",) if step.config.shard else DATA
    for part in parts:
        folder = step.work / "made" / part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "thing.txt").write_text(json.dumps([name, part, step.spec.seed]))
        folders[part] = folder
    if name == "evaluate":
        (folder / "report.html").write_text("<h1>report</h1>")
        figures = {"ground_truth": {"sft": {"value": 0.5, "low": 0.4, "high": 0.6}}, "steps": {}}
        (folder / "report.json").write_text(json.dumps(figures))
    step.finish(folders, {"rows": 3, "nested": {"loss": 0.5, "bad": float("nan")}, "text": "x"})
'''

_MAIN = """
import sys
from components.core.step import main
from components.hollow import work
sys.exit(main("{name}", work))
"""


# Importing torch for every step would take most of the time of these tests.
_TORCHRUN = """
import os, signal, subprocess, sys
arguments = sys.argv[1:]
count = next(int(a.partition("=")[2]) for a in arguments if a.startswith("--nproc-per-node="))
worker = [sys.executable, *arguments[arguments.index("-m"):]]
ranks = [
    subprocess.Popen(worker, start_new_session=True, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count)})
    for rank in range(count)
]
signal.signal(signal.SIGTERM, lambda *_: [rank.terminate() for rank in ranks])
sys.exit(max(abs(rank.wait()) for rank in ranks))
"""


class House:
    """`behave(sft="hang")` changes a step; `start` runs a command of the house's own command line.

    With `torchrun`, training steps go through the real one; else through a stand-in with its process tree.
    """

    def __init__(self, folder: Path, torchrun: bool = False) -> None:
        self.folder = folder / "house"
        self.root = folder / "root"
        self.profile = folder / "small.yaml"
        ignore = shutil.ignore_patterns("__pycache__")
        for room in ("core", "launch"):
            shutil.copytree(_REPOSITORY / "components" / room, self.folder / "components" / room, ignore=ignore)
        shutil.copytree(_REPOSITORY / "pipelines", self.folder / "pipelines", ignore=ignore)
        shutil.copy(_REPOSITORY / "components" / "__init__.py", self.folder / "components")
        for name in STEPS:
            room = self.folder / "components" / name
            room.mkdir()
            shutil.copy(_REPOSITORY / "components" / name / "component.py", room)
            (room / "__init__.py").touch()
            (room / "__main__.py").write_text(_MAIN.format(name=name))
        (self.folder / "components" / "hollow.py").write_text(_STUB)
        if not torchrun:
            distributed = self.folder / "torch" / "distributed"
            distributed.mkdir(parents=True)
            (self.folder / "torch" / "__init__.py").touch()
            (distributed / "__init__.py").touch()
            (distributed / "run.py").write_text(_TORCHRUN)
        profile = {"name": "small", "data_shards": 2, "sft": {"resources": {"processes": 2}}}
        self.profile.write_text(yaml.safe_dump(profile))
        self.behave()

    def behave(self, **behaviour: str) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "KUBEALIGN_ROOT": str(self.root), "COLUMNS": "200"}
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=self.folder.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    def wait_until_hanging(self, step: str) -> int:
        """Block until the step has said that it hangs; returns its process id."""
        path = self.folder / f"hanging-{step}"
        path.read_bytes()
        return int((self.folder / f"pid-{step}").read_text())

    def hang(self, step: str) -> None:
        self.behave(**{step: "hang"})
        os.mkfifo(self.folder / f"hanging-{step}")


def wait_for_end(pid: int) -> None:
    """Block until a process that is not ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [])
    os.close(descriptor)
