"""Sampling with a key-value cache. Each response draws from its own seed, whoever shares its batch.

Where the time goes, and what is done about it:

    prompts      laid end to end and read in one pass, without padding, equal ones once
    weights      on a CPU packed for products with few rows: two to three times as fast as plain ones
    cache        two buffers a layer, made once; a step writes one column and copies nothing
    ended rows   give their place to the last row, so that a long response costs one row
    choosing     no sort for top_p 1, and a partial one below where the nucleus is small
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from components.core.errors import UserError
from components.training.attention import Segments, run_packed

# Nuclei of trained models are far smaller than the vocabulary; a larger one costs a whole sort.
_SMALL_NUCLEUS = 256
# Weights with fewer elements gain nothing by packing; rows that oneDNN packs for (others work as well).
_WORTH, _ROWS = 1 << 17, 16


@dataclass(frozen=True)
class Response:
    """Sampled ids, ending with a stop id unless the length limit cut them off."""

    ids: list[int]
    truncated: bool


def choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token a row by inverse-CDF sampling from the nucleus: (rows, vocabulary), (rows,) in [0, 1) -> (rows,).

    The nucleus is the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2020). The
    CDF runs from the most likely token to the least, equals by id; where top_p is 1 nothing needs that order, and it
    runs by id. Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p >= 1:
        return _invert(probabilities, uniform)
    likely, order = _descending(probabilities, top_p)
    before = likely.cumsum(dim=-1) - likely
    rank = _invert(likely * (before < top_p), uniform)
    return order.gather(1, rank[:, None])[:, 0]


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the running sum first exceeds uniform x total: (rows, n), (rows,) -> (rows,); never at a weight of 0.

    In double precision, so that 150,000 small terms add up, a GPU's order of adding decides no token, and a float32
    uniform (at most 1 - 2^-24) stays below the total when multiplied by it.
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _descending(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities from the largest, equals by id, and their ids: both (rows, n), n enough for every row's nucleus."""
    if probabilities.shape[1] > _SMALL_NUCLEUS:
        ids = probabilities.topk(_SMALL_NUCLEUS, dim=-1).indices.sort(dim=-1).values
        likely, order = probabilities.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        reached = likely.cumsum(dim=-1) >= top_p
        # topk breaks ties as it likes: its last value must lie below the nucleus, or an equal one may be missing.
        if bool((reached[:, :-1] & (likely[:, :-1] > likely[:, -1:])).any(dim=-1).all()):
            return likely, ids.gather(1, order)
    likely, order = probabilities.sort(dim=-1, descending=True, stable=True)
    return likely, order


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop_ids: Sequence[int],
    batch_tokens: int,
) -> list[Response]:
    """One response a prompt, in order. `batch_tokens` bounds rows x (longest prompt + max_new_tokens) of a batch."""
    responses: list[Response | None] = [None] * len(prompts)
    # Equal prompts side by side, whatever order they came in, so that a batch reads them once.
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i]), i))
    start = 0
    with _few_rows(model):
        while start < len(by_length):
            stop = start + 1
            while (
                stop < len(by_length)
                and (stop + 1 - start) * (len(prompts[by_length[stop]]) + max_new_tokens) <= batch_tokens
            ):
                stop += 1
            rows = by_length[start:stop]
            uniforms = np.stack(
                [np.random.default_rng(seeds[i]).random(max_new_tokens, dtype=np.float32) for i in rows]
            )
            found = _sample_batch(
                model, [prompts[i] for i in rows], torch.from_numpy(uniforms), temperature, top_p, set(stop_ids)
            )
            for i, response in zip(rows, found, strict=True):
                responses[i] = response
            start = stop
    return [response for response in responses if response is not None]


@contextlib.contextmanager
def _few_rows(model: PreTrainedModel) -> Iterator[None]:
    """Linear layers multiply with weights that oneDNN has packed, where that is faster: fp32 on a CPU.

    At 16 rows, 256 x 4096 takes 0.2 ms instead of 0.7. Weights change between rollouts, so they are packed anew; the
    packed copy is there only meanwhile.
    """
    changed: list[nn.Linear] = []
    modules = list(model.modules())
    # A compiled layer would be compiled again for each new weight.
    compiled = any(module._compiled_call_impl is not None for module in modules)
    if model.device.type == "cpu" and torch.backends.mkldnn.is_available() and not compiled:
        for module in modules:
            if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.numel() >= _WORTH:
                packed = torch.ops.mkldnn._reorder_linear_weight(module.weight, _ROWS)
                module.forward = partial(_packed_linear, packed, module.bias)  # type: ignore[method-assign]
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _packed_linear(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return output


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    temperature: float,
    top_p: float,
    stops: set[int],
) -> list[Response]:
    """Responses of prompts sorted by length, equal ones side by side; uniforms (rows, max_new_tokens)."""
    width, limit = len(prompts[-1]), uniforms.shape[1]
    _check_window(model, width + limit)
    uniforms = uniforms.to(model.device)
    cursor = _Cursor(len(prompts), width + limit)
    cache: Any = Cache(layer_class_to_replicate=partial(_Buffers, cursor))  # type: ignore[arg-type]
    hidden = _read(model, prompts, cache, cursor)
    if not bool(torch.isfinite(hidden).all()):
        raise UserError("sampling: the policy's hidden states are not finite", fix="look at its weights and its data")
    mask = _gaps(prompts, width + limit).to(model.device, hidden.dtype)
    positions = torch.tensor([[len(prompt)] for prompt in prompts], device=model.device)
    written: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for step in range(limit):
        tokens = choose(model.get_output_embeddings()(hidden), uniforms[:, step], temperature, top_p)
        chosen = tokens.tolist()
        for index, token in zip(alive, chosen, strict=True):
            written[index].append(token)
        going = [row for row, token in enumerate(chosen) if token not in stops]
        if not going or step + 1 == limit:
            break
        if len(going) < len(alive):
            order = _closed_up(going)
            cache_rows = torch.tensor(order, device=model.device)
            tokens, uniforms, mask, positions = (t[cache_rows] for t in (tokens, uniforms, mask, positions))
            for layer in cache.layers:
                layer.close_up(order)
            alive = [alive[row] for row in order]
        cursor.write(slice(0, len(alive)), width + step)
        hidden = model.base_model(
            input_ids=tokens[:, None],
            attention_mask=mask[..., : width + step + 1],
            position_ids=positions + step,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return [Response(ids, truncated=not (ids and ids[-1] in stops)) for ids in written]


def _read(model: PreTrainedModel, prompts: Sequence[Sequence[int]], cache: Cache, cursor: "_Cursor") -> torch.Tensor:
    """Fill the cache with the prompts: hidden states (rows, hidden) that predict each row's first token."""
    counted = [(prompt, len(list(same))) for prompt, same in groupby(prompts, key=list)]
    lengths = np.array([len(prompt) for prompt, _ in counted])
    ends = lengths.cumsum()
    ids = torch.from_numpy(np.concatenate([np.array(prompt, dtype=np.int64) for prompt, _ in counted]))
    segments = Segments.of(lengths.tolist(), model.device, torch.from_numpy(ends - 1))
    # Where each row's tokens lie among those that are read, and where they go in the cache.
    which = np.repeat(np.arange(len(counted)), [count for _, count in counted])
    columns = np.concatenate([np.arange(length) for length in lengths[which]])
    rows = np.repeat(np.arange(len(which)), lengths[which])
    source = columns + (ends - lengths)[which][rows]
    cursor.scatter(*(torch.from_numpy(index).to(model.device) for index in (source, rows, columns)))
    states = run_packed(model, ids, segments, past_key_values=cache, use_cache=True)
    return states.index_select(0, torch.from_numpy((ends - 1)[which]).to(model.device))


def _gaps(prompts: Sequence[Sequence[int]], columns: int) -> torch.Tensor:
    """Additive mask (rows, 1, 1, columns): a row sees its prompt, and what is written beyond the longest one."""
    column, lengths = torch.arange(columns), torch.tensor([len(prompt) for prompt in prompts])
    unseen = (column >= lengths[:, None]) & (column < int(lengths.max()))
    return torch.zeros(unseen.shape).masked_fill(unseen, -torch.inf)[:, None, None]


def _closed_up(going: list[int]) -> list[int]:
    """The rows that go on, the last ones moved into the places of those that ended: [0, 3, 4] -> [0, 4, 3]."""
    kept = set(going)
    last = iter(reversed(going))
    return [row if row in kept else next(last) for row in range(len(going))]


def _check_window(model: PreTrainedModel, tokens: int) -> None:
    """Refuse what the cache cannot tell: columns are not positions, so a sliding window would cut in wrong places."""
    window = getattr(model.config, "sliding_window", None)
    if window is not None and tokens > window:
        raise UserError(
            f"prompt and response of {tokens} tokens exceed the model's attention window of {window}",
            fix="shorten the prompts or lower max_new_tokens",
        )


@dataclass
class _Cursor:
    """Where the next forward pass writes; all layers share it. Buffers have `height` rows and `columns` columns."""

    height: int
    columns: int
    rows: slice = field(default_factory=lambda: slice(0))
    column: int = 0
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def scatter(self, source: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Token source[i] of the packed input goes to (rows[i], columns[i]): prompts, before anything else."""
        self.places = source, rows, columns

    def write(self, rows: slice, column: int) -> None:
        """The next token of each of these rows goes to this column."""
        self.rows, self.column, self.places = rows, column, None


class _Buffers(CacheLayerMixin):
    """One layer's keys and values, both (rows, heads, columns, head size), written in place.

    A column is no position: prompts start at column 0, responses after the longest prompt, and the mask hides the gap.
    """

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, cursor: _Cursor) -> None:
        super().__init__()
        self.cursor = cursor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros: a gap gets probability 0, and 0 times what happens to lie in memory may be NaN.
        self.keys, self.values = (
            states.new_zeros(self.cursor.height, states.shape[1], self.cursor.columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write packed prompts (1, heads, tokens, head size) or a column (rows, heads, 1, head size) at the cursor.

        Returns all that the new tokens may see: packed prompts see themselves.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.cursor.places is not None:
            source, rows, columns = self.cursor.places
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer[rows, :, columns] = states[0].transpose(0, 1)[source]
            return key_states, value_states
        kept, end = self.cursor.rows, self.cursor.column + 1
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[kept, :, end - 1 : end] = states
        return self.keys[kept, :, :end], self.values[kept, :, :end]

    def close_up(self, order: list[int]) -> None:
        """Move rows as `_closed_up` says: only those that change place are copied."""
        moved = [(to, source) for to, source in enumerate(order) if to != source]
        if moved:
            to, source = (torch.tensor(side, device=self.keys.device) for side in zip(*moved, strict=True))
            for buffer in (self.keys, self.values):
                buffer[to] = buffer[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor.column + query_length, 0

    def get_seq_length(self) -> int:
        return self.cursor.column

    def get_max_length(self) -> int:
        return self.cursor.columns
