"""Running a step in a test as its caller would: published inputs, spec.json, exit code, result.json."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.core import store
from components.core.chatml import ChatTokenizer, label_turns
from components.core.records import Chat, Comparison, Prompt, Text, read_rows, write_rows
from components.core.spec import StepResult, make_spec, read_result
from components.core.step import main

ORIGIN = {"source": "test", "licence": "none"}
QUESTIONS = [
    f"what colour is the {thing}?"
    for thing in ("sky", "sea", "cat", "dog", "apple", "pear", "plum", "mat", "sun", "sum")
]


def chats(tokenizer: ChatTokenizer, count: int = 10) -> list[Chat]:
    """Conversations of ragged length."""
    rows = []
    for i in range(count):
        messages = [
            {"role": "user", "content": QUESTIONS[i % 10]},
            {"role": "assistant", "content": "blue " * (1 + 3 * (i % 4)) + "is the answer."},
        ]
        ids, labels = label_turns(tokenizer.turns(messages), "assistant_only")
        rows.append(Chat(id=str(i), messages=messages, input_ids=ids, labels=labels, **ORIGIN))
    return rows


def comparisons(tokenizer: ChatTokenizer, count: int = 10) -> list[Comparison]:
    """Prompts with two or three responses; longer is better, and some prompts have all three pairs."""
    rows = []
    for i in range(count):
        messages = [{"role": "user", "content": QUESTIONS[i % 10]}]
        responses = ["blue", "blue is the sky.", "the sky is blue. happy to help!"][: 2 + i % 2]
        pairs = [{"chosen": a, "rejected": b, "gap": float(a - b)} for a in range(len(responses)) for b in range(a)]
        ids = [tokenizer.encode_response(messages, response) for response in responses]
        rows.append(Comparison(id=str(i), messages=messages, responses=responses, pairs=pairs, input_ids=ids, **ORIGIN))
    return rows


def prompts(tokenizer: ChatTokenizer, count: int = 10) -> list[Prompt]:
    rows = []
    for i in range(count):
        messages = [{"role": "user", "content": QUESTIONS[i % 10] + " tell me." * (i % 3)}]
        rows.append(Prompt(id=str(i), messages=messages, input_ids=tokenizer.encode_prompt(messages), **ORIGIN))
    return rows


def texts(tokenizer: ChatTokenizer, count: int = 12) -> list[Text]:
    rows = []
    for i in range(count):
        text = "the cat sat on the mat and looked at the dog. " * (1 + i % 3)
        rows.append(Text(id=str(i), text=text, input_ids=tokenizer.encode_document(text), **ORIGIN))
    return rows


def publish_rows(folder: Path, uri: Path, rows: list[Any]) -> str:
    """A dataset folder as data_prep publishes it, with the rows held out as well."""
    write_rows(folder / "train.parquet", rows, type(rows[0]))
    write_rows(folder / "heldout" / "test.parquet", rows, type(rows[0]))
    store.publish(folder, str(uri))
    return str(uri)


def publish_model(folder: Path, target: Path) -> str:
    """A model folder as a step publishes it."""
    copy = target.with_name(target.name + "-copy")
    shutil.copytree(folder, copy)
    store.publish(copy, str(target))
    return str(target)


def model_with_a_bad_token(inputs: dict[str, str], folder: Path) -> tuple[str, str]:
    """(published model, row id): the base model with an infinite embedding of a token that one sft row alone holds."""
    holders: dict[int, set[str]] = {}
    for row in read_rows(Path(inputs["data"]) / "train.parquet", Chat):
        for token in row.input_ids:
            holders.setdefault(token, set()).add(row.id)
    token, (owner,) = next((token, ids) for token, ids in sorted(holders.items()) if len(ids) == 1)
    tensors = weights(inputs["base_model"])
    # Untied, or the output layer would spread it to every row.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][token] = float("inf")
    broken = folder / "broken"
    shutil.copytree(inputs["base_model"], broken, ignore=shutil.ignore_patterns("MANIFEST.json", "*.safetensors"))
    settings = json.loads((broken / "config.json").read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    (broken / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    store.publish(broken, str(folder / "bad-token"))
    return str(folder / "bad-token"), owner


def weights(output: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output) / "model.safetensors")


def run_step(
    name: str, output: Path, inputs: dict[str, str], config: dict[str, Any], *, seed: int = 0, code: int = 0
) -> StepResult:
    """Write the spec, run the step in this process, check its exit code; its result."""
    spec = make_spec(name, run="test", seed=seed, config=config, inputs=inputs, output=str(output))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    module = importlib.import_module(f"components.{name}.__main__")
    assert main(name, module.work, ["--spec", spec.uri]) == code
    result = read_result(str(output))
    assert result is not None
    return result
