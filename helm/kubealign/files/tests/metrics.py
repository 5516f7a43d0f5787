"""Prometheus reads what a pod of a job serves: this one looks like one, and waits until Prometheus has its number."""

import json
import os
import sys
import time
import urllib.parse
import urllib.request
import uuid

from prometheus_client import CollectorRegistry, Gauge, start_http_server

PATIENCE_SECONDS = 180  # the operator writes Prometheus' settings anew, which takes a minute
token = uuid.uuid4().hex
registry = CollectorRegistry()
Gauge("kubealign_helm_test", "Served by helm test", ["token"], registry=registry).labels(token=token).set(1)
start_http_server(9464, addr="0.0.0.0", registry=registry)
query = urllib.parse.urlencode({"query": f'kubealign_helm_test{{token="{token}"}}'})
url = f"{os.environ['PROMETHEUS'].rstrip('/')}/api/v1/query?{query}"
last = "it has not read this pod: do its pod monitor selectors and network policies let it?"
deadline = time.monotonic() + PATIENCE_SECONDS
while time.monotonic() < deadline:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            if json.load(answer)["data"]["result"]:
                print("Prometheus has read this pod's metrics")
                sys.exit(0)
    except (OSError, ValueError, KeyError) as error:
        last = str(error)
    time.sleep(3)
sys.exit(f"error: Prometheus at {os.environ['PROMETHEUS']}: {last}")
