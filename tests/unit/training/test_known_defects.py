from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from components.core.chatml import ChatTokenizer
from tests import ragged
from tests.dumped import Dump, read, record
from tests.steps import run_step

Trained = Callable[[str, int], Dump]


@pytest.fixture(scope="module")
def trained(model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """trained(step, micro-batches): the step on its eight ragged rows, each once, with a record."""
    folder, work = model_folders("qwen2"), tmp_path_factory.mktemp("trained")
    tokenizer = ChatTokenizer.load(folder)
    given: dict[str, dict[str, str]] = {}
    made: dict[tuple[str, int], Dump] = {}

    def make(step: str, count: int) -> Dump:
        if step not in given:
            given[step] = ragged.inputs(step, folder, work / step)
        if (step, count) not in made:
            output = work / f"{step}-{count}"
            tokens = ragged.budget(step, tokenizer, count)
            run_step(step, output, given[step], ragged.SETTINGS[step] | {"micro_batch_tokens": tokens})
            made[step, count] = read(output)
        return made[step, count]

    with pytest.MonkeyPatch.context() as patch:
        record(patch.setattr)
        yield make


@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_mean_of_micro_batch_means_trl2175(trained: Trained, step: str) -> None:
    whole = trained(step, 1)
    for count in (1, 2, 4, 8):
        split = trained(step, count)
        print(step, count, split.passes, {e: split.optimiser_steps(e) for e in ("policy", "value", "model")})
        for name, weight in whole.weights.items():
            assert torch.allclose(weight, split.weights[name], atol=1e-5), name
        print(max(float((w - split.weights[n]).abs().max()) for n, w in whole.weights.items()))
    print([(l.get("ppo_response_length_tokens"), l.get("ppo_truncated_ratio")) for l in whole.metrics])
