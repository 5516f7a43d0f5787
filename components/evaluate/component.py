"""evaluate as a pipeline component."""

from typing import Any, NamedTuple

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: dict[str, Any],
    base_model: str,
    sft: str,
    pmp: str,
    reward_model: str,
    ppo: str,
    sft_data: str,
    pmp_data: str,
    reward_model_data: str,
    ppo_data: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Outputs", [("report_uri", str)]):  # type: ignore[valid-type]
    """Score every model on held-out data and write the report.

    Args:
        config: The profile's evaluate section.
        base_model: URI of the base model.
        sft: URI of the SFT model.
        pmp: URI of the PMP model.
        reward_model: URI of the reward model.
        ppo: URI of the PPO policy.
        sft_data: URI of the sft rows, their held-out part included.
        pmp_data: URI of the pmp comparisons.
        reward_model_data: URI of the reward_model comparisons.
        ppo_data: URI of the prompts.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep a finished report whatever code made it.
        report: The report, one self-contained page.
        metrics: The figures.
    """
    from components.launch.pipeline_step import copy_report, describe, describe_metrics, run_component

    models = {"base_model": base_model, "sft": sft, "pmp": pmp, "reward_model": reward_model, "ppo": ppo}
    data = {"sft_data": sft_data, "pmp_data": pmp_data, "reward_model_data": reward_model_data, "ppo_data": ppo_data}
    inputs = {**models, **data, "run": f"{root.rstrip('/')}/runs/{run}"}
    result = run_component("evaluate", config, inputs, root, run, seed, resume)
    describe_metrics(metrics, result)
    copy_report(result, report.path)
    return (describe(report, result, "report"),)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    config: dict[str, Any],
    reward_model: str,
    rival: str,
    start: str,
    heldout: str,
    own_data: str,
    rival_data: str,
    root: str,
    run: str,
    seed: int,
    resume: bool,
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Outputs", [("report_uri", str)]):  # type: ignore[valid-type]
    """Hold one reward model against another on the same held-out pairs.

    Args:
        config: The profile's evaluate section.
        reward_model: URI of the reward model.
        rival: URI of the one that it is held against.
        start: URI of the PMP model that both started from.
        heldout: URI of comparisons that neither was trained on; their held-out part decides.
        own_data: URI of the reward model's own comparisons.
        rival_data: URI of the rival's own comparisons.
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; outputs go to <root>/runs/<run>.
        seed: Seed of the run.
        resume: Keep a finished report whatever code made it.
        report: The report, one self-contained page.
        metrics: The figures.
    """
    from components.launch.pipeline_step import copy_report, describe, describe_metrics, run_component

    models = {"pmp": start, "reward_model": reward_model, "rival": rival}
    inputs = {**models, "reward_model_data": heldout, "own_data": own_data, "rival_data": rival_data}
    result = run_component("evaluate", config, inputs, root, run, seed, resume)
    describe_metrics(metrics, result)
    copy_report(result, report.path)
    return (describe(report, result, "report"),)
