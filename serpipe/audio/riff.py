"""The chunks of a WAV, and how much of what its header claims the file holds.

libsndfile cuts the claim to the file, so that an aborted download looks whole, and it stops where the claim ends,
though samples may follow: beyond 4 GiB a size of 32 bits wraps, and a recorder that lost its power leaves an early one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

_ORDERS: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big"}
"""Of the bytes in a size, by what a file begins with."""

_FORM = 12
"""Bytes before the first chunk."""

_MOST_CHUNKS = 1_000

_IN_DS64 = 0xFFFF_FFFF
"""A size of an RF64 that stands in its first chunk, in 64 bits."""

_OPEN = 1 << 13
"""Who writes into a pipe cannot come back to the size, and claims 0, 2 or 4 GiB, or so many bytes less at most."""

_TRAILER = 1 << 15
"""Bytes that may follow the chunks and be no samples: a tag as MP3s have it, the rest of a memory card's cluster."""

_NO_TRAILER = {b"data", *_ORDERS}
"""Chunks that hold samples again, as where one WAV was put behind another."""


_TAGS = {b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"LGWV", b"_PMX"}
"""Chunks that are known to hold none; one that was cut off holds none either."""


@dataclass(frozen=True, slots=True)
class SampleData:
    """The bytes of a WAV's samples.

    Attributes:
        claimed: by the header.
        present: of those, what the file holds.
        behind: what follows them and is neither a chunk nor so little that it is a trailer.
    """

    claimed: int
    present: int
    behind: int


def chunks(
    read: Callable[[int, int], bytes], at: int = _FORM, order: Literal["little", "big"] = "little"
) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a file, up to a thousand.

    Args:
        read: gives so many bytes from an offset on, fewer at the end.
        at: where the first begins.
        order: of the bytes in a size.

    Yields:
        Name, offset of the content, and its length by the chunk's own claim.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> with open(write_speech(seconds=1.0), "rb") as file:
        ...     list(chunks(partial(os.pread, file.fileno())))
        [(b'fmt ', 20, 16), (b'data', 44, 32000)]
    """
    for _ in range(_MOST_CHUNKS):
        head = read(8, at)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], order)
        yield head[:4], at + 8, length
        at += 8 + length + length % 2


def sample_data(descriptor: int, size: int) -> SampleData | None:
    """How much of its samples a WAV claims and holds; None of any other file, and where it does not claim a length.

    Args:
        descriptor: an open file; its position stays where it is.
        size: bytes of it.

    Raises:
        OSError: it cannot be read.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> path = write_speech(seconds=1.0)
        >>> os.truncate(path, 20_044)
        >>> with open(path, "rb") as file:
        ...     sample_data(file.fileno(), 20_044)
        SampleData(claimed=32000, present=20000, behind=0)
    """
    read = partial(os.pread, descriptor)
    form = read(_FORM, 0)
    order = _ORDERS.get(form[:4])
    if order is None or form[8:] != b"WAVE":
        return None
    claimed = 0
    for kind, start, length in chunks(read, order=order):
        if kind == b"ds64":
            claimed = int.from_bytes(read(8, start + 8), order)
        if kind == b"data":
            if length != _IN_DS64 or form[:4] != b"RF64":
                claimed = length
            if -claimed % (1 << 31) <= _OPEN or start >= size:
                return None
            end = start + claimed
            # Some writers leave out the byte that makes a chunk even.
            behind = min(_behind(read, at, size, order) for at in {end, end + claimed % 2})
            return SampleData(claimed, min(end, size) - start, behind)
    return None


def _behind(read: Callable[[int, int], bytes], at: int, size: int, order: Literal["little", "big"]) -> int:
    """Bytes from an offset on that are no chunks, if they are more than a trailer."""
    if at >= size:
        return 0
    for kind, start, length in chunks(read, at, order):
        named = kind.isascii() and kind.decode().isprintable()
        if not named or kind in _NO_TRAILER or (start + length > size and kind not in _TAGS):
            break
        at = start + length + length % 2
    return max(size - at, 0) if size - at > _TRAILER else 0
