"""reward_model as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reward_model(
    config: dict[str, Any],
    base_model: str,
    data: str,
    demonstrations: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    matched_with: str = "",
    place: str = "",
) -> NamedTuple("Outputs", [("model_uri", str)]):  # type: ignore[valid-type]
    """Reward-model fine-tuning on carefully labelled comparisons.

    Args:
        config: The profile's reward_model section.
        base_model: URI of the model to start from: the PMP model.
        data: URI of the reward_model comparisons.
        demonstrations: URI of the sft rows, whose scores set the reward offset.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps and checkpoints whatever code made them.
        model: The model's lineage; the model itself lies at model_uri.
        metrics: The step's numbers.
        matched_with: URI of other comparisons: train on as many pairs of the same prompts as those have, too.
        place: Folder of the step in the run; empty for its own name.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component

    inputs = {"base_model": base_model, "data": data, "demonstrations": demonstrations, "matched_with": matched_with}
    result = run_component("reward_model", config, inputs, root, run, seed, resume, place)
    describe_metrics(metrics, result)
    return (describe(model, result, "model"),)
