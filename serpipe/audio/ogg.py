"""Ogg files of several streams one after the other, as one gets by recording internet radio.

A player is to play them all (RFC 3533, section 4). libsndfile reads the first and says that this was the end; FFmpeg
goes on only where rate, channels and codec stay what they were. So each is decoded as a file of its own.
"""

from __future__ import annotations

import os
import struct

_HEADER = struct.Struct("<4sBBQIIIB")
"""Of a page: magic, version, flags, position, stream, number, checksum, and the length of the table behind it."""

_MAGIC = b"OggS"

_FIRST = 2
"""Flag of a stream's first page."""

_STREAM_AT = slice(14, 18)
"""In a page: the number of its stream, which no other stream of a file has."""

_LONGEST_TABLE = 255

_LONGEST_PAGE = _HEADER.size + _LONGEST_TABLE + _LONGEST_TABLE * 255


def joined_streams(descriptor: int) -> list[tuple[int, int]]:
    """Where each of several streams begins and ends in a file.

    Args:
        descriptor: an open file; its position stays where it is.

    Returns:
        Offsets in bytes, in their order, from the file's start to its end. None where the file ends in the stream that
        it begins with, or is no Ogg file.

    Raises:
        OSError: it cannot be read.

    Examples:
        >>> import pathlib, tempfile
        >>> from serpipe.testing import write_speech
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> contents = [
        ...     pathlib.Path(write_speech(folder / name, seconds=1.0)).read_bytes() for name in ("1.ogg", "2.ogg")
        ... ]
        >>> _ = (folder / "both.ogg").write_bytes(contents[0] + contents[1])
        >>> with open(folder / "both.ogg", "rb") as file:
        ...     streams = joined_streams(file.fileno())
        >>> [end - start for start, end in streams] == [len(content) for content in contents]
        True
    """
    size = os.fstat(descriptor).st_size
    if not _is_joined(descriptor, size):
        return []
    starts = _starts(descriptor, size)
    return list(zip(starts, [*starts[1:], size], strict=True))


def _is_joined(descriptor: int, size: int) -> bool:
    start = os.pread(descriptor, _STREAM_AT.stop, 0)
    end = os.pread(descriptor, _LONGEST_PAGE, max(size - _LONGEST_PAGE, 0))
    last = end[max(end.rfind(_MAGIC), 0) :]
    whole = start.startswith(_MAGIC) and last.startswith(_MAGIC) and len(last) >= _STREAM_AT.stop
    return whole and last[_STREAM_AT] != start[_STREAM_AT]


def _starts(descriptor: int, size: int) -> list[int]:
    """Offsets of pages that begin a stream behind one that does not; streams side by side begin together."""
    starts, at, header = [0], 0, True
    while at < size:
        head = os.pread(descriptor, _HEADER.size + _LONGEST_TABLE, at)
        if len(head) < _HEADER.size:
            break
        magic, _, flags, *_, entries = _HEADER.unpack_from(head)
        if magic != _MAGIC:
            # Damaged: on to what looks like a page again.
            damaged = os.pread(descriptor, _LONGEST_PAGE, at)
            found = damaged.find(_MAGIC, 1)
            at += found if found > 0 else len(damaged) - len(_MAGIC) + 1
            continue
        first = bool(flags & _FIRST)
        if first and not header:
            starts.append(at)
        header = first
        at += _HEADER.size + entries + sum(head[_HEADER.size : _HEADER.size + entries])
    return starts
