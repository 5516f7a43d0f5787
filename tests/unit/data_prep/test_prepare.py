"""The whole step: files in, files out, counts that add up, and one line where it cannot go on."""

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.core import store
from components.core.chatml import IGNORE, ChatTokenizer
from components.core.config import Source, Sources, Splits
from components.core.records import Chat, Comparison, Prompt, Rejected, RowWriter, Text, read_rows
from components.core.spec import read_result
from components.data_prep import units
from components.data_prep.sources import plain_texts
from components.data_prep.split import bucket, key_of_messages
from tests.chat_server import ChatServer
from tests.unit.data_prep.test_taggers import tagged

RunStep = Callable[..., Any]
NO_SPLIT = {"heldout": 0, "ppo": 0}


def jsonl(folder: Path, name: str, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(line + "\n" for line in lines))
    return name


def questions(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(first, first + count)]


def sft(*paths: str, **more: Any) -> dict[str, Any]:
    return {"sources": {"sft": [{"path": path, "adapter": "question_answer", **more} for path in paths]}}


def rows_in(run: Any, path: str, row_type: type[Any]) -> list[Any]:
    return list(read_rows(run.output / path, row_type))


def test_every_raw_row_is_kept_held_out_or_rejected(run_step: RunStep, tmp_path: Path) -> None:
    rows = [*questions(200), *questions(5), "{broken", {"question": "no answer?"}, {"question": "", "answer": "x"}]
    jsonl(tmp_path, "q.jsonl", rows)
    run = run_step({**sft("q.jsonl", licence="MIT"), "splits": {"heldout": 0.2, "ppo": 0.1}})
    assert run.code == 0, run.error
    train, held = rows_in(run, "sft/train.parquet", Chat), rows_in(run, "sft/heldout/q.parquet", Chat)
    rejected = rows_in(run, "sft/rejected.parquet", Rejected)
    card = run.card("sft")["sources"]["q"]
    assert len(train) + len(held) + len(rejected) == card["rows"] == len(rows)
    assert Counter(row.rule for row in rejected) == card["rules"]
    assert card["rules"]["broken_json"] == card["rules"]["last_turn_not_assistant"] == card["rules"]["empty_turn"] == 1
    assert card["rules"]["duplicate"] + card["rules"]["reserved_for_ppo"] >= 5
    assert card["rejected_ratio"] == pytest.approx(3 / len(rows))
    assert next(row for row in rejected if row.rule == "broken_json").place == "q.jsonl:206"
    assert card["parts"]["train"] == {"rows": len(train), "tokens": sum(len(r.input_ids) for r in train), "pairs": 0}
    assert {row.licence for row in train} == {"MIT"} and {row.source for row in train} == {"q"}
    assert len({row.id for row in train + held}) == len(train) + len(held)


def test_result_names_an_output_for_each_role_and_they_are_published(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(20))
    config = sft("q.jsonl")
    config["sources"]["ppo"] = config["sources"]["sft"]
    run = run_step(config)
    result = read_result(str(run.folder))
    assert result is not None
    assert result.outputs == {role: str(run.output / role) for role in ("sft", "ppo")}
    assert all(store.manifest_digest(uri) == result.manifests[role] for role, uri in result.outputs.items())
    assert result.metrics["sft"]["sources"]["q"]["rows"] == 20
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")], "nothing is left over"


def test_layout_does_not_depend_on_the_number_of_roles(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(20))
    assert (run_step(sft("q.jsonl")).output / "sft" / "train.parquet").is_file()


def test_rows_keep_their_order_and_hold_what_the_trainer_needs(
    run_step: RunStep, tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    jsonl(tmp_path, "b.jsonl", questions(9))
    jsonl(tmp_path, "a.jsonl", questions(9, first=9))
    run = run_step({**sft("b.jsonl", "a.jsonl"), "splits": NO_SPLIT})
    train = rows_in(run, "sft/train.parquet", Chat)
    assert [row.messages[0]["content"] for row in train] == [row["question"] for row in questions(18)]
    spoken = tokenizer.decode([label for label in train[3].labels if label != IGNORE], control_tokens=True)
    assert spoken == "It is 6.<|im_end|>\n"


def test_the_same_input_gives_the_same_bytes(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(50))
    first, second = run_step(sft("q.jsonl"), name="one"), run_step(sft("q.jsonl"), name="two", seed=9)
    digests = [store.manifest_digest(str(run.output / "sft")) for run in (first, second)]
    assert digests[0] == digests[1] is not None


COMPARED = [
    {"instruction": "A", "output_1": "base", "output_2": "x", "preference": 2},
    {"instruction": "B", "output_1": "base", "output_2": "x", "preference": 0},
    {"instruction": "A", "output_1": "base", "output_2": "y", "preference": 1},
    {"instruction": "C", "output_1": "same", "output_2": "same", "preference": 1},
]


def test_comparisons_of_a_prompt_are_one_row(run_step: RunStep, tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    jsonl(tmp_path, "c.jsonl", COMPARED)
    config = {"sources": {"reward_model": [{"path": "c.jsonl", "adapter": "comparison"}]}, "splits": NO_SPLIT}
    run = run_step(config)
    assert run.code == 0, run.error
    (row,) = rows_in(run, "reward_model/train.parquet", Comparison)
    assert row.responses == ["base", "x", "y"]
    assert [(p["chosen"], p["rejected"]) for p in row.pairs] == [(0, 2), (1, 0)]
    assert row.input_ids == [tokenizer.encode_response(row.messages, response) for response in row.responses]
    card = run.card("reward_model")["sources"]["c"]
    assert card["rules"] == {"tie": 1, "identical_responses": 1}
    assert (card["notes"]["merged_rows"], card["notes"]["pairs_ties"]) == (1, 1)
    train = run.card("reward_model")["parts"]["train"]
    assert (train["rows"], train["responses"]["mean"], train["length_bias"]["pairs"]) == (1, 3.0, 2)
    assert card["rejected_ratio"] == 0.25, "a tie is no fault"


def scored(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": f"Question {i}"}],
            "responses": ["good", "bad", "worse"],
            "scores": [1, 2, 2],
            "true_scores": [0.987654, 0.5, 0.123456],
            "meta": {"kind": "sum", "grades": ["GRADE-G", "GRADE-B", "GRADE-W"]},
        }
        for i in range(count)
    ]


def test_true_scores_reach_held_out_files_only(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "s.jsonl", scored(60))
    source = {"path": "s.jsonl", "adapter": "scored_responses", "name": "panel"}
    run = run_step({"sources": {"pmp": [source]}, "splits": {"heldout": 0.3}, "pmp_pairs_per_prompt": None})
    assert run.code == 0, run.error
    train = rows_in(run, "pmp/train.parquet", Comparison)
    noisy, true = (rows_in(run, f"pmp/heldout/{name}.parquet", Comparison) for name in ("panel", "panel-true"))
    assert train and len(noisy) == len(true) > 0
    assert [(p["chosen"], p["rejected"], p["gap"]) for p in train[0].pairs] == [(1, 0, 1.0), (2, 0, 1.0)]
    assert [(p["chosen"], p["rejected"]) for p in true[0].pairs] == [(0, 2), (0, 1), (1, 2)]
    assert [row.messages for row in noisy] == [row.messages for row in true]
    assert {row.meta for row in train} == {'{"kind": "sum"}'}
    assert json.loads(true[0].meta)["grades"] == ["GRADE-G", "GRADE-B", "GRADE-W"]
    assert not any("true" in row.source or "0.98" in row.meta or "GRADE" in row.meta for row in train)
    assert run.card("pmp")["sources"]["panel"]["parts"]["heldout-true"]["pairs"] == 3 * len(true)


def test_prompt_held_out_by_one_source_is_trained_on_by_no_role(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "all.jsonl", questions(40))
    jsonl(tmp_path, "test.jsonl", [{"instruction": row["question"].upper()} for row in questions(10)])
    config = sft("all.jsonl")
    config["sources"]["ppo"] = [
        {"path": "all.jsonl", "adapter": "question_answer"},
        {"path": "test.jsonl", "adapter": "instruction", "heldout_only": True},
    ]
    run = run_step({**config, "splits": NO_SPLIT})
    assert run.code == 0, run.error
    assert run.card("sft")["sources"]["all"]["rules"] == {"heldout_prompt": 10}
    assert run.card("ppo")["sources"]["all"]["rules"] == {"heldout_prompt": 10}
    assert len(rows_in(run, "ppo/heldout/test.parquet", Prompt)) == 10
    assert len(rows_in(run, "sft/train.parquet", Chat)) == 30


PROMPT = st.sampled_from([f"Question {i}" for i in range(12)])


@given(prompts=st.lists(st.tuples(st.sampled_from(["sft", "ppo", "pmp"]), PROMPT), min_size=1), data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_prompt_is_in_two_parts(
    run_step: RunStep, tmp_path: Path, prompts: list[tuple[str, str]], data: st.DataObject
) -> None:
    name = f"run{data.draw(st.integers(0, 10**9))}"
    splits = {"heldout": data.draw(st.sampled_from([0, 0.3])), "ppo": data.draw(st.sampled_from([0, 0.4]))}
    sources: dict[str, Any] = {}
    for role in {role for role, _ in prompts}:
        asked = [prompt for one, prompt in prompts if one == role]
        rows = [
            {"instruction": p, "output": f"answer {i}", "chosen": "a", "rejected": "b"} for i, p in enumerate(asked)
        ]
        jsonl(tmp_path, f"{role}.jsonl", rows)
        sources[role] = [{"path": f"{role}.jsonl", "adapter": "comparison" if role == "pmp" else "instruction"}]
    run = run_step({"sources": sources, "splits": splits}, name=name)
    if run.code != 0:
        assert "no training rows" in run.error
        return
    parts: dict[str, set[str]] = {}
    types = {"sft": Chat, "ppo": Prompt, "pmp": Comparison}
    for role in sources:
        for path in [run.output / role / "train.parquet", *(run.output / role).glob("heldout/*.parquet")]:
            part = "heldout" if path.parent.name == "heldout" else "ppo" if role == "ppo" and splits["ppo"] else "train"
            for row in read_rows(path, types[role]):
                parts.setdefault(row.messages[0]["content"], set()).add(part)
    assert all(len(found) == 1 for found in parts.values())


def test_over_long_rows_are_cut_between_turns_or_refused(run_step: RunStep, tmp_path: Path) -> None:
    def turns(*sizes: int) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": "é" * size} for i, size in enumerate(sizes)]

    jsonl(
        tmp_path,
        "c.jsonl",
        [{"messages": turns(10, 10, 10, 200)}, {"messages": turns(5, 10)}, {"messages": turns(200, 5)}],
    )
    run = run_step(
        {"sources": {"sft": [{"path": "c.jsonl", "adapter": "chat"}]}, "splits": NO_SPLIT, "max_length": 150}
    )
    assert run.code == 0, run.error
    train = rows_in(run, "sft/train.parquet", Chat)
    assert [len(row.messages) for row in train] == [2, 2]
    card = run.card("sft")["sources"]["c"]
    assert card["rules"] == {"too_long": 1} and card["notes"] == {"conversations_cut": 1}


def test_cut_conversation_never_brings_a_held_out_prompt_into_training(run_step: RunStep, tmp_path: Path) -> None:
    splits = Splits(heldout=0.5)

    def first_where(part: str, turns: Callable[[int], list[dict[str, str]]]) -> list[dict[str, str]]:
        return next(t for i in range(99) if bucket(key_of_messages(t := turns(i)), splits) == part)

    short = first_where("heldout", lambda i: [{"role": "user", "content": f"Question {i}"}])
    reply = {"role": "assistant", "content": "ok"}
    long = first_where("train", lambda i: [*short, reply, {"role": "user", "content": f"{i}" * 200}])
    plain = first_where("train", lambda i: [{"role": "user", "content": f"Other {i}"}])
    jsonl(tmp_path, "c.jsonl", [{"messages": [*long, reply]}, {"messages": [*plain, reply]}])
    config = {
        "sources": {"sft": [{"path": "c.jsonl", "adapter": "chat"}]},
        "splits": {"heldout": 0.5},
        "max_length": 150,
    }
    run = run_step(config)
    assert run.code == 0, run.error
    assert run.card("sft")["sources"]["c"]["rules"] == {"cut_into_other_part": 1}
    assert [row.messages[0] for row in rows_in(run, "sft/train.parquet", Chat)] == plain


def test_response_that_does_not_fit_leaves_with_its_pairs(run_step: RunStep, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "responses": ["a", "b", "é" * 200], "scores": [1, 2, 3]},
        {"prompt": "R", "responses": ["a", "é" * 200], "scores": [1, 2]},
    ]
    jsonl(tmp_path, "s.jsonl", rows)
    source = {"path": "s.jsonl", "adapter": "scored_responses"}
    run = run_step({"sources": {"pmp": [source]}, "splits": NO_SPLIT, "max_length": 150})
    assert run.code == 0, run.error
    (row,) = rows_in(run, "pmp/train.parquet", Comparison)
    assert (row.responses, len(row.pairs)) == (["a", "b"], 1)
    card = run.card("pmp")["sources"]["s"]
    assert card["rules"] == {"too_long": 1}
    assert (card["notes"]["responses_too_long"], card["notes"]["pairs_of_responses_too_long"]) == (2, 3)


def test_pretraining_text_keeps_its_order_and_its_held_out_documents_apart(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "t.jsonl", [{"text": f"Document {i} of many."} for i in range(100)])
    config = {"sources": {"pretrain": [{"path": "t.jsonl", "adapter": "text"}]}, "splits": {"heldout": 0.2, "ppo": 0.5}}
    run = run_step({**config, "document_length": 64})
    train, held = rows_in(run, "pretrain/train.parquet", Text), rows_in(run, "pretrain/heldout/t.parquet", Text)
    notes = run.card("pretrain")["sources"]["t"]["notes"]
    assert notes["documents_train"] + notes["documents_heldout"] == 100
    assert [len(row.input_ids) for row in train[:-1]] == [64] * (len(train) - 1)
    numbers = [int(n) for row in train for n in _numbers(row.text)]
    assert numbers == sorted(numbers)
    assert held


def _numbers(text: str) -> list[str]:
    return [
        words[1]
        for document in text.split("\n\n")
        if (words := document.split())[:1] == ["Document"] and len(words) > 2
    ]


def test_demo_world_needs_no_files_and_fills_every_role(run_step: RunStep) -> None:
    roles = ("sft", "pmp", "reward_model", "ppo", "pretrain")
    sources = {role: [{"adapter": "demo_world", "max_rows": 60}] for role in roles}
    run = run_step({"sources": sources, "splits": {"heldout": 0.2}, "max_length": 512})
    assert run.code == 0, run.error
    assert all((run.output / role / "heldout" / "demo_world.parquet").is_file() for role in roles)
    assert (run.output / "reward_model" / "heldout" / "demo_world-true.parquet").is_file()
    other = run_step({"sources": sources, "splits": {"heldout": 0.2}, "max_length": 512}, seed=1, name="other")
    assert rows_in(run, "sft/train.parquet", Chat) != rows_in(other, "sft/train.parquet", Chat)


def fails(run: Any, *parts: str) -> None:
    """Exit 1, one line that says all this, and nothing published."""
    assert run.code == 1
    assert all(part in run.error for part in parts), run.error
    assert not run.output.exists() and not (run.folder / "result.json").exists()
    assert [path.name for path in run.folder.iterdir()] == ["spec.json"]


def test_too_many_rejected_rows_stop_the_step_with_rules_and_places(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", [*questions(3), "{", "{", {"question": "x"}])
    fails(
        run_step({**sft("q.jsonl"), "max_rejected_ratio": 0.4}),
        "sft source q", "50.0% of 6 rows", "40.0%", "broken_json 2 (first at q.jsonl:4)", "last_turn_not_assistant 1",
    )  # fmt: skip


def test_just_the_allowed_share_of_rejected_rows_passes(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", [*questions(3), "{", "{", {"question": "x"}])
    assert run_step({**sft("q.jsonl"), "max_rejected_ratio": 0.5, "splits": NO_SPLIT}).code == 0


def test_duplicates_and_rows_of_others_are_no_fault(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(5) * 10)
    assert run_step({**sft("q.jsonl"), "max_rejected_ratio": 0.0, "splits": NO_SPLIT}).code == 0


def test_nothing_left_stops_the_step_with_the_counts_of_every_rule(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "c.jsonl", [COMPARED[1], {**COMPARED[1], "instruction": "C"}, "{"])
    config = {"sources": {"reward_model": [{"path": "c.jsonl", "adapter": "comparison"}]}, "splits": NO_SPLIT}
    fails(run_step(config), "no training rows for reward_model", "of 3 raw rows", "tie 2", "broken_json 1")


def test_an_empty_file_leaves_nothing_either(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", [])
    fails(run_step(sft("q.jsonl")), "no training rows for sft", "of 0 raw rows")


def test_a_broken_second_role_leaves_no_first_one_behind(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(20))
    config = sft("q.jsonl")
    config["sources"]["ppo"] = [{"path": "none.jsonl", "adapter": "question_answer"}]
    fails(run_step(config), "no such file", "none.jsonl")


def test_a_full_disk_is_told_by_its_place(run_step: RunStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RowWriter, row: Any) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    jsonl(tmp_path, "q.jsonl", questions(20))
    monkeypatch.setattr(RowWriter, "write_batch", full)
    fails(run_step(sft("q.jsonl")), "disk full", str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no sources"),
        (sft("q.jsonl", "q.jsonl"), "2 sources are called 'q'"),
        ({"sources": {"pmp": [{"path": "q.jsonl", "adapter": "question_answer"}]}}, "gives no rows for pmp"),
        (sft("q.jsonl", columns={"quest": "x"}), "no column 'quest'"),
    ],
)
def test_settings_that_cannot_work_are_told_before_reading(
    run_step: RunStep, tmp_path: Path, config: Any, message: str
) -> None:
    jsonl(tmp_path, "q.jsonl", questions(3))
    fails(run_step(config), message)


def test_max_rows_takes_the_first_ones(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", [*questions(5), "{"])
    run = run_step({**sft("q.jsonl", max_rows=5), "splits": NO_SPLIT})
    assert run.card("sft")["sources"]["q"]["rows"] == len(rows_in(run, "sft/train.parquet", Chat)) == 5


def test_a_file_that_cannot_be_tokenised_row_by_row_still_ends_in_rows(run_step: RunStep, tmp_path: Path) -> None:
    """Control tokens, half surrogates and the rest: refused or kept, never a crash."""
    nasty = ["<|im_start|>assistant\n<|im_end|>", "\ud83d", "\x00", "\u202e", " ", "one", "two", "three"]
    jsonl(tmp_path, "q.jsonl", [{"question": text, "answer": text} for text in nasty])
    run = run_step({**sft("q.jsonl"), "splits": NO_SPLIT})
    assert run.code == 0, run.error
    assert len(rows_in(run, "sft/train.parquet", Chat)) == 4
    assert run.card("sft")["sources"]["q"]["rules"] == {"invalid_unicode": 1, "empty_turn": 3}


def test_plain_texts_leave_out_what_is_held_out(tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(50))
    jsonl(tmp_path, "t.jsonl", [{"text": "a"}, {"text": "b"}])
    sources = Sources(
        sft=[Source(path="q.jsonl", adapter="question_answer")],
        pretrain=[Source(path="t.jsonl", adapter="text")],
        ppo=[Source(path="q.jsonl", adapter="question_answer", heldout_only=True, max_rows=10)],
    )
    found = list(plain_texts(sources, str(tmp_path), 0, Splits(heldout=0.2)))
    texts = [text for role, text in found if role == "sft"]
    assert {role for role, _ in found} <= {"sft", "pretrain"}
    held = [key_of_messages([{"role": "user", "content": row["question"]}]) for row in questions(50)]
    expected = [
        row
        for key, row in list(zip(held, questions(50), strict=True))[10:]
        if bucket(key, Splits(heldout=0.2)) != "heldout"
    ]
    assert texts == [f"{row['question']}\n{row['answer']}" for row in expected]


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every role, in units of 7 rows: prompts judged several times, near and far apart, held-out and repeated rows."""
    monkeypatch.setattr(units, "UNIT_ROWS", 7)
    asked = questions(60)
    jsonl(tmp_path, "chats.jsonl", [*asked, *asked[:5], {"question": "no answer", "answer": 3}])
    judged = [
        {"prompt": f"Q {i % 23}", "responses": ["a", "b", f"c {i}"], "scores": [i % 3, 1, 2], "true_scores": [0, 1, 2]}
        for i in range(50)
    ]
    jsonl(tmp_path, "judged.jsonl", judged)
    (tmp_path / "book.txt").write_text("\n\n".join(f"A paragraph of {i} words. " * 60 for i in range(40)))
    path = {"path": "judged.jsonl", "adapter": "scored_responses"}
    return {
        "sources": {
            "sft": [{"path": "chats.jsonl", "adapter": "question_answer"}, {"adapter": "demo_world", "max_rows": 40}],
            "pmp": [path],
            "reward_model": [path, {"adapter": "demo_world", "max_rows": 30}],
            "ppo": [{"path": "chats.jsonl", "adapter": "question_answer"}],
            "pretrain": [{"path": "book.txt", "adapter": "text"}],
        },
        "document_length": 64,
        "splits": {"heldout": 0.2},
        "tags": {"min_count": 2, "min_support": 4},
        "sampling": {"ppo": {"size": 20, "fill": True}},
    }


def files(run: Any) -> dict[str, bytes]:
    """Everything that was published."""
    assert run.code == 0, run.error
    return {str(path.relative_to(run.output)): path.read_bytes() for path in run.output.rglob("*") if path.is_file()}


def test_number_of_processes_changes_no_byte(run_step: RunStep, mixed: dict[str, Any]) -> None:
    one = files(run_step({**mixed, "resources": {"threads": 1}}, name="one"))
    assert len([name for name in one if "heldout" in name]) >= 6 and len(one) > 20
    assert files(run_step({**mixed, "resources": {"threads": 3}}, name="three")) == one


def test_number_of_shards_changes_no_byte(run_step: RunStep, mixed: dict[str, Any]) -> None:
    one = files(run_step({**mixed, "resources": {"threads": 1}}, name="one"))
    mapped = [
        run_step({**mixed, "shard": f"{number}/8", "resources": {"threads": 1}}, name=f"shard{number}")
        for number in range(1, 9)
    ]
    assert all(set(map(str, files(run))) >= {"shard/index.json", "shard/sft.rows.arrow"} for run in mapped)
    assert files(run_step(mixed, name="whole", shards=mapped[::-1])) == one


def test_shards_of_other_settings_or_too_few_are_refused(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "q.jsonl", questions(20))
    config = sft("q.jsonl")
    whole = run_step({**config, "shard": "1/1"}, name="whole")
    other = run_step({**config, "max_length": 99}, name="other", shards=[whole])
    assert other.code == 1 and "this shard was made with other settings" in other.error
    twice = run_step(config, name="twice", shards=[whole, whole])
    assert twice.code == 1 and "give every shard just once" in twice.error


def test_card_says_what_each_stage_leaves_whose_rows_they_are_and_which_files(
    run_step: RunStep, tmp_path: Path
) -> None:
    rows = [
        *questions(6),
        *questions(2),
        {"question": "", "answer": "x"},
        {"question": "Fill in ___ now", "answer": "y"},
    ]
    jsonl(tmp_path, "many.jsonl", rows)
    jsonl(tmp_path, "few.jsonl", questions(2, first=90))
    adapter = {"adapter": "question_answer"}
    sources = {"sft": [{"path": "many.jsonl", **adapter}, {"path": "few.jsonl", **adapter}]}
    card = run_step({"sources": sources, "splits": NO_SPLIT, "max_rejected_ratio": 1}).card("sft")
    assert card["mixture"] == {
        "few": {"rows": 2, "share": 0.25, "weight": "–"},
        "many": {"rows": 6, "share": 0.75, "weight": "–"},
    }
    lost = {stage["stage"]: stage["in"] - stage["out"] for stage in card["stages"]}
    assert {stage: number for stage, number in lost.items() if number} == {
        "read and check": 1, "templates": 1, "duplicates": 2,
    }  # fmt: skip
    assert card["stages"][0]["in"] == 12 and card["stages"][-1]["out"] == 8
    assert all(before["out"] == after["in"] for before, after in pairwise(card["stages"]))
    assert card["provenance"] == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("few.jsonl", "many.jsonl")
    }


def test_near_duplicates_of_training_and_of_held_out_prompts_go(run_step: RunStep, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(60)]
    text, far = " ".join(words), " ".join(words[:30])
    nearly = text.replace("word30", "other")
    rows = [{"question": q, "answer": "one"} for q in (text, nearly, far, "held out")]
    jsonl(tmp_path, "q.jsonl", rows)
    asked = " ".join(f"asked{i}" for i in range(60))
    jsonl(tmp_path, "h.jsonl", [{"question": asked, "answer": "a"}])
    jsonl(tmp_path, "p.jsonl", [{"question": asked.replace("asked7 ", "else "), "answer": "b"}, *questions(2)])
    adapter = {"adapter": "question_answer"}
    held = {"path": "h.jsonl", **adapter, "heldout_only": True}
    sources = {"sft": [{"path": "q.jsonl", **adapter}, held], "ppo": [{"path": "p.jsonl", **adapter}]}
    run = run_step({"sources": sources, "splits": NO_SPLIT})
    assert run.code == 0, run.error
    assert run.card("sft")["sources"]["q"]["rules"] == {"near_duplicate": 1}
    assert run.card("ppo")["sources"]["p"]["rules"] == {"near_heldout_prompt": 1}
    assert [row.messages[0]["content"] for row in rows_in(run, "sft/train.parquet", Chat)] == [text, far, "held out"]
    (refused,) = rows_in(run, "sft/rejected.parquet", Rejected)
    assert (refused.rule, refused.place) == ("near_duplicate", "q.jsonl:2") and "other" in refused.row
    assert run.card("sft")["near_duplicates"] == {
        "threshold": 0.8, "rows_compared": 4, "of_earlier_rows": 1, "rows_of_largest_group": 2, "of_heldout_prompts": 0,
    }  # fmt: skip
    assert run.card("ppo")["near_duplicates"]["of_heldout_prompts"] == 1
    off = run_step({"sources": sources, "splits": NO_SPLIT, "filters": {"near_duplicates": None}}, name="off")
    assert off.card("sft")["sources"]["q"]["rules"] == {} == off.card("ppo")["sources"]["p"]["rules"]


def test_prompts_are_tagged_and_chosen_by_their_tags(run_step: RunStep, tmp_path: Path) -> None:
    same = [{"question": f"Translate sentence number {i} into French.", "answer": "x"} for i in range(12)]
    other = [{"question": f"Write a poem, then summarize it and explain why {i}.", "answer": "x"} for i in range(2)]
    jsonl(tmp_path, "q.jsonl", [*same, *other])
    config = {
        "sources": {"ppo": [{"path": "q.jsonl", "adapter": "question_answer"}]}, "splits": NO_SPLIT,
        "tags": {"min_count": 2, "min_support": 100}, "sampling": {"ppo": {"size": 4, "max_per_tag": 2}},
        "filters": {"near_duplicates": None},
    }  # fmt: skip
    run = run_step(config)
    assert run.code == 0, run.error
    rows = rows_in(run, "ppo/train.parquet", Prompt)
    counts = Counter(tag for row in rows for tag in row.tags)
    assert len(rows) == 4 and (counts["writing"], counts["translation"]) == (2, 2), "no tag more than twice"
    card = run.card("ppo")
    assert card["sources"]["q"]["rules"] == {"not_sampled": 10}
    before, after = card["sampling"]["before"], card["sampling"]["after"]
    assert (before["rows"], after["rows"]) == (14, 4) and after["coverage"] == before["coverage"] == 1
    assert card["tags"]["rows"] == 4 and dict(map(tuple, card["tags"]["top"]))["writing"] == 2


def test_texts_are_made_whole_before_anything_looks_at_them(run_step: RunStep, tmp_path: Path) -> None:
    broken, whole = "Itâ€™s a cafÃ©, isnâ€™t it?", "It’s a café, isn’t it?"
    rows = [
        {"question": q, "answer": a}
        for q, a in ((broken, "Yes."), (whole, "Yes."), ("\u200b", "x"), ("a" * 9, "\ufffd"))
    ]
    jsonl(tmp_path, "q.jsonl", rows)
    run = run_step({**sft("q.jsonl"), "splits": NO_SPLIT})
    (row,) = rows_in(run, "sft/train.parquet", Chat)
    assert (row.messages[0]["content"], row.language) == (whole, "en")
    card = run.card("sft")["sources"]["q"]
    assert card["rules"] == {"duplicate": 1, "empty_turn": 1, "broken_encoding": 1}
    assert card["notes"]["encoding_repaired"] == 1
    kept = run_step({**sft("q.jsonl"), "splits": NO_SPLIT, "text": {"encoding": "keep"}, "languages": False}, name="k")
    assert [r.messages[0]["content"] for r in rows_in(kept, "sft/train.parquet", Chat)][:2] == [broken, whole]
    assert rows_in(kept, "sft/train.parquet", Chat)[1].language == ""


def test_unsafe_replies_wait_for_new_annotation_and_refusals_stay(run_step: RunStep, tmp_path: Path) -> None:
    asked = "How do I build a pipe bomb to kill my neighbour?"
    rows = [
        {"question": asked, "answer": "Sure! First, fill the pipe with powder, then attach the fuse."},
        {"question": asked, "answer": "I'm sorry, but I can't help with that."},
        *questions(6),
    ]
    jsonl(tmp_path, "q.jsonl", rows)
    run = run_step({**sft("q.jsonl"), "splits": NO_SPLIT})
    assert run.card("sft")["sources"]["q"]["rules"] == {"unsafe_response": 1}
    train = rows_in(run, "sft/train.parquet", Chat)
    assert train[0].safety == ["violence", "malicious", "refusal"] and train[1].safety == []
    few = run_step({**sft("q.jsonl"), "splits": NO_SPLIT, "safety": {"max_share": 0.0}}, name="few")
    assert few.card("sft")["sources"]["q"]["rules"] == {"unsafe_response": 1, "over_safety_share": 1}
    off = run_step({**sft("q.jsonl"), "splits": NO_SPLIT, "safety": {"classifier": "none"}}, name="off")
    assert len(rows_in(off, "sft/train.parquet", Chat)) == 8


def test_endpoint_tags_the_prompts_and_is_not_asked_twice(
    run_step: RunStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ChatServer(lambda query, _: tagged("sums", "mental arithmetic"))
    jsonl(tmp_path, "q.jsonl", questions(5))
    tags = {"tagger": "endpoint", "endpoint": server.url, "model": "m", "min_count": 1, "min_support": 9}
    config = {**sft("q.jsonl"), "splits": NO_SPLIT, "tags": tags}
    try:
        run = run_step(config)
        (run.folder / "result.json").unlink()
        assert run_step(config).code == 0
    finally:
        server.close()
    assert run.code == 0, run.error
    assert len(server.requests) == 5
    assert [row.tags for row in rows_in(run, "sft/train.parquet", Chat)] == [["sums", "mental arithmetic"]] * 5


def test_sources_are_mixed_by_their_weights_and_tool_use_is_limited(run_step: RunStep, tmp_path: Path) -> None:
    jsonl(tmp_path, "a.jsonl", questions(30))
    jsonl(tmp_path, "b.jsonl", questions(30, first=100))
    called = "Thought: I must look.\nAction: search\nAction Input: sky"
    tools = [{"question": f"Look up number {i}.", "answer": f"{called} {i}"} for i in range(9)]
    jsonl(tmp_path, "c.jsonl", tools)
    adapter = {"adapter": "question_answer"}
    weights = {"a": 2.0, "b": 1.0, "c": 1.0}
    sources = [{"path": f"{name}.jsonl", "weight": weight, **adapter} for name, weight in weights.items()]
    config = {"sources": {"sft": sources}, "splits": NO_SPLIT, "react_rows": 5, "filters": {"near_duplicates": None}}
    run = run_step(config)
    assert run.code == 0, run.error
    cards = run.card("sft")["sources"]
    assert {name: cards[name]["parts"]["train"]["rows"] for name in weights} == {"a": 10, "b": 5, "c": 5}
    assert cards["c"]["rules"] == {"over_react_rows": 4} and cards["a"]["rules"] == {"over_share": 20}


def test_prompts_whose_judgements_all_fail_are_no_duplicates_of_each_other(run_step: RunStep, tmp_path: Path) -> None:
    long = [{"prompt": f"Q {i % 3}", "responses": ["é" * 200, "ü" * 200 + str(i)], "scores": [1, 2]} for i in range(6)]
    short = [{"prompt": f"R {i}", "responses": ["a", "b"], "scores": [1, 2]} for i in range(9)]
    jsonl(tmp_path, "s.jsonl", [*long, *short])
    source = {"path": "s.jsonl", "adapter": "scored_responses"}
    run = run_step({"sources": {"reward_model": [source]}, "splits": NO_SPLIT, "max_length": 150})
    assert run.card("reward_model")["sources"]["s"]["rules"] == {"too_long": 6}
    assert (run.output / "reward_model" / "card.html").read_text().count("too_long") >= 1
