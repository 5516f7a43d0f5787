"""The calls that a launcher makes to a Kubernetes API server, as plain dictionaries; and what their errors mean.

The client library does authentication, TLS and connections. Its typed models are left alone: the job kinds have none,
and one way to read an object is enough.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from components.core.errors import RetryableError, UserError

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CALL_SECONDS = 30.0
Query = dict[str, str | int | bool]


class Expired(Exception):
    """The resource version is older than what the server still knows (410): list again."""


class Missing(Exception):
    """There is no such object (404)."""


class Exists(Exception):
    """There is one already (409)."""


class Api:
    """One API server, and the namespace that is meant where none is named."""

    def __init__(self, namespace: str = "") -> None:
        self._client, found = _connect()
        self.namespace = namespace or found

    def call(
        self, verb: str, path: str, query: Query | None = None, body: Any = None, seconds: float = _CALL_SECONDS
    ) -> dict[str, Any]:
        """A request with a JSON answer. `verb` as RBAC names it: create, get, list, patch, delete."""
        return json.loads(self._open(verb, path, query, body, seconds).data)

    def lines(self, verb: str, path: str, query: Query, seconds: float | None = None) -> Iterator[bytes]:
        """The lines of an answer that goes on for as long as the server sends: a watch, a followed log.

        Where nothing comes for `seconds`, the connection is taken for dead.
        """
        answer = self._open(verb, path, query, None, seconds)
        try:
            rest = b""
            for chunk in answer.stream(amt=1 << 16, decode_content=False):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
            if rest:
                yield rest
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RetryableError(f"connection to the Kubernetes API lost ({error})") from error
        finally:
            answer.close()

    def _open(self, verb: str, path: str, query: Query | None, body: Any, seconds: float | None) -> Any:
        method = {"create": "POST", "delete": "DELETE", "patch": "PATCH"}.get(verb, "GET")
        content = "application/merge-patch+json" if verb == "patch" else "application/json"
        for attempt in range(2):
            try:
                return self._client.call_api(
                    path, method, query_params=[(key, _text(value)) for key, value in (query or {}).items()],
                    header_params={"Accept": "application/json", "Content-Type": content}, body=body,
                    auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                    _request_timeout=(5.0, seconds),
                )  # fmt: skip
            except ApiException as error:
                if error.status == 401 and attempt == 0:  # the token was rotated
                    self._client, _ = _connect()
                    continue
                raise explained(error, verb, path) from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise RetryableError(
                    f"the Kubernetes API server does not answer ({_short(error)})", fix="check that it runs"
                ) from error
        raise AssertionError("unreachable")


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).split(": ", 1)[-1][:200]


def _connect() -> tuple[Any, str]:
    """(client, namespace): of the pod we run in, else of the kubeconfig's current context."""
    settings = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=settings)
            namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        except ConfigException:
            config.load_kube_config(client_configuration=settings)
            _, current = config.list_kube_config_contexts()
            namespace = current["context"].get("namespace", "default")
    except (ConfigException, yaml.YAMLError, OSError) as error:
        raise UserError(
            f"no Kubernetes cluster: {str(error).splitlines()[0]}", fix="set KUBECONFIG, or use --backend local"
        ) from error
    settings.retries = False  # a request that must not wait says so itself; the others have a loop around them
    return client.ApiClient(settings), namespace


def explained(error: ApiException, verb: str, path: str) -> Exception:
    """What an answer that is not a success means for the user, or for the caller that can deal with it."""
    plural, group, namespace = _parts(path)
    where = f"{plural} in namespace {namespace}" if namespace else plural
    message = _message(error)
    if error.status == 409 and verb == "create":
        return Exists(message)
    if error.status == 410:
        return Expired(message)
    if error.status == 400 and plural == "pods/log":  # its container has not begun
        return Missing(message)
    if error.status == 404:
        return _not_found(message, verb, plural, group, namespace)
    if error.status == 403 and "is forbidden: User" in message:
        return UserError(
            f"not permitted to {verb} {where}",
            fix=f'let a Role give the launcher\'s service account the verb "{verb}" on {plural} (group "{group}")',
        )
    if error.status == 401:
        return UserError("the Kubernetes API server does not accept our credentials", fix="log in again")
    if error.status == 500 and "failed calling webhook" in message:
        return RetryableError(f"the operator of {plural} is down: its webhook does not answer ({message[:200]})")
    if error.status == 429 or error.status >= 500:
        return RetryableError(f"the Kubernetes API server cannot {verb} {where} now (HTTP {error.status}: {message})")
    return UserError(f"Kubernetes refuses to {verb} {where}: {message}")


def _not_found(message: str, verb: str, plural: str, group: str, namespace: str) -> Exception:
    if verb == "get":
        return Missing(message)
    if "page not found" in message or "could not find the requested resource" in message:
        return UserError(
            f"this cluster does not know {plural} ({group})", fix="install the operator, or another backend"
        )
    if f'namespaces "{namespace}" not found' in message:
        return UserError(f"there is no namespace {namespace}", fix=f"kubectl create namespace {namespace}")
    return UserError(message) if verb == "create" else Missing(message)


def _message(error: ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason)
    try:
        return " ".join(str(json.loads(body)["message"]).split())
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())[:500]


def _parts(path: str) -> tuple[str, str, str]:
    """(plural, group, namespace) of an API path."""
    parts = path.strip("/").split("/")
    group = parts[1] if parts[0] == "apis" else ""
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        tail = rest[2:]
        return ("/".join([tail[0], *tail[2:]]), group, rest[1])
    return (rest[0] if rest else path, group, "")
