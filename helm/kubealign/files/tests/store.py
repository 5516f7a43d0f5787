"""The store can be written, read and deleted by this service account."""

import os
import sys
import uuid

from components.core import store
from components.core.errors import KubealignError, report

uri = store.join(os.environ["KUBEALIGN_ROOT"], "helm-test", uuid.uuid4().hex)
data = os.urandom(1024)
try:
    store.write_bytes(uri, data)
    if store.read_bytes(uri) != data:
        sys.exit(f"error: {uri} holds other bytes than were written")
    store.delete(uri)
    if store.exists(uri):
        sys.exit(f"error: {uri} is still there after it was deleted")
except KubealignError as error:
    sys.exit(f"error: {report(error)}")
print(f"wrote, read and deleted {uri}")
