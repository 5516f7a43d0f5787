"""data_prep as pipeline components: as one task, or its map in many and the rest in one."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import DATA_PREP_IMAGE


@dsl.component(base_image=DATA_PREP_IMAGE, install_kfp_package=False)
def map_data(
    config: dict[str, Any],
    shard: str,
    data_root: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
) -> str:
    """Raw data in; all that can be told of a row by itself out, for one shard of the rows.

    Args:
        config: The profile's data_prep section.
        shard: Which of how many, as in 2/4.
        data_root: Folder or URI under which the raw data lies; may be empty.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>, where the base model's tokenizer is.
        seed: Seed of the run.
        resume: Keep finished steps whatever code made them.
    """
    from components.launch.pipeline_step import output_of, place_of_shard, run_component

    # Not a parameter: to a task in a loop, kfp.local (2.17) gives the loop's item for any output of another task.
    inputs = {"data_root": data_root, "base_model": output_of("base_model", "model", root, run)}
    result = run_component(
        "data_prep", {**config, "shard": shard}, inputs, root, run, seed, resume, place_of_shard(shard)
    )
    return result.outputs["shard"]


@dsl.component(base_image=DATA_PREP_IMAGE, install_kfp_package=False)
def data_prep(
    config: dict[str, Any],
    data_root: str,
    base_model: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    shards: list[str] = [],  # noqa: B006 (how KFP is told the default)
    place: str = "",
) -> NamedTuple(  # type: ignore[valid-type]
    "Outputs",
    [("sft_uri", str), ("pmp_uri", str), ("reward_model_uri", str), ("ppo_uri", str), ("pretrain_uri", str)],
):
    """Raw data in; checked, split, tokenised rows out, one folder a role.

    Args:
        config: The profile's data_prep section.
        data_root: Folder or URI under which the raw data lies; may be empty.
        base_model: URI of the base model, for its tokenizer.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps whatever code made them.
        dataset: The data's lineage; the data themselves lie at the URIs.
        metrics: Rows kept and rejected, by role and rule.
        shards: URIs of all shards that map_data has made; none where it is to map the raw data itself.
        place: Folder of the step in the run; empty for its own name.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component

    inputs = {"data_root": data_root, "base_model": base_model}
    inputs |= {f"shard_{number:04}": uri for number, uri in enumerate(shards)}
    result = run_component("data_prep", {**config, "shard": None}, inputs, root, run, seed, resume, place)
    describe_metrics(metrics, result)
    describe(dataset, result, "sft")
    dataset.metadata.update({f"location_{role}": uri for role, uri in result.outputs.items()})
    return tuple(result.outputs.get(role, "") for role in ("sft", "pmp", "reward_model", "ppo", "pretrain"))
