"""Prompt templates: what a program wrote around a task, which the report keeps out of SFT (§3.1.1).

The report names no rule; the families below are recipe.md §6's, the signs of each are ours. A rule looks at one turn,
and the first that fits names the reason. Data for tool use has a format by design: whoever asks exempts it
(`is_tool_use`).
"""

import re
from collections.abc import Iterator

from components.core.records import Message

RULES = (
    "template_alpaca",
    "template_human_assistant",
    "template_few_shot",
    "template_fields",
    "template_multiple_choice",
    "template_cloze",
    "template_mined_prefix",
    "template_mined_suffix",
    "template_mined_skeleton",
)

# Fields of FLAN-like tasks, at the start of a line.
_FIELD = (
    r"(?:Premise|Hypothesis|Context|Passage|Paragraph|Article|Document|Question|Sentence(?: ?[12])?|Text|Review|Tweet|"
    r"Input|Output|Answer|Label|Sentiment|Summary|Translation|Q|A|问题|答案|回答|输入|输出|句子|文本|标签)"
)
_FIELD_LINE = re.compile(rf"^[ \t*]*({_FIELD})[ \t*]*[:：]", re.MULTILINE | re.IGNORECASE)
_OPEN_FIELD = re.compile(rf"^[ \t*]*{_FIELD}[ \t*]*[:：][ \t*]*\Z", re.MULTILINE | re.IGNORECASE)
_ANSWER = {"a", "answer", "output", "label", "sentiment", "summary", "translation", "答案", "回答", "输出", "标签"}

_ALPACA_HEADER = re.compile(r"^#{2,3} ?(Instruction|Input|Response|Output) ?:", re.MULTILINE | re.IGNORECASE)
_ALPACA_SENTENCES = (
    "below is an instruction that describes a task",
    "write a response that appropriately completes the request",
)
_HUMAN = re.compile(r"^[ \t*]*(?:###? ?)?(?:Human|User|USER|人类|用户) ?[:：]", re.MULTILINE)
_MACHINE = re.compile(r"^[ \t*]*(?:###? ?)?(?:Assistant|ASSISTANT|AI|Bot|助手|机器人) ?[:：]", re.MULTILINE)

_OPTION_LINE = re.compile(r"^[ \t]*[(\[（]?([A-H])[)\].:、．）][ \t]*\S", re.MULTILINE)
_OPTION_INLINE = re.compile(r"[(（]([A-Ha-h])[)）]")
_OPTIONS_HEADER = re.compile(r"^[ \t]*(?:OPTIONS|Options|Choices|选项) ?[:：][ \t]*(?:\n|$)", re.MULTILINE)

# A gap with words of its own sentence beside it: a line to write a name on is none.
_CLOZE = re.compile(
    r"\[(?:MASK|BLANK|blank)\]|<(?:mask|blank|extra_id_\d+)>|"
    r"(?<=\w )_{3,}(?=[ ,.;:?!]|$)|(?<![_\n])_{3,}(?= \w)|[（(] {2,}[)）]",
    re.MULTILINE,
)
_CLOZE_SIGNS = ("[", "<", "___", "(  ", "（")

_REACT = tuple(re.compile(rf"^{name}:", re.MULTILINE) for name in ("Thought", "Action", "Action Input"))


def template_rule(messages: list[Message]) -> str | None:
    """The rule that a conversation breaks, or None. Prompts are looked at for all templates, replies and system turns
    for those that leak from a trainer's own format."""
    for message in messages:
        for rule in _rules(message["content"], of_user=message["role"] == "user"):
            return rule
    return None


def is_tool_use(messages: list[Message]) -> bool:
    """ReAct (§3.4): thought, action and its input, each on a line of its own, in any turn."""
    texts = (message["content"] for message in messages)
    return any("Action Input:" in text and all(part.search(text) for part in _REACT) for text in texts)


def _rules(text: str, *, of_user: bool) -> Iterator[str]:
    # A look for the characters that a pattern cannot do without costs a tenth of it, and settles most texts.
    has_colon = ":" in text or "：" in text
    lowered = text.lower()
    if any(sentence in lowered for sentence in _ALPACA_SENTENCES) or _alpaca_headers(text):
        yield "template_alpaca"
    if has_colon and _HUMAN.search(text) and _MACHINE.search(text):
        yield "template_human_assistant"
    if not of_user:
        return
    fields = [name.lower() for name in _FIELD_LINE.findall(text)] if has_colon else []
    answers = [name for name in fields if name in _ANSWER]
    if len(answers) >= 2 and len(fields) >= 2 * len(answers) - 1:
        yield "template_few_shot"
    if len(fields) >= 2 and _OPEN_FIELD.search(text):
        yield "template_fields"
    if (has_colon and _OPTIONS_HEADER.search(text)) or _options(text):
        yield "template_multiple_choice"
    if any(sign in text for sign in _CLOZE_SIGNS) and _CLOZE.search(text):
        yield "template_cloze"


def _options(text: str) -> bool:
    as_lines = all(label in text for label in "ABC") and _in_order(_OPTION_LINE.findall(text))
    return as_lines or (("(" in text or "（" in text) and _in_order(_OPTION_INLINE.findall(text)))


def _alpaca_headers(text: str) -> bool:
    """A response's header, or two different ones: one alone is a heading like any other."""
    if "##" not in text:
        return False
    found = {name.lower() for name in _ALPACA_HEADER.findall(text)}
    return "instruction" in found or len(found) >= 2


def _in_order(labels: list[str]) -> bool:
    """A, B, C at least, in this order: initials and lists that begin elsewhere are no options."""
    return [label.upper() for label in labels[:3]] == ["A", "B", "C"]
