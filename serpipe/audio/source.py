"""From a uri to a local file a codec can read, each object fetched once.

A remote object is copied to local disk before it is decoded: codecs seek where formats make them (an MP4's index at
its end), a slow link cannot be mistaken for a hanging codec, and what the network does is told apart from what is
wrong with the file.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from serpipe.errors import AudioError

ATTEMPTS = 4
"""Tries of one fetch before it counts as a transient failure."""


@contextmanager
def local_copy(
    uri: str, *, query: str | None = None, size: int | None = None, folder: str | None = None
) -> Iterator[str]:
    """A path at which a recording can be read while the context lasts.

    Args:
        uri: an absolute local path or any fsspec URL.
        query: the signed query that belongs to the uri, which is never stored.
        size: bytes that the manifest knew; another size means that the object was replaced since.
        folder: where copies of remote objects go; the system's temporary folder by default.

    Raises:
        AudioError: `RECORDING_NOT_FOUND`, `RECORDING_FORBIDDEN`; transient: `RECORDING_CHANGED`,
            `RECORDING_UNREACHABLE`.
    """
    if not is_remote(uri):
        try:
            about = os.stat(uri)
            if stat.S_ISDIR(about.st_mode):
                raise IsADirectoryError(uri)
            # A named pipe that nobody writes to must hang in the child, which has a deadline.
            os.close(os.open(uri, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            raise _failure(error) from error
        _check_size(about.st_size, size)
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="serpipe-", dir=folder) as scratch:
        path = os.path.join(scratch, "recording")
        try:
            for attempt in Retrying(
                stop=stop_after_attempt(ATTEMPTS),
                wait=wait_random_exponential(multiplier=0.2, max=10),
                retry=retry_if_exception(_worth_a_retry),
                reraise=True,
            ):
                with attempt:
                    _fetch(f"{uri}?{query}" if query else uri, path)
        except Exception as error:
            raise _failure(error) from error
        _check_size(os.path.getsize(path), size)
        yield path


def is_remote(uri: str) -> bool:
    """Whether a uri names something other than a local path.

    Examples:
        >>> is_remote("s3://archive/a.mp3"), is_remote("/archive/a.mp3")
        (True, False)
    """
    return "://" in uri


def _fetch(url: str, path: str) -> None:
    # Not fsspec.open: it asks for the size first, takes any refusal for an absent file, and holds 50 MB blocks.
    files, place = fsspec.url_to_fs(url)
    files.get_file(place, path)


def _check_size(found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise AudioError(
            "RECORDING_CHANGED",
            f"the object has {found} bytes, the catalogue knew {expected}; the next run takes the new version",
            transient=True,
        )


def _worth_a_retry(error: BaseException) -> bool:
    return isinstance(error, Exception) and _failure(error).transient


def _failure(error: Exception) -> AudioError:
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status == 404:
        return AudioError("RECORDING_NOT_FOUND", "nothing is there; it was deleted or the uri is wrong")
    if isinstance(error, PermissionError) or status in (401, 403):
        return AudioError("RECORDING_FORBIDDEN", "reading is not allowed; check the credentials and the policy")
    if isinstance(error, IsADirectoryError):
        return AudioError("RECORDING_NOT_FOUND", "the uri names a folder, not a recording")
    if isinstance(error, ImportError | ValueError):
        return AudioError("RECORDING_UNSUPPORTED", f"this kind of uri cannot be read here ({type(error).__name__})")
    # The error's own words may carry a signed url, so only its kind is kept.
    return AudioError("RECORDING_UNREACHABLE", f"reading failed ({type(error).__name__})", transient=True)
