"""Parts of a remote object, each by one request, and local stand-ins that hold only these.

A stand-in is as long as the object, and what was not read of it is a hole that reads as zeros: every part lies where
it lay, so codecs find it, and lengths that follow from a file's size stay true.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from serpipe.remote import connect

WEB = ("http://", "https://")

HEAD_BYTES = 1 << 18
"""Of a file's beginning: headers are shorter, but for pictures and for the index of a long MP4."""

_NO_SUCH_RANGE = 416

_TAIL_BYTES = 1 << 17
"""Two pages of Ogg, the last of which says how long the stream is."""

_MOST_INDEX_BYTES = 16 << 20
"""Of an MP4: a day of AAC."""


class NoRangesError(Exception):
    """The server gives an object whole or not at all, or less of it than it was asked for."""


class Span(NamedTuple):
    """Bytes of a file, from one offset up to another."""

    start: int
    end: int


class Remote:
    """A remote object.

    Args:
        uri: any fsspec URL.
        query: the signed query that belongs to it.
        size: bytes of it, where they are known.

    Attributes:
        size: bytes of it; None until a part was read, or where the server does not say.
        tags: every entity tag that came with a part; more than one means that it was replaced meanwhile.
        bytes_read: so far.
    """

    def __init__(self, uri: str, *, query: str | None = None, size: int | None = None) -> None:
        self._files, self._place = connect(f"{uri}?{query}" if query else uri)
        self._web = uri.startswith(WEB)
        self.size = size
        self.tags: set[str] = set()
        self.bytes_read = 0

    def read(self, span: Span) -> bytes:
        """A part of it, less where the object ends before.

        Raises:
            NoRangesError: the server does not give parts, or gave less than was asked for.
            Exception: whatever the file system raises.
        """
        if self._web:
            from fsspec.asyn import sync

            data = sync(self._files.loop, self._asked, span)
        else:
            if self.size is None:
                self.size = int(self._files.info(self._place)["size"])
            end = min(span.end, self.size)
            data = self._files.cat_file(self._place, start=span.start, end=end) if span.start < end else b""
        self.bytes_read += len(data)
        if self.size is not None and len(data) < min(span.end, self.size) - span.start:
            # Some proxies cap a range; what is missing would be heard as silence.
            raise NoRangesError
        return bytes(data)

    async def _asked(self, span: Span) -> bytes:
        """One request on the web. fsspec's own reads an answer to its end, also that of a server without ranges."""
        session = await self._files.set_session()
        options = dict(self._files.kwargs)
        headers = {**options.pop("headers", {}), "Range": f"bytes={span.start}-{span.end - 1}"}
        headers["Accept-Encoding"] = "identity"
        async with session.get(self._files.encode_url(self._place), headers=headers, **options) as answer:
            if answer.status == _NO_SUCH_RANGE and not span.start:
                # So is an empty object answered; whole, it can be had.
                raise NoRangesError
            answer.raise_for_status()
            if tag := answer.headers.get("ETag") or answer.headers.get("Last-Modified"):
                self.tags.add(tag)
            if answer.status == 206:
                self._learn(answer.headers.get("Content-Range", "").rpartition("/")[2])
            elif span.start:
                raise NoRangesError
            else:
                self._learn(answer.headers.get("Content-Length", ""))
            data = bytearray()
            while (left := span.end - span.start - len(data)) > 0 and (more := await answer.content.read(left)):
                data += more
            if answer.status != 206:
                # The rest of it does not travel.
                answer.close()
            return bytes(data)

    def _learn(self, size: str) -> None:
        with suppress(ValueError):
            self.size = int(size)


def write_parts(remote: Remote, spans: Iterable[Span], path: str) -> None:
    """A stand-in with some parts of an object.

    Args:
        remote: the object.
        spans: what of it to read.
        path: of the stand-in, which may be there with other parts.

    Raises:
        NoRangesError: as `Remote.read`.
    """
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        for span in spans:
            if span.start < span.end:
                file.seek(span.start)
                file.write(remote.read(span))
        if remote.size is not None:
            file.truncate(remote.size)


def write_header(remote: Remote, path: str) -> bytes:
    """A stand-in with what a codec needs to say how long a recording is.

    Args:
        remote: the object.
        path: of the stand-in.

    Returns:
        The first bytes.
    """
    head = remote.read(Span(0, HEAD_BYTES))
    with open(path, "wb") as file:
        file.write(head)
    spans = [] if remote.size is None or remote.size <= len(head) else list(_beyond(head, remote))
    write_parts(remote, spans, path)
    return head


def _beyond(head: bytes, remote: Remote) -> Iterator[Span]:
    """What else of a file states its length."""
    size = remote.size or 0
    if head.startswith(b"OggS"):
        yield Span(max(size - _TAIL_BYTES, len(head)), size)
    elif head.startswith(b"ID3") and len(head) >= 10:
        # The tag may hold a picture; behind it are the frames.
        yield from _after(
            head, 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        )
    elif head.startswith(b"fLaC"):
        place, last = 4, False
        while not last and place + 4 <= len(head):
            last, length = bool(head[place] & 0x80), int.from_bytes(head[place + 1 : place + 4], "big")
            place += 4 + length
        yield from _after(head, place)
    elif head[4:8] == b"ftyp":
        yield from _index(head, size)


def _after(head: bytes, place: int) -> Iterator[Span]:
    if place + _TAIL_BYTES > len(head):
        yield Span(max(place, len(head)), place + HEAD_BYTES)


def _index(head: bytes, size: int) -> Iterator[Span]:
    """The box `moov` of an MP4: where it lies, or where what is longer than the head ends."""
    place = 0
    while place + 16 <= len(head):
        length, kind = int.from_bytes(head[place : place + 4], "big"), head[place + 4 : place + 8]
        if length == 1:
            length = int.from_bytes(head[place + 8 : place + 16], "big")
        if kind == b"moov" or length < 8:
            yield Span(len(head), min(place + length if length else size, len(head) + _MOST_INDEX_BYTES, size))
            return
        place += length
    yield Span(max(place, len(head)), min(place + _MOST_INDEX_BYTES, size))
