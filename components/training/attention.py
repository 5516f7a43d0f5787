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
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "segments"
# Older torch wants as many key heads as query heads.
_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class Segments:
    """Lengths of packed rows in order, and on the device their bounds (rows + 1,), int32."""

    lengths: tuple[int, ...]
    bounds: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), ends.to(device, non_blocking=True))

    def positions(self) -> torch.Tensor:
        """(1, tokens) position of each token in its own row."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None].to(self.bounds.device)

    def ends(self) -> torch.Tensor:
        """(rows,) index of each row's last token."""
        return self.bounds[1:].long() - 1


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


def _mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No mask for packed rows: transformers would build a dense (tokens, tokens) one from their positions."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, segment_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)
