"""The pipeline that makes preference data: several models answer, annotators score, a reward model learns.

    prompts ─► sample_responses ─► annotate ─► data_prep ─► reward_model ─┐
               (several models)                     ╳                     ├─► evaluate ─► report
    prompts ─► sample_responses ─► annotate ─► data_prep ─► reward_model ─┘
               (one of them, as many responses)

Beside it the same from one of the models, as a check of the report's claim that responses of several help (§3.2.1).
The two reward models start alike and train on as many pairs of the same prompts (`matched_with`).
"""

from typing import Any

from kfp import dsl

from components.annotate.component import annotate as annotate_component
from components.data_prep.component import data_prep as data_prep_component
from components.evaluate.component import compare as compare_component
from components.launch.component import clean_up as clean_up_component
from components.reward_model.component import reward_model as reward_model_component
from components.sample_responses.component import sample_responses as sample_responses_component

NAME = "preference-data"
_TEXT = "Responses of several models, annotated, become a reward model; beside it one from a single model."


@dsl.pipeline(name=NAME, description=_TEXT)
def preference_data(
    root: str,
    run: str,
    sample_responses: dict[str, Any],
    annotate: dict[str, Any],
    data_prep: dict[str, Any],
    reward_model: dict[str, Any],
    evaluate: dict[str, Any],
    models: dict[str, str],
    single: str,
    prompts: str,
    start: str,
    demonstrations: str,
    heldout: str,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Responses of several models, annotated, become a reward model; beside it one from a single model.

    Args:
        root: The store that holds everything: a folder, or s3://bucket/prefix.
        run: Run id; everything of this run goes to <root>/runs/<run>. The same id again skips finished steps.
        sample_responses: Sampling strategies, number of prompts. Keys as in `kubealign config schema`.
        annotate: Annotation: people by a tool, a judge, or the demo world's panel.
        data_prep: How the scores become pairs; its reward_model source reads scored.jsonl.
        reward_model: Reward-model fine-tuning, of both.
        evaluate: Evaluation and the report.
        models: URI of every model that answers, by a name of yours.
        single: The one of them that they are held against.
        prompts: URI of the prompts, data_prep's output ppo.
        start: URI of the model that both reward models start from.
        demonstrations: URI of the sft rows, whose scores set the reward offset.
        heldout: URI of comparisons whose held-out part judges both.
        seed: Every random choice follows from it.
        resume: Keep finished steps and parts of this run whatever code made them.
    """
    common = {"root": root, "run": run, "seed": seed, "resume": resume}
    last = clean_up_component(root=root, run=run)
    last.set_display_name("clean up")
    last.set_caching_options(False)  # what it finds does not follow from its parameters

    with dsl.ExitHandler(last, name="steps"):
        data = {}
        for arm, only in (("several", ""), ("single", single)):
            sampled = sample_responses_component(
                config=sample_responses, prompts=prompts, models=models, only=only,
                place=f"{arm}/sample_responses", **common,
            )  # fmt: skip
            sampled.set_display_name(f"responses, {arm}")
            responses = sampled.outputs

            scored = annotate_component(
                config=annotate, responses=responses["responses_uri"], producers=responses["producers_uri"],
                place=f"{arm}/annotate", **common,
            )  # fmt: skip
            scored.set_display_name(f"annotation, {arm}")
            scored.set_caching_options(False)  # people hand their results in when they do

            pairs = data_prep_component(
                config=data_prep, data_root=scored.outputs["scored_uri"], base_model=start,
                place=f"{arm}/data_prep", **common,
            )  # fmt: skip
            pairs.set_display_name(f"pairs, {arm}")
            data[arm] = pairs.outputs["reward_model_uri"]

        trained = {}
        for arm, other in (("several", "single"), ("single", "several")):
            reward = reward_model_component(
                config=reward_model, base_model=start, data=data[arm], matched_with=data[other],
                demonstrations=demonstrations, place=f"{arm}/reward_model", **common,
            )  # fmt: skip
            reward.set_display_name(f"reward model, {arm}")
            trained[arm] = reward.outputs["model_uri"]

        report = compare_component(
            config=evaluate, reward_model=trained["several"], rival=trained["single"], start=start,
            heldout=heldout, own_data=data["several"], rival_data=data["single"], **common,
        )  # fmt: skip
        report.set_display_name("comparison and report")
