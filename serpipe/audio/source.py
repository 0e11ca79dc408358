"""From a uri to a local file a codec can read, each object fetched once.

A remote object is copied to local disk before it is decoded: codecs seek where formats make them (an MP4's index at
its end), a slow link cannot be mistaken for a hanging codec, and what the network does is told apart from what is
wrong with the file.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serpipe.audio.part import LEAST_BYTES, Part, fetch_part
from serpipe.audio.ranges import WEB, Remote
from serpipe.errors import AudioError
from serpipe.ids import plain_etag
from serpipe.remote import Trouble, bad_credentials, connect, patiently, trouble, without_a_reason

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Of the worker's disk: nothing that is read says so."""


@contextmanager
def local_copy(
    uri: str,
    *,
    query: str | None = None,
    size: int | None = None,
    etag: str | None = None,
    folder: str | None = None,
    part: Part | None = None,
) -> Iterator[str]:
    """A path at which a recording can be read while the context lasts.

    Args:
        uri: an absolute local path or any fsspec URL.
        query: the signed query that belongs to the uri, which is never stored.
        size: bytes that the manifest knew; another size means that the object was replaced since.
        etag: entity tag that the manifest knew; so does another tag.
        folder: where copies of remote objects go; the system's temporary folder by default.
        part: what of a remote object is wanted, where that is not all of it.

    Raises:
        AudioError: `RECORDING_NOT_FOUND`, `RECORDING_FORBIDDEN`, `RECORDING_UNSUPPORTED`; transient:
            `RECORDING_CHANGED`, `RECORDING_CREDENTIALS`, `RECORDING_NO_ROOM`, `RECORDING_UNREACHABLE`.
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
    with _scratch(folder) as scratch:
        path = os.path.join(scratch, "recording")
        try:
            before, after = patiently()(_fetch, f"{uri}?{query}" if query else uri, path, size, etag, part)
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


def _fetch(url: str, path: str, size: int | None, etag: str | None, part: Part | None) -> tuple[str | None, str | None]:
    """Copy an object, or what is wanted of it; its entity tags before and after, where it has any."""
    # Not fsspec.open: it asks for the size first, takes any refusal for an absent file, and holds 50 MB blocks.
    files, place = connect(url)
    if size is not None and size < LEAST_BYTES:
        part = None
    # What the manifest knew is no size to go by: the object may be another one by now.
    if url.startswith(WEB):
        if part is not None and fetch_part(remote := Remote(url), path, part):
            return min(remote.tags, default=None), max(remote.tags, default=None)
        # One request is one version; and who may read may not always ask.
        files.get_file(place, path)
        return None, None
    before = plain_etag(etag) if etag else _etag(files, place)
    if part is None or not fetch_part(Remote(url), path, part):
        files.get_file(place, path)
    # s3fs reads a long object in parts, and goes on where a connection broke, whatever lies there by then.
    return before, _etag(files, place)


@contextmanager
def _scratch(folder: str | None) -> Iterator[str]:
    try:
        made = tempfile.TemporaryDirectory(prefix="serpipe-", dir=folder)
    except OSError as error:
        raise _no_room(error) from error
    with made as scratch:
        yield scratch


def _etag(files: Any, place: str) -> str | None:
    try:
        info = files.info(place, refresh=True) if "s3" in files.protocol else files.info(place)
    except Exception as error:
        if without_a_reason(error):
            # Asked for a byte, the store says whether it is the credentials.
            files.cat_file(place, start=0, end=1)
        raise
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
    if why := bad_credentials(error):
        return AudioError(
            "RECORDING_CREDENTIALS",
            f"the store does not take this machine's credentials ({why}); look at its role or keys, and its clock",
            transient=True,
        )
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return _no_room(error)
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


def _no_room(error: OSError) -> AudioError:
    why = error.strerror or type(error).__name__
    return AudioError(
        "RECORDING_NO_ROOM",
        f"the worker cannot write its copy ({why}); make room in its temporary folder, or set TMPDIR to another",
        transient=True,
    )


def _kind(error: Exception) -> str:
    return type(error).__name__
