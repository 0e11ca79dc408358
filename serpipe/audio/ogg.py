"""Whether an Ogg file is several streams one after the other, as recordings of internet radio are.

A player is to play them all (RFC 3533, section 4); libsndfile reads the first and says that this was the end.
"""

from __future__ import annotations

import os

_MAGIC = b"OggS"

_STREAM = slice(14, 18)
"""Of a page: the number of its stream, which no other stream of a file has."""

_LONGEST_PAGE = 27 + 255 + 255 * 255
"""Bytes."""


def is_joined(descriptor: int) -> bool:
    """Whether a file ends in another stream than it begins with.

    Args:
        descriptor: an open file; its position stays where it is.

    Returns:
        False too where it is no Ogg file, or cannot be read.

    Examples:
        >>> import pathlib, tempfile
        >>> from serpipe.testing import write_speech
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> first, second = (write_speech(folder / name, seconds=1.0) for name in ("1.ogg", "2.ogg"))
        >>> _ = (folder / "both.ogg").write_bytes(pathlib.Path(first).read_bytes() + pathlib.Path(second).read_bytes())
        >>> for name in ("1.ogg", "both.ogg"):
        ...     with open(folder / name, "rb") as file:
        ...         is_joined(file.fileno())
        False
        True
    """
    try:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, _STREAM.stop, 0)
        end = os.pread(descriptor, _LONGEST_PAGE, max(size - _LONGEST_PAGE, 0))
    except OSError:
        return False
    last = end[max(end.rfind(_MAGIC), 0) :]
    whole = start.startswith(_MAGIC) and last.startswith(_MAGIC) and len(last) >= _STREAM.stop
    return whole and last[_STREAM] != start[_STREAM]
