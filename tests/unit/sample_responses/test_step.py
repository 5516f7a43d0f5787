"""The step on tiny random models: the same bytes however the work is cut up, interrupted or divided."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.base_model.init import build_model
from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.config import Init
from components.core.errors import RetryableError
from components.core.metrics import read_metrics
from components.core.records import Prompt, write_rows
from components.core.spec import StepResult, make_spec
from components.core.step import main
from components.sample_responses import step as module
from components.training.models import save_policy
from tests import ranks
from tests.steps import prompts, publish_model, publish_rows, run_step

CONFIG: dict[str, Any] = {
    "strategies": [
        {"name": "narrow", "temperature": 0.7, "max_new_tokens": 5},
        {"name": "wide", "top_p": 1.0, "max_new_tokens": 6, "samples": 2},
    ],
    "precision": "fp32", "metrics_port": 0, "part_prompts": 4, "keep_truncated": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models that answer differently, named so that a search for their names finds nothing else."""
    folder = tmp_path_factory.mktemp("inputs")
    base = model_folders("qwen2")
    tokenizer = ChatTokenizer.load(base)
    init = Init(
        vocabulary=320, hidden=16, layers=1, heads=2, key_value_heads=2, intermediate=16, max_positions=128,
        init_std=0.3,
    )  # fmt: skip
    torch.manual_seed(5)
    save_policy(build_model(init, tokenizer), folder / "model", base)
    return {
        "prompts": publish_rows(folder / "rows", folder / "data", prompts(tokenizer)),
        "model-one": publish_model(base, folder / "one"),
        "model-two": publish_model(folder / "model", folder / "two"),
    }


@pytest.fixture(scope="module")
def whole(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> StepResult:
    return run_step("sample_responses", tmp_path_factory.mktemp("whole") / "out", inputs, CONFIG)


def rows_of(result: StepResult, output: str) -> list[dict[str, Any]]:
    path = Path(result.outputs[output]) / f"{output}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_model_answers_every_prompt_by_every_strategy(whole: StepResult) -> None:
    producers = rows_of(whole, "producers")
    assert len(producers) == 10 * 2 * (1 + 2)
    assert len({(row["prompt"], row["model"], row["strategy"], row["number"]) for row in producers}) == 60
    assert len({row["seed"] for row in producers}) == 60
    kept = {(row["prompt"], row["response"]) for row in producers if row["fate"] == "kept"}
    shown = {(row["id"], response["id"]) for row in rows_of(whole, "responses") for response in row["responses"]}
    assert shown == kept
    assert whole.metrics["kept"] == len(kept)
    assert sum(found["sampled"] for found in whole.metrics["models"].values()) == 60


@pytest.mark.parametrize("other", [{"batch_tokens": 90}, {"part_prompts": 1}, {"part_prompts": 100}])
def test_neither_batches_nor_parts_change_a_byte(
    inputs: dict[str, str], whole: StepResult, tmp_path: Path, other: dict[str, Any]
) -> None:
    again = run_step("sample_responses", tmp_path / "out", inputs, CONFIG | other)
    assert again.manifests == whole.manifests


def test_neither_does_the_number_of_ranks(inputs: dict[str, str], whole: StepResult, tmp_path: Path) -> None:
    assert ranks.launch("sample_responses", tmp_path / "out", inputs, CONFIG, processes=2).manifests == whole.manifests


def test_every_part_is_one_ranks_and_ranks_have_about_as_many_of_each_model() -> None:
    missing = [("a", 0), ("a", 2), ("a", 3), ("b", 0), ("b", 1)]
    shares = [module.dealt(missing, rank, 2) for rank in range(2)]
    assert shares == [[("a", 0), ("a", 3), ("b", 1)], [("a", 2), ("b", 0)]]


def test_killed_step_samples_only_the_parts_that_are_missing(
    inputs: dict[str, str], whole: StepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[tuple[str, int]] = []
    real = module.sample_part

    def dies_at_the_fourth(model: Any, tokenizer: Any, name: str, some: list[Prompt], *more: Any):
        if len(sampled) == 3:
            raise RetryableError("killed")
        sampled.append((name, len(some)))
        return real(model, tokenizer, name, some, *more)

    monkeypatch.setattr(module, "sample_part", dies_at_the_fourth)
    spec = make_spec("sample_responses", run="test", seed=0, config=CONFIG, inputs=inputs, output=str(tmp_path / "out"))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    assert main("sample_responses", module.work, ["--spec", spec.uri]) == 75
    assert sampled == [("model-one", 4), ("model-one", 4), ("model-one", 2)]

    again: list[str] = []
    monkeypatch.setattr(module, "sample_part", lambda *given: again.append(given[2]) or real(*given))
    result = run_step("sample_responses", tmp_path / "out", inputs, CONFIG)
    assert again == ["model-two"] * 3
    assert result.manifests == whole.manifests
    assert not (tmp_path / "out" / "checkpoints").exists()
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [line["training_step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    assert lines[-1]["responses_kept_total"] == whole.metrics["kept"]


def test_parts_of_other_settings_are_never_read(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.sample_part, []
    monkeypatch.setattr(module, "sample_part", lambda *given: calls.append(given[2]) or real(*given))
    monkeypatch.setattr(module.Parts, "discard", lambda self: None)
    run_step("sample_responses", tmp_path / "out", inputs, CONFIG)
    (tmp_path / "out" / "result.json").unlink()
    run_step("sample_responses", tmp_path / "out", inputs, CONFIG, seed=1)
    assert len(calls) == 12


def test_what_annotators_see_does_not_say_who_wrote_it(inputs: dict[str, str], whole: StepResult) -> None:
    folder = Path(whole.outputs["responses"])
    shown = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    for row in rows_of(whole, "producers"):
        assert str(row["seed"]) not in shown
    for secret in ("model-one", "model-two", "narrow", "wide", store.manifest_digest(inputs["model-one"])):
        assert secret and secret not in shown


def test_manifest_names_the_models_by_content(inputs: dict[str, str], whole: StepResult) -> None:
    manifest = json.loads((Path(whole.outputs["producers"]) / "manifest.json").read_text())
    assert manifest["models"] == {name: store.manifest_digest(inputs[name]) for name in ("model-one", "model-two")}
    assert [one["name"] for one in manifest["strategies"]] == ["narrow", "wide"] and manifest["seed"] == 0


def test_one_model_by_itself_says_what_it_says_among_others(
    inputs: dict[str, str], whole: StepResult, tmp_path: Path
) -> None:
    """And a number of samples more changes none of the others."""
    alone = {name: uri for name, uri in inputs.items() if name != "model-two"}
    strategies = [{**one, "samples": 3} for one in CONFIG["strategies"]]
    result = run_step("sample_responses", tmp_path / "out", alone, CONFIG | {"strategies": strategies})

    def said(of: StepResult) -> dict[tuple[Any, ...], str]:
        return {
            (row["prompt"], row["strategy"], row["number"]): row["response"]
            for row in rows_of(of, "producers")
            if row["model"] == "model-one"
        }

    assert said(whole).items() <= said(result).items()
    assert len(said(result)) == 60


def test_fewer_prompts_are_some_of_more_and_heldout_ones_come_when_asked(
    inputs: dict[str, str], whole: StepResult, tmp_path: Path
) -> None:
    few = run_step("sample_responses", tmp_path / "few", inputs, CONFIG | {"max_prompts": 4})
    some, all_of_them = rows_of(few, "responses"), rows_of(whole, "responses")
    # In the same order, too: a larger choice begins with the smaller one.
    assert some == all_of_them[:4]

    tokenizer = ChatTokenizer.load(Path(inputs["model-one"]))
    rows = prompts(tokenizer)
    write_rows(tmp_path / "split" / "train.parquet", rows[:6], Prompt)
    write_rows(tmp_path / "split" / "heldout" / "asked.parquet", rows[6:], Prompt)
    store.publish(tmp_path / "split", str(tmp_path / "data"))
    given = inputs | {"prompts": str(tmp_path / "data")}
    for heldout, ids in ((False, set("012345")), (True, set("0123456789"))):
        result = run_step("sample_responses", tmp_path / str(heldout), given, CONFIG | {"heldout": heldout})
        assert {row["id"] for row in rows_of(result, "responses")} == ids


def test_prompt_too_long_for_one_model_is_asked_of_none(inputs: dict[str, str], tmp_path: Path) -> None:
    """The second model reads 128 tokens: the prompt alone, but not an answer of six tokens with it."""
    tokenizer = ChatTokenizer.load(Path(inputs["model-one"]))
    rows = prompts(tokenizer, 3)
    words = "the cat sat on the mat " * 20
    fitting = max(
        (words[:length] for length in range(len(words))),
        key=lambda text: (
            (length := len(tokenizer.encode_prompt([{"role": "user", "content": text}]))) * (length <= 128)
        ),
    )
    rows[1].messages[0]["content"] = fitting
    assert 128 - 6 < len(tokenizer.encode_prompt(rows[1].messages)) <= 128
    given = inputs | {"prompts": publish_rows(tmp_path / "rows", tmp_path / "data", rows)}
    result = run_step("sample_responses", tmp_path / "out", given, CONFIG)
    assert {row["prompt"] for row in rows_of(result, "producers")} == {"0", "2"}
    assert result.metrics["prompts_too_long"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model-one": None, "model-two": None}, "no model was given; give each as --input NAME=URI"),
        ({"a/b": "model-one"}, "model name 'a/b'; use letters, digits"),
    ],
)
def test_bad_inputs_get_one_line(
    inputs: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    given = dict(inputs)
    for name, of in change.items():
        given.pop(name, None)
        given |= {name: inputs[of]} if of else {}
    spec = make_spec("sample_responses", run="test", seed=0, config=CONFIG, inputs=given, output=str(tmp_path / "out"))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    assert main("sample_responses", module.work, ["--spec", spec.uri]) == 1
    assert said in capfd.readouterr().err


def test_part_that_is_half_there_is_not_there(inputs: dict[str, str], whole: StepResult, tmp_path: Path) -> None:
    """A part appears whole; what a killed write leaves behind has another name."""
    spec = make_spec("sample_responses", run="test", seed=0, config=CONFIG, inputs=inputs, output=str(tmp_path / "out"))
    parts = module.Parts(spec)
    leftover = Path(parts.uri("model-one", 0)).with_name(".kubealign-upload-model-one-000000.jsonl")
    leftover.parent.mkdir(parents=True)
    leftover.write_text('{"prompt": "0", "mod')
    assert not parts.has("model-one", 0)
    assert run_step("sample_responses", tmp_path / "out", inputs, CONFIG).manifests == whole.manifests
