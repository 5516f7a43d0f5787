"""The contract between caller and step: what makes a finished step count as done, and what does not."""

from pathlib import Path
from typing import Any

import pytest

import components.core.spec as spec_module
from components.core import store
from components.core.errors import UserError
from components.core.spec import StepResult, StepSpec, is_done, make_spec, read_result, read_spec


def made(tmp_path: Path, **changes: Any) -> StepSpec:
    settings: dict[str, Any] = {"run": "r", "seed": 1, "config": {}, "inputs": {}, "output": str(tmp_path / "out")}
    return make_spec("sft", **(settings | changes))


def finish(spec: StepSpec) -> None:
    result = StepResult(
        step=spec.step, run=spec.run, fingerprint=spec.fingerprint(), code=spec.code, outputs={}, manifests={},
        metrics={}, started_at=0, seconds=1, peak_rss_bytes=1, versions={},
    )  # fmt: skip
    store.write_bytes(store.join(spec.output, "result.json"), result.model_dump_json().encode())


def test_spec_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spec = made(tmp_path, config={"steps": 5})
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    assert read_spec(spec.uri) == spec
    assert spec.config["steps"] == 5 and spec.config["batch_size"] == 128


def test_settings_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean batch_size"):
        made(tmp_path, config={"batch_sise": 5})


def test_broken_spec_and_broken_result_are_user_errors(tmp_path: Path) -> None:
    store.write_bytes(str(tmp_path / "spec.json"), b"{}")
    store.write_bytes(str(tmp_path / "result.json"), b"{")
    with pytest.raises(UserError, match="not a step specification"):
        read_spec(str(tmp_path / "spec.json"))
    with pytest.raises(UserError, match="not a step result"):
        read_result(str(tmp_path))


def test_a_step_without_result_is_not_done(tmp_path: Path) -> None:
    assert not is_done(made(tmp_path))


def test_a_finished_step_is_done(tmp_path: Path) -> None:
    finish(made(tmp_path))
    assert is_done(made(tmp_path))
    assert is_done(made(tmp_path, attempt=2)), "another attempt is the same work"


@pytest.mark.parametrize("change", [{"seed": 2}, {"config": {"steps": 5}}, {"inputs": {"base_model": "/elsewhere"}}])
def test_another_seed_setting_or_input_is_other_work(tmp_path: Path, change: dict[str, Any]) -> None:
    finish(made(tmp_path))
    assert not is_done(made(tmp_path, **change))


def test_other_code_is_other_work_unless_the_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(made(tmp_path))
    monkeypatch.setattr(spec_module, "code_digest", lambda step: "changed")
    assert not is_done(made(tmp_path))
    assert is_done(made(tmp_path, resume=True))


def published(folder: Path, text: str) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text(text)
    store.publish(folder, str(folder))
    return {"base_model": str(folder)}


def test_published_inputs_count_by_their_content_not_their_place(tmp_path: Path) -> None:
    first = made(tmp_path, inputs=published(tmp_path / "a", "same"))
    assert first.fingerprint() == made(tmp_path, inputs=published(tmp_path / "b", "same")).fingerprint()
    assert first.fingerprint() != made(tmp_path, inputs=published(tmp_path / "a", "other")).fingerprint()


def test_raw_inputs_count_by_their_content(tmp_path: Path) -> None:
    inputs = {"data_root": str(tmp_path)}
    first = made(tmp_path, inputs=inputs, raw_digests={"data_root": "1"})
    assert first.fingerprint() != made(tmp_path, inputs=inputs, raw_digests={"data_root": "2"}).fingerprint()


@pytest.mark.parametrize("step", spec_module._SHARED_ROOMS)
def test_every_step_has_a_code_digest(step: str) -> None:
    assert len(spec_module.code_digest(step)) == 64
