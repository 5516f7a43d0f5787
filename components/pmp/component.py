"""pmp as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pmp(
    config: dict[str, Any],
    base_model: str,
    data: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Outputs", [("model_uri", str)]):  # type: ignore[valid-type]
    """Preference-model pretraining: a reward model from broad, weakly labelled comparisons.

    Args:
        config: The profile's pmp section.
        base_model: URI of the base model.
        data: URI of the pmp comparisons.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps and checkpoints whatever code made them.
        model: The model's lineage; the model itself lies at model_uri.
        metrics: The step's numbers.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component

    inputs = {"base_model": base_model, "data": data}
    result = run_component("pmp", config, inputs, root, run, seed, resume)
    describe_metrics(metrics, result)
    return (describe(model, result, "model"),)
