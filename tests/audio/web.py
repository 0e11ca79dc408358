"""A web server of a folder that gives ranges where it is asked to, and remembers what it gave."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Site:
    """A folder on the web.

    Args:
        folder: what is served.
        ranges: whether a part of a file can be had.
        most: bytes of a part that one answer gives at most; what is asked for by default.
        bytes_per_s: how fast one answer is; None for no limit.
    """

    def __init__(
        self, folder: Path, *, ranges: bool = True, most: int | None = None, bytes_per_s: float | None = None
    ) -> None:
        self.folder, self.ranges, self.most, self.bytes_per_s = folder, ranges, most, bytes_per_s
        self.sent = 0
        self.asked: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, to: http.server.BaseHTTPRequestHandler) -> None:
        name = to.path.strip("/").partition("?")[0]
        wanted = to.headers.get("Range")
        with self.lock:
            self.asked.append((name, wanted))
        path = self.folder / name
        if not path.exists():
            to.send_error(404)
            return
        content = path.read_bytes()
        size, start = len(content), 0
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= size:
                to.send_error(416)
                return
            start, end = int(first), min(int(last or size), size - 1)
            end = min(end, start + (self.most or size) - 1)
            content = content[start : end + 1]
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        else:
            to.send_response(200)
        to.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
        try:
            for place in range(0, len(content), 65_536):
                block = content[place : place + 65_536]
                to.wfile.write(block)
                with self.lock:
                    self.sent += len(block)
                if self.bytes_per_s is not None:
                    time.sleep(len(block) / self.bytes_per_s)
        except OSError:
            # Who asked had enough of it.
            to.close_connection = True


@contextmanager
def served(
    folder: Path, *, ranges: bool = True, most: int | None = None, bytes_per_s: float | None = None
) -> Iterator[Site]:
    """A site while the context lasts."""
    site = Site(folder, ranges=ranges, most=most, bytes_per_s=bytes_per_s)
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()
