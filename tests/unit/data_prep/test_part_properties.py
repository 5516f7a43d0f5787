"""A prompt is in one part: whatever the role, the case, the white space, the personal data, the replies."""

from hypothesis import given
from hypothesis import strategies as st

from components.core.config import Splits
from components.core.records import Message
from components.data_prep import split
from components.data_prep.checks import Reject

ROLES = ("sft", "pmp", "reward_model", "ppo")
WORDS = st.lists(
    st.sampled_from(["add", "Two", "straße", "ÉTÉ", "语言", "me@example.org", "555-123-4567", "?", "x\u0301"]),
    min_size=1,
    max_size=6,
)
SPACES = st.sampled_from([" ", "  ", "\n", "\t", "\u00a0", " \u3000 "])
SPLITS = st.tuples(st.integers(0, 5), st.integers(0, 4)).map(
    lambda tenths: Splits(heldout=tenths[0] / 10, ppo=tenths[1] / 10)
)


def place(messages: list[Message], role: str, splits: Splits) -> str:
    try:
        return split.part_for(
            split.key_of_messages(messages), role, splits, heldout_only=False, heldout_keys=frozenset()
        )
    except Reject as refused:
        return refused.rule


@given(turns=st.lists(WORDS, min_size=1, max_size=3), splits=SPLITS, data=st.data())
def test_every_spelling_of_a_prompt_has_its_part_in_every_role(
    turns: list[list[str]], splits: Splits, data: st.DataObject
) -> None:
    plain = [{"role": "user", "content": " ".join(words)} for words in turns]
    other: list[Message] = [{"role": "system", "content": "s"}] if data.draw(st.booleans()) else []
    for words in turns:
        case = data.draw(st.sampled_from([str, str.upper, str.lower, str.swapcase]))
        content = "".join(data.draw(SPACES) + case(word) for word in words) + data.draw(SPACES)
        other += [{"role": "user", "content": content}, {"role": "assistant", "content": data.draw(st.text())}]
    for role in ROLES:
        assert place(plain, role, splits) == place(other, role, splits)


@given(words=WORDS, splits=SPLITS)
def test_no_two_steps_train_on_what_a_third_tests(words: list[str], splits: Splits) -> None:
    messages = [{"role": "user", "content": " ".join(words)}]
    found = {role: place(messages, role, splits) for role in ROLES}
    assert ("heldout" in found.values()) == (set(found.values()) == {"heldout"})
    if splits.ppo:
        assert not (found["ppo"] == "train" and "train" in [found[role] for role in ROLES[:3]])
    else:
        assert len(set(found.values())) == 1
