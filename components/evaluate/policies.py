"""What the base, SFT and PPO policies answer to the same held-out prompts with the same seeds.

One model is in memory at a time. PPO comes first, so that the SFT model, its reference, can score PPO's own samples.
"""

import gc
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.core.chatml import ChatTokenizer
from components.core.config import EvaluateConfig
from components.core.errors import UserError
from components.core.metrics import repeated_ngrams
from components.core.records import Prompt
from components.core.seeds import seed_for
from components.evaluate.inputs import Inputs
from components.evaluate.language_model import held_out_loss
from components.evaluate.preferences import Judge
from components.evaluate.sets import Missing
from components.evaluate.windows import best_device
from components.training.windows import longest_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass
class Answer:
    """One response of one policy. `prompt` counts the prompts, `sample` the responses to it."""

    prompt: int
    sample: int
    text: str
    ids: list[int]
    truncated: bool
    truth: dict[str, Any] | None = None
    reward: float | None = None

    @property
    def repetition(self) -> float:
        return repeated_ngrams(self.ids)


@dataclass
class Policies:
    """All that the policies did."""

    prompts: list[Prompt] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    language_model: dict[str, dict[str, Any]] = field(default_factory=dict)
    kl: list[float] | None = None
    kl_k3: list[float] | None = None
    missing: list[Missing] = field(default_factory=list)


@dataclass
class _Samples:
    """PPO's samples as tokens, until its reference has scored them."""

    vocabulary: dict[str, int]
    prompts: list[list[int]]
    responses: list[list[int]]
    log_probs: list[Any]


def run_policies(inputs: Inputs, config: EvaluateConfig, seed: int) -> Policies:
    """Load one policy after the other: held-out loss, answers, and KL of PPO's answers to SFT."""
    found = Policies(prompts=_that_fit(inputs, config))
    if dropped := len(inputs.prompts) - len(found.prompts):
        why = f"{dropped} of {len(inputs.prompts)} leave no room for {config.max_new_tokens} new tokens"
        found.missing.append(Missing("some held-out prompts", why))
    samples = None
    for name in ("ppo", "sft", "base"):
        if name in inputs.policies:
            samples = _run_policy(name, inputs, config, seed, found, samples)
    if samples is not None and "sft" not in inputs.policies and found.prompts:
        found.missing.append(Missing("KL of PPO to its reference", "no input sft was given"))
    if config.ground_truth == "demo_world":
        for answers in found.answers.values():
            _score_truth(found.prompts, answers)
    return found


def _run_policy(
    name: str, inputs: Inputs, config: EvaluateConfig, seed: int, found: Policies, samples: _Samples | None
) -> _Samples | None:
    """Everything that needs this policy in memory. Returns PPO's samples for the reference that comes next."""
    from components.training.models import load_policy

    folder = inputs.policies[name]
    tokenizer, model = ChatTokenizer.load(folder), load_policy(folder, device=best_device())
    if inputs.chats:
        log.info("%s: loss on %d held-out conversations", name, len(inputs.chats))
        longest = longest_sequence(folder)
        found.language_model[name] = held_out_loss(model, tokenizer, inputs.chats, longest, config.batch_tokens)
    if found.prompts:
        log.info("%s: answering %d held-out prompts", name, len(found.prompts))
        found.answers[name] = answer(model, tokenizer, found.prompts, config, seed)
    if name == "sft" and samples is not None:
        _measure_kl(model, tokenizer, samples, config, found)
    if name == "ppo" and found.prompts:
        samples = _keep_samples(model, tokenizer, found, config)
    del model
    _free_memory()
    return samples


def answer(
    model: "PreTrainedModel", tokenizer: ChatTokenizer, prompts: list[Prompt], config: EvaluateConfig, seed: int
) -> list[Answer]:
    """`samples_per_prompt` responses to every prompt; the seed depends on prompt and sample, never on the policy."""
    from components.training.sampling import sample

    places = [(prompt, number) for prompt in range(len(prompts)) for number in range(config.samples_per_prompt)]
    encoded = [tokenizer.encode_prompt(prompt.messages) for prompt in prompts]
    responses = sample(
        model,
        [encoded[prompt] for prompt, _ in places],
        seeds=[seed_for(seed, "evaluate", prompts[prompt].id, number) for prompt, number in places],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        stop_ids=tokenizer.stop_ids,
        batch_tokens=config.batch_tokens,
    )
    return [
        Answer(prompt, number, tokenizer.decode(response.ids), list(response.ids), response.truncated)
        for (prompt, number), response in zip(places, responses, strict=True)
    ]


def score_rewards(policies: Policies, judge: Judge) -> None:
    """The reward model's score of every answer, read at an end token even where the answer was cut off."""
    for name, answers in policies.answers.items():
        scores = judge.score([(policies.prompts[item.prompt].messages, item.text) for item in answers])
        for item, score in zip(answers, scores, strict=True):
            item.reward = score
        if too_long := scores.count(None):
            why = f"{too_long} of {len(scores)} are longer than the model's {judge.longest} tokens"
            policies.missing.append(Missing(f"reward of some {name} answers", why))


def _that_fit(inputs: Inputs, config: EvaluateConfig) -> list[Prompt]:
    """Prompts that leave every policy room for a whole response, so that all answer the same ones."""
    fitting = inputs.prompts
    for folder in inputs.policies.values() if inputs.prompts else ():
        tokenizer, longest = ChatTokenizer.load(folder), longest_sequence(folder)
        fitting = [
            prompt
            for prompt in fitting
            if len(tokenizer.encode_prompt(prompt.messages)) + config.max_new_tokens <= longest
        ]
    if inputs.prompts and not fitting:
        raise UserError(
            f"evaluate: none of {len(inputs.prompts)} held-out prompts leaves room for evaluate.max_new_tokens = "
            f"{config.max_new_tokens} tokens; lower it"
        )
    return fitting


def _keep_samples(
    model: "PreTrainedModel", tokenizer: ChatTokenizer, found: Policies, config: EvaluateConfig
) -> _Samples:
    prompts = [tokenizer.encode_prompt(found.prompts[item.prompt].messages) for item in found.answers["ppo"]]
    responses = [item.ids for item in found.answers["ppo"]]
    log_probs = _log_probs(model, prompts, responses, config)
    return _Samples(tokenizer.tokenizer.get_vocab(), prompts, responses, log_probs)


def _measure_kl(
    model: "PreTrainedModel", tokenizer: ChatTokenizer, samples: _Samples, config: EvaluateConfig, found: Policies
) -> None:
    """KL(ppo || sft) of each response on PPO's own samples: sum of log p_ppo - log p_sft (k1), and its k3 estimate."""
    if tokenizer.tokenizer.get_vocab() != samples.vocabulary:
        found.missing.append(Missing("KL of PPO to its reference", "ppo and sft have different tokenizers"))
        return
    reference = _log_probs(model, samples.prompts, samples.responses, config)
    ratios = [ours.double() - theirs.double() for ours, theirs in zip(samples.log_probs, reference, strict=True)]
    found.kl = [float(ratio.sum()) for ratio in ratios]
    found.kl_k3 = [float(((-ratio).exp() - 1 + ratio).sum()) for ratio in ratios]


def _log_probs(
    model: "PreTrainedModel", prompts: list[list[int]], responses: list[list[int]], config: EvaluateConfig
) -> list[Any]:
    from components.training.scoring import response_log_probs

    found = response_log_probs(
        model, prompts, responses, temperature=config.temperature, batch_tokens=config.batch_tokens
    )
    return [tensor.cpu() for tensor in found]


def _score_truth(prompts: list[Prompt], answers: list[Answer]) -> None:
    from components.demo_world.scorer import score

    for item in answers:
        meta = json.loads(prompts[item.prompt].meta)
        if "category" not in meta:
            raise UserError(
                f"evaluate: prompt {prompts[item.prompt].id} is not of the demo world, so its right answer is unknown; "
                "set evaluate.ground_truth=none"
            )
        found = score(meta, item.text, item.truncated)
        item.truth = {
            "total": found.total, "correctness": found.correctness, "form": found.form, "refused": found.refused,
            "category": meta["category"], "kind": meta.get("kind", ""),
        }  # fmt: skip


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
