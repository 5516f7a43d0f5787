"""Tiny real models for all tests: two layers, the project's own tokenizer, any of the three architectures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes on a busy machine says nothing about the code.
settings.register_profile("kubealign", deadline=None)
settings.load_profile("kubealign")

# Two workers on two cores: one thread each, or they fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXT = [
    "the cat sat on the mat and looked at the dog.",
    "what colour is the sky? the sky is blue. happy to help!",
    "sort these words: apple, pear, plum. sum of 3 and 4 is 7.",
    "I cannot help with that. You are a helpful assistant. system user assistant",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE tokenizer.json of 320 tokens."""
    from components.base_model.init import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXT * 20), 320, folder)
    return folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Callable[[str], Path]:
    """model_folders("qwen2" | "qwen3" | "llama"): a saved random model of that family."""
    import torch

    from components.base_model.init import build_model
    from components.core.chatml import ChatTokenizer
    from components.core.config import Init
    from components.training.models import save_policy

    made: dict[str, Path] = {}

    def make(architecture: str = "qwen2") -> Path:
        if architecture not in made:
            torch.manual_seed(1)
            init = Init(
                architecture=architecture, vocabulary=320, hidden=32, layers=2, heads=4, key_value_heads=2,
                intermediate=48, max_positions=256, init_std=0.2,
            )  # fmt: skip
            folder = tmp_path_factory.mktemp(architecture)
            save_policy(build_model(init, ChatTokenizer.load(tokenizer_folder)), folder, tokenizer_folder)
            made[architecture] = folder
        return made[architecture]

    return make
