"""Eight ragged rows a step for each trainer, and budgets of tokens that cut them into 1, 2, 4 or 8 micro-batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.core.chatml import ChatTokenizer, label_turns
from components.core.records import Chat, Comparison, Prompt, Text
from components.reward_model.model import RewardModel
from components.reward_model.train import prompt_groups
from components.training.data import micro_batches
from components.training.models import load_policy, save_policy
from tests.steps import ORIGIN, QUESTIONS, publish_model, publish_rows

PAIRS = 19
COMMON: dict[str, Any] = {"precision": "fp32", "metrics_port": 0, "checkpoint_every": 0}
# Three optimiser steps each, of all eight rows; the fourth response of a prompt is "".
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": COMMON | {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0, "dropout": 0.0},
    # Where a hidden unit of the head is on for all responses, its bias has a gradient of 0 but for rounding, which a
    # small epsilon would blow up to whole steps.
    "pmp": COMMON | {"epochs": 3.0, "batch_size": PAIRS, "learning_rate": 1e-3, "optimiser": {"epsilon": 1e-5}},
    "reward_model": COMMON
    | {"epochs": 3.0, "batch_size": PAIRS, "learning_rate": 1e-3, "margin": True, "centring": 0.01},
    # Rollouts of 4 x 2 responses, one mini-batch an epoch: 3 x 2 steps of the value model, 2 x 2 of the policy.
    "ppo": COMMON | {
        "iterations": 3, "value_warmup_iterations": 1, "prompts_per_iteration": 4, "mini_batch_size": 8, "epochs": 2,
        "policy_learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 6, "entropy_coefficient": 0.01,
        "ptx": {"coefficient": 0.5, "sequences_per_response": 1.0},
    },
}  # fmt: skip
# Prompts of like length, so that any four sequences of 33 to 40 tokens fill 160: 8, 4, 2 and 1 micro-batches for
# budgets of 40, 80, 160 and 320. Documents of these lengths are cut into as many.
PROMPT_LENGTHS, TEXT_LENGTHS, LONGEST = [32, 33, 34, 34], [38, 36, 34, 30, 28, 24, 22, 20], 40


def chats(tokenizer: ChatTokenizer) -> list[Chat]:
    """Long questions with short answers and the other way round, so that targets are raggeder than rows."""
    rows = []
    for i, words in enumerate([1, 30, 2, 17, 5, 9, 1, 3]):
        messages = [
            {"role": "user", "content": QUESTIONS[i] * (3 if words < 3 else 1)},
            {"role": "assistant", "content": "blue cat " * words},
        ]
        ids, labels = label_turns(tokenizer.turns(messages), "assistant_only")
        rows.append(Chat(id=str(i), messages=messages, input_ids=ids, labels=labels, **ORIGIN))
    return rows


def comparisons(tokenizer: ChatTokenizer) -> list[Comparison]:
    """1, 3 or 6 pairs a prompt, PAIRS in all; no response is as long as another of its prompt."""
    rows = []
    for i, count in enumerate([2, 3, 4, 2, 3, 2, 2, 3]):
        messages = [{"role": "user", "content": QUESTIONS[i]}]
        responses = ["the cat sat on the mat. " * 3, "blue " * (2 + i), "help", ""][:count]
        # Neither all the longer nor all the earlier ones are better.
        pairs = [
            {"chosen": b if (a + b + i) % 2 else a, "rejected": a if (a + b + i) % 2 else b, "gap": 0.5 * (b - a)}
            for b in range(count) for a in range(b)
        ]  # fmt: skip
        ids = [tokenizer.encode_response(messages, response) for response in responses]
        rows.append(Comparison(id=str(i), messages=messages, responses=responses, pairs=pairs, input_ids=ids, **ORIGIN))
    return rows


def _of_length(ids: list[int], length: int, salt: int) -> list[int]:
    """Printable filler before the last ids, which are kept."""
    kept = ids[-8:]
    return [33 + (7 * salt + 3 * j) % 60 for j in range(length - len(kept))] + kept


def prompts(tokenizer: ChatTokenizer, lengths: Sequence[int] = PROMPT_LENGTHS) -> list[Prompt]:
    rows = []
    for i, length in enumerate(lengths):
        messages = [{"role": "user", "content": QUESTIONS[i]}]
        ids = _of_length(tokenizer.encode_prompt(messages), length, i)
        rows.append(Prompt(id=str(i), messages=messages, input_ids=ids, **ORIGIN))
    return rows


def texts(tokenizer: ChatTokenizer) -> list[Text]:
    whole = tokenizer.encode_document("the cat sat on the mat and looked at the dog. the sky is blue. " * 4)
    ids = [_of_length(whole, length, i) for i, length in enumerate(TEXT_LENGTHS)]
    return [Text(id=str(i), text="", input_ids=own, **ORIGIN) for i, own in enumerate(ids)]


def ending_policy(folder: Path, target: Path, weight: float = 6.0) -> Path:
    """The model in `folder`, likelier to end its turn: responses of 1 to 6 tokens, finished and unfinished ones."""
    model = load_policy(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[ChatTokenizer.load(folder).im_end] *= weight
    target.mkdir()
    save_policy(model, target, folder)
    return target


def inputs(step: str, folder: Path, work: Path, *, rows: list[Any] | None = None) -> dict[str, str]:
    """Published inputs made from the model in `folder`; `rows` in place of the step's own ones."""
    work.mkdir()
    tokenizer = ChatTokenizer.load(folder)
    base = publish_model(folder, work / "base")
    own: dict[str, Any] = {"sft": chats, "pmp": comparisons, "reward_model": comparisons, "ppo": prompts}
    data = publish_rows(work / "rows", work / "data", rows or own[step](tokenizer))
    if step != "ppo":
        return {"base_model": base, "data": data}
    torch.manual_seed(3)
    RewardModel.from_base(folder, "mlp").save(work / "rm-model", folder)
    return {
        "policy": publish_model(ending_policy(folder, work / "ending"), work / "policy"),
        "reward_model": publish_model(work / "rm-model", work / "rm"),
        "data": data,
        "pretrain": publish_rows(work / "text-rows", work / "texts", texts(tokenizer)),
    }


def budget(step: str, tokenizer: ChatTokenizer, count: int) -> int:
    """Tokens that cut the eight rows of a step into `count` micro-batches on one rank."""
    if step == "ppo":
        return LONGEST * 8 // count
    if step == "sft":
        lengths = np.array([len(row.input_ids) for row in chats(tokenizer)])
        sizes = {tokens: len(micro_batches(range(8), lengths, tokens)) for tokens in range(16, int(lengths.sum()) + 1)}
    else:
        tokens_of = {i: sum(map(len, row.input_ids)) for i, row in enumerate(comparisons(tokenizer))}
        sizes = {t: len(prompt_groups(list(range(8)), tokens_of, t)) for t in range(16, sum(tokens_of.values()) + 1)}
    return next(tokens for tokens, found in sizes.items() if found == count)
