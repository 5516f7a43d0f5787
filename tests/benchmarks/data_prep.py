"""How fast data_prep is beside the bare tokenizer, and its memory: `python -m tests.benchmarks.data_prep`.

The rows are those of ../shared/data (GSM8K, alpaca_eval), taken as often as it takes to have enough of them, each time
with other answers so that none is a duplicate. The bare tokenizer encodes the texts of the same
rows, already in memory, in one batch after another on all cores. Both run alternately; the figures are medians.
"""

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from components.core import store
from components.core.chatml import CONTROL_TOKENS
from components.core.spec import make_spec, read_result

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BARE: dict[str, Any] = {
    "filters": {"templates": [], "mined_templates": None, "personal_data": "keep", "near_duplicates": None},
    "tags": {"tagger": "none"},
    "languages": False,
    "safety": {"classifier": "none"},
}


def chats(data: Path, copies: int) -> list[dict[str, Any]]:
    """Conversations of both collections; every copy after the first gives a question the answer of another one."""
    with gzip.open(data / "sft" / "gsm8k_train.jsonl.gz", "rt") as file:
        gsm8k = [(row["question"], row["answer"]) for row in map(json.loads, file)]
    with gzip.open(data / "sft" / "alpaca_eval_gpt4_outputs.json.gz", "rt") as file:
        alpaca = [(row["instruction"], row["output"]) for row in json.load(file)]
    return [
        {"question": rows[number][0], "answer": rows[(number + 37 * copy) % len(rows)][1]}
        for copy in range(copies)
        for rows in (gsm8k, alpaca)
        for number in range(len(rows))
    ]


def write_model(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A byte-level BPE tokenizer of the size of Qwen's in the small: 32,000 tokens, of these rows' own text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=list(CONTROL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    store.publish(folder, str(folder))


def bare(model: Path, rows: list[dict[str, Any]]) -> float:
    """Seconds that the fast tokenizer takes for the texts of all rows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [text for row in rows for text in row.values()]
    started = time.perf_counter()
    for start in range(0, len(texts), 2048):
        for encoding in tokenizer.encode_batch(texts[start : start + 2048], add_special_tokens=False):
            len(encoding.ids)
    return time.perf_counter() - started


def step(folder: Path, name: str, model: Path, config: dict[str, Any]) -> tuple[float, float]:
    """(seconds of the step without the interpreter's start, peak MiB of its main process)."""
    output = folder / name
    spec = make_spec(
        "data_prep", run="bench", seed=0, output=str(output), inputs={"base_model": str(model)},
        config=config,
    )  # fmt: skip
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    command = [sys.executable, "-m", "components.data_prep", "--spec", spec.uri]
    subprocess.run(command, check=True, capture_output=True)
    result = read_result(str(output))
    assert result is not None
    shutil.rmtree(output)
    return result.seconds, result.peak_rss_bytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        once = chats(given.data, 1)
        write_model(folder / "model", once)
        many = chats(given.data, given.copies)
        paths = {"one": folder / "one.jsonl", "many": folder / "many.jsonl"}
        for name, rows in (("one", once), ("many", many)):
            paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = {name: {"sft": [{"path": str(path), "adapter": "question_answer"}]} for name, path in paths.items()}
        seconds: dict[str, list[float]] = {"tokenizer": [], "bare": [], "all": []}
        for number in range(given.rounds):
            seconds["tokenizer"].append(bare(folder / "model", many))
            for kind, config in (("bare", BARE), ("all", {})):
                config = {**config, "sources": sources["many"]}
                seconds[kind].append(step(folder, f"{kind}{number}", folder / "model", config)[0])
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"{len(many)} rows, seconds: {seconds}")
        print(f"without filters {medians['tokenizer'] / medians['bare']:.0%} of the bare tokenizer's throughput")
        print(f"with all filters {medians['tokenizer'] / medians['all']:.0%}")
        for name, times in (("one", 1), ("many", given.copies)):
            peaks = {
                what: step(folder, "memory", folder / "model", {"sources": sources[name], "shard": shard})[1]
                for what, shard in (("map alone, which streams", "1/1"), ("with reduce and write", None))
            }
            print(f"peak at {times}x: " + ", ".join(f"{what} {peak:.0f} MiB" for what, peak in peaks.items()))


if __name__ == "__main__":
    main()
