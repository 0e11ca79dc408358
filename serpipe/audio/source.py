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
from typing import Any

from serpipe.errors import AudioError
from serpipe.ids import plain_etag
from serpipe.remote import Trouble, connect, patiently, trouble

_WEB = ("http://", "https://")


@contextmanager
def local_copy(
    uri: str, *, query: str | None = None, size: int | None = None, etag: str | None = None, folder: str | None = None
) -> Iterator[str]:
    """A path at which a recording can be read while the context lasts.

    Args:
        uri: an absolute local path or any fsspec URL.
        query: the signed query that belongs to the uri, which is never stored.
        size: bytes that the manifest knew; another size means that the object was replaced since.
        etag: entity tag that the manifest knew; so does another tag.
        folder: where copies of remote objects go; the system's temporary folder by default.

    Raises:
        AudioError: `RECORDING_NOT_FOUND`, `RECORDING_FORBIDDEN`, `RECORDING_UNSUPPORTED`; transient:
            `RECORDING_CHANGED`, `RECORDING_UNREACHABLE`.
    """
    if not is_remote(uri):
        try:
            about = os.stat(uri)
            if stat.S_ISDIR(about.st_mode):
                raise IsADirectoryError(uri)
            # A named pipe that nobody writes to must hang in the child, which has a deadline.
            os.close(os.open(uri, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and any(name != name.strip() for name in uri.split("/")):
                raise AudioError(
                    "RECORDING_NOT_FOUND",
                    f"there is no {uri!r}; a name in it begins or ends with a blank: take blanks around names out of "
                    "the manifest",
                ) from error
            raise _failure(error) from error
        _check("a size of", about.st_size, size)
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="serpipe-", dir=folder) as scratch:
        path = os.path.join(scratch, "recording")
        try:
            before, after = patiently()(_fetch, f"{uri}?{query}" if query else uri, path, etag)
        except Exception as error:
            raise _failure(error) from error
        _check("the tag", after, before)
        _check("a size of", os.path.getsize(path), size)
        yield path


def is_remote(uri: str) -> bool:
    """Whether a uri names something other than a local path.

    Examples:
        >>> is_remote("s3://archive/a.mp3"), is_remote("/archive/a.mp3")
        (True, False)
    """
    return "://" in uri


def _fetch(url: str, path: str, etag: str | None) -> tuple[str | None, str | None]:
    """Copy an object; its entity tags before and after, where it has any."""
    # Not fsspec.open: it asks for the size first, takes any refusal for an absent file, and holds 50 MB blocks.
    files, place = connect(url)
    if url.startswith(_WEB):
        # One request is one version; and who may read may not always ask.
        files.get_file(place, path)
        return None, None
    before = plain_etag(etag) if etag else _etag(files, place)
    files.get_file(place, path)
    # s3fs reads a long object in parts, and goes on where a connection broke, whatever lies there by then.
    return before, _etag(files, place)


def _etag(files: Any, place: str) -> str | None:
    info = files.info(place, refresh=True) if "s3" in files.protocol else files.info(place)
    etag = info.get("ETag") or info.get("etag")
    return plain_etag(str(etag)) if etag else None


def _check(what: str, found: object, expected: object) -> None:
    if found is not None and expected is not None and found != expected:
        raise AudioError(
            "RECORDING_CHANGED",
            f"the object has {what} {found}, the catalogue knew {expected}; the next run takes the new version",
            transient=True,
        )


def _failure(error: Exception) -> AudioError:
    if isinstance(error, IsADirectoryError):
        return AudioError("RECORDING_NOT_FOUND", "the uri names a folder, not a recording")
    match trouble(error):
        case Trouble.ABSENT:
            return AudioError(
                "RECORDING_NOT_FOUND", "nothing is there; it was deleted since it was listed, or the uri is wrong"
            )
        case Trouble.FORBIDDEN:
            return AudioError("RECORDING_FORBIDDEN", "reading is not allowed; check the credentials and the policy")
        case Trouble.UNSUPPORTED:
            return AudioError("RECORDING_UNSUPPORTED", f"this kind of uri cannot be read here ({_kind(error)})")
        case _:
            # The error's own words may carry a signed url, so only its kind is kept.
            return AudioError("RECORDING_UNREACHABLE", f"reading failed ({_kind(error)})", transient=True)


def _kind(error: Exception) -> str:
    return type(error).__name__
