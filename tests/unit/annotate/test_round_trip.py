"""Out to a tool, answered there in its own format, and back: the scores are those that people gave."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.annotate.results import collect
from components.annotate.tasks import Plan, Sampled, make_tasks
from components.core.config import Source
from components.data_prep.adapters import Judged, adapt
from tests.unit.annotate.support import SOME_EXAMPLES, TOOLS, plans, prompts


@pytest.mark.parametrize("tool", TOOLS)
@SOME_EXAMPLES
@given(prompts(), plans(), st.data())
def test_scores_come_back_whatever_the_shuffle(tool: str, some: list[Sampled], plan: Plan, data: Any) -> None:
    module, people = TOOLS[tool]
    tasks, _ = make_tasks(some, plan)
    scores = data.draw(st.fixed_dictionaries({
        (slot, f"{one.messages[-1]['content']}|{response.text}"): st.integers(1, plan.highest)
        for slot in range(plan.annotators) for one in some for response in one.responses
    }))  # fmt: skip
    exports = people(module.files(tasks, plan), lambda slot, text: scores[slot, text])
    results = collect(tasks, (answer for export in exports for answer in module.answers(export, tasks, plan)))
    assert not results.rejected and not results.unanswered and len(results.answers) == len(tasks)
    assert sorted(row["meta"]["prompt"] for row in results.rows) == sorted(one.id for one in some)
    for row in results.rows:
        slots = [task.slot for task in tasks if task.prompt.id == row["meta"]["prompt"]]
        asked = row["messages"][-1]["content"]
        means = [sum(scores[slot, f"{asked}|{text}"] for slot in slots) / len(slots) for text in row["responses"]]
        assert row["scores"] == pytest.approx(means, rel=1e-15) and row["meta"]["annotators"] == len(slots)


@pytest.mark.parametrize("tool", TOOLS)
@SOME_EXAMPLES
@given(prompts(), plans(), st.data())
def test_importing_twice_or_in_another_order_changes_nothing(
    tool: str, some: list[Sampled], plan: Plan, data: Any
) -> None:
    module, people = TOOLS[tool]
    tasks, _ = make_tasks(some, plan)
    exports = people(module.files(tasks, plan), lambda slot, text: 1 + (slot + len(text)) % plan.highest)
    answers = [answer for export in exports for answer in module.answers(export, tasks, plan)]
    again = data.draw(st.permutations(answers + data.draw(st.lists(st.sampled_from(answers))) if answers else []))
    assert collect(tasks, answers) == collect(reversed(tasks), answers + again)


@SOME_EXAMPLES
@given(prompts(), plans())
def test_data_prep_reads_the_rows(some: list[Sampled], plan: Plan) -> None:
    module, people = TOOLS["label_studio"]
    tasks, _ = make_tasks(some, plan)
    exports = people(module.files(tasks, plan), lambda slot, text: 1 + (slot + len(text)) % plan.highest)
    results = collect(tasks, (answer for export in exports for answer in module.answers(export, tasks, plan)))
    for row in results.rows:
        item = adapt(Source(adapter="scored_responses"), "reward_model", row)
        assert isinstance(item, Judged)
        assert (item.messages, item.responses, item.scores, item.meta) == (
            row["messages"], row["responses"], row["scores"], row["meta"]
        )  # fmt: skip
