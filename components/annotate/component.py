"""annotate as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import ANNOTATE_IMAGE


@dsl.component(base_image=ANNOTATE_IMAGE, install_kfp_package=False)
def annotate(
    config: dict[str, Any],
    responses: str,
    producers: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    scored: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    results: str = "",
    place: str = "",
) -> NamedTuple("Outputs", [("scored_uri", str)]):  # type: ignore[valid-type]
    """Sampled responses out to annotators, a judge or the demo world's panel, and their scores back in.

    Args:
        config: The profile's annotate section.
        responses: URI of the sampled responses.
        producers: URI of the record of who wrote them, which no annotator sees.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps whatever code made them.
        scored: The scored responses' lineage; they themselves lie at scored_uri.
        metrics: Answers, agreement, spam, cost.
        results: Folder of what annotators' tool exports, for mode import; empty for annotations/<place> in the run.
        place: Folder of the step in the run; empty for its own name.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component

    if config.get("mode") == "import" and not results:
        results = f"{root.rstrip('/')}/runs/{run}/annotations/{place or 'annotate'}"
    inputs = {"responses": responses, "producers": producers, "results": results}
    result = run_component("annotate", config, inputs, root, run, seed, resume, place)
    describe_metrics(metrics, result)
    return (describe(scored, result, "scored"),)
