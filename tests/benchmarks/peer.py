"""One stage with TRL's own trainer on a workload folder. Runs under the peer's Python; knows nothing of this project.

Prints one line, `RESULT` and JSON: when each step ended, its tokens without padding and its loss, and for PPO where the
time went. run.py makes figures of it, the same way for both trainers.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import datasets
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

Line = dict[str, Any]


class StepEnds(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.time())


class Timed:
    """A function that adds up the seconds spent in it."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner, self.seconds = inner, []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        started = time.time()
        try:
            return self.inner(*arguments, **named)
        finally:
            self.seconds.append(time.time() - started)


def arguments(output: str, batch: int, options: argparse.Namespace) -> Line:
    """What the three trainers share: our optimiser settings, no dropout, no recomputation, rows in the given order."""
    return {
        "output_dir": output, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "seed": 0, "report_to": "none",
        "disable_tqdm": True, "logging_steps": 1, "train_sampling_strategy": "sequential", "optim": "adamw_torch_fused",
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "save_strategy": "steps" if options.checkpoint_every else "no", "save_steps": options.checkpoint_every or 500,
    }  # fmt: skip


def run_trainer(trainer: Any, ends: StepEnds, tokens_of: Callable[[Line], int], key: str) -> Line:
    """Train; the line of SFT and reward model."""
    tokens: list[int] = []
    collate = trainer.data_collator

    def counting(rows: list[Line]) -> Line:
        made = collate(rows)
        tokens.append(tokens_of(made))
        return made

    trainer.data_collator = counting
    trainer.get_batch_samples = loading = Timed(trainer.get_batch_samples)
    trainer._save_checkpoint = saving = Timed(trainer._save_checkpoint)
    trainer.train()
    losses = [entry[key] for entry in trainer.state.log_history if key in entry]
    return {
        "step_ends": ends.times, "tokens": tokens[: len(ends.times)], "losses": losses,
        "loading_seconds": loading.seconds[: len(ends.times)], "checkpoint_seconds": saving.seconds,
    }  # fmt: skip


def sft(work: Path, rows: list[Line], settings: Line, output: str, options: argparse.Namespace) -> Line:
    from trl import SFTConfig, SFTTrainer

    ends = StepEnds()
    more = {"loss_type": options.loss_type} if options.loss_type else {}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32),
        args=SFTConfig(
            **arguments(output, settings["batch"], options), **more, max_length=settings["length"],
            packing=options.packing, max_steps=options.steps,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(work),
        callbacks=[ends],
    )  # fmt: skip
    return run_trainer(trainer, ends, count_tokens, "loss")


def rm(work: Path, rows: list[Line], settings: Line, output: str, options: argparse.Namespace) -> Line:
    from trl import RewardConfig, RewardTrainer

    ends = StepEnds()
    trainer = RewardTrainer(
        model=reward_model(work),
        args=RewardConfig(
            **arguments(output, settings["batch"], options), max_length=settings["length"], max_steps=options.steps
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(work),
        callbacks=[ends],
    )
    return run_trainer(trainer, ends, count_tokens, "loss")


def ppo(work: Path, rows: list[Line], settings: Line, output: str, options: argparse.Namespace) -> Line:
    """Each iteration: generate, score (four models without gradients), update."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    batch = settings["ppo_batch"]
    tokenizer = tokenizer_of(work)
    tokenizer.padding_side = "left"
    given = arguments(output, options.ppo_micro_batch, options)
    given |= {"gradient_accumulation_steps": batch // options.ppo_micro_batch, "save_strategy": "no"}
    ends = StepEnds()
    trainer = PPOTrainer(
        args=PPOConfig(
            **given, total_episodes=options.steps * batch, num_mini_batches=1, num_ppo_epochs=1,
            local_rollout_forward_batch_size=batch, response_length=settings["response"], stop_token="eos",
            temperature=1.0, missing_eos_penalty=1.0, num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32),
        reward_model=reward_model(work),
        value_model=reward_model(work),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows[:batch]),
        callbacks=[ends],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(
        trainer.train_dataset, batch_size=batch, collate_fn=trainer.data_collator, drop_last=True
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)

    prompts, replies, generated, updates = [], [], [], []
    generate, accumulate = Timed(ppo_trainer.batch_generation), trainer.accelerator.accumulate

    def counting(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        made = generate(model, queries, *rest)
        generated.append(time.time())
        reply = made[0][:, queries.shape[1] :]
        # A response counts up to and with its first <|im_end|>.
        ended = (reply == tokenizer.eos_token_id).int()
        prompts.append(int((queries != tokenizer.pad_token_id).sum()))
        replies.append(int((ended.cumsum(1) - ended == 0).sum()))
        return made

    def updating(*models: Any) -> Any:
        if len(updates) < len(generated):
            updates.append(time.time())
        return accumulate(*models)

    ppo_trainer.batch_generation, trainer.accelerator.accumulate = counting, updating
    trainer.train()
    return {
        "step_ends": ends.times,
        "tokens": [asked + replied for asked, replied in zip(prompts, replies, strict=True)],
        "response_tokens": replies,
        "generation_seconds": generate.seconds,
        "scoring_seconds": [end - start for start, end in zip(generated, updates, strict=True)],
        "update_seconds": [end - start for start, end in zip(updates, ends.times, strict=True)],
        "losses": [entry["loss/policy_avg"] for entry in trainer.state.log_history if "loss/policy_avg" in entry],
    }


def tokenizer_of(work: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(work / "base" / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def reward_model(work: Path) -> PreTrainedModel:
    """The same trunk and linear head as the other side's."""
    model = AutoModelForSequenceClassification.from_pretrained(work / "base", num_labels=1, dtype=torch.float32)
    head = load_file(work / "reward" / "reward_head.safetensors")
    with torch.no_grad():
        model.score.weight.copy_(head["0.weight"])
    return model


def count_tokens(batch: Line) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["input_ids"].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["sft", "rm", "ppo"], required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int, default=0)
    parser.add_argument("--packing", action="store_true", help="SFT: TRL's packing, which makes other batches")
    parser.add_argument("--loss-type", default="", help="SFT: TRL's default when empty")
    parser.add_argument("--ppo-micro-batch", type=int, default=16, help="PPO: rows of a forward pass of the update")
    options = parser.parse_args()
    made = json.loads((options.workload / "peer.json").read_text(encoding="utf-8"))
    stage = {"sft": sft, "rm": rm, "ppo": ppo}[options.stage]
    with tempfile.TemporaryDirectory() as output:
        line = stage(options.workload, made["rows"][options.stage], made["settings"], output, options)
    print("RESULT " + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
