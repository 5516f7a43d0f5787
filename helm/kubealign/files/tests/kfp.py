"""Kubeflow Pipelines answers, and lets this service account see its experiments."""

import os
import sys

from kfp.client import Client, ServiceAccountTokenVolumeCredentials

endpoint = os.environ["ENDPOINT"]
several = os.environ["MULTI_USER"] == "true"
try:
    client = Client(host=endpoint, credentials=ServiceAccountTokenVolumeCredentials() if several else None)
    client.get_kfp_healthz(sleep_duration=2)
    # With one user only, the backend refuses a namespace.
    client.list_experiments(page_size=1, namespace=os.environ["NAMESPACE"] if several else None)
except Exception as error:  # noqa: BLE001 (whatever it is, its first line is what to know)
    sys.exit(f"error: Kubeflow Pipelines at {endpoint}: {' '.join(str(error).split())[:500]}")
print(f"Kubeflow Pipelines at {endpoint} answers")
