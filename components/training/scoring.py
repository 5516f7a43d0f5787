"""Log-probabilities by teacher-forced forward passes, taken only where they are needed."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from components.core.chatml import IGNORE
from components.training.data import micro_batches
from components.training.models import hidden_states, logits_at

Row = Sequence[int] | np.ndarray
_LOGITS = 1 << 27  # elements of one piece of fp32 logits: 512 MiB


def token_nll(model: PreTrainedModel, rows: Sequence[Row], labels: Sequence[Row]) -> torch.Tensor:
    """Negative log-likelihood (targets,) of every labelled token of some rows, joined row after row.

    `labels` are unshifted; the shift happens here, row by row: a row's first token is never a target, so nothing is
    predicted from the row before it.
    """
    targets = np.concatenate([np.append(np.asarray(row)[1:], IGNORE) for row in labels])
    places = np.flatnonzero(targets != IGNORE)
    states = hidden_states(model, rows, torch.from_numpy(places))
    wanted = torch.from_numpy(targets[places].astype(np.int64)).to(states.device)
    return by_chunk(model, states, lambda logits, part: F.cross_entropy(logits, part, reduction="none"), wanted)


def by_chunk(
    model: PreTrainedModel,
    states: torch.Tensor,
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
) -> torch.Tensor:
    """function(logits, targets) over pieces of (positions, hidden) states and (positions,) targets, joined.

    More than one piece is computed again in the backward pass, so that never more than one piece of logits exists.
    """

    def piece(part: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return function(logits_at(model, part), target)

    size = max(1, _LOGITS // model.config.vocab_size)
    if len(states) <= size:
        return piece(states, targets)
    pairs = zip(states.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(piece, *pair, use_reentrant=False) for pair in pairs])


def response_tokens(
    model: PreTrainedModel,
    sequences: Sequence[Row],
    starts: Sequence[int],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, entropy) of every response token, joined row after row, each (response tokens,).

    Without `with_entropy` the second is NaN: it costs as much as the logits' softmax.

    Row i's response is sequences[i][starts[i]:]. Logits are divided by the sampling temperature and not otherwise
    filtered: top-p is part of the sampler, not of the policy (recipe.md §7).
    """
    states = hidden_states(model, sequences, response_positions(sequences, starts))
    targets = np.concatenate([np.asarray(row)[start:] for row, start in zip(sequences, starts, strict=True)])

    def both(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_probs = F.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
        chosen = log_probs.gather(1, target[:, None])[:, 0]
        if not with_entropy:
            return torch.stack([chosen, torch.full_like(chosen, torch.nan)], dim=-1)
        # Its graph would keep another (tokens, vocabulary) tensor, so only for an entropy bonus.
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        return torch.stack([chosen, entropy], dim=-1)

    found = by_chunk(model, states, both, torch.from_numpy(targets.astype(np.int64)).to(states.device))
    return found[:, 0], found[:, 1]


def response_positions(sequences: Sequence[Row], starts: Sequence[int]) -> torch.Tensor:
    """(response tokens,) index in the joined rows of the position that predicts each response token: one before it."""
    first = np.cumsum([0, *(len(row) for row in sequences)])[:-1]
    places = [
        np.arange(start - 1, len(row) - 1) + begin for row, start, begin in zip(sequences, starts, first, strict=True)
    ]
    return torch.from_numpy(np.concatenate(places))


@torch.no_grad()
def response_log_probs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float,
    batch_tokens: int,
) -> list[torch.Tensor]:
    """Log-probability of each token of each response, on the CPU, in the order given."""
    sequences = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    result: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    lengths = np.array([len(row) for row in sequences])
    for group in micro_batches(range(len(sequences)), lengths, batch_tokens):
        starts = [len(prompts[i]) for i in group]
        joined, _ = response_tokens(model, [sequences[i] for i in group], starts, temperature, with_entropy=False)
        parts = joined.cpu().split([len(responses[i]) for i in group])
        for i, part in zip(group, parts, strict=True):
            result[i] = part
    return result


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], batch_tokens: int
) -> tuple[float, int]:
    """(sum of negative log-likelihoods, number of targets) over rows of (input_ids, labels)."""
    total, count = 0.0, 0
    lengths = np.array([len(ids) for ids, _ in rows])
    for group in micro_batches(range(len(rows)), lengths, batch_tokens):
        nll = token_nll(model, [rows[i][0] for i in group], [rows[i][1] for i in group])
        total += float(nll.double().sum())
        count += len(nll)
    return total, count
