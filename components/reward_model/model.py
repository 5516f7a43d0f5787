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
from components.training.data import mask_of, micro_batches, pad
from components.training.models import hidden_states, load_policy, save_policy

_HEAD, _SETTINGS = "reward_head.safetensors", "reward_head.json"


def make_head(kind: str, hidden: int) -> nn.Sequential:
    """Linear-ReLU-Linear or one Linear; the last starts as N(0, 1/sqrt(hidden + 1)), bias 0 (recipe §4.5)."""
    last = nn.Linear(hidden, 1)
    nn.init.normal_(last.weight, std=1 / math.sqrt(hidden + 1))
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), last) if kind == "mlp" else nn.Sequential(last)


class RewardModel(nn.Module):
    """score(sequence) = head(hidden state of the sequence's last token) - offset."""

    def __init__(self, trunk: PreTrainedModel, head: nn.Sequential, kind: str, offset: float = 0.0) -> None:
        super().__init__()
        self.trunk, self.head, self.kind, self.offset = trunk, head, kind, offset

    @classmethod
    def from_base(cls, folder: Path, kind: str, device: torch.device | None = None) -> "RewardModel":
        """A fresh head on a language model."""
        trunk = load_policy(folder, device=device)
        return cls(trunk, make_head(kind, trunk.config.hidden_size).to(trunk.device), kind)

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> "RewardModel":
        """A trained reward model. Raises UserError for a folder without a head."""
        folder = Path(folder)
        if not (folder / _HEAD).is_file() or not (folder / _SETTINGS).is_file():
            raise UserError(f"{folder}: no reward head ({_HEAD}); give the output of the pmp or reward_model step")
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls.from_base(folder, settings["head"], device)
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
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())[..., 0] - self.offset

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Score (rows,) at each row's last own token, found by the mask, never by searching for an id."""
        return self.read(last_hidden(hidden_states(self.trunk, ids, mask), mask))

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], batch_tokens: int) -> list[float]:
        """Scores of whole conversations (prompt and response up to `<|im_end|>`), in the order given."""
        scores = [0.0] * len(sequences)
        for group in micro_batches(range(len(sequences)), np.array([len(row) for row in sequences]), batch_tokens):
            rows = [sequences[i] for i in group]
            values = self(pad(rows, 0).to(self.trunk.device), mask_of(rows).to(self.trunk.device))
            for i, value in zip(group, values.tolist(), strict=True):
                scores[i] = value
        return scores


def last_hidden(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, hidden) at the last unmasked position of each row, whichever side is padded."""
    width = mask.shape[1]
    last = width - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
