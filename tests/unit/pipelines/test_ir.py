"""The compiled pipelines: the golden files, and what a backend needs of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from components.core.config import STEP_CONFIGS, STEPS, Profile, step_config
from pipelines.definitions import DEFINITIONS
from pipelines.ir import compile_pipeline
from pipelines.parameters import sections

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture(scope="module", params=DEFINITIONS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir") / f"{request.param}.yaml"
    compile_pipeline(Profile(name="golden", pipeline=request.param), path)
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    return next(iter(yaml.safe_load_all(compiled.read_text())))


def tasks_of(name: str, folder: Path) -> dict[str, Any]:
    """The tasks of a pipeline that are steps."""
    compile_pipeline(Profile(pipeline=name), folder / "ir.yaml")
    spec = next(iter(yaml.safe_load_all((folder / "ir.yaml").read_text())))
    tasks: dict[str, Any] = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return tasks


def test_compiled_pipeline_is_the_golden_one(compiled: Path) -> None:
    """`KUBEALIGN_GOLDEN=1 pytest` writes the file anew; look at the difference before keeping it."""
    golden = GOLDEN / compiled.name
    if os.environ.get("KUBEALIGN_GOLDEN"):
        golden.write_text(compiled.read_text())
    assert compiled.read_text() == golden.read_text()


def test_kfp_loads_what_was_compiled(compiled: Path) -> None:
    from kfp import components

    name = components.load_component_from_file(str(compiled)).pipeline_spec.pipeline_info.name
    assert name == compiled.stem.replace("_", "-")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition_names_every_task_of_its_pipeline(name: str, tmp_path: Path) -> None:
    assert sorted(DEFINITIONS[name].tasks.values()) == sorted(tasks_of(name, tmp_path))


def test_every_parameter_has_a_description_and_a_default_where_the_profile_has_one(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    assert {name for name, parameter in parameters.items() if "defaultValue" not in parameter} == {"root", "run"}


def test_last_task_cleans_up_after_all_steps_whatever_became_of_them(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"exit-handler-1", "clean-up"}
    last = tasks["clean-up"]
    assert last["dependentTasks"] == ["exit-handler-1"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert last["taskInfo"]["name"] == "clean up"
    assert "enableCache" not in last["cachingOptions"]


def test_step_whose_pod_is_deleted_is_started_again_by_the_backend(compiled: Path) -> None:
    """As the SDK's own set_retry writes it, so that a backend understands it."""
    from kfp import dsl

    @dsl.component(base_image="python")
    def one() -> None: ...

    @dsl.pipeline
    def retried() -> None:
        one().set_retry(2, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration="300s")

    spelled = retried.pipeline_spec.root.dag.tasks["one"].retry_policy
    spec = next(iter(yaml.safe_load_all(compiled.read_text())))
    steps = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    looped = steps.pop("for-loop-2", {}) and spec["components"]["comp-for-loop-2"]["dag"]["tasks"]
    for task in (*steps.values(), *looped.values()):
        assert json_format.ParseDict(task["retryPolicy"], type(spelled)()) == spelled
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["clean-up"]


def test_pmp_runs_beside_sft_and_ppo_waits_for_both(tmp_path: Path) -> None:
    after = {name: set(task.get("dependentTasks", ())) for name, task in tasks_of("alignment", tmp_path).items()}
    assert after == {
        "base-model": set(),
        "for-loop-2": {"base-model"},
        "data-prep": {"base-model", "for-loop-2"},
        "sft": {"base-model", "data-prep"},
        "pmp": {"base-model", "data-prep"},
        "reward-model": {"pmp", "data-prep"},
        "ppo": {"sft", "reward-model", "data-prep"},
        "evaluate": {"base-model", "data-prep", "sft", "pmp", "reward-model", "ppo"},
    }


def test_both_arms_of_preference_data_differ_in_the_models_and_the_place_alone(tmp_path: Path) -> None:
    tasks = tasks_of("preference_data", tmp_path)

    def inputs(name: str) -> dict[str, Any]:
        """With the names of the other arm's tasks made those of this one."""
        return json.loads(json.dumps(tasks[name]["inputs"]["parameters"]).replace("-2", ""))

    for step in ("sample-responses", "annotate", "data-prep"):
        several, single = inputs(step), inputs(f"{step}-2")
        assert {key for key in several if several[key] != single[key]} <= {"only", "place"}
    for arm, other in (("reward-model", "reward-model-2"), ("reward-model-2", "reward-model")):
        given, theirs = (tasks[name]["inputs"]["parameters"] for name in (arm, other))
        assert given["matched_with"] == theirs["data"] != given["data"]
        assert given["base_model"] == theirs["base_model"] and given["config"] == theirs["config"]


def test_no_component_installs_packages_or_sets_an_artifact_uri(spec: dict[str, Any]) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        command = "\n".join(executor["container"]["command"])
        assert "pip install" not in command
        assert ".uri =" not in command


def test_image_prefix_stands_before_every_image(tmp_path: Path) -> None:
    compile_pipeline(Profile(), tmp_path / "ir.yaml", "registry.example/team/")
    spec = next(iter(yaml.safe_load_all((tmp_path / "ir.yaml").read_text())))
    containers = [executor["container"] for executor in spec["deploymentSpec"]["executors"].values()]
    names = {container["image"] for container in containers}
    assert names == {"registry.example/team/launcher:0.1.0", "registry.example/team/data-prep:0.1.0"}
    for container in containers:  # and before those of the jobs that a component starts
        assert container["env"] == [{"name": "KUBEALIGN_IMAGES", "value": "registry.example/team/{step}:0.1.0"}]


def test_sections_survive_the_way_through_a_struct() -> None:
    """No nulls on the way, every number a float on the other side, and the same settings in the end."""
    sources = {"sft": [{"path": "a", "adapter": "chat", "columns": {"text": "t"}}]}
    profile = Profile.model_validate({"sft": {"steps": None}, "data_prep": {"sources": sources}})

    def through(value: Any) -> Any:
        assert value is not None
        if isinstance(value, dict):
            return {key: through(item) for key, item in value.items()}
        if isinstance(value, list):
            return [through(item) for item in value]
        return float(value) if type(value) is int else value

    assert set(STEPS) == set(STEP_CONFIGS)
    for step, section in sections(profile, STEPS).items():
        assert step_config(step, through(section)) == getattr(profile, step)
