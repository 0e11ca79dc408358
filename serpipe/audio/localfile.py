"""A local file's bytes, and whether all of them could be had.

To a codec a disk that fails looks like a file that ends: libsndfile says nothing, FFmpeg calls either damage. What a
network file system could not give tonight must not be settled as the end of a recording.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from types import SimpleNamespace
from typing import Any

PIECE = 1 << 20
"""Bytes read at a time where a file is only looked through."""


class ReadingFailed(OSError):  # noqa: N818
    """Bytes that the file should have could not be read; nothing is said of what is in it."""


class LocalFile:
    """A file opened for reading.

    Args:
        path: a local file.

    Attributes:
        size: bytes by the file system; None for a pipe or a device.

    Raises:
        ReadingFailed: it cannot be opened.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> file = LocalFile(write_speech(seconds=1.0))
        >>> file.start(4), file.size
        (b'RIFF', 32044)
        >>> file.look_through()
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = io.FileIO(path)
            about = os.fstat(self._file.fileno())
        except OSError as error:
            raise _failed(error) from error
        self.size = about.st_size if stat.S_ISREG(about.st_mode) else None

    @property
    def descriptor(self) -> int:
        """The open file's number, whose position is that of this object too."""
        return self._file.fileno()

    @property
    def reader(self) -> SimpleNamespace:
        """`read`, `seek` and `tell`, and no name that a library could guess a format from."""
        # Written in C, so that no signal is handled between a library and its file, where its exception would be lost.
        return SimpleNamespace(read=self._file.read, seek=self._file.seek, tell=self._file.tell)

    def part(self, start: int, end: int) -> io.RawIOBase:
        """The bytes from one offset to another as a file of its own; the position of this one stays where it is."""
        return _Part(self.descriptor, start, end)

    @property
    def at_end(self) -> bool:
        """Whether everything has been read that the file system says is there."""
        return self.size is None or self._file.tell() >= self.size

    def start(self, length: int) -> bytes:
        """The first bytes, fewer only where the file has no more.

        Raises:
            ReadingFailed: they cannot be read.
        """
        try:
            found = self._file.read(length)
            self._file.seek(0)
        except OSError as error:
            raise _failed(error) from error
        if self.size is not None and len(found) < min(length, self.size):
            raise self._short(len(found))
        return found

    def look_through(self, most: int | None = None) -> None:
        """Read on to the end, and let everything go; the position stays where it is.

        Args:
            most: bytes after which it is enough.

        Raises:
            ReadingFailed: not all that the file system says is there can be read.
        """
        if self.size is None:
            return
        at, end = 0, self.size if most is None else min(self.size, most)
        while at < end:
            try:
                found = len(os.pread(self.descriptor, PIECE, at))
            except OSError as error:
                raise _failed(error) from error
            if not found:
                raise self._short(at)
            at += found

    def close(self) -> None:
        """Let the file go; nothing can be read any more."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _short(self, length: int) -> ReadingFailed:
        return ReadingFailed(errno.EIO, f"it ends after {length} of {self.size} bytes")


class _Part(io.RawIOBase):
    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor, self._start, self._end, self._at = descriptor, start, end, start

    def readinto(self, buffer: Any) -> int:
        found = os.pread(self._descriptor, min(len(buffer), self._end - self._at), self._at)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = min(max(origin + offset, self._start), self._end)
        return self.tell()

    def tell(self) -> int:
        return self._at - self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def failed(error: Exception) -> ReadingFailed | None:
    """What an exception says of the file's bytes, where it came out of reading them; None for a codec's own.

    Examples:
        >>> failed(OSError(5, "Input/output error"))
        ReadingFailed(5, 'Input/output error')
        >>> failed(ValueError("no such layout"))
    """
    import av

    # FFmpeg's own errors are OSErrors too, and where nothing can be is asked for only by a damaged file.
    own = isinstance(error, av.FFmpegError) or not isinstance(error, OSError) or error.errno == errno.EINVAL
    return None if own else _failed(error)


def _failed(error: Exception) -> ReadingFailed:
    number = getattr(error, "errno", None) or errno.EIO
    return ReadingFailed(number, getattr(error, "strerror", None) or os.strerror(number))
