"""The language of short prompts; none where nobody could be sure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data_prep.language import language_of


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "What is the capital of France?"),
        ("en", "Translate 你好 into English, please"),
        ("en", "Summarise Tolstoy's novels without spoiling the endings"),
        ("zh", "用Python实现快速排序 quicksort"),
        ("zh", "请写一首关于春天的诗"),
        ("ja", "春についての詩を書いて"),
        ("ko", "기타 치는 법을 알려 주세요"),
        ("ru", "Как научиться играть на гитаре, если нет времени?"),
        ("uk", "Напиши вірш про осінь, будь ласка, щоб він був гарний."),
        ("ar", "كيف أتعلم العزف على الجيتار؟"),
        ("fa", "چگونه گیتار یاد بگیرم؟"),
        ("he", "איך לומדים לנגן בגיטרה?"),
        ("hi", "गिटार बजाना कैसे सीखें?"),
        ("el", "Πώς μπορώ να μάθω κιθάρα;"),
        ("th", "ฉันจะเรียนกีตาร์ได้อย่างไร"),
        ("de", "Erkläre mir den Unterschied zwischen Aktien und Anleihen."),
        ("fr", "Écris un poème sur la mer et le vent."),
        ("es", "¿Cómo puedo aprender a tocar la guitarra?"),
        ("pl", "Jak mogę nauczyć się grać na gitarze?"),
        ("vi", "Làm thế nào để học chơi đàn guitar?"),
        ("", "hi"),
        ("", "asdf qwer zxcvb"),
        ("", "def f(x): return x+1"),
        ("", "2 + 2 = ?"),
        ("", "🎉🎉🎉"),
        ("", ""),
    ],
)
def test_language_of_a_prompt(language: str, text: str) -> None:
    assert language_of(text) == language


def test_only_the_beginning_is_looked_at() -> None:
    german = "Erkläre mir bitte den Unterschied zwischen Aktien und Anleihen, und zwar so einfach wie möglich. " * 2
    assert language_of(german + "请写一首关于春天的诗" * 50) == "de"


@given(st.text())
def test_any_text_has_a_code_of_two_letters_or_none_and_always_the_same(text: str) -> None:
    found = language_of(text)
    assert found == "" or (len(found) == 2 and found.isascii() and found.islower())
    assert language_of(text) == found
