"""Two data sets cut down to the same prompts and numbers of pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.core.errors import UserError
from components.core.records import Comparison, write_rows
from components.reward_model.matched import matched
from components.training.data import ComparisonRows, read_comparisons
from tests.steps import ORIGIN


def row(number: int, prompt: str, pairs: list[tuple[int, int]]) -> Comparison:
    """Response i is the ids [number, i, i, ...], i + 1 of them, so that each can be told from all others."""
    responses = 1 + max((max(pair) for pair in pairs), default=0)
    return Comparison(
        id=str(number), messages=[{"role": "user", "content": prompt}], responses=[str(i) for i in range(responses)],
        pairs=[{"chosen": a, "rejected": b, "gap": float(10 * a + b)} for a, b in pairs],
        input_ids=[[number] + [i] * i for i in range(responses)], **ORIGIN,
    )  # fmt: skip


OURS = [
    row(1, "sky", [(0, 1), (0, 2), (1, 2)]),
    row(2, "nobody else asks", [(0, 1)]),
    row(3, "sea", [(1, 0)]),
    row(4, "sky", [(2, 0), (2, 1)]),
]
THEIRS = [row(5, "sea", [(0, 1), (0, 2)]), row(6, "sky", [(0, 1)]), row(7, "sky", [(1, 0)]), row(8, "sun", [(0, 1)])]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name, rows in (("ours", OURS), ("theirs", THEIRS)):
        write_rows(tmp_path / f"{name}.parquet", rows, Comparison)
    return tmp_path / "ours.parquet", tmp_path / "theirs.parquet"


def content(data: ComparisonRows) -> dict[str, Any]:
    """(responses, pairs with their gaps) by row id."""
    found = {}
    for i, name in enumerate(data.ids):
        responses = [data.responses[r].tolist() for r in range(data.first[i], data.first[i + 1])]
        found[name] = responses, list(zip(data.pairs[i].tolist(), data.gaps[i].tolist(), strict=True))
    return found


def test_both_are_cut_to_the_prompts_and_numbers_of_pairs_that_both_have(files: tuple[Path, Path]) -> None:
    """Of "sky" the first row meets the first one (3 pairs against 1), the second the second (2 against 1)."""
    ours, theirs = files
    one = content(matched(read_comparisons(ours), ours, theirs, seed=0))
    other = content(matched(read_comparisons(theirs), theirs, ours, seed=0))
    assert {name: len(pairs) for name, (_, pairs) in one.items()} == {"1": 1, "3": 1, "4": 1}
    assert {name: len(pairs) for name, (_, pairs) in other.items()} == {"5": 1, "6": 1, "7": 1}
    whole = content(read_comparisons(ours))
    for name, (responses, pairs) in one.items():
        assert responses == whole[name][0]
        assert all(pair in whole[name][1] for pair in pairs)


def test_which_pairs_stay_is_drawn_and_not_the_clearest(files: tuple[Path, Path]) -> None:
    ours, theirs = files
    drawn = {matched(read_comparisons(ours), ours, theirs, seed).gaps[0].tolist()[0] for seed in range(40)}
    assert drawn == {1.0, 2.0, 12.0}
    again = [matched(read_comparisons(ours), ours, theirs, seed=3).gaps[0].tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_all_pairs_stay_where_both_are_the_same(files: tuple[Path, Path]) -> None:
    data = read_comparisons(files[0])
    same = matched(data, files[0], files[0], seed=0)
    assert content(same) == content(data)
    assert np.array_equal(same.first, data.first) and np.array_equal(same.responses.values, data.responses.values)


def test_nothing_in_common_is_the_users_to_mend(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "strange.parquet", [row(9, "another world", [(0, 1)])], Comparison)
    with pytest.raises(UserError, match="strange.parquet: no prompt in common; make both from the same prompts"):
        matched(read_comparisons(files[0]), files[0], tmp_path / "strange.parquet", seed=0)
