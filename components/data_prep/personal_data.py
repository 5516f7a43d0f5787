"""Personal data and secrets: found by their form, masked or refused. What to do is a default of ours; InstructGPT
filtered its prompts for personal data (recipe.md §6).

Only forms that prose and arithmetic do not have by accident: a card number must pass its check digit, a telephone
number must be written like one.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w+.])(?:"
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}"  # international
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([.-])\d{3}\1\d{4}"  # North America
    r"|1[3-9]\d(?:[ -]?\d{4}){2}"  # China, mobile
    r")(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{22,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # JSON web token
    re.DOTALL,
)
# Keys first, and cards before telephones, which may be part of them.
_KINDS = {"key": _KEY, "email": _EMAIL, "card": _CARD, "phone": _PHONE}
# What a kind cannot do without, in as few looks as possible: nearly all texts, arithmetic too, cost these alone.
_DIGITS_OF_CARD = re.compile(r"\d(?:[ -]?\d){12}")
_DIGITS_OF_PHONE = re.compile(r"\d\d\d(?:\) ?\d\d\d|[.-]\d\d\d[.-]\d|[ -]?\d\d\d\d[ -]?\d)")
_MARKS_OF_KEY = (
    "sk-",
    "hf_",
    "xox",
    "eyJ",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "-----BEGIN",
)
_MAY_HAVE: dict[str, Callable[[str], bool]] = {
    "key": lambda text: any(mark in text for mark in _MARKS_OF_KEY),
    "email": lambda text: "@" in text,
    "card": lambda text: bool(_DIGITS_OF_CARD.search(text)),
    "phone": lambda text: "+" in text or bool(_DIGITS_OF_PHONE.search(text)),
}


def may_have(text: str) -> bool:
    """Whether a text is worth a second look: most are not."""
    return any(look(text) for look in _MAY_HAVE.values())


def find(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """(kind, match) of everything personal, kind by kind; a later kind is not looked for inside an earlier one."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _KINDS.items():
        if not _MAY_HAVE[kind](text):
            continue
        for match in pattern.finditer(text):
            if not _is_one(kind, match.group()) or any(a < match.end() and match.start() < b for a, b in taken):
                continue
            taken.append(match.span())
            yield kind, match


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with [EMAIL], [PHONE], [CARD] and [KEY] in the places of what was found, and how many of each."""
    found = sorted(find(text), key=lambda item: item[1].start())
    if not found:
        return text, Counter()
    pieces, end = [], 0
    for kind, match in found:
        pieces += [text[end : match.start()], f"[{kind.upper()}]"]
        end = match.end()
    return "".join([*pieces, text[end:]]), Counter(kind for kind, _ in found)


def _is_one(kind: str, text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    if kind == "card":
        return luhn(digits)
    return kind != "phone" or 7 <= len(digits) <= 15  # E.164 allows 15


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1: every second one from the right counts twice."""
    doubled = [2 * digit for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(number // 10 + number % 10 for number in doubled)) % 10 == 0
