"""A language model's trunk with a head that reads one number off the final `<|im_end|>`.

The report says only "a pooling layer ... based on a specific end token" (§3.2.1); the two-layer MLP is what Alibaba's
ChatLearn and Qwen's WorldPM use (recipe.md §3.3). PPO's value model is the same module, read at every position.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from components.core.errors import UserError
from components.training.data import micro_batches
from components.training.models import hidden_states, load_policy, save_policy
from components.training.scoring import Row

_HEAD, _SETTINGS = "reward_head.safetensors", "reward_head.json"


def make_head(kind: str, hidden: int) -> nn.Sequential:
    """Linear-ReLU-Linear or one Linear; the last starts as N(0, 1/sqrt(hidden + 1)), bias 0 (recipe §4.5)."""
    last = _Linear(hidden, 1)
    nn.init.normal_(last.weight, std=1 / math.sqrt(hidden + 1))
    nn.init.zeros_(last.bias)
    return nn.Sequential(_Linear(hidden, hidden), nn.ReLU(), last) if kind == "mlp" else nn.Sequential(last)


class _Linear(nn.Linear):
    """In fp32 whatever the precision of its weights."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        bias = self.bias if self.bias is None else self.bias.float()
        return nn.functional.linear(states.float(), self.weight.float(), bias)


class RewardModel(nn.Module):
    """score(sequence) = head(hidden state of the sequence's last token) - offset."""

    def __init__(self, trunk: PreTrainedModel, head: nn.Sequential, kind: str, offset: float = 0.0) -> None:
        super().__init__()
        self.trunk, self.head, self.kind, self.offset = trunk, head, kind, offset

    @classmethod
    def from_base(
        cls, folder: Path, kind: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> "RewardModel":
        """A fresh head on a language model."""
        trunk = load_policy(folder, device=device, dtype=dtype)
        return cls(trunk, make_head(kind, trunk.config.hidden_size).to(trunk.device, dtype), kind)

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> "RewardModel":
        """A trained reward model. Raises UserError for a folder without a head."""
        folder = Path(folder)
        if not (folder / _HEAD).is_file() or not (folder / _SETTINGS).is_file():
            raise UserError(f"{folder}: no reward head ({_HEAD}); give the output of the pmp or reward_model step")
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls.from_base(folder, settings["head"], device, dtype)
        model.head.load_state_dict(load_file(folder / _HEAD))
        model.offset = settings["offset"]
        return model.eval()

    def save(self, folder: Path, tokenizer_folder: Path) -> None:
        """A language-model folder with the head beside it."""
        save_policy(self.trunk, folder, tokenizer_folder)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / _HEAD)
        settings = {"head": self.kind, "offset": self.offset, "end_token": "<|im_end|>"}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def read(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of hidden states (..., hidden) -> (...), in fp32: bf16 rounds close scores to ties."""
        return self.head(hidden)[..., 0] - self.offset

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Score (rows,) at each row's last token, found by its length, never by searching for an id."""
        ends = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
        return self.read(hidden_states(self.trunk, rows, ends))

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], batch_tokens: int) -> list[float]:
        """Scores of whole conversations (prompt and response up to `<|im_end|>`), in the order given."""
        scores = [0.0] * len(sequences)
        for group in micro_batches(range(len(sequences)), np.array([len(row) for row in sequences]), batch_tokens):
            values = self([sequences[i] for i in group])
            for i, value in zip(group, values.tolist(), strict=True):
                scores[i] = value
        return scores
