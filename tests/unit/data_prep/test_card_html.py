"""The data card: its figures, what is hidden and what nobody may run."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.records import Rejected
from components.data_prep.card import SourceCard
from components.data_prep.card_html import from_statistics, render_card
from components.data_prep.statistics import Distribution, PartStatistics


def source() -> SourceCard:
    card = SourceCard("forum", "chat", "sft/*.jsonl", "CC-BY-4.0", rows=1000)
    card.reject("duplicate", "a.jsonl:7", 40)
    card.reject("unsafe_response", "a.jsonl:9", 10)
    card.count("train", 90_000, rows=900)
    card.count("heldout", 5_000, rows=50)
    card.notes["masked_email"] = 3
    return card


def card(**sections: Any) -> dict[str, Any]:
    return {
        "role": "sft",
        "sources": {"forum": source().to_dict()},
        "settings": {"splits": {"heldout": 0.05}},
        **sections,
    }


def refused(rule: str, text: Any, place: str = "a.jsonl:1") -> Rejected:
    row = text if isinstance(text, str) else json.dumps(text)
    return Rejected(role="sft", source="forum", place=place, rule=rule, row=row)


SECTIONS: dict[str, Any] = {
    "stages": [{"stage": "read", "in": 1000, "out": 960}, {"stage": "safety", "in": 960, "out": 950}],
    "languages": {"train": {"en": 880, "": 20}},
    "safety": {"violence": 12, "refusal": 9},
    "lengths": {"train, tokens": [[0, 0], [64, 333], [128, 567], [256, 0]]},
    "tags": {
        "stages": {"raw": 120, "normalised": 80},
        "top": [["cooking", 300], ["travel", 30], ["murder", 25]],
        "before": {"rows": 900, "mean_tags": 3.25, "coverage": 1.0},
        "after": {"rows": 400, "mean_tags": 5.5, "coverage": 0.9},
    },
    "length_bias": {"train": {"chosen_longer": 0.61}},
    "near_duplicates": {"dropped": 31},
    "mixture": {"forum": {"rows": 900, "share": 1.0, "weight": 2.0}},
    "provenance": {"sft/a.jsonl": "ab" * 32},
}  # fmt: skip
SHOWN = {
    "stages": ["read", "960"],
    "languages": ["not sure", "880"],
    "safety": ["violence", "12"],
    "lengths": ["train, tokens", "567"],
    "tags": ["cooking", "300", "5.5", "90.0"],
    "length_bias": ["train.chosen", "0.61"],
    "near_duplicates": ["dropped", "31"],
    "mixture": ["2", "100.0"],
    "provenance": ["sft/a.jsonl", "ab" * 32],
}


class Page(HTMLParser):
    """The words of a page, those within <details class="harm"> apart, and its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = {"seen": "", "hidden": ""}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "details":
            assert "open" not in dict(attrs)
            self.open.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words["hidden" if "harm" in self.open else "seen"] += data


def test_counts_rules_and_first_places_are_shown() -> None:
    html, markdown = render_card(card(), [])
    for text in (html, re.sub(r"\\(.)", r"\1", markdown)):
        for shown in (
            "1,000", "900", "95,000", "5.0\u00a0%", "duplicate", "40", "a.jsonl:7", "unsafe_response", "a.jsonl:9",
            "CC-BY-4.0", "950", "masked_email", "splits.heldout", "0.05",
        ):  # fmt: skip
            assert shown in text, shown


@pytest.mark.parametrize("name", list(SECTIONS))
def test_each_section_is_there_when_given_and_absent_when_not(name: str) -> None:
    html, markdown = render_card(card(**{name: SECTIONS[name]}), [])
    bare, bare_markdown = render_card(card(), [])
    for shown in SHOWN[name]:
        assert shown in Page(html).words["seen"], shown
        assert shown in re.sub(r"\\(.)", r"\1", markdown), shown
    assert len(Page(bare).words["seen"]) < len(Page(html).words["seen"]) and len(bare_markdown) < len(markdown)


def test_empty_classes_at_the_ends_of_a_histogram_and_harmful_tags_are_not_drawn() -> None:
    html, markdown = render_card(card(**SECTIONS), [])
    assert "<span>256</span>" not in html and "<span>128</span>" in html and "from 64: 333" in html
    assert "murder" not in html + markdown and "1 of the most frequent tags" in html


def test_harmful_samples_open_with_a_click_and_are_not_in_markdown() -> None:
    rows = [
        refused("unsafe_response", {"text": "plain words"}, "a.jsonl:2"),
        refused("duplicate", {"text": "first line\nmurder them"}, "a.jsonl:3"),
        refused("duplicate", {"text": "强奸"}, "a.jsonl:4"),
        refused("duplicate", {"text": "a harmless row"}, "a.jsonl:5"),
    ]
    html, markdown = render_card(card(), rows)
    page = Page(html)
    for text in ("plain words", "murder", "强奸"):
        assert text in page.words["hidden"] and text not in page.words["seen"] and text not in markdown
    for text in ("a harmless row", "a.jsonl:5"):
        assert text in page.words["seen"] and text in markdown
    assert "a.jsonl:3" in markdown


def test_of_each_rule_the_first_rows_are_shown_without_personal_data_and_not_too_long() -> None:
    rows = [refused("duplicate", {"text": f"row number {n} of me@example.org " + "x" * 5000}) for n in range(9)]
    html, markdown = render_card(card(), iter(rows), samples=2)
    for text in (html, markdown):
        assert "row number 1 " in text and "row number 2 " not in text
        assert "me@example.org" not in text and "[EMAIL]" in text and "x" * 1000 not in text


EVIL = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=60),
    st.sampled_from(
        ["<script>x</script>", "</pre><img src=x onerror=y>", "{{ 7*7 }}", "```\n# no", "\ud800", "a|b\n|-|"]
    ),
)


@settings(max_examples=40)
@given(text=EVIL, place=EVIL, as_json=st.booleans())
def test_no_text_becomes_markup_and_nothing_is_loaded(text: str, place: str, as_json: bool) -> None:
    row = refused("duplicate", {"text": text} if as_json else text, place.encode("utf-8", "replace").decode())
    html, markdown = render_card(card(provenance={row.place: "00"}), [row])
    html.encode()
    markdown.encode()
    tags = Page(html).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "img", "link", "iframe", "object", "a"})
    assert not any(name.startswith("on") or name in ("src", "href") for _, attributes in tags for name in attributes)
    assert "url(" not in html.partition("<body>")[0] and "@import" not in html
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert outside != markdown and len([line for line in outside.splitlines() if line.startswith("# ")]) == 1


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    _, markdown = render_card(card(), [refused("duplicate", "a\n````\n# not a heading\n```")])
    assert "`````\na\n````\n# not a heading\n```\n`````" in markdown


def test_an_empty_card_is_a_page() -> None:
    html, markdown = render_card({"role": "ppo", "sources": {}}, [])
    assert "No rule left any row out" in html and "# Data card: ppo" in markdown


def test_statistics_become_sections() -> None:
    part = PartStatistics(rows=3, lengths=Distribution(), languages={"en": 2, "zh": 1})  # type: ignore[arg-type]
    part.lengths.add([100, 120, 300])
    sections = from_statistics({"train": part.summary()})
    assert sections["languages"] == {"train": {"en": 2, "zh": 1}} and "length_bias" not in sections
    assert [one for one in sections["lengths"]["train, tokens"] if one[1]] == [[64, 2], [256, 1]]
    assert "zh" in render_card(card(**sections), [])[0]
