"""The work that both trainers do, made once: one model, one tokenizer, and the same token ids in the same batches.

Rows are real: text, and so lengths, come from the sources of the real-small profile, the same number from each source
of a stage. The tokenizer is trained on that text too. A folder holds what our steps read (published models and
datasets) and `peer.json`, the same rows in the order in which our trainers take them.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from components.base_model.init import train_tokenizer
from components.core import store
from components.core.chatml import IGNORE, ChatTokenizer, label_turns
from components.core.config import Sources, load_profile
from components.core.records import Chat, Comparison, Prompt, Text, write_rows
from components.data_prep.adapters import Conversation, Item, Judged
from components.data_prep.sources import items, plain_texts
from components.reward_model.model import RewardModel
from components.training.data import rows_at
from components.training.models import save_policy

PROFILE = Path(__file__).resolve().parents[2] / "pipelines" / "profiles" / "real-small.yaml"
SEED = 0
VOCABULARY, HIDDEN, LAYERS, HEADS = 4096, 256, 4, 4
LENGTH, RESPONSE = 256, 64  # longest row, tokens sampled in PPO
BATCH, PPO_BATCH = 8, 16
_TOKENIZER_CHARACTERS = 300_000

Row = Chat | Comparison | Prompt
Encode = Callable[[ChatTokenizer, Item, str], Row | None]


def make(folder: Path, data_root: str, steps: int, iterations: int) -> None:
    """Everything for `steps` steps of SFT and reward model and `iterations` of PPO."""
    sources = load_profile(PROFILE).base_model.sources
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_texts(sources, data_root), VOCABULARY, folder)
    _publish_models(folder, tokenizer)
    # One spare batch of prompts: on the last of a pass TRL steps its optimiser for every micro-batch.
    rows = {
        "sft": _rows(sources, ["sft"], _chat, tokenizer, data_root, steps * BATCH),
        "rm": _rows(sources, ["pmp", "reward_model"], _comparison, tokenizer, data_root, steps * BATCH),
        "ppo": _rows(sources, ["ppo"], _prompt, tokenizer, data_root, (iterations + 1) * PPO_BATCH),
    }
    for stage, found in rows.items():
        write_rows(folder / "scratch" / stage / "train.parquet", found, type(found[0]))
        store.publish(folder / "scratch" / stage, str(folder / stage))
    # PPO is given text only where the pretraining gradient is on; its input must exist all the same.
    text = Text(id="0", source="benchmark", licence="none", text="none", input_ids=tokenizer.encode_document("none"))
    write_rows(folder / "scratch" / "text" / "train.parquet", [text], Text)
    store.publish(folder / "scratch" / "text", str(folder / "text"))
    ordered = {stage: [found[i] for i in rows_at(0, len(found), len(found), SEED)] for stage, found in rows.items()}
    peer = {
        "sft": [{"input_ids": row.input_ids, "labels": row.labels} for row in ordered["sft"]],
        "rm": [{"chosen_ids": row.input_ids[0], "rejected_ids": row.input_ids[1]} for row in ordered["rm"]],
        "ppo": [{"input_ids": row.input_ids} for row in ordered["ppo"]],
    }
    settings = {"batch": BATCH, "ppo_batch": PPO_BATCH, "length": LENGTH, "response": RESPONSE}
    (folder / "peer.json").write_text(json.dumps({"settings": settings, "rows": peer}), encoding="utf-8")
    (folder / "lengths.json").write_text(json.dumps({stage: _lengths(stage, peer[stage]) for stage in peer}))


def _texts(sources: Sources, data_root: str) -> Iterator[str]:
    """The first characters of each role's text, for the tokenizer."""
    sizes: dict[str, int] = defaultdict(int)
    for role, text in plain_texts(sources, data_root, SEED):
        if sizes[role] < _TOKENIZER_CHARACTERS:
            sizes[role] += len(text)
            yield text


def _publish_models(folder: Path, tokenizer: ChatTokenizer) -> None:
    """A random base model, and a reward model on the same weights with a linear head, as TRL's is."""
    torch.manual_seed(SEED)
    for name, model in (("base", _model(tokenizer)), ("reward", None)):
        scratch = folder / "scratch" / name
        if model is not None:
            save_policy(model, scratch, folder)
        else:
            RewardModel.from_base(folder / "base", "linear").save(scratch, folder)
        store.publish(scratch, str(folder / name))


def _model(tokenizer: ChatTokenizer) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=tokenizer.tokenizer.get_vocab_size(), hidden_size=HIDDEN, intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.im_end, pad_token_id=tokenizer.pad,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _rows(
    sources: Sources, roles: list[str], encode: Encode, tokenizer: ChatTokenizer, data_root: str, count: int
) -> list[Row]:
    """`count` rows, the same number from each source of these roles, drawn at random."""
    given = [(role, source) for role in roles for source in getattr(sources, role)]
    found: list[Row] = []
    for number, (role, source) in enumerate(given):
        wanted = count * (number + 1) // len(given)
        pool = [item for _, item in items(source, role, data_root, SEED)]
        for index in np.random.default_rng(SEED).permutation(len(pool)).tolist():
            if len(found) == wanted:
                break
            row = encode(tokenizer, pool[index], f"{role}-{number}-{index}")
            if row is not None:
                found.append(row)
        if len(found) < wanted:
            raise SystemExit(f"{source.name} has too few rows for so many steps")
    return found


def _origin(name: str) -> dict[str, str]:
    return {"id": name, "source": name, "licence": "as in the profile"}


def _chat(tokenizer: ChatTokenizer, item: Item, name: str) -> Chat | None:
    """A conversation cut at the longest length; None where that leaves nothing to learn."""
    if not isinstance(item, Conversation):
        return None
    ids, labels = label_turns(tokenizer.turns(item.messages), "assistant_only")
    ids, labels = ids[:LENGTH], labels[:LENGTH]
    if all(label == IGNORE for label in labels):
        return None
    return Chat(messages=item.messages, input_ids=ids, labels=labels, **_origin(name))


def _comparison(tokenizer: ChatTokenizer, item: Item, name: str) -> Comparison | None:
    """A prompt and two responses, which are cut before their `<|im_end|>`; None for ties and long prompts."""
    if not isinstance(item, Judged) or len(item.responses) != 2 or item.scores[0] == item.scores[1]:
        return None
    prompt = tokenizer.encode_prompt(item.messages)
    if len(prompt) > LENGTH - RESPONSE:
        return None
    room = LENGTH - len(prompt) - 1
    best = sorted(item.responses, key=lambda response: item.scores[item.responses.index(response)], reverse=True)
    ids = [[*prompt, *tokenizer.encode_text(response)[:room], tokenizer.im_end] for response in best]
    pairs = [{"chosen": 0, "rejected": 1, "gap": 1.0}]
    return Comparison(messages=item.messages, responses=best, pairs=pairs, input_ids=ids, **_origin(name))


def _prompt(tokenizer: ChatTokenizer, item: Item, name: str) -> Prompt | None:
    ids = tokenizer.encode_prompt(item.messages) if isinstance(item, Conversation) else []
    if not 0 < len(ids) <= LENGTH - RESPONSE:
        return None
    return Prompt(messages=item.messages, input_ids=ids, **_origin(name))


def _lengths(stage: str, rows: list[dict[str, list[int]]]) -> dict[str, float]:
    """Mean, quantiles and the share of padding that batches padded to their longest row have."""
    names = ["chosen_ids", "rejected_ids"] if stage == "rm" else ["input_ids"]
    size = PPO_BATCH if stage == "ppo" else BATCH
    lengths = [[len(row[name]) for row in rows[i : i + size] for name in names] for i in range(0, len(rows), size)]
    flat = [length for batch in lengths for length in batch]
    padded = sum(max(batch) * len(batch) for batch in lengths)
    quantiles = {f"p{q}": float(np.percentile(flat, q)) for q in (10, 50, 90)}
    return {"rows": len(flat), "mean": float(np.mean(flat)), **quantiles, "padding": 1 - sum(flat) / padded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=7)
    options = parser.parse_args()
    if not Path(options.data_root).is_dir():
        sys.exit(f"no real data in {options.data_root}: say where it is with KUBEALIGN_DATA")
    make(options.output.resolve(), options.data_root, options.steps, options.iterations)


if __name__ == "__main__":
    main()
