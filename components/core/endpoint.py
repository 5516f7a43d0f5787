"""A chat model behind OpenAI's chat completions: one question in, its answer out, whatever the server is up to.

A server that is busy, restarting or out of reach is asked again; one that says no is not. No message holds the key, a
query or a server's own words, which may hold either.
"""

import email.utils
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3

from components.core.errors import KubealignError, UserError

_LONGEST_ANSWER = 1 << 20
_BUSY = {408, 425, 429}
_NOT_THIS_QUERY = {400, 413, 422}  # too long for the model, or against the server's rules


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the model is and how it is asked. All numbers are defaults of ours."""

    url: str
    """Up to "/chat/completions", such as http://localhost:8000/v1."""
    model: str
    key_variable: str
    """Environment variable that holds the key; while it is empty, none is sent."""
    concurrency: int = 8
    timeout_seconds: float = 60.0
    """Longest wait for a connection, for the beginning of an answer and for its end."""
    attempts: int = 6
    longest_wait_seconds: float = 120.0
    """Between two attempts; a server that asks for more ends them."""


class Unanswered(Exception):
    """No answer to this question: `cause` is "unreachable", where all attempts failed, or "refused"."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


class Stopped(Exception):
    """Somebody set the client's `stop` during a wait."""


class ChatClient:
    """Safe to use from `concurrency` threads. `pause` waits for some seconds and says whether to stop."""

    def __init__(self, endpoint: Endpoint, pause: Callable[[float], bool] | None = None) -> None:
        _check(endpoint)
        self.endpoint = endpoint
        self.stop = threading.Event()
        self._pause = pause or self.stop.wait
        self._http = urllib3.PoolManager(maxsize=endpoint.concurrency, retries=False)

    def ask(self, system: str, user: str) -> str:
        """The model's answer; "" where the server's is no chat completion. Raises Unanswered, Stopped or UserError."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = json.dumps({"model": self.endpoint.model, "messages": messages, "temperature": 0}).encode()
        longest = self.endpoint.longest_wait_seconds
        for attempt in range(self.endpoint.attempts):
            try:
                status, headers, data = self._post(body)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                headers, detail = {}, type(error).__name__
            else:
                if status == 200:
                    return _content(data)
                detail = f"HTTP {status}"
                if status in _NOT_THIS_QUERY:
                    raise Unanswered("refused", detail)
                if status < 500 and status not in _BUSY:
                    raise self._explained(status)
            seconds = retry_after(headers.get("Retry-After", ""), time.time())
            if seconds is None:
                seconds = min(2.0**attempt, longest) * random.uniform(0.5, 1)
            if seconds > longest or attempt + 1 == self.endpoint.attempts:
                break
            if self._pause(seconds):
                raise Stopped
        raise Unanswered("unreachable", detail)

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body). Redirects are not followed: the key is for this server alone."""
        headers = {"Content-Type": "application/json"}
        if key := _key(self.endpoint):
            headers["Authorization"] = f"Bearer {key}"
        answer = self._http.request(
            "POST", f"{self.endpoint.url.rstrip('/')}/chat/completions", body=body, headers=headers,
            timeout=self.endpoint.timeout_seconds, preload_content=False,
        )  # fmt: skip
        deadline, data = time.monotonic() + self.endpoint.timeout_seconds, bytearray()
        with closing(answer):  # its connection goes back to the pool when it has been read to the end
            while piece := answer.read1(1 << 16):
                data += piece
                if len(data) > _LONGEST_ANSWER or time.monotonic() > deadline:
                    raise TimeoutError
        return answer.status, answer.headers, bytes(data)

    def _explained(self, status: int) -> KubealignError:
        fix = "check url and model"
        if status in (401, 403):
            fix = f"put a key that it accepts into the environment variable {self.endpoint.key_variable}"
        return UserError(f"the endpoint says HTTP {status}", where=self.endpoint.url, fix=fix)


def retry_after(value: str, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3: seconds or a date); None without a valid one."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _content(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return content if isinstance(content, str) else ""


def _key(endpoint: Endpoint) -> str:
    """The key. Checked here, because the error of an invalid header would show it."""
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise UserError("the key holds letters that no key has", where=endpoint.key_variable, fix="set it again")
    return key


def _check(endpoint: Endpoint) -> None:
    _key(endpoint)
    try:
        parts = urlsplit(endpoint.url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.username or parts.password or parts.query or parts.fragment:
        fix = f"write it like http://localhost:8000/v1, with the key in {endpoint.key_variable}"
        raise UserError("the url is not one of an endpoint", where="url", fix=fix)
