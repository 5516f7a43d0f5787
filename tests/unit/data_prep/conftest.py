"""A small byte-level BPE tokenizer, and a whole data_prep run on a folder of raw files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from components.core import store
from components.core.chatml import CONTROL_TOKENS, ChatTokenizer
from components.core.spec import make_spec
from components.core.step import main
from components.data_prep.prepare import prepare

SOME_TEXT = ["user assistant system You are a helpful assistant.", "What is two and two? It is four, of course."] * 8


def train_tokenizer(texts: list[str], size: int = 320) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model folder, as far as data_prep looks at one."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(SOME_TEXT).save(str(folder / "tokenizer.json"))
    store.publish(folder, str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer(base_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(base_model)


class Run:
    """One data_prep run: its exit code, its last words, its output folder."""

    def __init__(self, code: int, output: Path, error: str) -> None:
        self.code, self.output, self.error = code, output / "output", error
        self.folder = output

    def card(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / role / "card.json").read_text())
        return found


@pytest.fixture
def run_step(base_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run the step as a caller would: spec.json in, files and an exit code out."""

    def run(
        config: dict[str, Any],
        *,
        seed: int = 0,
        data_root: Path | None = None,
        name: str = "run",
        shards: list[Run] | None = None,
    ) -> Run:
        output = tmp_path / name
        inputs = {"base_model": str(base_model), "data_root": str(data_root or tmp_path)}
        inputs |= {f"shard_{number:04}": str(shard.output / "shard") for number, shard in enumerate(shards or [])}
        spec = make_spec("data_prep", run="test", seed=seed, config=config, inputs=inputs, output=str(output))
        store.write_bytes(spec.uri, spec.model_dump_json().encode())
        code = main("data_prep", prepare, ["--spec", spec.uri])
        last_words = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        return Run(code, output, last_words[-1] if last_words else "")

    return run
