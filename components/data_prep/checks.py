"""What a row must be. A row that is not is refused with the name of the rule, never mended in silence.

Control tokens written out in a text are no reason to refuse it: core/chatml.py encodes them as plain text.
"""

import math
from collections.abc import Iterable

from components.core.records import ROLES, Message
from components.data_prep.templates import RULES as TEMPLATE_RULES


class Reject(Exception):
    """A row is refused. `str()` is the rule's name."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


# Rules that say nothing bad about the data; they do not count towards max_rejected_ratio.
EXPECTED_RULES = frozenset(
    {
        "reserved_for_ppo",
        "reserved_for_training",
        "heldout_prompt",
        "cut_into_other_part",
        "duplicate",
        "near_duplicate",
        "near_heldout_prompt",
        "not_sampled",
        "unsafe_response",
        "over_safety_share",
        "over_react_rows",
        "over_share",
        "tie",
        "small_gap",
        "benchmark",
        "personal_data",
        *TEMPLATE_RULES,
    }
)


def require(fact: bool, rule: str) -> None:
    if not fact:
        raise Reject(rule)


def normalised(text: str) -> str:
    """Text with every run of white space as one blank: what counts as the same text."""
    return " ".join(text.split())


def check_unicode(texts: Iterable[str]) -> None:
    """JSON can spell half a surrogate pair; no tokenizer, Parquet file or UTF-8 file can hold one."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Reject("invalid_unicode") from None


def check_turns(messages: list[Message]) -> None:
    """An optional system turn, then user and assistant in turn, starting with the user; no empty turn but the last."""
    check_unicode(message["content"] for message in messages)
    require(all(message["role"] in ROLES for message in messages), "unknown_role")
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    require(bool(spoken), "no_turns")
    require(spoken[0]["role"] == "user", "first_turn_not_user")
    for index, message in enumerate(spoken):
        require(message["role"] == ("user", "assistant")[index % 2], "roles_do_not_alternate")
    require(all(message["content"].strip() for message in spoken[:-1]), "empty_turn")


def check_conversation(messages: list[Message]) -> None:
    """A conversation to imitate: it ends in an assistant turn that says something."""
    check_turns(messages)
    require(messages[-1]["role"] == "assistant", "last_turn_not_assistant")
    require(bool(messages[-1]["content"].strip()), "empty_reply")


def check_prompt(messages: list[Message]) -> None:
    """A conversation to go on with: it ends in a user turn that says something."""
    check_turns(messages)
    require(messages[-1]["role"] == "user", "last_turn_not_user")
    require(bool(messages[-1]["content"].strip()), "empty_turn")


def check_scores(responses: list[str], scores: list[float]) -> None:
    """A finite score for each response."""
    require(len(scores) == len(responses), "score_count")
    require(all(math.isfinite(score) for score in scores), "bad_score")


def check_responses(responses: list[str], scores: list[float]) -> None:
    """At least two different responses, each with its score. An empty response is a response."""
    check_unicode(responses)
    check_scores(responses, scores)
    require(len(responses) >= 2, "single_response")
    require(len({normalised(response) for response in responses}) >= 2, "identical_responses")


def check_text(text: str) -> None:
    check_unicode([text])
    require(bool(text.strip()), "empty_text")
