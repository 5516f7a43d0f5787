"""Checked text becomes token ids that fit. What is too long is cut between turns, never inside one (recipe.md §7)."""

from collections.abc import Iterator

from components.core.chatml import ChatTokenizer, LossMask, Turn, label_turns
from components.core.records import Message
from components.data_prep.checks import Reject, require


def fit_chat(
    tokenizer: ChatTokenizer, messages: list[Message], max_length: int, mask: LossMask
) -> tuple[list[Message], list[int], list[int]]:
    """(messages, input_ids, labels): the system turn and the longest run of turns that ends in an assistant turn."""
    turns = tokenizer.turns(messages)
    length = kept = 0
    for count, turn in enumerate(turns, 1):
        length += len(turn.ids)
        if length > max_length:
            break
        if turn.role == "assistant":
            kept = count
    # A row without a single token of an assistant's words would train nothing but control tokens.
    require(any(turn.content for turn in turns[:kept] if turn.role == "assistant"), "too_long")
    ids, labels = label_turns(turns[:kept], mask)
    inserted = len(turns) - len(messages)
    return messages[: kept - inserted], ids, labels


def fit_responses(
    tokenizer: ChatTokenizer, messages: list[Message], responses: list[str], max_length: int
) -> tuple[list[Message], list[list[int] | None]]:
    """(context, input_ids of each response or None where it cannot fit).

    The oldest turns go first; the system turn and the last user turn stay. All responses get the same context, so that
    a difference in score is theirs.
    """
    system, *spoken = tokenizer.turns(messages)
    header = tokenizer.header("assistant")
    tails = [[*tokenizer.encode_text(response), tokenizer.im_end] for response in responses]
    # A context starts with a user turn: every second one, from the oldest on.
    prompts = {start: [*system.ids, *_joined(spoken[start:]), *header] for start in range(0, len(spoken), 2)}
    room = {start: max_length - len(prompt) for start, prompt in prompts.items()}
    fits = [len(tail) <= room[len(spoken) - 1] for tail in tails]
    if not any(fits):
        raise Reject("too_long")
    longest = max(len(tail) for tail, fit in zip(tails, fits, strict=True) if fit)
    start = next(start for start, left in room.items() if longest <= left)
    given = messages[: len(messages) - len(spoken)]  # empty where the default system turn was put in
    kept = given + messages[len(given) + start :]
    return kept, [prompts[start] + tail if fit else None for tail, fit in zip(tails, fits, strict=True)]


def _joined(turns: list[Turn]) -> list[int]:
    return [token for turn in turns for token in turn.ids]


def fit_prompt(tokenizer: ChatTokenizer, messages: list[Message], max_length: int) -> list[int]:
    """A prompt's ids. A longer one is refused: a cut one is another prompt, and may have lost its header."""
    ids = tokenizer.encode_prompt(messages)
    require(len(ids) <= max_length, "too_long")
    return ids


class Packer:
    """Joins documents and cuts them into sequences of one length, in order; nothing is lost, the last is shorter."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._waiting: list[int] = []

    def add(self, ids: list[int]) -> Iterator[list[int]]:
        """Sequences that a document's ids, closed by `<|endoftext|>`, complete."""
        self._waiting += ids
        whole = len(self._waiting) // self.length * self.length
        for start in range(0, whole, self.length):
            yield self._waiting[start : start + self.length]
        del self._waiting[:whole]

    def rest(self) -> Iterator[list[int]]:
        if self._waiting:
            yield self._waiting
        self._waiting = []


def text_of(tokenizer: ChatTokenizer, ids: list[int]) -> str:
    """The text of a packed sequence, a blank line between documents; a character cut in two shows as U+FFFD."""
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.end_of_text:
            documents.append([])
        else:
            documents[-1].append(token)
    return "\n\n".join(tokenizer.decode(document) for document in documents if document)
