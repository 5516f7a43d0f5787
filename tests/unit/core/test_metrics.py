"""Metrics: one line a step, the same numbers for Prometheus, never a training run lost to a busy port."""

import json
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from components.core.metrics import METRICS, Metrics, read_metrics


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEALIGN_METRICS_ADDRESS", "127.0.0.1")


def test_a_line_holds_what_was_logged(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "deep" / "metrics.jsonl", step="sft", run="r")
    metrics.log(1, training_loss=2.5)
    metrics.log(2, training_loss=1.5, training_tokens_total=10)
    lines = read_metrics(metrics.path)
    assert [(line["training_step"], line["training_loss"]) for line in lines] == [(1, 2.5), (2, 1.5)]
    assert all(line["training_last_step_timestamp_seconds"] > 1.7e9 for line in lines)


def test_prometheus_sees_the_same_numbers_and_counters_add_up(tmp_path: Path) -> None:
    port = free_port()
    metrics = Metrics(tmp_path / "metrics.jsonl", step="ppo", run="r7", port=port)
    try:
        metrics.log(1, ppo_kl=0.5, training_tokens_total=10, training_step_duration_seconds=0.2)
        metrics.log(2, ppo_kl=0.75, training_tokens_total=5, training_step_duration_seconds=0.2)
        metrics.count("checkpoint_failures_total")
        seen = scrape(port)
    finally:
        metrics.close()
    assert seen["alignment_ppo_kl"] == 0.75
    assert seen["alignment_training_tokens_total"] == 15
    assert seen["alignment_training_step_duration_seconds_count"] == 2
    assert seen["alignment_checkpoint_failures_total"] == 1
    assert seen["alignment_training_info"] == 1


def test_every_metric_is_exported_under_its_name(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", step="sft", run="r")
    exported = {family.name for family in metrics.registry.collect()}
    assert {f"alignment_{name}".removesuffix("_total") for name in METRICS} <= exported


def test_busy_port_is_a_warning_and_nothing_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics = Metrics(tmp_path / "metrics.jsonl", step="sft", run="r", port=taken.getsockname()[1])
    metrics.log(1, training_loss=1.0)
    metrics.close()
    assert "is taken" in caplog.text
    assert len(read_metrics(metrics.path)) == 1


def test_unknown_name_is_a_programming_error_and_writes_no_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", step="sft", run="r")
    with pytest.raises(KeyError):
        metrics.log(1, loss=1.0)
    assert read_metrics(metrics.path) == []


def test_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"training_step": 1}) + '\n{"training_step": 2, "training_lo')
    assert read_metrics(path) == [{"training_step": 1}]


def test_rewind_drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", step="sft", run="r")
    for step in (1, 2, 3):
        metrics.log(step, training_loss=float(step))
    metrics.rewind(1)
    metrics.log(2, training_loss=9.0)
    assert [line["training_loss"] for line in read_metrics(metrics.path)] == [1.0, 9.0]


def test_rewind_to_a_half_written_line_mends_the_file(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", step="sft", run="r")
    metrics.log(1, training_loss=1.0)
    with metrics.path.open("a") as file:
        file.write('{"training_step": 2, "tr')
    metrics.rewind(1)
    metrics.log(2, training_loss=2.0)
    assert [line["training_step"] for line in read_metrics(metrics.path)] == [1, 2]


def test_no_file_means_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
