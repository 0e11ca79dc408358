"""The next recording's bytes on their way while the present one is decoded.

One thread, one recording ahead: so of remote objects at most two lie on the local disk, and a decoder waits for a
network only where that is slower than decoding. A local file is announced to the kernel, which reads it ahead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from serpipe.audio.part import Part
from serpipe.audio.source import is_remote, local_copy

READ_AHEAD_BYTES = 64 << 20
"""Of a local file: more than a decoder has read by the time the kernel's own reading ahead is under way."""


class Copy:
    """A recording at a path that can be read between `__enter__` and `close`."""

    def __init__(self, row: dict[str, Any], pool: ThreadPoolExecutor, *, in_part: bool = False) -> None:
        given = row.get("given") if in_part else None
        self._part = Part([(one["start_s"], one["end_s"]) for one in given]) if given else None
        facts = {name: row.get(name) for name in ("query", "size", "etag")}
        self._copy = local_copy(row["uri"], **facts, part=self._part)
        self._open = False
        self._fetched: Future[str] | None = None
        if is_remote(row["uri"]):
            self._fetched = pool.submit(self._copy.__enter__)
        else:
            _announce(row["uri"])

    def __enter__(self) -> str:
        """The path.

        Raises:
            AudioError: what `local_copy` raises.
        """
        path = self._copy.__enter__() if self._fetched is None else self._fetched.result()
        self._open = True
        return path

    @property
    def in_part(self) -> bool:
        """Whether only what its given segments need was read; known once it is entered."""
        return self._part is not None and self._part.alone

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete what was copied, whether anybody came for it or not."""
        if self._fetched is not None and not self._open and not self._fetched.cancel():
            self._open = self._fetched.exception() is None
        if self._open:
            self._copy.__exit__(None, None, None)
        self._open, self._fetched = False, None


def one_ahead(
    rows: Sequence[dict[str, Any]], *, in_part: bool = False
) -> Generator[tuple[dict[str, Any], Copy], None, None]:
    """Recordings with their copies, the next one on its way while one is used.

    Args:
        rows: as `serpipe.read_manifest` has them: `uri`, and `query`, `size` and `etag` where they are known.
        in_part: whether of remote recordings with given segments only these are wanted.

    Yields:
        A row and its copy, to be entered until the next one is asked for. What fetching raises is raised there.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> rows = [{"uri": write_speech(seconds=1.0)}, {"uri": write_speech(seconds=2.0)}]
        >>> for row, copy in one_ahead(rows):
        ...     with copy as path:
        ...         print(path == row["uri"], os.path.getsize(path))
        True 32044
        True 64044
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        copies: list[Copy] = []
        try:
            for number, row in enumerate(rows):
                wanted = rows[number + len(copies) : number + 2]
                copies += [Copy(one, pool, in_part=in_part) for one in wanted]
                yield row, copies[0]
                copies.pop(0).close()
        finally:
            for copy in copies:
                copy.close()


def _announce(path: str) -> None:
    # Only what `local_copy` says of a file counts; this is a hint.
    with suppress(OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            return
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)
