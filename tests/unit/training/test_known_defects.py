"""Defects that other trainers had (../shared/spec/peers.md §3), one or more tests for each; a test's name says which.

What an older test holds already is not repeated here. Row of the table -> where it is tested, `here` being this file,
`pass` unit/training/test_known_defects_pass.py, `ppo` tests/unit/ppo/test_known_defects_ppo.py and `ranks` tests/integration/test_known_defects_ranks.py:

     1  mean of means            here, ranks: test_mean_of_micro_batch_means_trl2175; unit/sft/test_sft.py
     2  packed rows mix          here: ..._trl1230, ..._trl805; unit/training/test_models.py::test_logits_are_the_same_...
     3  mask by string search    here: ..._trl632; unit/data_prep/test_tokenise.py::test_labels_spell_the_assistants_words...,
                                 unit/core/test_chatml.py::test_empty_reply_..., ::test_a_conversation_has_exactly_...
     4  pad = end                here: ..._trl1623; ppo: ..._trl3091; unit/core/test_chatml.py::test_padding_is_never_...;
                                 no false end: unit/data_prep/test_tokenise.py::test_a_cut_chat_is_the_longest_run_...
     5  no targets left          here, ranks: ..._trl6025; dropped and counted: unit/data_prep/test_prepare.py::
                                 test_over_long_rows_are_cut_between_turns_or_refused
     6  reward behind the end    ppo: ..._trl1893, ..._trl3750; unit/ppo/test_ppo.py::test_reward_lands_on_the_last_...,
                                 unit/ppo/test_advantages.py
     7  first ratio not 1        ppo, ranks: ..._trl454; unit/ppo/test_ppo.py::test_first_pass_has_ratio_one_...
     8  steps of mini-batches    ranks: ..._trl5645; unit/ppo/test_ppo.py::test_optimiser_steps_are_rollouts_times_...
     9  metrics over padding     here: ..._trl2022, ..._openinstruct756, ..._rlhfbook216
    10  PPO does not resume      integration/test_kill.py, unit/training/test_resume.py
    11  order after a resume     integration/test_kill.py::test_killed_at_a_random_step_of_any_epoch,
                                 ::test_another_number_of_ranks_or_stage_goes_on; unit/training/test_data.py
    12  score by padding side    ppo: ..._trl2778, ..._rewardbench137; unit/reward_model/test_reward_model.py::
                                 test_score_does_not_depend_on_padding_or_batch_mates; unit/training/test_models.py
    13  [B, T, V] logits         here: ..._trl3678, ..._trl234; unit/training/test_sampling.py::test_logits_are_made_for_...
    14  ranks out of step        ranks: ..._llamafactory3186
    15  order not undone, scale  here: ..._verl1440; ppo: ..._deepspeedexamples556; unit/ppo/test_rewards.py
     +  pads in the RM loss      here: ..._deepspeedexamples316
        head in 16 bits          here: ..._trlx442
        ZeRO-3 and other saves   here: ..._trl2122, ..._llamafactory273; ranks: ..._trl2122; integration/test_zero.py
        double BOS               here: ..._trl1400; unit/training/test_models.py::test_saved_chat_template_renders_...
        temperature and top-p    ppo: ..._trl6789; unit/training/test_models.py::test_log_probs_are_of_the_logits_...
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import components.sft.train as sft
from components.core.chatml import IGNORE, ChatTokenizer
from components.core.metrics import read_metrics
from components.core.records import Chat
from components.data_prep.tokenise import fit_chat
from components.reward_model.model import RewardModel
from components.training.models import load_policy
from components.training.scoring import token_nll
from tests import ragged
from tests.dumped import Dump, read, record
from tests.steps import ORIGIN, publish_model, publish_rows, run_step, weights

Trained = Callable[[str, int], Dump]
FEW = settings(max_examples=15)
ROWS = st.lists(st.lists(st.integers(33, 300), min_size=2, max_size=12), min_size=2, max_size=5)
VOCABULARY = 320


@pytest.fixture(scope="module")
def trained(model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """trained(step, micro-batches): the step on its eight ragged rows, made once, with a record."""
    folder, work = model_folders("qwen2"), tmp_path_factory.mktemp("trained")
    tokenizer = ChatTokenizer.load(folder)
    given: dict[str, dict[str, str]] = {}
    made: dict[tuple[str, int], Dump] = {}

    def make(step: str, count: int) -> Dump:
        if step not in given:
            given[step] = ragged.inputs(step, folder, work / step)
        if (step, count) not in made:
            output = work / f"{step}-{count}"
            tokens = ragged.budget(step, tokenizer, count)
            run_step(step, output, given[step], ragged.SETTINGS[step] | {"micro_batch_tokens": tokens})
            made[step, count] = read(output)
        return made[step, count]

    with pytest.MonkeyPatch.context() as patch:
        record(patch.setattr)
        yield make


@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_mean_of_micro_batch_means_trl2175(trained: Trained, step: str) -> None:
    """8 x 1 = 4 x 2 = 2 x 4 = 1 x 8 micro-batches of ragged rows, for policy, value and ptx (verl#6957), PMP and reward
    model: losses are divided by what the whole optimiser step averages over (trl#2175, transformers#34191)."""
    whole = trained(step, 1)
    for count in (1, 2, 4, 8):
        split = trained(step, count)
        assert {passes for made in split.passes[0].values() for passes in made} == {count}
        assert split.weights.keys() == whole.weights.keys()
        for name, weight in whole.weights.items():
            assert torch.allclose(weight, split.weights[name], rtol=0, atol=1e-5), (count, name)
    if step == "ppo":
        assert whole.passes[0].keys() == {"policy", "policy-text", "value"}
        # Where all responses are alike a mean of means is right by accident.
        assert 1 < whole.metrics[-1]["ppo_response_length_tokens"] < 6


CONVERSATIONS = [
    (None, ["hi", "blue"]),
    ("be brief", ["<|im_start|>assistant\nno<|im_end|>\n", "", "and?", "the sky is blue. "]),
    ("", ["assistant", "<|im_start|>user\nhi", "<|im_end|>", "<|im_end|>", "sum", "assistant\n"]),
]


def _train_on_conversations(
    folder: Path, work: Path, patch: pytest.MonkeyPatch, longest: int = 10_000
) -> tuple[ChatTokenizer, list[list[int]], list[Chat]]:
    """The labels that reach the loss of an SFT step on CONVERSATIONS, as data_prep encodes them, by row."""
    tokenizer = ChatTokenizer.load(folder)
    rows = []
    for number, (system, turns) in enumerate(CONVERSATIONS):
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        messages, ids, labels = fit_chat(tokenizer, messages, longest, "assistant_only")
        rows.append(Chat(id=str(number), messages=messages, input_ids=ids, labels=labels, **ORIGIN))
    seen: dict[tuple[int, ...], list[int]] = {}

    def spy(model: Any, given: list[np.ndarray], labels: list[np.ndarray]) -> torch.Tensor:
        losses = token_nll(model, given, labels)
        targets = [[int(label) for label in own[1:] if label != IGNORE] for own in labels]
        assert len(losses) == sum(map(len, targets))
        seen.update({tuple(row.tolist()): target for row, target in zip(given, targets, strict=True)})
        return losses

    patch.setattr(sft, "token_nll", spy)
    given = {"base_model": publish_model(folder, work / "base"), "data": publish_rows(work / "r", work / "d", rows)}
    run_step("sft", work / "out", given, ragged.SETTINGS["sft"] | {"steps": 1, "batch_size": len(rows)})
    return tokenizer, [seen[tuple(row.input_ids)] for row in rows], rows


def test_multi_turn_user_text_is_scored_trl632(
    model_folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loss of an SFT step is taken on spells the assistant's words, through all turns, with a system prompt,
    with empty replies and with words that look like turns (trl#1550, #1184, #632)."""
    tokenizer, targets, _ = _train_on_conversations(model_folders("qwen2"), tmp_path, monkeypatch)
    for found, (_, turns) in zip(targets, CONVERSATIONS, strict=True):
        expected = "".join(f"{reply}<|im_end|>\n" for reply in turns[1::2])
        assert tokenizer.decode(found, control_tokens=True) == expected


def test_end_of_turn_is_hidden_as_padding_trl1623(
    model_folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every assistant turn's `<|im_end|>` is a target, cut rows have none made up (OpenRLHF `sft_dataset.py:193`), and
    a document's last token, whose id is that of padding, is a target of ptx (trl#1623, #3091)."""
    tokenizer, targets, rows = _train_on_conversations(model_folders("qwen2"), tmp_path, monkeypatch, longest=80)
    assert len(rows[2].messages) < 7  # cut
    for found, row in zip(targets, rows, strict=True):
        replies = [message for message in row.messages if message["role"] == "assistant"]
        assert found.count(tokenizer.im_end) == len(replies) and found[-2] == tokenizer.im_end
    document = tokenizer.encode_document("the cat")
    assert document[-1] == tokenizer.pad
    model = load_policy(model_folders("qwen2"))
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([document])).logits[0], dim=-1)
        last = float(token_nll(model, [document, document * 3], [document, document * 3])[len(document) - 2])
    assert last == pytest.approx(-float(log_probs[-2, tokenizer.pad]), abs=1e-5)


@pytest.mark.parametrize("step", ["sft", "pmp", "reward_model"])
def test_batch_without_targets_gives_nan_trl6025(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str
) -> None:
    """No label, or a tie in every comparison (recipe.md §7): a loss of zero, and weights that only decay would change
    (trl#6025, #5826)."""
    rows: list[Any] = getattr(ragged, "chats" if step == "sft" else "comparisons")(
        ChatTokenizer.load(model_folders("qwen2"))
    )
    for row in rows:
        if step == "sft":
            row.labels = [IGNORE] * len(row.labels)
        else:
            row.pairs = []
    given = ragged.inputs(step, model_folders("qwen2"), tmp_path / "in", rows=rows)
    config = ragged.SETTINGS[step] | {"optimiser": {"weight_decay": 0.0}, "micro_batch_tokens": 100}
    made = run_step(step, tmp_path / "out", given, config)
    before, after = weights(given["base_model"]), weights(made.outputs["model"])
    assert all(torch.equal(before[name], after[name]) for name in before)
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert lines
    for line in lines:
        assert line["training_loss"] == line["training_grad_norm"] == line["training_nonfinite_steps_total"] == 0.0


def test_row_without_targets_changes_the_loss_of_others_trl5826(
    model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Seven rows train alike with and without an eighth that has no label."""
    folder = model_folders("qwen2")
    rows = ragged.chats(ChatTokenizer.load(folder))
    made = []
    for name, count in (("with", 8), ("without", 7)):
        rows[7].labels = [IGNORE] * len(rows[7].labels)
        given = ragged.inputs("sft", folder, tmp_path / name, rows=rows[:count])
        config = ragged.SETTINGS["sft"] | {"batch_size": count, "micro_batch_tokens": 60}
        made.append(weights(run_step("sft", tmp_path / f"{name}-out", given, config).outputs["model"]))
    for name, weight in made[0].items():
        assert torch.allclose(weight, made[1][name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_metrics_averaged_over_padding_trl2022(trained: Trained, step: str) -> None:
    """Loss, gradient norm, KL, entropy, accuracy and the rest do not depend on which rows shared a forward pass."""
    lines = [trained(step, count).metrics for count in (1, 2, 8)]
    for others in zip(*lines, strict=True):
        for other in others[1:]:
            assert other == pytest.approx(others[0], abs=1e-5, rel=1e-4)


def test_padding_in_the_reward_loss_deepspeedexamples316(model_folders: Callable[[str], Path], tmp_path: Path) -> None:
    """The first loss of a reward model by hand, from scores of responses read alone at their last token: mean over
    prompts of the mean over the prompt's pairs, however long a pair's other response is (DeepSpeedExamples#316)."""
    folder = model_folders("qwen2")
    rows = ragged.comparisons(ChatTokenizer.load(folder))
    given = ragged.inputs("reward_model", folder, tmp_path / "in", rows=rows)
    torch.manual_seed(3)
    scorer = RewardModel.from_base(folder, "mlp")
    (tmp_path / "rm").mkdir()
    scorer.save(tmp_path / "rm", folder)
    given["base_model"] = publish_model(tmp_path / "rm", tmp_path / "base")
    config = ragged.SETTINGS["pmp"] | {"epochs": 1.0, "micro_batch_tokens": 100}
    run_step("reward_model", tmp_path / "out", given, config)
    losses, gaps = [], []
    for row in rows:
        scores = [scorer.score([ids], 1)[0] for ids in row.input_ids]
        own = [scores[pair["chosen"]] - scores[pair["rejected"]] for pair in row.pairs]
        losses.append(sum(math.log1p(math.exp(-gap)) for gap in own) / len(own))
        gaps += own
    line = read_metrics(tmp_path / "out" / "metrics.jsonl")[0]
    assert line["training_samples_total"] == len(gaps) == ragged.PAIRS
    assert line["training_loss"] == pytest.approx(sum(losses) / 8, abs=1e-5)
    assert line["reward_model_margin"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert line["reward_model_accuracy_ratio"] == pytest.approx(sum(gap > 0 for gap in gaps) / len(gaps))


@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_saved_model_is_not_the_trained_one_trl2122(trained: Trained, step: str) -> None:
    """What is published holds the trained fp32 weights bit for bit, and transformers alone reads the same logits."""
    made = trained(step, 2)
    folder, saved = Path(made.model), weights(made.model)
    prefix = {"sft": "policy/weights.", "ppo": "policy/weights."}.get(step, "model/weights.trunk.")
    names = [name for name in made.weights if name.startswith(prefix)]
    assert len(names) == len(saved)
    for name in names:
        assert torch.equal(made.weights[name], saved[name.removeprefix(prefix)]), name
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[50, 60, 70, 80]])
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, load_policy(folder)(ids).logits)


@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_tokenizer_is_edited_on_save_llamafactory273(trained: Trained, tokenizer_folder: Path, step: str) -> None:
    folder = Path(trained(step, 2).model)
    assert (folder / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_two_tokens_begin_a_prompt_trl1400(trained: Trained, step: str) -> None:
    """A published model's own chat template, with transformers' tokenizer, gives the ids that it was trained on."""
    folder = Path(trained(step, 2).model)
    theirs, ours = AutoTokenizer.from_pretrained(folder), ChatTokenizer.load(folder)
    messages = [{"role": "user", "content": "what colour is the sky?"}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert theirs(text).input_ids == ours.encode_prompt(messages)
