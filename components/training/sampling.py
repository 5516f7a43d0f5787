"""Sampling with a key-value cache. Each response draws from its own seed, whoever shares its batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from components.training.data import mask_of, pad


@dataclass(frozen=True)
class Response:
    """Sampled ids, ending with a stop id unless the length limit cut them off."""

    ids: list[int]
    truncated: bool


def choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token a row by inverse-CDF sampling from the nucleus: (rows, vocabulary), (rows,) in [0, 1) -> (rows,).

    The nucleus is the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2020).
    Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, order = torch.softmax(logits.float() / temperature, dim=-1).sort(
        dim=-1, descending=True, stable=True
    )
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities * (before < top_p)
    cumulative = kept.cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # Counting the steps not above the target finds the first one beyond it; the clamp guards the last against rounding.
    rank = (cumulative <= target).sum(dim=-1, keepdim=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(rank, last))[:, 0]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_tokens: int,
) -> list[Response]:
    """One response a prompt, in order. `batch_tokens` bounds rows x (longest prompt + max_new_tokens) of a batch."""
    responses: list[Response | None] = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    start = 0
    while start < len(by_length):
        stop = start + 1
        while (
            stop < len(by_length)
            and (stop + 1 - start) * (len(prompts[by_length[stop]]) + max_new_tokens) <= batch_tokens
        ):
            stop += 1
        rows = by_length[start:stop]
        uniforms = np.stack([np.random.default_rng(seeds[i]).random(max_new_tokens, dtype=np.float32) for i in rows])
        ids = _sample_batch(
            model, [prompts[i] for i in rows], torch.from_numpy(uniforms), temperature, top_p, set(stop_ids), pad_id
        )
        for i, row in zip(rows, ids, strict=True):
            responses[i] = row
        start = stop
    return [response for response in responses if response is not None]


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    temperature: float,
    top_p: float,
    stops: set[int],
    pad_id: int,
) -> list[Response]:
    """Left-padded decoding; finished rows leave the batch, so that a long response costs one row."""
    device = model.device
    ids, mask = pad(prompts, pad_id, left=True).to(device), mask_of(prompts, left=True).to(device)
    uniforms = uniforms.to(device)
    cache: Any = DynamicCache(config=model.config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    alive = list(range(len(prompts)))
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for time in range(uniforms.shape[1]):
        hidden = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        logits = model.get_output_embeddings()(hidden)
        tokens = choose(logits, uniforms[:, time], temperature, top_p)
        keep = []
        for row, (index, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            written[index].append(token)
            ended[index] = token in stops
            if not ended[index]:
                keep.append(row)
        if not keep:
            break
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        positions, ids = positions[:, -1:] + 1, tokens[:, None]
        if len(keep) < len(alive):
            chosen = torch.tensor(keep, device=device)
            cache.batch_select_indices(chosen)
            mask, positions, ids, uniforms = mask[chosen], positions[chosen], ids[chosen], uniforms[chosen]
            alive = [alive[row] for row in keep]
    return [Response(row, truncated=not end) for row, end in zip(written, ended, strict=True)]
