"""An HTTP proxy that spoils chosen requests on their way to a store, or its answers on their way back."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

Rule = Callable[["Request"], "Fault | None"]
"""What to do with a request; None lets it pass."""

Fault = Callable[["Request"], None]


class Request(http.server.BaseHTTPRequestHandler):
    """One request, with what faults do to it."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    query = ""

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.proxy
        with proxy.lock:
            proxy.asked.append((self.command, self.path))
            fault = proxy.rule(self)
            if fault is not None:
                proxy.spoiled += 1
        if fault is None:
            self.answer(*self.forward())
        else:
            fault(self)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - the base class asks for these names

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            connection.request(self.command, self.path + self.query, self.body, dict(self.headers.items()))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.wfile.flush()

    def drop(self) -> None:
        """Close so that the other side sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            pass

    def log_message(self, *_: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        # The other side gave up, or the proxy hung up on it: both are what is tested.
        pass


class Proxy:
    """Stands before a store while the context lasts.

    Attributes:
        url: the endpoint to use instead of the store's.
        rule: decides which requests are spoiled, and how.
        asked: method and path of every request.
        spoiled: how many were spoiled.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.lock = threading.Lock()
        self.calm()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (Request,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def calm(self) -> None:
        self.rule: Rule = lambda _: None
        self.asked: list[tuple[str, str]] = []
        self.spoiled = 0

    def storm(self, rule: Rule) -> None:
        self.calm()
        self.rule = rule

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def refuse(status: int, code: str) -> Fault:
    """An answer as S3 gives it, without asking the store."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}, as ordered</Message></Error>"
    return lambda request: request.answer(status, [("Content-Type", "application/xml")], text.encode())


slow_down = refuse(503, "SlowDown")
internal_error = refuse(500, "InternalError")
denied = refuse(403, "AccessDenied")


def reset(request: Request) -> None:
    """The connection breaks before the store has heard anything."""
    request.drop()


def lost(request: Request) -> None:
    """The store does what it was asked, and its answer does not arrive."""
    request.forward()
    request.drop()


def cut(request: Request) -> None:
    """The connection breaks in the middle of the answer."""
    status, headers, body = request.forward()
    request.answer(status, headers, body, len(body) // 2)
    request.drop()


def stall(request: Request) -> None:
    """Nothing comes for longer than any client of the tests waits."""
    time.sleep(3)
    request.drop()


def first(count: int, fault: Fault, where: Callable[[Request], bool] = lambda _: True) -> Rule:
    """Spoils the first so many requests."""
    left = [count]

    def rule(request: Request) -> Fault | None:
        if not left[0] or not where(request):
            return None
        left[0] -= 1
        return fault

    return rule


def always(fault: Fault, where: Callable[[Request], bool] = lambda _: True) -> Rule:
    """Spoils every request."""
    return lambda request: fault if where(request) else None
