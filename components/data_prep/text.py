"""Texts as they should have arrived: decoded once and rightly, in one Unicode normal form, without what nobody sees.

ASCII, and with it most code and mathematics, stays as it is but for control characters. What to do is a default of
ours; Qwen's own tokenizer normalises to NFC.
"""

import re
import unicodedata
from collections import Counter
from typing import Literal

import ftfy
from ftfy.chardata import CHARMAP_ENCODINGS

from components.core.config import TextRepair
from components.data_prep.checks import Reject, require


def repaired(text: str, settings: TextRepair) -> tuple[str, Counter[str]]:
    """The text, and what was done to it: encoding_repaired, newlines, invisible_removed (characters), normalised.

    Raises Reject("broken_encoding") for what cannot be decoded any more, or must not be by the settings. What is
    repaired stays as it is when it is repaired again.
    """
    done: Counter[str] = Counter()
    if is_plain(text):
        return text, done
    for _ in range(_ROUNDS):
        before = text
        text = _decoded(text, settings, done)
        text = _visible(text, settings, done)
        text = _normal(text, settings, done)
        if text == before:
            return text, done
    raise Reject("broken_encoding")


def is_plain(text: str) -> bool:
    """Whether a text needs no repair under any settings, as nearly all that is ASCII."""
    return text.isascii() and len(text.encode().translate(None, _ASCII_INVISIBLE)) == len(text)


def _decoded(text: str, settings: TextRepair, done: Counter[str]) -> str:
    """Text without what one decoding too many, or a wrong one, made of it."""
    if settings.encoding == "keep":
        return text
    require(text.count("\ufffd") <= settings.max_replacement_ratio * len(text), "broken_encoding")
    if not _MAYBE_MOJIBAKE.search(text) or _ABOUT_ENCODING.search(text):
        return text
    fixed = ftfy.fix_encoding(text)
    if fixed != text:
        require(settings.encoding == "repair", "broken_encoding")
        done["encoding_repaired"] += 1
    return fixed


def _visible(text: str, settings: TextRepair, done: Counter[str]) -> str:
    if settings.invisible == "keep" or _is_visible(text):
        return text
    text, newlines = _NEWLINE.subn("\n", text)
    text, removed = (_INVISIBLE_WITH_RTL if _RIGHT_TO_LEFT.search(text) else _INVISIBLE).subn("", text)
    done.update({name: count for name, count in (("newlines", newlines), ("invisible_removed", removed)) if count})
    return text


def _is_visible(text: str) -> bool:
    """A quick look, which takes unusual blanks and joiners for invisible."""
    return text.replace("\n", "").replace("\t", "").isprintable() and not _SELECTOR.search(text)


def _normal(text: str, settings: TextRepair, done: Counter[str]) -> str:
    if settings.unicode == "keep":
        return text
    form: Literal["NFC", "NFKC"] = "NFC" if settings.unicode == "nfc" else "NFKC"
    if unicodedata.is_normalized(form, text):
        return text
    done["normalised"] += 1
    return unicodedata.normalize(form, text)


# One step can make work for another (a removed character joins two); no text that we know needs more than three.
_ROUNDS = 6
_ASCII_INVISIBLE = bytes(code for code in [*range(32), 127] if chr(code) not in "\t\n")
_NEWLINE = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")  # Unicode's newline function (5.8)

# UTF-8 read as a single-byte encoding has, after a character that is not ASCII, one that a continuation byte is read
# as. ftfy's own look for mojibake costs ten times as much. \x80-\x9f: Windows-1252 read as Latin-1.
_CONTINUATION = {
    bytes([code]).decode(encoding, "ignore") for encoding in CHARMAP_ENCODINGS for code in range(0x80, 0xC0)
} - {""}
_MAYBE_MOJIBAKE = re.compile(f"[^\\x00-\\x7f][{re.escape(''.join(sorted(_CONTINUATION)))}]|[\\xc2\\xc3] |[\\x80-\\x9f]")
# Who asks about mojibake, or replaces it in code, means it.
_ABOUT_ENCODING = re.compile(
    r"mojibake|utf-?8|unicode|latin-?1|iso-?8859|cp-?125\d|windows-125\d|encod|decod|charset|replace\(|乱码|编码|亂碼|編碼",
    re.IGNORECASE,
)

# Letters that a joiner shapes: Arabic and its neighbours, Brahmic and Mongolian scripts.
_JOINED = "\u0600-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1bff\ua840-\ua9ff\U00010a00-\U00011fff"
_PICTURE = "\u2190-\u2bff\u3030\u303d\ufe0f\U0001f000-\U0001faff"  # emoji and what may follow them
_TAGS = "\U000e0000-\U000e007f"
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_OVERRIDES = "\u202d\u202e"
_BIDI_MARKS = "\u200e\u200f\u061c\u202a-\u202c\u2066-\u2069"
_ALWAYS = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u180e\u200b\u2060\u206a-\u206f\ufeff\ufff9-\ufffc\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + _OVERRIDES
)
_UNSHAPED = (
    rf"(?<![{_JOINED}])\u200c"
    rf"|(?<![{_JOINED}{_PICTURE}])\u200d|(?<=[{_PICTURE}])\u200d(?![{_PICTURE}])"
    rf"|(?<![\U0001f3f4{_TAGS}])[{_TAGS}]"  # flags of England, Scotland and Wales; elsewhere a hidden message
    rf"|(?<![^\s{_SELECTORS}])[{_SELECTORS}]"  # one selects the form of one character
)
_SELECTOR = re.compile(f"[{_SELECTORS}]")
_INVISIBLE = re.compile(f"[{_ALWAYS}{_BIDI_MARKS}]|{_UNSHAPED}")
_INVISIBLE_WITH_RTL = re.compile(f"[{_ALWAYS}]|{_UNSHAPED}")
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdcf\ufdf0-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
