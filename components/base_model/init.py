"""A small base model from nothing: byte-level BPE tokenizer, random weights, packed text."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from components.core.chatml import CONTROL_TOKENS, ChatTokenizer
from components.core.config import Init
from components.core.errors import UserError
from components.training.attention import IMPLEMENTATION


def train_tokenizer(texts: Iterator[str], vocabulary: int, folder: Path) -> ChatTokenizer:
    """A byte-level BPE tokenizer.json in `folder`, lossless on any text. Raises UserError where there is no text."""
    first = next(texts, None)
    if first is None:
        raise UserError("base_model: init has no text to learn from; list sources under base_model.sources")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    # Added after training, so that no merge can ever make one.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    return ChatTokenizer.load(folder)


def build_model(init: Init, tokenizer: ChatTokenizer) -> PreTrainedModel:
    """A random model of the wanted family, whose output layer shares the embedding."""
    size = tokenizer.tokenizer.get_vocab_size()
    config = AutoConfig.for_model(
        init.architecture,
        vocab_size=size,
        hidden_size=init.hidden,
        intermediate_size=init.intermediate,
        num_hidden_layers=init.layers,
        num_attention_heads=init.heads,
        num_key_value_heads=init.key_value_heads,
        head_dim=init.hidden // init.heads,
        max_position_embeddings=init.max_positions,
        initializer_range=init.init_std,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.im_end,
        pad_token_id=tokenizer.pad,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=IMPLEMENTATION)


def pack(texts: Iterator[str], tokenizer: ChatTokenizer, length: int) -> np.ndarray:
    """Documents joined by `<|endoftext|>` and cut into (rows, length), in order; the rest at the end is left out."""
    ids = [i for text in texts for i in tokenizer.encode_document(text)]
    rows = len(ids) // length
    if rows == 0:
        raise UserError(f"base_model: {len(ids)} tokens of pretraining text do not fill one sequence of {length}")
    return np.array(ids[: rows * length], dtype=np.int64).reshape(rows, length)
