"""Settings: misspelt keys, wrong values, profiles that extend each other, overrides, the recipe's numbers."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from components.core.config import STEP_CONFIGS, STEPS, Profile, load_profile, merge, step_config
from components.core.errors import UserError


def refused(step: str, values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        step_config(step, values, where="demo.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_misspelt_key_names_the_nearest_right_one() -> None:
    message = refused("ppo", {"kl_coeficient": 0.1})
    assert message == "demo.yaml: ppo: unknown key kl_coeficient; did you mean kl_coefficient?"


def test_misspelt_key_deep_inside_is_named_by_its_path() -> None:
    assert "optimiser.beta_2; did you mean beta2?" in refused("sft", {"optimiser": {"beta_2": 0.9}})
    sources = {"sources": {"sft": [{"path": "a", "adapter": "chat", "licens": "MIT"}]}}
    assert "sources.sft.0.licens; did you mean licence?" in refused("data_prep", sources)


def test_hopeless_key_gets_the_list_of_known_ones() -> None:
    assert "known keys: heldout, ppo" in refused("data_prep", {"splits": {"zzz": 1}})


def test_value_out_of_range_names_path_value_and_limit() -> None:
    message = refused("ppo", {"top_p": 1.5})
    assert "ppo: top_p = 1.5" in message and "less than or equal to 1" in message


def test_unknown_choice_lists_the_allowed_values() -> None:
    message = refused("data_prep", {"loss_mask": "everything"})
    assert all(name in message for name in ("assistant_only", "assistant_only_no_nl", "qwen_finetune"))


def test_all_mistakes_are_told_at_once() -> None:
    message = refused("ppo", {"top_p": 2, "clipp": 1})
    assert "top_p" in message and "clipp" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value: float) -> None:
    assert "learning_rate" in refused("sft", {"learning_rate": value})


def test_whole_floats_are_accepted_for_integers_because_pipelines_send_them() -> None:
    assert step_config("sft", {"batch_size": 128.0}).batch_size == 128
    assert "batch_size" in refused("sft", {"batch_size": 128.5})


def test_splits_must_leave_something_to_train_on() -> None:
    assert "below 1" in refused("data_prep", {"splits": {"heldout": 0.5, "ppo": 0.5}})


def test_sources_of_a_role_have_all_a_weight_or_none() -> None:
    def check(*sources: dict[str, Any]) -> None:
        values = {"sources": {"sft": [{"adapter": "chat", "path": str(i), **one} for i, one in enumerate(sources)]}}
        step_config("data_prep", values)

    check({"weight": 3}, {"weight": 0.5}, {"heldout_only": True})
    check({}, {"heldout_only": True})
    with pytest.raises(UserError, match="give all sources of sft a weight, or none of them"):
        check({"weight": 3}, {})
    with pytest.raises(UserError, match="heldout_only leaves none"):
        check({"weight": 3}, {"weight": 1, "heldout_only": True})
    with pytest.raises(UserError, match=r"sources\.sft\.0\.weight"):
        check({"weight": 0})


def test_recipe_numbers_are_the_defaults() -> None:
    profile = Profile()
    assert (profile.sft.steps, profile.sft.batch_size, profile.sft.warmup_steps) == (4000, 128, 1430)
    assert (profile.sft.learning_rate, profile.sft.dropout, profile.data_prep.max_length) == (2e-6, 0.1, 2048)
    optimiser = profile.sft.optimiser
    assert (optimiser.beta1, optimiser.beta2, optimiser.epsilon) == (0.9, 0.95, 1e-8)
    assert (optimiser.weight_decay, optimiser.clip) == (0.1, 1.0)
    assert (profile.reward_model.learning_rate, profile.reward_model.batch_size) == (3e-6, 64)
    ppo = profile.ppo
    assert (ppo.value_warmup_iterations, ppo.responses_per_prompt, ppo.kl_coefficient) == (50, 2, 0.04)
    assert (ppo.value_clip, ppo.top_p, ppo.policy_learning_rate, ppo.value_learning_rate) == (0.15, 0.9, 1e-6, 5e-6)


def test_every_field_says_what_it_is_and_where_its_default_comes_from() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert isinstance(field.json_schema_extra, dict) and field.json_schema_extra["source"], (
                f"{model.__name__}.{name}"
            )
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    check(Profile)


def test_steps_and_their_sections_are_the_same() -> None:
    assert tuple(STEP_CONFIGS) == STEPS
    assert all(step in Profile.model_fields for step in STEPS)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_profile_extends_another_section_by_section(tmp_path: Path) -> None:
    write(tmp_path, "parent", "seed: 3\nppo: {kl_coefficient: 0.1, clip: 0.3}\n")
    profile = load_profile(write(tmp_path, "child", "extends: parent\nppo: {clip: 0.1}\n"))
    assert (profile.name, profile.seed) == ("child", 3)
    assert (profile.ppo.kl_coefficient, profile.ppo.clip) == (0.1, 0.1)


def test_profiles_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: b\n")
    with pytest.raises(UserError, match="circle"):
        load_profile(write(tmp_path, "b", "extends: a\n"))


@pytest.mark.parametrize("text", ["- a list\n", "a: [1\n", "just words\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_profile(write(tmp_path, "bad", text))


def test_missing_profile_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no profile"):
        load_profile(tmp_path / "none.yaml")


def test_override_reaches_into_a_section_and_may_be_in_scientific_notation(tmp_path: Path) -> None:
    path = write(tmp_path, "p", "seed: 1\n")
    profile = load_profile(path, ["ppo.kl_coefficient=0.02", "sft.learning_rate=1e-6", "sft.steps=null", "seed=7"])
    assert (profile.ppo.kl_coefficient, profile.sft.learning_rate, profile.sft.steps, profile.seed) == (
        0.02,
        1e-6,
        None,
        7,
    )


def test_override_changes_one_of_the_sections_that_share_a_yaml_alias(tmp_path: Path) -> None:
    path = write(tmp_path, "p", "sft:\n  resources: &r {processes: 2}\nppo:\n  resources: *r\n")
    profile = load_profile(path, ["sft.resources.nodes=2"])
    assert (profile.sft.resources.nodes, profile.ppo.resources.nodes) == (2, 1)
    assert profile.sft.resources.processes == 2


def test_override_does_not_change_later_loads(tmp_path: Path) -> None:
    path = write(tmp_path, "p", "ppo: {clip: 0.3}\n")
    load_profile(path, ["ppo.clip=0.1"])
    assert load_profile(path).ppo.clip == 0.3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.clip", "section.key=value"),
        ("seed.x=1", "is a value"),
        ("seed=[1", "not YAML"),
        ("ppo.clop=1", "did you mean clip?"),
    ],
)
def test_bad_override_is_a_user_error(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_profile(write(tmp_path, "p", "seed: 1\n"), [override])
    assert message in str(caught.value)


def test_merge_replaces_lists_whole_and_leaves_its_arguments() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}}
    assert merge(base, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}
    assert base == {"a": {"b": 1, "c": [1, 2]}}
