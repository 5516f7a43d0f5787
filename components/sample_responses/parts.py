"""Parts: one model's responses to some prompts by all strategies. A finished part is never sampled again.

    checkpoints/<fingerprint>/<model>-<part>.jsonl

What a part holds depends on its prompts, model and strategies alone; ranks take whole parts, so their number changes
nothing. Every response draws from its own seed: (run seed, prompt id, model, strategy, number).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.config import Strategy
from components.core.errors import UserError
from components.core.records import Prompt
from components.core.seeds import seed_for
from components.core.spec import StepSpec
from components.training.sampling import sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One sampled response. `truncated`: the length limit cut it off. `tokens` counts its end token."""

    prompt: str
    model: str
    strategy: str
    number: int
    seed: int
    truncated: bool
    tokens: int
    text: str


def sample_part(
    model: "PreTrainedModel",
    tokenizer: ChatTokenizer,
    name: str,
    prompts: Sequence[Prompt],
    strategies: Sequence[Strategy],
    seed: int,
    batch_tokens: int,
) -> list[Candidate]:
    """All responses of one model to these prompts."""
    encoded = [tokenizer.encode_prompt(prompt.messages) for prompt in prompts]
    found = []
    for strategy in strategies:
        places = [(index, number) for index in range(len(prompts)) for number in range(strategy.samples)]
        seeds = [response_seed(seed, prompts[index].id, name, strategy.name, number) for index, number in places]
        try:
            responses = sample(
                model,
                [encoded[index] for index, _ in places],
                seeds=seeds,
                max_new_tokens=strategy.max_new_tokens,
                temperature=strategy.temperature,
                top_p=strategy.top_p,
                stop_ids=tokenizer.stop_ids,
                batch_tokens=batch_tokens,
            )
        except torch.OutOfMemoryError as error:
            what = f"GPU out of memory where {name} answers by {strategy.name}"
            raise UserError(what, where="sample_responses.batch_tokens", fix="lower it") from error
        found += [
            Candidate(
                prompt=prompts[index].id, model=name, strategy=strategy.name, number=number, seed=drawn,
                truncated=response.truncated, tokens=len(response.ids), text=tokenizer.decode(response.ids),
            )
            for (index, number), drawn, response in zip(places, seeds, responses, strict=True)
        ]  # fmt: skip
    return found


def response_seed(seed: int, prompt: str, model: str, strategy: str, number: int) -> int:
    return seed_for(seed, "sample_responses", prompt, model, strategy, number)


class Parts:
    """The finished parts of a step, in its store. Those of other settings lie elsewhere and are never read."""

    def __init__(self, spec: StepSpec) -> None:
        self.checkpoints = store.join(spec.output, "checkpoints")
        self.folder = store.join(self.checkpoints, spec.fingerprint()[:16])

    def uri(self, model: str, part: int) -> str:
        return store.join(self.folder, f"{model}-{part:06d}.jsonl")

    def has(self, model: str, part: int) -> bool:
        return store.exists(self.uri(model, part))

    def write(self, model: str, part: int, candidates: Sequence[Candidate]) -> None:
        """Whole or not at all."""
        lines = [json.dumps(asdict(candidate)) + "\n" for candidate in candidates]
        store.write_bytes(self.uri(model, part), "".join(lines).encode())

    def read(self, model: str, part: int) -> list[Candidate]:
        lines = store.read_bytes(self.uri(model, part)).splitlines()
        return [Candidate(**json.loads(line)) for line in lines]

    def discard(self) -> None:
        """All, once the output is published."""
        store.delete(self.checkpoints)
