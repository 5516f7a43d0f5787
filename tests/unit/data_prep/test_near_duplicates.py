"""Near-duplicates: similarities worked out by hand, and an index that compares every pair, are the measure."""

import gzip
import hashlib
import json
import random
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from components.data_prep import near_duplicates as module
from components.data_prep.near_duplicates import BAND_VALUES, PERMUTATIONS, near_duplicates, signatures, tokens
from tests.unit.data_prep.test_real_data import ROOT

# So few words that rows come out the same, similar and different.
WORDS = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)
LONG = " ".join(f"word{number}" for number in range(40))
TEXTS = st.lists(st.one_of(WORDS, st.integers(0, 4).map(lambda cut: LONG[cut * 7 :]), st.text(max_size=8)), max_size=12)


def words(count: int, *replaced: int) -> str:
    """`count` different words, some of them by position replaced by words that no other text has."""
    return " ".join(f"other{count}" if number in replaced else f"word{number}" for number in range(count))


def shingles(text: str) -> set[tuple[str, ...]]:
    found = tokens(text)
    return set(zip(found, found[1:], found[2:], strict=False))


def similarity(first: str, second: str) -> float:
    return len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))


def found(*texts: str, references: int = 0, threshold: float = 0.8) -> list[int]:
    return near_duplicates(signatures(texts), references=references, threshold=threshold).tolist()


def compared_with_all(rows: np.ndarray, references: int, threshold: float) -> list[int]:
    """The definition of `near_duplicates`, without an index and without a limit."""
    answer: list[int] = []
    for row, values in enumerate(rows):
        equal = {earlier: rows[earlier] == values for earlier in range(row) if answer[earlier] == -1}
        same = [earlier for earlier, values in equal.items() if values.all()]
        similar = [
            earlier
            for earlier, values in equal.items()
            if values.mean() >= threshold and values.reshape(-1, BAND_VALUES).all(axis=1).any()
        ]
        answer.append((same or similar or [-1])[0] if row >= references else -1)
    return answer


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d e", "a b c d f", 2 / 4),  # abc bcd cde | abc bcd cdf
        ("a b c d e", "A b, c:\nd e!", 1),
        ("a b c", "a b d", 0),
        ("a b c d", "d c b a", 0),
        ("a b c a b c a b c", "a b c a b", 1),  # a set: how often does not count
        (words(10), words(10, 9), 7 / 9),
        (words(10), words(10, 5), 5 / 11),
        (words(30), words(30, 29), 27 / 29),
        (words(30), words(30, 15), 25 / 31),
        ("今天天气怎么样", "今天天气好不好", 2 / 8),  # 今天天 天天气 天气怎 气怎么 怎么样 | … 天气好 气好不 好不好
    ],
)
def test_signatures_estimate_similarities_worked_out_by_hand(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == expected
    one, other = signatures([first, second])
    deviation = (expected * (1 - expected) / PERMUTATIONS) ** 0.5
    assert (one == other).mean() == pytest.approx(expected, abs=3 * deviation + 1e-9)


def test_the_estimate_is_right_on_average() -> None:
    """60 pairs of similarity 25/31: their mean has a standard deviation of 0.005."""
    draw = random.Random(0)
    firsts = [[f"{draw.randrange(10**9):x}" for _ in range(30)] for _ in range(60)]
    seconds = [[*row[:15], "z", *row[16:]] for row in firsts]
    agree = signatures([" ".join(row) for row in firsts]) == signatures([" ".join(row) for row in seconds])
    assert agree.mean() == pytest.approx(25 / 31, abs=0.015)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t stop, Élan!", ["don", "t", "stop", "élan"]),
        ("3x+4 = -2.5", ["3x", "+", "4", "=", "-", "2", "5"]),
        ("C++ or C#", ["c", "++", "or", "c", "#"]),
        ("你好，ＡＢＣ 123。", ["你", "好", "abc", "123"]),
        ("ตา・カナ", ["ต", "า", "カ", "ナ"]),
        ("हिन्दी भाषा सरल", ["हिन्दी", "भाषा", "सरल"]),  # vowel signs belong to their word
        ("한국어 문장 하나", ["한국어", "문장", "하나"]),
        ("in\u00advis\u200bible ok 👍", ["invisible", "ok", "👍"]),
        ("Yes.", ["yes", "", ""]),
        (" ?!  … ", ["?! ...", "", ""]),
        ("", ["", "", ""]),
    ],
)
def test_what_a_token_is(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_signatures_are_those_of_datasketch() -> None:
    """Its class, given our hashes of the shingles before they are mixed, which it does itself."""
    datasketch = pytest.importorskip("datasketch", reason="datasketch is not installed")
    text = words(25)
    unmixed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_mixed", lambda hashes: unmixed.extend(hashes.tolist()) or hashes)
        module.shingle_hashes([text])
    sketch = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=int)
    sketch.update_batch(unmixed)
    least = module._mixed(sketch.hashvalues.astype(np.uint32))
    assert least.astype(np.uint16).tolist() == signatures([text])[0].tolist()


def test_signatures_are_the_least_hashes_by_definition() -> None:
    texts = ["a b c d e", "x", words(9)]
    hashes, starts = module.shingle_hashes(texts)
    assert starts.tolist() == [0, 3, 4] and len(hashes) == 3 + 1 + 7
    for begin, end, row in zip(starts, [*starts[1:], len(hashes)], signatures(texts), strict=True):
        for value, factor, summand in zip(row, module._FACTORS, module._SUMMANDS, strict=True):
            least = min((int(found) * int(factor) + int(summand)) % 2**32 for found in hashes[begin:end])
            assert value == int(module._mixed(np.array([least], np.uint32))[0]) % 2**16


def test_signatures_never_change_between_processes_and_versions() -> None:
    """Shards are signed by different processes, perhaps on another day; a new value here makes old shards useless."""
    signed = signatures(["What is the capital of France?", "你好，世界", "", "\ud800"])
    assert signed.dtype == np.uint16
    assert hashlib.sha256(signed.tobytes()).hexdigest()[:16] == "91e0340c5b3edf8b"


@given(texts=TEXTS, cuts=st.lists(st.integers(0, 12), max_size=3), order=st.randoms())
def test_shards_in_any_number_and_order_give_the_same_signatures(
    texts: list[str], cuts: list[int], order: random.Random
) -> None:
    edges = sorted({0, len(texts), *(cut for cut in cuts if cut < len(texts))})
    shards = list(pairwise(edges))
    whole = np.zeros((len(texts), PERMUTATIONS), np.uint16)
    for begin, end in order.sample(shards, len(shards)):
        whole[begin:end] = signatures(texts[begin:end])
    assert np.array_equal(whole, signatures(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 2)
        assert np.array_equal(whole, signatures(texts))


@given(texts=TEXTS, references=st.integers(0, 6), threshold=st.sampled_from([0.5, 0.8, 1]))
@example(texts=[LONG, LONG, LONG[7:], LONG[14:], "a"], references=2, threshold=0.8)
def test_the_answer_is_that_of_comparing_all_pairs(texts: list[str], references: int, threshold: float) -> None:
    rows = signatures(texts)
    expected = compared_with_all(rows, references, threshold)
    assert near_duplicates(rows, references=references, threshold=threshold).tolist() == expected


@given(texts=TEXTS, references=st.integers(0, 6))
def test_the_same_text_is_always_found_and_a_reference_never_refused(texts: list[str], references: int) -> None:
    twice = [*texts, *(f"  {text.upper()}\n" if text.isascii() else text for text in texts)]
    references = min(references, len(texts))
    answer = found(*twice, references=references)
    assert all(earlier >= 0 for earlier in answer[len(texts) :])
    assert answer[:references] == [-1] * references
    assert all(earlier < row and answer[earlier] == -1 for row, earlier in enumerate(answer) if earlier >= 0)


@given(seed=st.integers(0, 2**32), length=st.integers(1, 40))
def test_texts_without_a_word_in_common_all_stay(seed: int, length: int) -> None:
    texts = [" ".join(f"{seed}x{row}x{number}" for number in range(length)) for row in range(20)]
    assert found(*texts) == [-1] * 20


@given(text=st.text())
def test_unicode_normal_forms_and_white_space_make_no_difference(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert [tokens(form) for form in forms] == [tokens(text)] * 4
    assert tokens(f"\n\u3000 {text}\t ") == tokens(text)


def test_short_texts_are_compared_whole() -> None:
    assert found("", " ", "?", "!", "? ", "Yes", "yes.", "no", "Yes, no") == [-1, 0, -1, -1, 2, -1, 5, -1, -1]
    assert found("Write hello world in C", "Write hello world in C++", "Write hello world in C#") == [-1, -1, -1]
    assert found("Solve 3x + 4 = 10", "Solve 3x - 4 = 10", "solve 3x+4=10.") == [-1, -1, 0]


def chain() -> list[np.ndarray]:
    """Three signatures, each of which agrees with the next in 100 of 120 values; the first and the third in 80."""
    first = np.random.default_rng(0).integers(0, 2**15, PERMUTATIONS, dtype=np.uint16)
    second, third = first.copy(), first.copy()
    second[:20] += 1
    third[:40] += 1
    return [first, second, third]


def test_the_first_row_stays_and_a_refused_one_refuses_nothing() -> None:
    first, second, third = chain()
    assert near_duplicates(np.stack([first, second, third])).tolist() == [-1, 0, -1]
    assert near_duplicates(np.stack([second, first, third])).tolist() == [-1, 0, 0]
    assert near_duplicates(np.stack([first, third, second])).tolist() == [-1, -1, 0]


def test_every_heldout_row_is_compared_with_though_it_repeats_another() -> None:
    first, second, third = chain()
    assert near_duplicates(np.stack([first, second, third]), references=2).tolist() == [-1, -1, 1]
    assert near_duplicates(np.stack([first, first, first, second]), references=2).tolist() == [-1, -1, 0, 0]


def test_the_threshold_is_the_least_share_of_equal_values() -> None:
    first, second, third = chain()
    rows = np.stack([first, second, third])
    assert near_duplicates(rows, threshold=100 / 120).tolist() == [-1, 0, -1]
    assert near_duplicates(rows, threshold=101 / 120).tolist() == [-1, -1, -1]
    assert near_duplicates(rows, threshold=80 / 120).tolist() == [-1, 0, 0]


def test_a_hundred_thousand_equal_rows_are_one() -> None:
    """All pairs would be 5 * 10^9."""
    rows = np.repeat(signatures([LONG]), 100_000, axis=0)
    answer = near_duplicates(rows)
    assert answer[0] == -1 and not answer[1:].any()
    assert near_duplicates(rows, references=99_999).tolist() == [-1] * 99_999 + [0]


def test_rows_around_one_frame_are_compared_with_few_and_their_copies_found(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = " ".join(f"frame{number}" for number in range(22))
    texts = [f"{frame} {' '.join(f'{row}x{number}' for number in range(8))}" for row in range(2000)]
    compared: list[int] = []
    unique = np.unique

    def counted(values, **options):
        answer = unique(values, **options)
        if not options:
            compared.append(len(answer))
        return answer

    monkeypatch.setattr(np, "unique", counted)
    answer = found(*texts, *texts)
    assert answer[:2000] == [-1] * 2000
    assert answer[2000:] == list(range(2000))
    assert max(compared) <= 21 * module.MOST_COMPARED
    assert len(compared) > 1000


def test_a_copy_is_found_in_full_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row shares each band with an earlier one, which alone is compared with; its own copy comes after it."""
    monkeypatch.setattr(module, "MOST_COMPARED", 1)
    draw = np.random.default_rng(0)
    row = draw.integers(0, 2**16, PERMUTATIONS, dtype=np.uint16)
    before = draw.integers(0, 2**16, (20, PERMUTATIONS), dtype=np.uint16)
    for band in range(20):
        before[band, band * BAND_VALUES : (band + 1) * BAND_VALUES] = row[band * BAND_VALUES : (band + 1) * BAND_VALUES]
    assert near_duplicates(np.stack([*before, row, row])).tolist() == [-1] * 21 + [20]


def test_equal_references_take_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row agrees with the third, and shares with it the one bucket that the first two are in too."""
    monkeypatch.setattr(module, "MOST_COMPARED", 2)
    first, _, last = np.random.default_rng(0).integers(0, 2**15, (3, PERMUTATIONS), dtype=np.uint16)
    last[:BAND_VALUES] = first[:BAND_VALUES]
    third = last.copy()
    third[BAND_VALUES::BAND_VALUES] += 1
    assert near_duplicates(np.stack([first, first, third, last]), references=3).tolist() == [-1, -1, -1, 2]


def test_no_rows_have_no_duplicates() -> None:
    assert signatures([]).shape == (0, PERMUTATIONS) and found() == []


@pytest.mark.skipif(not ROOT.is_dir(), reason="no ../shared/data beside the checkout")
def test_real_prompts_and_edited_copies_are_told_apart_as_by_exact_similarity() -> None:
    """Its text is never printed."""
    with gzip.open(ROOT / "sft" / "alpaca_eval_gpt4_outputs.json.gz", "rt", encoding="utf-8") as file:
        texts = [row["instruction"] for row in json.load(file)][:300]
    with gzip.open(ROOT / "preferences" / "hh_rlhf_harmless_base.jsonl.gz", "rt", encoding="utf-8") as file:
        texts += [json.loads(line)["chosen"] for line in file][:100]
    draw = random.Random(0)
    for text in texts[:400]:
        copy = text.split()
        for _ in range(draw.randrange(4)):
            copy[draw.randrange(len(copy))] = "edited"
        texts.append(" ".join(copy).upper())
    answer = found(*texts)
    sets = [shingles(text) for text in texts]
    missed = wrong = certain = 0
    for row, earlier in enumerate(answer):
        stay = [sets[other] for other in range(row) if answer[other] == -1]
        exact = max((len(sets[row] & other) / len(sets[row] | other) for other in stay), default=0)
        certain += exact >= 0.9
        missed += exact >= 0.9 and earlier == -1
        wrong += earlier >= 0 and len(sets[row] & sets[earlier]) / len(sets[row] | sets[earlier]) < 0.7
    assert certain > 150 and missed == 0 and wrong == 0


def test_texts_of_one_shingle_with_the_same_low_bits_are_not_the_same() -> None:
    """The low bits of an affine map depend on the low bits alone."""
    hashes = np.array([0x0001BEEF, 0x7FFEBEEF], np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "shingle_hashes", lambda texts: (hashes, np.array([0, 1])))
        one, other = signatures(["a", "b"])
    assert (one == other).mean() < 0.05
