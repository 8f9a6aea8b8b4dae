"""A backend that writes down the id of every call it receives, before it answers: what really happened outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Ledger(ThreadingHTTPServer):
    """received: the Idempotency-Key of each request, in order. on_receipt: called before each answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Entry)
        self.received: list[str] = []
        self.on_receipt: Callable[[], None] = lambda: None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a broker that is killed resets its connections."""


class _Entry(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Ledger)
        self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(self.headers["idempotency-key"])
        self.server.on_receipt()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        body = b'{"number": %d}' % len(self.server.received)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 – the library's name
        """Say nothing."""


@contextmanager
def ledger_backend(port: int = 0) -> Generator[Ledger]:
    with Ledger(port) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
