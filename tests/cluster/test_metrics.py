"""A real Prometheus finds the pods of a step by their port's name and reads what metrics.jsonl holds."""

import json
import urllib.parse
import urllib.request
from typing import Any

import pytest

from tests.cluster.conftest import Place
from tests.cluster.harness.cluster import PROMETHEUS, Cluster
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, inputs

__all__ = ["inputs"]


@pytest.fixture(scope="module", autouse=True)
def prometheus(cluster: Cluster) -> None:
    cluster.start_prometheus()


def query(text: str) -> list[dict[str, Any]]:
    url = f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def test_step_is_scraped_and_says_what_its_record_says(place: Place, inputs) -> None:
    launcher = place.step("sft", "out", inputs, *LONG)
    launcher.wait_for("created in namespace")
    (job,) = place.get("pytorchjobs")
    name = job["metadata"]["name"]
    series = f'alignment_training_loss{{namespace="{place.name}"}}'
    seen: list[dict[str, Any]] = []
    until("a scrape", lambda: seen.extend(query(f"{series}[5m]")) or seen, 120)
    assert launcher.end() == 0, launcher.output
    (found,) = query(f"{series}[5m]")
    assert found["metric"]["pod"] == f"{name}-master-0"
    record = [json.loads(line) for line in place.path(f"{place.root}/out/metrics.jsonl").read_text().splitlines()]
    losses = {line["training_loss"] for line in record}
    assert len(record) == 160
    scraped = {float(value) for _, value in found["values"]} - {0.0}  # what a gauge says before its first value
    assert scraped and scraped <= losses
