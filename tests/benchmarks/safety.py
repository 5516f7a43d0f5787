"""Precision, recall and time of the lexical safety baseline on real data with a natural label.

    python -m tests.benchmarks.safety [--data ../shared/data]

hh_rlhf's harmless-base prompts come from people who were asked to bait an assistant; most, not all, are malicious, so
their recall is a lower bound. alpaca_eval and gsm8k are harmless but for a handful. Of a pair, the chosen response is
the more harmless one. Half of hh_rlhf (by a hash) was looked at while the lists were made, as counts of words; the
other half is reported. All harmless prompts were looked at, so precision is of data that the lists know, and it is of
this mixture: the rarer malice is, the lower. No text is printed.
"""

import argparse
import gzip
import json
import time
import zlib
from collections import Counter
from pathlib import Path

from components.core.records import Message
from components.data_prep.lexical_safety import LexicalSafety
from components.data_prep.safety import Exchange, SafetyLabels
from tests.benchmarks.templates import prompts


def transcript(text: str) -> Exchange:
    """A transcript's turns; the last one is the response."""
    turns: list[Message] = []
    for part in text.split("\n\nHuman:")[1:]:
        asked, *answers = part.split("\n\nAssistant:")
        turns.append({"role": "user", "content": asked.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return Exchange(turns[:-1], turns[-1]["content"])


def is_reported(text: str) -> bool:
    return zlib.crc32(text.encode()) % 2 == 1


def pairs(data: Path) -> list[tuple[Exchange, Exchange]]:
    with gzip.open(data / "preferences" / "hh_rlhf_harmless_base.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    return [(transcript(row["chosen"]), transcript(row["rejected"])) for row in rows]


def labelled(exchanges: list[Exchange]) -> list[SafetyLabels]:
    return [labels for labels in LexicalSafety().label(exchanges) if labels is not None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    data = parser.parse_args().data
    found: dict[str, list[SafetyLabels]] = {}
    harmless = prompts(data)
    for name in ("alpaca_eval", "gsm8k"):
        exchanges = [Exchange([{"role": "user", "content": prompt}], reply) for prompt, reply in harmless[name]]
        begin = time.process_time()
        found[name] = labelled(exchanges)
        print(f"{name}: {(time.process_time() - begin) / len(exchanges) * 1e6:.0f} µs a row")
    both = pairs(data)
    for name, wanted in (("hh_rlhf, seen half", False), ("hh_rlhf, other half", True)):
        half = [pair for pair in both if is_reported(pair[0].prompt) == wanted]
        begin = time.process_time()
        found[name] = labelled([chosen for chosen, _ in half])
        print(f"{name}: {(time.process_time() - begin) / len(half) * 1e6:.0f} µs a row")
        rejected = labelled([other for _, other in half])
        for kind in ("unsafe", "refusal", "safe_answer"):
            counts = [sum(labels.response == kind for labels in side) for side in (found[name], rejected)]
            print(f"  response {kind}: chosen {counts[0]}, rejected {counts[1]} of {len(half)}")
    for name, labels in found.items():
        intents = Counter(one.intent for one in labels)
        concerns = Counter(concern for one in labels for concern in one.concerns)
        print(f"{name}: {len(labels)} rows, intent {dict(intents)}, concerns {dict(concerns)}")
    true = sum(one.intent == "malicious" for one in found["hh_rlhf, other half"])
    sensitive = sum(one.is_about_safety for one in found["hh_rlhf, other half"])
    false = sum(one.intent == "malicious" for name in ("alpaca_eval", "gsm8k") for one in found[name])
    total, negatives = len(found["hh_rlhf, other half"]), len(found["alpaca_eval"]) + len(found["gsm8k"])
    print(f"malicious: precision {true / max(1, true + false):.3f}, recall at least {true / total:.3f}")
    print(f"about safety: recall at least {sensitive / total:.3f}; false alarms of malice {false} of {negatives}")


if __name__ == "__main__":
    main()
