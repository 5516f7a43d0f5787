"""Wrong decoding mended, invisible characters gone, code and mathematics untouched."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import TextRepair
from components.data_prep.checks import Reject
from components.data_prep.text import repaired

UNTOUCHED = [
    "for i in range(10):\n\tprint(f'{i:>3}')  # tab and blanks stay",
    "∀ε>0 ∃δ: |x−a|<δ ⇒ |f(x)−L|<ε; a² ≠ b², ∑ᵢ xᵢ ≤ ½, f\u2061(x), 2\u2062x",
    "naïve café, “Smart” – don’t… ¿Qué? « tout à l’été »",
    "привет, ёж! Ответ: «да»",
    "写一首诗：“春天”。",
    "नमस्ते क्\u200dष, می\u200cخواهم",
    "👩\u200d👩\u200d👧 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 👍🏽",
    "Why does my page show â€™ for an apostrophe? It is UTF-8.",
    'text = text.replace("â€™", "\'")',
    "שלום\u200f (abc)",
]


def mend(text: str, **settings: Any) -> tuple[str, dict[str, int]]:
    fixed, done = repaired(text, TextRepair(**settings))
    return fixed, dict(done)


@pytest.mark.parametrize("text", UNTOUCHED)
def test_code_mathematics_and_other_scripts_survive(text: str) -> None:
    assert mend(text) == (text, {})


@pytest.mark.parametrize(
    ("broken", "text", "done"),
    [
        ("itâ€™s", "it’s", {"encoding_repaired": 1}),
        ("schÃ¶n und mÃ¼de", "schön und müde", {"encoding_repaired": 1}),
        ("Ã¢â‚¬Å“twiceÃ¢â‚¬Â\u009d", "“twice”", {"encoding_repaired": 1}),
        ("РїСЂРёРІРµС‚", "привет", {"encoding_repaired": 1}),
        ("\x93hi\x94", "“hi”", {"encoding_repaired": 1}),
        ("cafe\u0301", "café", {"normalised": 1}),
        ("a\r\nb\rc\u2028d\fe", "a\nb\nc\nd\ne", {"newlines": 4}),
        ("a\x00b\x1b[0m\u200bc\ufeff\u00add", "ab[0mcd", {"invisible_removed": 5}),
        ("pass\u202eword\u200fs", "passwords", {"invisible_removed": 2}),
        ("Hi\U000e0068\U000e0069", "Hi", {"invisible_removed": 2}),
        ("Auf\u200clage", "Auflage", {"invisible_removed": 1}),
        ("x\ufe0f\ufe0f\ufe0f", "x\ufe0f", {"invisible_removed": 2}),
        ("e\u200d\u0301", "é", {"invisible_removed": 1, "normalised": 1}),
    ],
)
def test_what_is_broken_is_mended_and_counted(broken: str, text: str, done: dict[str, int]) -> None:
    assert mend(broken) == (text, done)


def test_each_part_can_be_left_alone() -> None:
    keep = {"encoding": "keep", "invisible": "keep", "unicode": "keep"}
    text = "itâ€™s\x00 cafe\u0301\ufffd"
    assert mend(text, **keep) == (text, {})
    assert mend("ﬁne ①", unicode="nfkc") == ("fine 1", {"normalised": 1})
    assert mend("ﬁne ①") == ("ﬁne ①", {})


@pytest.mark.parametrize(
    ("text", "settings"),
    [("abc\ufffd", {}), ("a" * 98 + "\ufffd\ufffd", {}), ("itâ€™s", {"encoding": "reject"})],
)
def test_what_cannot_or_must_not_be_decoded_is_refused(text: str, settings: dict[str, Any]) -> None:
    with pytest.raises(Reject, match="broken_encoding"):
        mend(text, **settings)


def test_a_lost_character_in_a_long_text_is_no_reason() -> None:
    assert mend("a" * 99 + "\ufffd") == ("a" * 99 + "\ufffd", {})


PIECES = st.sampled_from("Ãâ€™Â©\u200d\u200c\ufe0f👩क\u0301\r\n\x93")
ANY = st.text(st.one_of(st.characters(exclude_categories=()), PIECES))


@given(text=ANY, form=st.sampled_from(["keep", "nfc", "nfkc"]))
def test_repairing_twice_changes_nothing_more(text: str, form: Any) -> None:
    settings = TextRepair(unicode=form, max_replacement_ratio=1)
    once, _ = repaired(text, settings)
    assert repaired(once, settings) == (once, {})
    assert "\r" not in once and not any(ord(c) < 32 and c not in "\n\t" for c in once)
    assert form == "keep" or unicodedata.is_normalized(form.upper(), once)


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_ascii_is_unchanged(text: str) -> None:
    assert mend(text) == (text, {})
