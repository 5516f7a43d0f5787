"""Statistics by hand, and the same ones for any number of shards."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.chatml import IGNORE, ChatTokenizer
from components.core.records import Chat, Comparison, Message, Prompt, Text
from components.data_prep.statistics import EDGES, Distribution, LengthBias, PartStatistics
from components.data_prep.tokenise import fit_responses

ORIGIN: dict[str, Any] = {"id": "i", "source": "s", "licence": "l"}
ASKED: list[Message] = [{"role": "user", "content": "What is two and two?"}]


def batch(*rows: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([vars(row) for row in rows], schema=type(rows[0]).SCHEMA)


def measured(tokenizer: ChatTokenizer, *rows: Any, truncated: int = 0) -> PartStatistics:
    found = PartStatistics()
    found.add(batch(*rows), tokenizer, truncated)
    return found


def spoken(turns: int, system: bool) -> list[Message]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(turns)]
    return ([{"role": "system", "content": "s"}] if system else []) + messages


def test_distribution_by_hand() -> None:
    found = Distribution()
    found.add([5, 1, 2, 2])
    assert (found.total, found.sum, found.mean()) == (4, 10, 2.5)
    assert [found.quantile(share) for share in (0, 0.25, 0.5, 0.75, 0.76, 1)] == [1, 1, 2, 2, 5, 5]
    assert found.histogram()[:5] == [0, 1, 2, 1, 0]  # 0, 1, 2 to 3, 4 to 7, 8 to 15
    assert (Distribution().mean(), Distribution().quantile(0.5), sum(Distribution().histogram())) == (0, 0, 0)


@given(values=st.lists(st.integers(0, 300_000)))
def test_histogram_holds_every_value_once_in_its_class(values: list[int]) -> None:
    found = Distribution()
    found.add(values)
    ends = [*EDGES[1:], 10**9]
    expected = [sum(low <= value < high for value in values) for low, high in zip(EDGES, ends, strict=True)]
    assert found.histogram() == expected


def test_chats_by_hand(tokenizer: ChatTokenizer) -> None:
    rows = [
        Chat(**ORIGIN, messages=spoken(2, False), input_ids=[1, 2, 3, 4], labels=[IGNORE, IGNORE, 3, 4]),
        Chat(**ORIGIN, messages=spoken(4, True), input_ids=[1, 2], labels=[1, 2]),
        Chat(**ORIGIN, messages=spoken(2, True), input_ids=[1], labels=[IGNORE]),
    ]
    summary = measured(tokenizer, *rows, truncated=1).summary()
    assert (summary["rows"], summary["tokens"], summary["trained_tokens"], summary["truncated"]) == (3, 7, 3, 1)
    assert summary["turns"] == {"mean": 8 / 3, "counts": [(2, 2), (4, 1)]}
    assert (summary["lengths"]["median"], summary["lengths"]["max"]) == (2, 4)
    assert "length_bias" not in summary and "responses" not in summary


def test_prompts_and_texts_have_no_labels(tokenizer: ChatTokenizer) -> None:
    found = measured(tokenizer, Prompt(**ORIGIN, messages=spoken(3, True), input_ids=[1, 2, 3]))
    assert (found.turns.counts, found.lengths.counts, found.trained_tokens) == ({3: 1}, {3: 1}, 0)
    found = measured(tokenizer, Text(**ORIGIN, text="t", input_ids=[1, 2]))
    assert (found.turns.total, found.lengths.counts) == (0, {2: 1})
    assert "turns" not in found.summary()


def compared(tokenizer: ChatTokenizer, responses: list[str], pairs: list[tuple[int, int, float]]) -> Comparison:
    _, ids = fit_responses(tokenizer, ASKED, responses, 10_000)
    named = [{"chosen": chosen, "rejected": rejected, "gap": gap} for chosen, rejected, gap in pairs]
    return Comparison(
        **ORIGIN, messages=ASKED, responses=responses, pairs=named, input_ids=[one for one in ids if one is not None]
    )


def test_responses_are_measured_without_prompt_and_end(tokenizer: ChatTokenizer) -> None:
    texts = ["", "four", "<|im_start|>assistant\nfour, of course<|im_end|>"]
    size = [len(tokenizer.encode_text(text)) for text in texts]
    rows = [
        compared(tokenizer, texts, [(1, 0, 0.1), (2, 1, 0.3)]),
        compared(tokenizer, [texts[2], texts[1]], [(1, 0, 2.0)]),
    ]
    found = measured(tokenizer, *rows)
    expected = LengthBias()
    expected.add([size[1], size[2], size[1]], [0, size[1], size[2]], [0.1, 0.3, 2.0])
    assert found.length_bias == expected
    assert found.responses.counts == {3: 1, 2: 1}
    assert found.lengths.total == 5
    assert found.summary()["length_bias"]["longer_is_better"] == pytest.approx(2 / 3)


def test_length_bias_by_hand() -> None:
    bias = LengthBias()
    bias.add([10, 4, 6, 2], [5, 4, 8, 1], [1.0, 0.5, 0.5, 0.1])
    summary = bias.summary()
    assert (summary["pairs"], summary["chosen_longer"], summary["equal_length"]) == (4, 0.5, 0.25)
    assert summary["longer_is_better"] == 0.625
    assert (summary["chosen"]["mean"], summary["chosen"]["median"]) == (5.5, 4)
    assert (summary["rejected"]["mean"], summary["rejected"]["median"]) == (4.5, 4)
    # differences 5, 0, -2, 1: (5 - 1 + 0.1) / sqrt((1 + 0.25 + 0.25 + 0.01) (25 + 4 + 1))
    assert summary["correlation"] == pytest.approx(4.1 / (1.51 * 30) ** 0.5)


def test_correlation_is_one_where_scores_are_lengths_and_nothing_is_measured_of_nothing() -> None:
    bias = LengthBias()
    bias.add([3, 9], [1, 4], [0.2, 0.5])
    assert bias.summary()["correlation"] == pytest.approx(1)
    assert LengthBias().summary()["correlation"] == LengthBias().summary()["longer_is_better"] == 0


RESPONSES = st.lists(st.text("ab <", max_size=5), min_size=2, max_size=4)
GAPS = st.integers(1, 40).map(lambda tenths: tenths / 10)


@given(data=st.data(), count=st.integers(0, 8))
def test_any_shards_add_up_to_the_same(tokenizer: ChatTokenizer, data: st.DataObject, count: int) -> None:
    rows: list[Any] = []
    for _ in range(count):
        responses = data.draw(RESPONSES)
        both = st.permutations(range(len(responses))).map(lambda places: places[:2])
        pairs = data.draw(st.lists(st.tuples(both, GAPS), min_size=1, max_size=3))
        rows.append(compared(tokenizer, responses, [(*places, gap) for places, gap in pairs]))
    whole = measured(tokenizer, *rows, truncated=count) if rows else PartStatistics()
    shards = [PartStatistics() for _ in range(3)]
    for row in data.draw(st.permutations(rows)):
        data.draw(st.sampled_from(shards)).add(batch(row), tokenizer, truncated=1)
    merged = PartStatistics()
    for shard in shards:
        merged.merge(PartStatistics.from_dict(json.loads(json.dumps(shard.to_dict()))))
    assert merged == whole
    assert json.dumps(merged.to_dict()) == json.dumps(whole.to_dict())
    assert merged.summary() == whole.summary()


def test_languages_are_counted_where_rows_have_one_and_shards_add_up(tokenizer: ChatTokenizer) -> None:
    table = batch(Text(**ORIGIN, text="t", input_ids=[1]), Text(**ORIGIN, text="u", input_ids=[1]))
    if "language" in table.schema.names:
        table = table.drop_columns(["language"])
    found = PartStatistics()
    for languages in (["en", "zh"], ["zh", "zh"]):
        one = PartStatistics()
        one.add(table.append_column("language", pa.array(languages)), tokenizer)
        found.merge(one)
    assert list(found.summary()["languages"].items()) == [("zh", 3), ("en", 1)]
