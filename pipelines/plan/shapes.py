"""The sizes of a model, read off its Hugging Face config.json; the weights are not needed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core import store
from components.core.config import BaseModelConfig
from components.core.errors import UserError

KNOWN = Path(__file__).parent / "known_models.json"  # of the shipped profiles, so that a plan needs no network


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder-only transformer with gated MLPs and grouped-query attention: Qwen2, Llama, Mistral and their like."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    biases: bool
    """Of the query, key and value projections, as Qwen2 has them."""

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        return self.key_value_heads * self.head_size

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        biases = self.query_width + 2 * self.key_width if self.biases else 0
        return attention + biases + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def trunk_parameters(self) -> int:
        """What a token costs arithmetic for: all but the embedding, which is looked up; with the output layer."""
        return self.parameters - (0 if self.tied else self.embedding_parameters)


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """Raises UserError for an architecture whose sizes have other names."""
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return Shape(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"not the config of a model whose memory can be estimated ({type(error).__name__}: {error})"
        raise UserError(what, where=where, fix="use a Qwen2-, Llama- or Mistral-like model") from error


def base_shape(given: BaseModelConfig) -> Shape:
    """Of a profile's base model: made from nothing, a folder or s3:// URI, or a hub id."""
    if given.model == "init":
        init = given.init
        return Shape(
            hidden=init.hidden, layers=init.layers, heads=init.heads, key_value_heads=init.key_value_heads,
            head_size=init.hidden // init.heads, intermediate=init.intermediate, vocabulary=init.vocabulary,
            tied=True, biases=init.architecture == "qwen2",
        )  # fmt: skip
    known: dict[str, dict[str, Any]] = json.loads(KNOWN.read_text(encoding="utf-8"))
    if given.model in known:
        return shape_of(known[given.model], given.model)
    if "://" in given.model or given.model.startswith((".", "/", "~")):
        return shape_of(json.loads(store.read_bytes(store.join(given.model, "config.json"))), given.model)
    return shape_of(_from_hub(given.model, given.revision), given.model)


def _from_hub(model: str, revision: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(model, "config.json", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        what = f"its config.json cannot be fetched ({type(error).__name__})"
        raise UserError(what, where=model, fix="check the hub id, or give a folder with config.json") from error
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found
