"""A file's own digest, in its footer: what was written is told from what a disk, a network or a person made of it.

The footer has room for the digest, filled with noughts while the file is hashed. So nothing beside the file is needed
to know that it is whole: no list of digests that could be lost, and no second object for each.
"""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

KEY = b"serpipe.digest"

EMPTY = b"0" * 32
"""What stands where the digest goes while it is taken: 128 bits of BLAKE2b (RFC 7693) in hexadecimal."""

_MAGIC = b"PAR1"
_PIECE = 8 << 20


def seal(sink: io.BytesIO) -> bytes:
    """Put the digest into a Parquet file that has `EMPTY` under `KEY` in its footer.

    Args:
        sink: the whole file.

    Returns:
        The file's bytes.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> sink = io.BytesIO()
        >>> with pq.ParquetWriter(sink, pa.schema([("unit", pa.int32())])) as writer:
        ...     writer.add_key_value_metadata({KEY: EMPTY})
        >>> whole = seal(sink)
        >>> broken(io.BytesIO(whole)) is None, broken(io.BytesIO(whole[:-1]))
        (True, 'it is cut off: no footer stands at its end')
    """
    with sink.getbuffer() as view:
        _, place = _places(io.BytesIO(view))
        assert place is not None
        assert view[place : place + len(EMPTY)] == EMPTY
        digest = hashlib.blake2b(view, digest_size=len(EMPTY) // 2).hexdigest()
        view[place : place + len(EMPTY)] = digest.encode()
    return sink.getvalue()


def broken(file: BinaryIO) -> str | None:
    """What is wrong with a sealed file's bytes, in words; None where it is as it was written.

    Args:
        file: can be read and moved in.
    """
    start, place = _places(file)
    if start is None:
        return "it is cut off: no footer stands at its end"
    if place is None:
        return "it has no digest: serpipe did not write it"
    file.seek(0)
    state, left = hashlib.blake2b(digest_size=len(EMPTY) // 2), start
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            return "it is cut off while it is read"
        state.update(piece)
        left -= len(piece)
    footer = bytearray(file.read())
    at = place - start
    found = bytes(footer[at : at + len(EMPTY)])
    footer[at : at + len(EMPTY)] = EMPTY
    state.update(footer)
    return None if state.hexdigest().encode() == found else "its bytes are not those that were written"


def _places(file: BinaryIO) -> tuple[int | None, int | None]:
    """Where the footer begins, and where in the file the digest stands."""
    size = file.seek(0, io.SEEK_END)
    if size < 12:
        return None, None
    file.seek(size - 8)
    end = file.read(8)
    start = size - 8 - int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or start < len(_MAGIC):
        return None, None
    file.seek(start)
    key = file.read(size - start).find(KEY)
    # Between key and value of Thrift's compact protocol stand the value's type and its length, a byte each.
    return start, None if key < 0 else start + key + len(KEY) + 2
