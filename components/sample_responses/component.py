"""sample_responses as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample_responses(
    config: dict[str, Any],
    prompts: str,
    models: dict[str, str],
    root: str,
    run: str,
    seed: int,
    resume: bool,
    responses: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    only: str = "",
    place: str = "",
) -> NamedTuple("Outputs", [("responses_uri", str), ("producers_uri", str)]):  # type: ignore[valid-type]
    """Responses of several models by several strategies, near-duplicates removed.

    Args:
        config: The profile's sample_responses section.
        prompts: URI of data_prep's prompts.
        models: URI of each model, by a name of yours.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps and parts whatever code made them.
        responses: The responses' lineage; they themselves lie at responses_uri.
        metrics: Responses by what became of them.
        only: Sample as many responses from this one of the models; empty for all of them.
        place: Folder of the step in the run; empty for its own name.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component
    from components.sample_responses.one_model import one_model

    config, models = one_model(config, models, only) if only else (config, models)
    inputs = {"prompts": prompts, **models}
    result = run_component("sample_responses", config, inputs, root, run, seed, resume, place)
    describe_metrics(metrics, result)
    return (describe(responses, result, "responses"), result.outputs["producers"])
