"""The page: complete by itself, and safe whatever a model says."""

import re
from html.parser import HTMLParser

import pytest

from components.core.config import EvaluateConfig
from components.core.records import Prompt
from components.evaluate.figures import Findings, build_figures
from components.evaluate.policies import Answer, Policies
from components.evaluate.preferences import Judgement
from components.evaluate.report import duration, fixed, flat, memory, pick_conversations, points, render_report
from components.evaluate.run_records import RunRecords, StepRecord
from tests.unit.evaluate.test_figures import comparison_set

EVIL = '</div><script>alert("x")</script><img src="http://evil.example/a.png" onerror=alert(1)> & "quoted"'
TRUTH = {"total": 0.5, "correctness": 1.0, "form": 0.2, "refused": True, "kind": EVIL}


def page(category: str = "plain", text: str = EVIL) -> str:
    prompt = Prompt(id="1", source="s", licence="none", messages=[{"role": "user", "content": text}])
    answers = {
        name: [Answer(0, 0, text, [1, 2], True, {**TRUTH, "category": category}, 0.5)]
        for name in ("base", "sft", "ppo")
    }
    policies = Policies(prompts=[prompt], answers=answers, kl=[1.0], kl_k3=[1.0])
    policies.language_model = {"base": {"loss": 9e9, "perplexity": float("inf"), "tokens": 1}}
    curve = [{"training_step": i, "ppo_kl": float(i), "ppo_value_only": float(i < 5)} for i in range(50)]
    record = StepRecord(1.0, 2**20, {}, {"name": EVIL, "nested": {"list": [{"a": 1}]}}, curve)
    data = comparison_set(EVIL)
    judgements = {name: Judgement(name, {EVIL: [1.0, -1.0, 0.0]}) for name in ("pmp", "reward_model")}
    findings = Findings([data], judgements, policies, RunRecords({"ppo": record}))
    figures = build_figures(findings, EvaluateConfig(), run=EVIL, seed=0)
    return render_report(figures, policies, {"ppo": record}, {"ppo": record.settings}, {"torch": EVIL}, 3)


class Tags(HTMLParser):
    """Every element and attribute of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_asks_for_nothing_from_outside():
    found = Tags(page())
    assert not {"script", "img", "link", "iframe", "object", "embed", "image", "base"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on"), name
        if name in ("href", "src", "xlink:href", "srcset", "action"):
            assert value.startswith("#"), value
        assert not re.search(r"url\((?!#)", value), value
        assert "//" not in value or name in ("aria-label",), (name, value)
    assert "@import" not in page()


def test_what_a_model_says_is_shown_and_not_run():
    text = page()
    assert "<script" not in text
    assert Tags(text).text.count('<script>alert("x")</script>') >= 4


def test_harmful_conversations_open_with_a_click():
    assert '<details class="harm">' in page("harmful", "plain words")
    assert '<details class="harm">' not in page("plain", "plain words")
    assert '<details class="harm" open' not in page("harmful", "plain words")


def test_a_page_of_nothing_but_a_reward_model():
    data = comparison_set("theirs", "comparisons")
    findings = Findings([data], {"reward_model": Judgement("reward_model", {"theirs": [1.0, -1.0, 0.0]})})
    figures = build_figures(findings, EvaluateConfig(), run="r", seed=0)
    text = render_report(figures, findings.policies, {}, {}, {}, 3)
    assert "theirs" in text
    assert "given by hand" in text
    assert "<h2>Policies</h2>" not in text


def test_a_page_of_nothing_but_losses():
    policies = Policies(language_model={"sft": {"loss": 1.0, "perplexity": 2.7, "tokens": 3}})
    figures = build_figures(Findings(policies=policies), EvaluateConfig(), run="r", seed=0)
    assert "Held-out perplexity" in render_report(figures, policies, {}, {}, {}, 3)


def test_conversations_are_taken_from_each_category_in_turn_harmful_ones_last():
    kinds = ["plain", "plain", "plain", "harmful", "lookalike", "harmful"]
    answers = [Answer(i, 0, "x", [1], False, {**TRUTH, "category": kind}) for i, kind in enumerate(kinds)]
    prompts = [Prompt(id=str(i), source="s", licence="n", messages=[]) for i in range(6)]
    chosen = pick_conversations(Policies(prompts=prompts, answers={"sft": answers}), 4)
    assert [(item.prompt.id, item.hidden) for item in chosen] == [("0", False), ("4", False), ("1", False), ("3", True)]
    assert pick_conversations(Policies(), 4) == []


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (points(-0.04), "−4.0"), (points(0.0), "0.0"), (points(0.0512), "+5.1"), (fixed(None, 2), "–"),
        (fixed(-0.001, 2, sign=True), "0.00"), (fixed(1234.5, 1), "1,234.5"), (fixed(3e8, 2), "3.00e+08"),
        (duration(3.21), "3.2 s"), (duration(200), "3 min 20 s"), (duration(7500), "2 h 5 min"),
        (duration(59.7), "1 min 0 s"),
        (memory(1536), "1.5 KiB"), (memory(3 * 2**30), "3.0 GiB"), (memory(0), "0 B"),
    ],
)  # fmt: skip
def test_numbers_for_people(shown: str, text: str):
    assert shown == text


def test_settings_are_flat():
    assert flat({"a": {"b": 1, "c": None}, "d": [{"e": 2}], "f": [], "g": [1, 2]}) == [
        ("a.b", "1"),
        ("d.0.e", "2"),
        ("g", "[1, 2]"),
    ]
