"""ppo as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ppo(
    config: dict[str, Any],
    policy: str,
    reward_model: str,
    data: str,
    pretrain: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Outputs", [("model_uri", str)]):  # type: ignore[valid-type]
    """PPO: the SFT model learns to earn reward without drifting far from itself.

    Args:
        config: The profile's ppo section.
        policy: URI of the SFT model, policy and reference alike.
        reward_model: URI of the reward model, from which the value model starts too.
        data: URI of the prompts.
        pretrain: URI of pretraining text for the ptx gradient; may be empty.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep finished steps and checkpoints whatever code made them.
        model: The model's lineage; the model itself lies at model_uri.
        metrics: The step's numbers.
    """
    from components.launch.pipeline_step import describe, describe_metrics, run_component

    inputs = {"policy": policy, "reward_model": reward_model, "data": data, "pretrain": pretrain}
    result = run_component("ppo", config, inputs, root, run, seed, resume)
    describe_metrics(metrics, result)
    return (describe(model, result, "model"),)
