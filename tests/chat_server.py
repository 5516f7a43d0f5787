"""A server on this machine that speaks as a chat model behind an OpenAI-compatible endpoint does, badly where asked."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body; status 0 closes the connection without a word."""


def says(content: Any) -> Reply:
    """A chat completion with this content."""
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


class ChatServer:
    """`reply` is asked with what the last message holds, as `read` reads it, and how often that came before. It may
    return an answer, or write one itself, by `handlers.current`, and return None."""

    def __init__(self, reply: Callable[[Any, int], Reply | None], read: Callable[[str], Any] = str) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.released, lock, outer = threading.Event(), threading.Lock(), self
        self.handlers = threading.local()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # which keeps connections open

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = read(body["messages"][-1]["content"])
                request = {"asked": asked, "path": self.path, "headers": dict(self.headers)}
                with lock:
                    times = sum(before["asked"] == asked for before in outer.requests)
                    outer.requests.append({**request, "from": self.client_address, **body})
                outer.handlers.current = self
                reply = outer.reply(asked, times)
                if reply is None:
                    return
                code, headers, data = reply
                if code == 0:
                    self.close_connection = True
                    return
                self.start(code, {"Content-Length": str(len(data)), **headers})
                self.wfile.write(data)
                self.close_connection |= len(data) < int(headers.get("Content-Length", 0))

            def start(self, code: int, headers: dict[str, str]) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def hang(self, *_: object) -> None:
        """A reply that does not come until the test is over."""
        self.released.wait()

    def asked(self) -> Counter[str]:
        return Counter(request["asked"] for request in self.requests)

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
