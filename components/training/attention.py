"""Attention within segments: rows lie end to end in one sequence with no padding, and none sees another.

A transformer's other layers work token by token, so packed rows cost nothing but their own tokens. Registered with
transformers under the name IMPLEMENTATION; every model of this project is loaded with it. Three ways of computing it:

    CUDA, 16-bit, no dropout: torch's variable-length flash attention, one kernel for all segments
    anything else:            scaled_dot_product_attention, one call for each run of segments of equal length
    no segments given:        transformers' own sdpa with the mask it gets (sampling)
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "segments"
# Older torch wants as many key heads as query heads.
_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class Segments:
    """Lengths of packed rows in order, and on the device their bounds (rows + 1,), int32.

    `wanted` are the positions whose last hidden states will be read, or None for all of them.
    """

    lengths: tuple[int, ...]
    bounds: torch.Tensor
    wanted: torch.Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, wanted: torch.Tensor | None = None) -> "Segments":
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        wanted = None if wanted is None else wanted.to(device, non_blocking=True)
        return cls(tuple(lengths), ends.to(device, non_blocking=True), wanted)

    def positions(self) -> torch.Tensor:
        """(1, tokens) position of each token in its own row."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None].to(self.bounds.device)


def run_packed(model: PreTrainedModel, ids: torch.Tensor, segments: Segments, **options: Any) -> torch.Tensor:
    """(tokens,) ids of rows laid end to end -> (tokens, hidden) last hidden states, each row's as it has them alone."""
    if model.config._attn_implementation != IMPLEMENTATION:
        # Any other would let rows see each other, and nothing would tell.
        raise ValueError(f"packed rows need attention {IMPLEMENTATION!r}, not {model.config._attn_implementation!r}")
    output = model.base_model(
        input_ids=ids[None].to(model.device), position_ids=segments.positions(), segments=segments, **options
    )
    states: torch.Tensor = output.last_hidden_state[0]
    return states


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(1, heads, tokens, head size) query, key and value -> (1, tokens, heads, head size), causal in each segment."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0:
        return _flash(query, key, value, segments, scaling)[None], None
    return _by_length(query, key, value, segments, dropout, scaling)[None], None


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float | None
) -> torch.Tensor:
    longest = max(segments.lengths)
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and not _GROUPED:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    options: dict[str, Any] = {"enable_gqa": shared > 1} if _GROUPED else {}
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        segments.bounds,
        segments.bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        **options,
    )
    assert isinstance(output, torch.Tensor)  # a pair only where return_aux is asked for
    return output


def _by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Rows come sorted by length (`data.micro_batches`), so runs of equal length are long."""
    runs = [(length, sum(1 for _ in same)) for length, same in groupby(segments.lengths)]
    sizes = [length * count for length, count in runs]
    parts = []
    queries, keys, values = (tensor[0].split(sizes, dim=1) for tensor in (query, key, value))
    for (length, count), q, k, v in zip(runs, queries, keys, values, strict=True):
        # (heads, count x length, size) -> (count, heads, length, size)
        out = F.scaled_dot_product_attention(
            q.unflatten(1, (count, length)).transpose(0, 1),
            k.unflatten(1, (count, length)).transpose(0, 1),
            v.unflatten(1, (count, length)).transpose(0, 1),
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def trim_last_layer(model: PreTrainedModel) -> None:
    """Run the last layer's MLP only for the positions that are wanted: nobody reads what it makes of the others.

    A third of a small model's last layer or more; few per cent of a deep one. Hooks, because transformers' layers have
    no such argument; they see a layer's own arguments, so recomputed activations are trimmed alike.
    """
    layers: Any = model.base_model.layers
    layer = layers[-1]
    present: list[Segments | None] = [None]

    def remember(module: torch.nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        present[0] = options.get("segments")

    def narrow(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        segments = present[0]
        if segments is None or segments.wanted is None:
            return None
        return (arguments[0].index_select(1, segments.wanted),)

    def widen(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor | None:
        segments = present[0]
        if segments is None or segments.wanted is None:
            return None
        whole = output.new_zeros(1, sum(segments.lengths), output.shape[-1])
        return whole.index_copy(1, segments.wanted, output)

    layer.register_forward_pre_hook(remember, with_kwargs=True)
    layer.mlp.register_forward_pre_hook(narrow)
    layer.mlp.register_forward_hook(widen)


def _mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No mask for packed rows: transformers would build a dense (tokens, tokens) one from their positions."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, segment_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)
