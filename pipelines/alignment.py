"""The alignment pipeline: one definition, run on a laptop and compiled for a cluster."""

from typing import Any

from kfp import dsl

from components.base_model.component import base_model as base_model_component
from components.data_prep.component import data_prep as data_prep_component
from components.data_prep.component import map_data as map_data_component
from components.evaluate.component import evaluate as evaluate_component
from components.launch.component import clean_up as clean_up_component
from components.pmp.component import pmp as pmp_component
from components.ppo.component import ppo as ppo_component
from components.reward_model.component import reward_model as reward_model_component
from components.sft.component import sft as sft_component

NAME = "alignment"
_TEXT = "From a base model to an aligned chat model: SFT, preference-model pretraining, reward model, PPO, evaluation."


@dsl.pipeline(name=NAME, description=_TEXT)
def alignment(
    root: str,
    run: str,
    base_model: dict[str, Any],
    data_prep: dict[str, Any],
    sft: dict[str, Any],
    pmp: dict[str, Any],
    reward_model: dict[str, Any],
    ppo: dict[str, Any],
    evaluate: dict[str, Any],
    data_root: str = "",
    data_shards: list[str] = ["1/1"],  # noqa: B006 (how KFP is told the default)
    seed: int = 0,
    resume: bool = False,
) -> None:
    """From a base model to an aligned chat model.

    Args:
        root: The store that holds everything: a folder, or s3://bucket/prefix.
        run: Run id; everything of this run goes to <root>/runs/<run>. The same id again skips finished steps.
        base_model: The base model: a hub id, an s3:// or file:// model, or init. Keys as in `kubealign config schema`.
        data_prep: Raw data by role, lengths, splits.
        sft: Supervised fine-tuning.
        pmp: Preference-model pretraining.
        reward_model: Reward-model fine-tuning.
        ppo: PPO.
        evaluate: Evaluation and the report.
        data_root: Folder or URI under which the raw data lies; may be empty.
        data_shards: Pieces of the raw data that are mapped side by side, each in a pod: 1/4, 2/4, 3/4 and 4/4. However
            many, the data are the same to the byte.
        seed: Every random choice follows from it.
        resume: Keep finished steps and checkpoints of this run whatever code made them.
    """
    common = {"root": root, "run": run, "seed": seed, "resume": resume}
    last = clean_up_component(root=root, run=run)
    last.set_display_name("clean up")
    last.set_caching_options(False)  # what it finds does not follow from its parameters

    with dsl.ExitHandler(last, name="steps"):
        base = base_model_component(config=base_model, data_root=data_root, **common)
        base.set_display_name("base model")
        base_uri = base.outputs["model_uri"]

        with dsl.ParallelFor(data_shards, name="map the raw data") as shard:
            mapped = map_data_component(config=data_prep, shard=shard, data_root=data_root, **common).after(base)
            mapped.set_display_name("shard of the raw data")

        data = data_prep_component(
            config=data_prep,
            data_root=data_root,
            base_model=base_uri,
            shards=dsl.Collected(mapped.output),
            **common,
        )
        data.set_display_name("data preparation")
        rows = data.outputs

        tuned = sft_component(config=sft, base_model=base_uri, data=rows["sft_uri"], **common)
        tuned.set_display_name("supervised fine-tuning")

        preference = pmp_component(config=pmp, base_model=base_uri, data=rows["pmp_uri"], **common)
        preference.set_display_name("preference-model pretraining")

        reward = reward_model_component(
            config=reward_model,
            base_model=preference.outputs["model_uri"],
            data=rows["reward_model_uri"],
            demonstrations=rows["sft_uri"],
            **common,
        )
        reward.set_display_name("reward model")

        policy = ppo_component(
            config=ppo,
            policy=tuned.outputs["model_uri"],
            reward_model=reward.outputs["model_uri"],
            data=rows["ppo_uri"],
            pretrain=rows["pretrain_uri"],
            **common,
        )
        policy.set_display_name("PPO")

        report = evaluate_component(
            config=evaluate,
            base_model=base_uri,
            sft=tuned.outputs["model_uri"],
            pmp=preference.outputs["model_uri"],
            reward_model=reward.outputs["model_uri"],
            ppo=policy.outputs["model_uri"],
            sft_data=rows["sft_uri"],
            pmp_data=rows["pmp_uri"],
            reward_model_data=rows["reward_model_uri"],
            ppo_data=rows["ppo_uri"],
            **common,
        )
        report.set_display_name("evaluation and report")
