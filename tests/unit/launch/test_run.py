"""run_step: what is run again, what is kept, what is said. The backend here writes a result in place of a step."""

from pathlib import Path
from typing import Any

import pytest

from components.core import spec as core_spec
from components.core import store
from components.core.errors import RetryableError, UserError
from components.core.spec import StepResult, read_spec
from components.core.step import Step
from components.launch.run import is_current, launch, read_state, run_step


class Recorder:
    """A backend that does what a step does at its end, and keeps the specs that it was given."""

    name = "recorder"

    def __init__(self, error: Exception | None = None, finishes: bool = True) -> None:
        self.specs: list[core_spec.StepSpec] = []
        self.error, self.finishes, self.at_work = error, finishes, False

    def adopts(self, spec: core_spec.StepSpec) -> bool:
        return self.at_work

    def run(self, spec: core_spec.StepSpec) -> None:
        self.specs.append(read_spec(spec.uri))
        checkpoint = spec.work / "checkpoints" / "step-1"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "attempts").open("a").write("x")
        if self.error:
            raise self.error
        if self.finishes:
            folder = spec.work / "made"
            folder.mkdir(exist_ok=True)
            (folder / "thing").write_text(f"{spec.step} {self.specs[-1].seed}")
            Step(self.specs[-1]).finish({"model": folder}, {})


class Runner:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.backend = Recorder()

    def __call__(self, step: str = "sft", **changes: Any) -> StepResult:
        given: dict[str, Any] = {"run": "r", "seed": 0, "config": {}, "inputs": {}, "root": str(self.root)}
        return run_step(step, **{**given, "backend": self.backend, **changes})

    @property
    def checkpoint(self) -> Path:
        return self.root / "runs" / "r" / "sft" / "checkpoints" / "step-1" / "attempts"


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_finished_step_is_not_run_again(runner: Runner) -> None:
    first, second = runner(), runner()
    assert first == second
    assert len(runner.backend.specs) == 1
    state = read_state(runner.root / "runs" / "r" / "sft")
    assert state is not None
    assert state.state == "skipped"


@pytest.mark.parametrize("changes", [{"seed": 1}, {"config": {"batch_size": 4}}, {"inputs": {"data": "/elsewhere"}}])
def test_anything_that_decides_the_result_runs_the_step_again_without_its_checkpoints(
    runner: Runner, changes: dict[str, Any]
) -> None:
    runner()
    runner(**changes)
    assert len(runner.backend.specs) == 2
    assert runner.checkpoint.read_text() == "x"


def test_equal_numbers_of_another_type_are_the_same_settings(runner: Runner) -> None:
    runner(config={"batch_size": 4})
    runner(config={"batch_size": 4.0})
    assert len(runner.backend.specs) == 1


def test_failed_step_keeps_its_checkpoints_and_counts_its_attempts(runner: Runner) -> None:
    runner.backend.error = RetryableError("no store")
    with pytest.raises(RetryableError):
        runner()
    runner.backend.error = None
    runner()
    assert [spec.attempt for spec in runner.backend.specs] == [0, 1]
    assert runner.checkpoint.read_text() == "xx"


def test_changed_code_runs_again_from_the_start_unless_resumed(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    runner()
    monkeypatch.setattr(core_spec, "code_digest", lambda step: "another program")
    runner(resume=True)
    assert len(runner.backend.specs) == 1
    runner()
    assert len(runner.backend.specs) == 2
    assert runner.checkpoint.read_text() == "x"


def test_result_whose_output_was_deleted_is_made_again(runner: Runner) -> None:
    store.delete(runner().outputs["model"])
    result = runner()
    assert len(runner.backend.specs) == 2
    assert store.manifest_digest(result.outputs["model"])


def test_empty_inputs_are_left_out(runner: Runner) -> None:
    runner(inputs={"pretrain": "", "data": "/x"})
    assert runner.backend.specs[0].inputs == {"data": "/x"}


def test_failure_is_on_record_with_its_exit_code(runner: Runner) -> None:
    runner.backend.error = RetryableError("no store", fix="try again")
    with pytest.raises(RetryableError):
        runner()
    state = read_state(runner.root / "runs" / "r" / "sft")
    assert state is not None
    assert (state.state, state.exit_code, state.error) == ("failed", 75, "no store; try again")


def test_wrong_settings_are_on_record_before_anything_is_written(runner: Runner) -> None:
    with pytest.raises(UserError, match=r"sft: unknown key batch_siz; did you mean batch_size\?"):
        runner(config={"batch_siz": 4})
    folder = runner.root / "runs" / "r" / "sft"
    assert [path.name for path in folder.iterdir()] == ["state.json"]


def test_step_without_a_result_is_an_error(runner: Runner) -> None:
    runner.backend.finishes = False
    with pytest.raises(UserError, match="without a result"):
        runner()


def test_input_is_known_by_content_not_by_place(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows").write_text("rows")
    for place in ("one", "two"):
        store.publish(tmp_path / "a", str(tmp_path / place))
        runner(inputs={"data": str(tmp_path / place)})
    assert len(runner.backend.specs) == 1


DATA = {"sources": {"sft": [{"path": "chat/*.jsonl", "adapter": "chat"}]}}


def test_raw_data_are_known_by_content_not_by_place(runner: Runner, tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "chat").mkdir(parents=True)
        (tmp_path / place / "chat" / "a.jsonl").write_text("{}")
        (tmp_path / place / "other.jsonl").write_text(place)
        runner("data_prep", config=DATA, inputs={"data_root": str(tmp_path / place)})
    assert len(runner.backend.specs) == 1
    assert is_current(str(runner.root / "runs" / "r" / "data_prep"))
    (tmp_path / "one" / "chat" / "a.jsonl").write_text("{ }")
    assert not is_current(str(runner.root / "runs" / "r" / "data_prep"))
    runner("data_prep", config=DATA, inputs={"data_root": str(tmp_path / "one")})
    assert len(runner.backend.specs) == 2


def test_nothing_is_touched_where_an_earlier_launchers_job_is_at_work(runner: Runner) -> None:
    runner.backend.finishes = False
    with pytest.raises(UserError, match="without a result"):
        runner()
    before = read_spec(runner.backend.specs[0].uri)
    runner.backend.at_work = True
    with pytest.raises(UserError, match="without a result"):
        runner(config={"learning_rate": 1e-3})  # would wipe the checkpoints of the running job
    assert read_spec(before.uri) == before
    assert runner.checkpoint.read_text() == "xx"


def test_resources_do_not_cost_a_checkpoint(runner: Runner) -> None:
    runner.backend.error = RetryableError("node lost")
    with pytest.raises(RetryableError):
        runner(config={"resources": {"memory": "8Gi"}})
    runner.backend.error = None
    runner(config={"resources": {"memory": "16Gi", "nodes": 2}})
    assert runner.checkpoint.read_text() == "xx"
    runner(config={"resources": {"memory": "32Gi"}})
    assert len(runner.backend.specs) == 2


def test_raw_input_by_hand_is_used_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}")
    backend = Recorder()
    given: dict[str, Any] = {"run": "r", "seed": 0, "config": {}, "output": str(tmp_path / "out"), "backend": backend}
    launch("evaluate", inputs={"comparisons": str(file)}, raw_inputs=True, **given)
    assert Step(backend.specs[0]).input("comparisons") == file
    with pytest.raises(UserError, match="neither published"):
        launch("evaluate", inputs={"comparisons": str(tmp_path / "nothing")}, raw_inputs=True, **given)


def test_step_runs_again_when_people_hand_something_in_and_not_otherwise(runner: Runner, tmp_path: Path) -> None:
    inputs = {"results": str(tmp_path / "handed-in")}
    runner("annotate", inputs=inputs)
    runner("annotate", inputs=inputs)
    assert len(runner.backend.specs) == 1
    (tmp_path / "handed-in").mkdir()
    (tmp_path / "handed-in" / "one.json").write_text("[]")
    assert not is_current(str(runner.root / "runs" / "r" / "annotate"))
    runner("annotate", inputs=inputs)
    runner("annotate", inputs=inputs)
    assert len(runner.backend.specs) == 2
    assert is_current(str(runner.root / "runs" / "r" / "annotate"))


def test_a_step_twice_in_a_run_has_two_places(runner: Runner) -> None:
    one, other = (runner(place=f"{arm}/sft") for arm in ("several", "single"))
    assert one.outputs["model"] == str(runner.root / "runs/r/several/sft/output/model")
    assert other.outputs["model"] == str(runner.root / "runs/r/single/sft/output/model")
    assert len(runner.backend.specs) == 2
