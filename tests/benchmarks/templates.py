"""Precision and recall of the template filter on real prompts, bare and put into templates.

    python -m tests.benchmarks.templates [--data ../shared/data]

Negatives are prompts as people wrote them; the few that are templates by a reader's judgement are listed in NATURAL.
Positives are the same prompts in frames as published collections have them (FLAN, Alpaca, Super-NaturalInstructions,
lm-eval), written down from those and not from the rules. No prompt is printed.
"""

import argparse
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from components.data_prep.mined_templates import FRAMES as KINDS
from components.data_prep.mined_templates import frame_digests, shared_frames
from components.data_prep.templates import template_rule

Frame = Callable[[str, str], str]

# Kept apart from the rules' wording on purpose; the two frames at the end have no sign that a rule knows.
FRAMES: dict[str, Frame] = {
    "alpaca": lambda q, a: (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{q}\n\n### Response:"
    ),
    "alpaca, header only": lambda q, a: f"### Instruction: {q}\n### Response:",
    "vicuna": lambda q, a: f"A chat between a curious user and an assistant.\n\nUSER: {q}\nASSISTANT:",
    "hh": lambda q, a: f"\n\nHuman: {q}\n\nAssistant:",
    "few-shot Q/A": lambda q, a: f"Q: What is 3 plus 4?\nA: 7\n\nQ: {q}\nA:",
    "few-shot question/answer": lambda q, a: f"Question: Is water wet?\nAnswer: yes\nQuestion: {q}\nAnswer:",
    "few-shot input/output": lambda q, a: f"Input: a b c\nOutput: c b a\n\nInput: {q}\nOutput:",
    "zero-shot question": lambda q, a: f"Context: {a}\nQuestion: {q}\nAnswer:",
    "premise and hypothesis": lambda q, a: f"Premise: {a}\nHypothesis: {q}\nLabel:",
    "review": lambda q, a: f"Review: {q}\nSentiment:",
    "multiple choice": lambda q, a: f"{q}\nA. {a[:20]}\nB. none\nC. both\nD. neither\nAnswer:",
    "options": lambda q, a: f"{q}\nOPTIONS:\n- yes\n- no",
    "inline choice": lambda q, a: f"{q} (A) yes (B) no (C) it depends",
    "cloze": lambda q, a: f"{q} The answer is ____ because of it.",
    "definition": lambda q, a: f"In this task, you are given a text and you must answer as shortly as you can. {q}",
    "ends with an order": lambda q, a: f"{q}\nNow write down the answer to this task and nothing else.",
}
NATURAL = {"template_multiple_choice"}  # two of alpaca_eval's: questions of a test with their options
MINED = 50


def prompts(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Source -> (prompt, reply)."""
    found: dict[str, list[tuple[str, str]]] = {}
    with gzip.open(data / "sft" / "alpaca_eval_gpt4_outputs.json.gz", "rt") as file:
        found["alpaca_eval"] = [(row["instruction"], row["output"]) for row in json.load(file)]
    with gzip.open(data / "sft" / "gsm8k_train.jsonl.gz", "rt") as file:
        found["gsm8k"] = [(row["question"], row["answer"]) for row in map(json.loads, file)]
    with gzip.open(data / "preferences" / "hh_rlhf_harmless_base.jsonl.gz", "rt") as file:
        found["hh_rlhf"] = [_first_turn(json.loads(line)["chosen"]) for line in file]
    return found


def _first_turn(transcript: str) -> tuple[str, str]:
    question, _, rest = transcript.removeprefix("\n\nHuman: ").partition("\n\nAssistant:")
    return question, rest.partition("\n\nHuman:")[0].strip()


def caught(texts: list[str]) -> Iterator[str | None]:
    """The rule of each, mined ones too, as in a source that holds just these."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    digests = [frame_digests(chat) for chat in chats]
    prompts = np.array([prompt for prompt, _ in digests], np.uint64)
    shared = shared_frames(prompts, np.array([found for _, found in digests], np.uint64), MINED)
    for chat, kind in zip(chats, shared.tolist(), strict=True):
        yield template_rule(chat) or (f"template_mined_{KINDS[kind]}" if kind >= 0 else None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    sources = prompts(parser.parse_args().data)
    draw = random.Random(0)
    false = true = 0
    for name, rows in sources.items():
        rules = Counter(rule for rule in caught([prompt for prompt, _ in rows]) if rule)
        natural = sum(rules[rule] for rule in NATURAL) if name == "alpaca_eval" else 0
        false += sum(rules.values()) - natural
        true += natural
        print(f"as written, {name}: {sum(rules.values())} of {len(rows)} caught {dict(rules)}, {natural} rightly")
    pool = [row for rows in sources.values() for row in rows]
    total = true
    for name, frame in FRAMES.items():
        texts = [frame(prompt, reply) for prompt, reply in draw.sample(pool, 500)]
        by_rule = sum(template_rule([{"role": "user", "content": text}]) is not None for text in texts)
        both = sum(rule is not None for rule in caught(texts))
        true, total = true + both, total + len(texts)
        print(f"in the frame {name!r}: {by_rule} of {len(texts)} by rule, {both} with mining")
    print(f"precision {true / (true + false):.4f}, recall {true / total:.4f}")


if __name__ == "__main__":
    main()
