"""The compiled pipeline: the golden file, and what a backend needs of it."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from components.core.config import STEP_CONFIGS, STEPS, Profile, step_config
from pipelines.ir import compile_pipeline
from pipelines.parameters import sections

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "alignment.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir") / "alignment.yaml"
    compile_pipeline(Profile(name="golden"), path)
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    return next(iter(yaml.safe_load_all(compiled.read_text())))


def test_compiled_pipeline_is_the_golden_one(compiled: Path) -> None:
    """`KUBEALIGN_GOLDEN=1 pytest` writes the file anew; look at the difference before keeping it."""
    if os.environ.get("KUBEALIGN_GOLDEN"):
        GOLDEN.write_text(compiled.read_text())
    assert compiled.read_text() == GOLDEN.read_text()


def test_kfp_loads_what_was_compiled(compiled: Path) -> None:
    from kfp import components

    assert components.load_component_from_file(str(compiled)).pipeline_spec.pipeline_info.name == "alignment"


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


def test_step_whose_pod_is_deleted_is_started_again_by_the_backend(spec: dict[str, Any]) -> None:
    """As the SDK's own set_retry writes it, so that a backend understands it."""
    from kfp import dsl

    @dsl.component(base_image="python")
    def one() -> None: ...

    @dsl.pipeline
    def retried() -> None:
        one().set_retry(2, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration="300s")

    spelled = retried.pipeline_spec.root.dag.tasks["one"].retry_policy
    for task in spec["components"]["comp-exit-handler-1"]["dag"]["tasks"].values():
        assert json_format.ParseDict(task["retryPolicy"], type(spelled)()) == spelled
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["clean-up"]


def test_pmp_runs_beside_sft_and_ppo_waits_for_both(spec: dict[str, Any]) -> None:
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    after = {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()}
    assert after == {
        "base-model": set(),
        "data-prep": {"base-model"},
        "sft": {"base-model", "data-prep"},
        "pmp": {"base-model", "data-prep"},
        "reward-model": {"pmp", "data-prep"},
        "ppo": {"sft", "reward-model", "data-prep"},
        "evaluate": {"base-model", "data-prep", "sft", "pmp", "reward-model", "ppo"},
    }


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

    for step, section in sections(profile).items():
        assert step_config(step, through(section)) == getattr(profile, step)
    assert set(sections(profile)) == set(STEPS) == set(STEP_CONFIGS)
