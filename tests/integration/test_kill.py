"""Killed at any moment and started again, a trainer ends where the uninterrupted run ends: bit for bit in fp32.

The same: weights and moments of every model, metrics, the order of samples, PPO's running moments and KL coefficient,
and the digests of what is published.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.spec import StepSpec, make_spec
from tests import killed, ranks
from tests.killed import SECONDS, Death, Run
from tests.steps import chats, publish_model, publish_rows

ROWS = 10  # in every data set of tests/steps.py but the texts
COMMON: dict[str, Any] = {
    "precision": "fp32", "metrics_port": 0, "checkpoint_every": 1, "keep_checkpoints": 2, "micro_batch_tokens": 60,
}  # fmt: skip
# Three passes over the data, and a little of a fourth, where there is an order to go wrong.
CASES: dict[str, dict[str, Any]] = {
    "sft": {"steps": 12, "batch_size": 3, "learning_rate": 1e-3, "warmup_steps": 4, "dropout": 0.1},
    "pmp": {"epochs": 3.0, "batch_size": 4, "learning_rate": 1e-3},
    "reward_model": {"epochs": 3.0, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 3},
    "ppo": {
        "iterations": 11, "value_warmup_iterations": 3, "prompts_per_iteration": 3, "mini_batch_size": 4, "epochs": 2,
        "policy_learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 5,
        "reward_normalisation": "mean_std", "kl_controller": {"kind": "adaptive", "horizon": 100},
        "ptx": {"coefficient": 0.1, "sequences_per_response": 1.0},
    },
}  # fmt: skip


@dataclass
class Workshop:
    """Inputs and uninterrupted runs, each made once."""

    folder: Path
    model: Path
    _inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    _whole: dict[str, Run] = field(default_factory=dict)

    def inputs(self, step: str) -> dict[str, str]:
        if step not in self._inputs:
            folder = self.folder / f"inputs-{step}"
            found = ranks.inputs_for(step, self.model, folder)
            if step == "reward_model":
                rows = chats(ChatTokenizer.load(self.model))
                found["demonstrations"] = publish_rows(folder / "cr", folder / "c", rows)
            self._inputs[step] = found
        return self._inputs[step]

    def spec(self, step: str, output: Path | str, seed: int = 0, **changes: Any) -> StepSpec:
        config = COMMON | CASES[step] | changes
        return make_spec(step, run="test", seed=seed, config=config, inputs=self.inputs(step), output=str(output))

    def whole(self, step: str, world: int = 1, **changes: Any) -> Run:
        name = f"{step}-{world}-{sorted(changes.items())}"
        if name not in self._whole:
            folder = self.folder / f"whole-{len(self._whole)}"
            self._whole[name] = killed.run(
                self.spec(step, folder / "output", **changes), folder / "record", ranks=world
            )
            assert self._whole[name].codes == [0] * world, self._whole[name].log[-3000:]
        return self._whole[name]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, model_folders: Callable[[str], Path]) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("kill"), model_folders("qwen2"))


def kill(
    spec: StepSpec, record: Path, death: Death, world: int = 1, on_death: Callable[[], None] = lambda: None
) -> Run:
    """Run up to the death, and see that it was one."""
    run = killed.run(spec, record, death, world, on_death)
    assert run.codes[death.rank] == -signal.SIGKILL, (death, run.codes, run.log[-3000:])
    assert not store.exists(store.join(spec.output, "result.json"))
    return run


def again(spec: StepSpec, record: Path, world: int = 1) -> Run:
    run = killed.run(spec, record, ranks=world)
    assert run.codes == [0] * world, run.log[-3000:]
    return run


def complete(spec: StepSpec) -> list[int]:
    """Numbers of the checkpoints whose parts are all there, by looking at the folder."""
    found = []
    for folder in Path(spec.output, "checkpoints").glob("step-*"):
        # Drafts are hidden.
        parts = [path.parent.name.split("-") for path in folder.glob("[!.]*/MANIFEST.json")]
        if any(sum(part[0] == token for part in parts) == int(count) for token, *_, count in parts):
            found.append(int(folder.name.removeprefix("step-")))
    return sorted(found)


def check_same(whole: Run, resumed: Run, start: int) -> None:
    """`resumed` began with step `start` and ended just where `whole` did."""
    assert resumed.first == start
    for rank in range(len(whole.codes)):
        after = [line for line in whole.samples(rank) if line["step"] >= start]
        assert resumed.samples(rank) == after, "other samples, or another order"
    assert resumed.metrics == whole.metrics
    assert resumed.beside == whole.beside
    assert resumed.state.keys() == whole.state.keys()
    assert any("exp_avg_sq" in name for name in whole.state)
    differing = [name for name, value in whole.state.items() if not torch.equal(value, resumed.state[name])]
    assert not differing
    assert resumed.result().manifests == whole.result().manifests
    assert resumed.result().metrics == whole.result().metrics
    assert not list(Path(resumed.output, "checkpoints").glob("*")), "a finished step needs no checkpoints"


def in_epoch(run: Run, step: str, epoch: int) -> list[int]:
    """Steps that begin in a pass over the data, but those before which no checkpoint is sure to be complete."""
    if step == "sft":
        begins = [number * CASES["sft"]["batch_size"] for number in range(CASES["sft"]["steps"])]
    elif step == "ppo":
        begins = [number * CASES["ppo"]["prompts_per_iteration"] for number in range(CASES["ppo"]["iterations"])]
    else:
        begins = [0]
        for line in run.samples():
            begins.append(begins[-1] + sum(map(len, line["rows"])))
        begins.pop()
    return [number for number, begin in enumerate(begins) if begin // ROWS == epoch and number >= 2]


def drawn(step: str, epoch: int, run: Run) -> Death:
    """A random moment in a pass over the data."""
    random_ = random.Random(f"{os.environ.get('KUBEALIGN_TEST_SEED', '0')} {step} {epoch}")
    number = random_.choice(in_epoch(run, step, epoch))
    passes = sum(line["step"] == number for line in run.samples())
    # With pretraining text the policy takes two passes a step.
    steps = passes - sum(line["step"] == number and line["model"] == "policy" for line in run.samples()) or 1
    place, times = random_.choice([("accumulate", passes), ("optimiser", steps), ("line", 1)])
    death = Death(place, number, random_.randint(1, times))
    print(f"{step} dies at {death}")
    return death


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("step", list(CASES))
def test_killed_at_a_random_step_of_any_epoch(workshop: Workshop, tmp_path: Path, step: str, epoch: int) -> None:
    whole, spec = workshop.whole(step), workshop.spec(step, tmp_path / "output")
    death = drawn(step, epoch, whole)
    dead = kill(spec, tmp_path / "dead", death)
    assert dead.samples() == whole.samples()[: len(dead.samples())]
    start = complete(spec)[-1]
    assert death.number - 1 <= start <= death.number
    # What a step wrote after its last checkpoint is written again, not twice; nor is a line that was cut off read.
    with Path(spec.output, "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"training_step": 99}\n{"training_st')
    check_same(whole, again(spec, tmp_path / "again"), start)


@pytest.mark.parametrize(
    ("step", "death"),
    [
        ("sft", Death("optimiser", 2)),  # inside the learning rate's warm-up
        ("reward_model", Death("optimiser", 2)),  # likewise
        ("ppo", Death("accumulate", 2, 2)),  # inside the value model's warm-up
        ("ppo", Death("policy update", 5, 2)),  # between a rollout and its last mini-batch
        ("sft", Death("finishing", 11)),  # after the last step
        ("ppo", Death("outputs published", 10)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.place.replace(" ", "-"),
)
def test_killed_at_a_chosen_moment(workshop: Workshop, tmp_path: Path, step: str, death: Death) -> None:
    whole, spec = workshop.whole(step), workshop.spec(step, tmp_path / "output")
    dead = kill(spec, tmp_path / "dead", death)
    assert {line["step"] for line in dead.samples()} == set(range(death.number + 1))
    start = complete(spec)[-1]
    assert death.number - 1 <= start <= death.number
    check_same(whole, again(spec, tmp_path / "again"), start)


def test_killed_before_the_first_checkpoint_and_then_at_every_other_step(workshop: Workshop, tmp_path: Path) -> None:
    """Many short lives make one whole run."""
    whole, spec = workshop.whole("ppo"), workshop.spec("ppo", tmp_path / "output", checkpoint_every=2)
    for number, start in ((0, 0), (4, 0), (7, 4)):
        # At the second optimiser step: the writer had the time of a rollout, but may be at work all the same.
        dead = kill(spec, tmp_path / f"dead-{number}", Death("optimiser", number, 2))
        assert start - 2 <= dead.first <= start
    start = complete(spec)[-1]
    assert start in (4, 6)
    check_same(whole, again(spec, tmp_path / "again"), start)


@pytest.mark.parametrize("place", ["written", "copying", "moving"])
@pytest.mark.parametrize("step", ["sft", "ppo"])
def test_killed_while_a_checkpoint_is_written(workshop: Workshop, tmp_path: Path, step: str, place: str) -> None:
    """The one before it is used."""
    whole, spec = workshop.whole(step), workshop.spec(step, tmp_path / "output")
    kill(spec, tmp_path / "dead", Death(place, 6))
    assert complete(spec) == [4, 5]
    check_same(whole, again(spec, tmp_path / "again"), 5)


@pytest.mark.parametrize(("place", "every", "start"), [("written", 1, 5), ("published", 6, 6)])
def test_another_machine_goes_on_from_a_bucket(
    workshop: Workshop,
    tmp_path: Path,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    every: int,
    start: int,
) -> None:
    """It has nothing but what is in the bucket: metrics of the steps before the checkpoint must be there as well."""
    whole, spec = workshop.whole("sft"), workshop.spec("sft", f"s3://{s3_bucket}/run/sft", checkpoint_every=every)
    monkeypatch.setenv("KUBEALIGN_WORK", str(tmp_path / "one-machine"))
    kill(spec, tmp_path / "dead", Death(place, 6))
    monkeypatch.setenv("KUBEALIGN_WORK", str(tmp_path / "another"))
    check_same(whole, again(spec, tmp_path / "again"), start)


@pytest.mark.parametrize("step", list(CASES))
def test_sigterm_saves_a_checkpoint_first(workshop: Workshop, tmp_path: Path, step: str) -> None:
    """Also between checkpoints; the step that was under way is finished."""
    whole, spec = workshop.whole(step), workshop.spec(step, tmp_path / "output", checkpoint_every=4)
    stopped = killed.run(spec, tmp_path / "stopped", Death("accumulate", 5, by=signal.SIGTERM))
    assert stopped.codes == [143], stopped.log[-3000:]
    assert complete(spec) == [4, 6]
    check_same(whole, again(spec, tmp_path / "again"), 6)


@pytest.mark.parametrize("step", ["sft", "ppo"])
def test_adapters_go_on(workshop: Workshop, tmp_path: Path, step: str) -> None:
    changes = {"lora": {"rank": 4}}
    whole, spec = workshop.whole(step, **changes), workshop.spec(step, tmp_path / "output", **changes)
    assert all("lora" in name or "value/" in name for name in whole.state)
    kill(spec, tmp_path / "dead", Death("optimiser", 5, 1))
    start = complete(spec)[-1]
    check_same(whole, again(spec, tmp_path / "again"), start)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage manifest", "empty manifest", "lost file"])
def test_damaged_newest_checkpoint_is_passed_over(workshop: Workshop, tmp_path: Path, damage: str) -> None:
    whole, spec = workshop.whole("sft"), workshop.spec("sft", tmp_path / "output")
    kill(spec, tmp_path / "dead", Death("accumulate", 7))
    *_, before, newest = complete(spec)
    (folder,) = Path(spec.output, "checkpoints", f"step-{newest}").glob("*-0-of-1")
    tensors, manifest = folder / "state.safetensors", folder / "MANIFEST.json"
    if damage == "truncated":
        os.truncate(tensors, tensors.stat().st_size // 2)
    elif damage == "flipped":
        data = bytearray(tensors.read_bytes())
        data[-100] ^= 1
        tensors.write_bytes(data)
    elif damage == "lost file":
        (folder / "state.json").unlink()
    else:
        manifest.write_bytes(b"\xff{garbage" if damage == "garbage manifest" else b"")
    resumed = again(spec, tmp_path / "again")
    assert f"WARNING components.training.checkpoint: checkpoint {newest} is damaged and passed over" in resumed.log
    check_same(whole, resumed, before)


def test_a_good_checkpoint_beside_a_damaged_one_of_the_same_step_is_used(workshop: Workshop, tmp_path: Path) -> None:
    """The step that was damaged is reached again, and the run is killed again."""
    whole, spec = workshop.whole("sft"), workshop.spec("sft", tmp_path / "output", keep_checkpoints=1)
    kill(spec, tmp_path / "dead", Death("accumulate", 7))
    newest = complete(spec)[-1]
    (folder,) = Path(spec.output, "checkpoints", f"step-{newest}").glob("*-0-of-1")
    # Tokens are random: one that is last in any order.
    damaged = folder.rename(folder.with_name("f" * 12 + "-0-of-1"))
    os.truncate(damaged / "state.safetensors", 100)
    kill(spec, tmp_path / "dead-again", Death("written", newest + 1))
    check_same(whole, again(spec, tmp_path / "again"), newest)


@pytest.mark.parametrize(
    ("step", "changes", "named"),
    [
        ("sft", {"learning_rate": 0.002, "schedule": "cosine_to_10pct"}, [
            "sft.learning_rate (was 0.001, is 0.002)", "sft.schedule (was constant, is cosine_to_10pct)",
        ]),
        ("sft", {"seed": 7}, ["seed (was 0, is 7)"]),
        ("sft", {"optimiser": {"beta2": 0.9}}, ["sft.optimiser.beta2 (was "]),
        ("ppo", {"kl_coefficient": 0.5}, ["ppo.kl_coefficient (was 0.04, is 0.5)"]),
        ("reward_model", {"lora": {"rank": 4}}, ["reward_model.lora.rank (was 0, is 4)"]),
    ],
    ids=["learning-rate", "seed", "moments", "kl", "lora"],
)  # fmt: skip
def test_checkpoint_of_another_config_is_refused(
    workshop: Workshop, tmp_path: Path, step: str, changes: dict[str, Any], named: list[str]
) -> None:
    spec = workshop.spec(step, tmp_path / "output")
    kill(spec, tmp_path / "dead", Death("accumulate", 2))
    before = files(spec)
    refused = killed.run(workshop.spec(step, spec.output, **changes), tmp_path / "refused")
    check_refused(refused, named)
    assert files(spec) == before
    # Put back, it goes on.
    start = complete(spec)[-1]
    check_same(workshop.whole(step), again(spec, tmp_path / "again"), start)


@pytest.mark.parametrize("name", ["base_model", "data"])
def test_checkpoint_of_another_model_or_data_is_refused(workshop: Workshop, tmp_path: Path, name: str) -> None:
    """Also where the URI is the same: what counts is the content."""
    inputs = dict(workshop.inputs("sft"))
    shutil.copytree(inputs[name], tmp_path / name)
    spec = workshop.spec("sft", tmp_path / "output")
    spec = spec.model_copy(update={"inputs": inputs | {name: str(tmp_path / name)}})
    kill(spec, tmp_path / "dead", Death("accumulate", 2))
    digest = store.manifest_digest(str(tmp_path / name))
    shutil.rmtree(tmp_path / name)
    if name == "data":
        publish_rows(tmp_path / "rows", tmp_path / name, chats(ChatTokenizer.load(workshop.model), 11))
    else:
        shutil.copytree(workshop.model, tmp_path / "other")
        with (tmp_path / "other" / "config.json").open("a") as file:
            file.write("\n")
        publish_model(tmp_path / "other", tmp_path / name)
    other = make_spec("sft", run="test", seed=0, config=spec.config, inputs=spec.inputs, output=spec.output)
    refused = killed.run(other, tmp_path / "refused")
    now = store.manifest_digest(str(tmp_path / name))
    assert now != digest
    check_refused(refused, [f"inputs.{name} (was {digest}, is {now})"])


def files(spec: StepSpec) -> set[Path]:
    return {path for path in Path(spec.output, "checkpoints").rglob("*") if path.is_file()}


def check_refused(run: Run, named: list[str]) -> None:
    assert run.codes == [1]
    last = run.log.splitlines()[-1]
    assert last.startswith("error: ") and "was made with other settings" in last
    assert last.count("(was ") == len(named)
    assert all(part in last for part in named), last


def test_settings_that_do_not_change_the_result_may_change(workshop: Workshop, tmp_path: Path) -> None:
    spec = workshop.spec("sft", tmp_path / "output")
    kill(spec, tmp_path / "dead", Death("accumulate", 6))
    start = complete(spec)[-1]
    free = {"checkpoint_every": 5, "keep_checkpoints": 1, "max_nonfinite_steps": 5, "resources": {"threads": 2}}
    free |= {"gradient_checkpointing": True}
    resumed = again(workshop.spec("sft", spec.output, **free), tmp_path / "again")
    check_same(workshop.whole("sft"), resumed, start)


def test_other_micro_batches_add_up_to_the_same(workshop: Workshop, tmp_path: Path) -> None:
    """Free as well, but sums come in another order."""
    whole, spec = workshop.whole("sft", dropout=0.0), workshop.spec("sft", tmp_path / "output", dropout=0.0)
    kill(spec, tmp_path / "dead", Death("accumulate", 6))
    other = workshop.spec("sft", spec.output, dropout=0.0, micro_batch_tokens=16)
    resumed = again(other, tmp_path / "again")
    check_close(whole, resumed)


def check_close(whole: Run, resumed: Run) -> None:
    """The same samples, and weights within 1e-5: sums over ranks or micro-batches come in another order."""
    assert resumed.first > 0
    assert resumed.dealt() == [line for line in whole.dealt() if line[0] >= resumed.first]
    names = {name for name in whole.state if "/weights." in name}
    assert names and names == {name for name in resumed.state if "/weights." in name}
    for name in names:
        assert torch.allclose(whole.state[name], resumed.state[name], atol=1e-5), name


ZERO = {"dropout": 0.0, "steps": 8}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_go_on(workshop: Workshop, tmp_path: Path, stage: int) -> None:
    changes = ZERO | {"zero": {"stage": stage}}
    whole, spec = workshop.whole("sft", 2, **changes), workshop.spec("sft", tmp_path / "output", **changes)
    kill(spec, tmp_path / "dead", Death("accumulate", 4, rank=1), 2)
    start = complete(spec)[-1]
    assert start in (3, 4)
    check_same(whole, again(spec, tmp_path / "again", 2), start)


def test_sharded_ppo_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    """Two sharded models; killed between a rollout and its last mini-batch."""
    changes = {"zero": {"stage": 3}, "iterations": 6, "value_warmup_iterations": 2}
    whole, spec = workshop.whole("ppo", 2, **changes), workshop.spec("ppo", tmp_path / "output", **changes)
    kill(spec, tmp_path / "dead", Death("policy update", 4, 2, rank=1), 2)
    start = complete(spec)[-1]
    check_same(whole, again(spec, tmp_path / "again", 2), start)


def test_checkpoint_with_one_part_of_two_is_not_used(workshop: Workshop, tmp_path: Path) -> None:
    """One rank's part is published, the other rank is killed before that."""
    changes = ZERO | {"zero": {"stage": 2}}
    whole, spec = workshop.whole("sft", 2, **changes), workshop.spec("sft", tmp_path / "output", **changes)
    newest = Path(spec.output, "checkpoints", "step-5")

    def other_part_is_there() -> None:
        await_(lambda: list(newest.glob("*-0-of-2/MANIFEST.json")))

    kill(spec, tmp_path / "dead", Death("written", 5, rank=1), 2, other_part_is_there)
    assert len(list(newest.glob("*-of-2/MANIFEST.json"))) == 1
    assert complete(spec)[-1] == 4
    check_same(whole, again(spec, tmp_path / "again", 2), 4)


@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 0)), ((1, 0), (2, 3))], ids=["2-to-1", "1-to-2"])
def test_another_number_of_ranks_or_stage_goes_on(
    workshop: Workshop, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """(ranks, stage) before and after; the same order of samples."""
    whole = workshop.whole("sft", 2, **ZERO, zero={"stage": 2})
    spec = workshop.spec("sft", tmp_path / "output", **ZERO, zero={"stage": before[1]})
    kill(spec, tmp_path / "dead", Death("accumulate", 4), before[0])
    changed = workshop.spec("sft", spec.output, **ZERO, zero={"stage": after[1]})
    check_close(whole, again(changed, tmp_path / "again", after[0]))


def test_ppo_under_torchrun_is_killed_from_outside(workshop: Workshop, tmp_path: Path) -> None:
    """Nothing patched, nothing forked: the launcher and its ranks die at once, as when a node goes."""
    whole, spec = workshop.whole("ppo", 2), workshop.spec("ppo", tmp_path / "output")
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    process = ranks.start("components.ppo", spec.uri, 2)
    lines = Path(spec.output, "metrics.jsonl")
    await_(lambda: process.poll() is not None or (lines.exists() and lines.read_text().count("\n") >= 5))
    workers = children(process)
    assert len(workers) == 2
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(SECONDS) == -signal.SIGKILL
    await_(lambda: not any(alive(pid) for pid in workers))
    assert not Path(spec.output, "result.json").exists()
    start = complete(spec)[-1]
    assert 4 <= start < CASES["ppo"]["iterations"]
    log = ranks.run("components.ppo", spec.uri, 2)
    assert f"going on after step {start}" in log
    resumed = Run(spec.output, tmp_path, [0, 0])
    assert resumed.metrics == whole.metrics
    assert resumed.result().manifests == whole.result().manifests
    assert resumed.result().metrics == whole.result().metrics


def children(process: "subprocess.Popen[str]") -> list[int]:
    """torchrun gives each rank a session of its own, so no group holds them all."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """A dead one may wait for somebody to ask for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_(event: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_finished_step_returns_at_once_and_changed_settings_run_again(workshop: Workshop, tmp_path: Path) -> None:
    spec = workshop.spec("sft", tmp_path / "output")
    first = again(spec, tmp_path / "first").result()
    second = again(spec, tmp_path / "second")
    assert second.result().started_at == first.started_at
    assert not second.samples()
    changed = again(workshop.spec("sft", spec.output, learning_rate=2e-3), tmp_path / "changed").result()
    assert changed.started_at > first.started_at
    assert changed.fingerprint != first.fingerprint
