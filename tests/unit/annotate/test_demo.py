"""The demo world's panel as annotators."""

from components.annotate import demo
from components.annotate.results import collect
from components.annotate.spam import check
from components.annotate.tasks import Plan, Sampled, make_tasks
from components.demo_world import scorer
from components.demo_world.generate import rows
from tests.unit.annotate.support import prompt

PLAN = Plan(annotators=3, overlap=3, overlap_share=0.5)


def sampled_world(size: int) -> tuple[list[Sampled], dict[str, list[float]]]:
    """Prompts of the demo world with its graded answers, and how good those are."""
    some, truth = [], {}
    for number, row in enumerate(rows("reward_model", 1, size)):
        one = prompt(str(number), *row["responses"])
        some.append(one)
        truth[one.id] = [scorer.score(row["meta"], text).total for text in row["responses"]]
        assert truth[one.id] == row["true_scores"]
    return some, truth


def test_the_panel_finds_the_better_response_and_nobody_is_flagged() -> None:
    some, truth = sampled_world(150)
    tasks, _ = make_tasks(some, PLAN)
    given = demo.answers(tasks, truth, PLAN)
    assert given == demo.answers(reversed(tasks), truth, PLAN)[::-1]
    results = collect(tasks, given)
    assert not results.rejected and len(results.rows) == 150
    assert all(1 <= score <= 7 for row in results.rows for score in row["scores"])
    right = wrong = 0
    for row in results.rows:
        known = truth[row["meta"]["prompt"]]
        for first in range(4):
            for second in range(first):
                better = (known[first] - known[second]) * (row["scores"][first] - row["scores"][second])
                right, wrong = right + (better > 0), wrong + (better < 0)
    assert right > 10 * wrong
    reports = check(results.answers, {task.id: task for task in tasks})
    assert {name: report.flags for name, report in reports.items()} == {f"demo_world:{slot}": [] for slot in (1, 2, 3)}
