"""base_model as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def base_model(
    config: dict[str, Any],
    data_root: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Outputs", [("model_uri", str)]):  # type: ignore[valid-type]
    """Bring the base model, or make a small one from the run's own text.

    Args:
        config: The profile's base_model section.
        data_root: Folder or URI under which the raw data lies; may be empty.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps and checkpoints whatever code made them.
        model: The model's lineage; the model itself lies at model_uri.
        metrics: The step's numbers.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component

    result = run_component("base_model", config, {"data_root": data_root}, root, run, seed, resume)
    describe_metrics(metrics, result)
    return (describe(model, result, "model"),)
