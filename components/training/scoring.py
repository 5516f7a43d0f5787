"""Log-probabilities by teacher-forced forward passes, taken only where they are needed."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from components.core.chatml import IGNORE
from components.training.data import mask_of, micro_batches, pad
from components.training.models import hidden_states, logits_at


def token_nll(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (targets,) of every labelled token of right-padded rows.

    `labels` are unshifted (rows, time); the shift happens here, and a label at position 0 is lost with it.
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    hidden = hidden_states(model, ids, mask)[:, :-1][wanted]
    return F.cross_entropy(logits_at(model, hidden), targets[wanted], reduction="none")


def response_tokens(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, entropy) of every response token, joined row after row, each (response tokens,).

    Row i's response is sequences[i][starts[i]:]. Logits are divided by the sampling temperature and not otherwise
    filtered: top-p is part of the sampler, not of the policy (recipe.md §7).
    """
    device = model.device
    ids, mask = pad(sequences, 0).to(device), mask_of(sequences).to(device)
    wanted = response_positions(sequences, starts).to(device)
    hidden = hidden_states(model, ids, mask)[:, :-1][wanted]
    log_probs = F.log_softmax(logits_at(model, hidden) / temperature, dim=-1)
    taken = log_probs.gather(1, ids[:, 1:][wanted][:, None])[:, 0]
    # Its graph would keep another (tokens, vocabulary) tensor, so only for an entropy bonus.
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return taken, entropy


def response_positions(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
    """(rows, time - 1) mask of the positions whose next token belongs to the response."""
    columns = torch.arange(1, max(len(row) for row in sequences))
    begin = torch.tensor(list(starts))[:, None]
    end = torch.tensor([len(row) for row in sequences])[:, None]
    return (columns >= begin) & (columns < end)


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
        joined, _ = response_tokens(model, [sequences[i] for i in group], starts, temperature)
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
        ids = pad([rows[i][0] for i in group], 0).to(model.device)
        mask = mask_of([rows[i][0] for i in group]).to(model.device)
        nll = token_nll(model, ids, mask, pad([rows[i][1] for i in group], IGNORE).to(model.device))
        total += float(nll.double().sum())
        count += len(nll)
    return total, count
