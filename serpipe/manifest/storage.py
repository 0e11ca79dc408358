"""Files wherever they lie: local paths and every file system that fsspec knows."""

from __future__ import annotations

import datetime
import errno
import io
import os
import re
import stat as file_mode
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.compression import compr
from fsspec.utils import infer_compression

from serpipe import remote
from serpipe.errors import SerpipeError, UsageError
from serpipe.ids import plain_etag
from serpipe.redact import redact

_WEB = ("http://", "https://")
_MAGIC = re.compile(r"[*?\[]")
LONGEST_LINE = 1 << 24
"""Bytes of a manifest's line: what is longer is no row, and may be a compressed file that would fill the memory."""

_CHANGED = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""What fsspec's file systems call the time of the last change; `created` only where they have no other."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file system says about one file.

    Attributes:
        uri: canonical.
        size: bytes, where known.
        etag: without quotes, where the store has them.
        mtime_ns: last change in nanoseconds since 1970, where known.
    """

    uri: str
    size: int | None = None
    etag: str | None = None
    mtime_ns: int | None = None


def is_local(uri: str) -> bool:
    """Whether a canonical uri is a path of this machine."""
    return uri.startswith("/")


def is_web(uri: str) -> bool:
    """Whether a canonical uri lies on a web server, which cannot list its files."""
    return uri.startswith(_WEB)


def is_pattern(uri: str) -> bool:
    """Whether a canonical uri is a glob pattern rather than the name of something that exists."""
    return bool(_MAGIC.search(uri)) and not is_web(uri) and not (is_local(uri) and os.path.lexists(uri))


def connect(uri: str) -> tuple[Any, str]:
    """Give the fsspec file system of a uri and the path by which that file system knows it.

    Raises:
        UsageError: MANIFEST_NO_FILESYSTEM, when nothing installed can open such uris.
    """
    if is_local(uri):
        return fsspec.filesystem("file"), uri
    try:
        return remote.connect(uri)
    except (ImportError, ValueError) as error:
        raise UsageError(
            "MANIFEST_NO_FILESYSTEM",
            f"{uri} cannot be opened here: {error}; write a local path, s3://bucket/prefix, or another fsspec URL "
            "whose package is installed",
        ) from error


def describe(uri: str, query: str | None = None) -> Entry | None:
    """Ask about one file; None if there is none.

    Raises:
        SerpipeError: MANIFEST_OUT_OF_REACH, when the store does not answer or refuses.
    """
    if is_local(uri):
        try:
            return _local_entry(uri)
        except OSError as error:
            raise out_of_reach(uri, error) from error
    fs, path = connect(uri)
    try:
        info = remote.patiently()(fs.info, f"{uri}?{query}" if query and is_web(uri) else path)
    except (FileNotFoundError, NotADirectoryError) as error:
        # fsspec calls every failure on the web a missing file; only the status behind it tells.
        behind = error.__cause__
        if is_web(uri) and isinstance(behind, Exception) and getattr(behind, "status", None) not in (404, 410):
            raise out_of_reach(uri, behind) from error
        return None
    except Exception as error:
        raise out_of_reach(uri, error) from error
    return _entry(uri, info) if info.get("type") == "file" else None


def is_folder(uri: str) -> bool:
    """Whether something lies below a uri."""
    if is_local(uri) or is_web(uri):
        return is_local(uri) and os.path.isdir(uri)
    fs, path = connect(uri)
    try:
        return bool(remote.patiently()(fs.isdir, path))
    except Exception as error:
        raise out_of_reach(uri, error) from error


def list_folder(folder: str) -> tuple[list[Entry], list[str]]:
    """List one folder, freshly.

    Returns:
        Its files, and the uris of the folders in it, both sorted.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: it may not be listed.
        SerpipeError: MANIFEST_OUT_OF_REACH.
    """
    if is_local(folder):
        try:
            with os.scandir(folder) as found:
                inside = sorted(found, key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            raise
        except OSError as error:
            raise out_of_reach(folder, error) from error
        folders = [item.path for item in inside if _is_folder(item)]
        files = [_local_item(item.path) for item in inside if not _is_folder(item)]
        return [file for file in files if file is not None], folders
    fs, path = connect(folder)
    try:
        fs.invalidate_cache(path)
        infos = remote.patiently()(fs.ls, path, detail=True)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except Exception as error:
        raise out_of_reach(folder, error) from error
    own = path.rstrip("/")
    infos = [info for info in infos if info["name"].rstrip("/") != own]
    named = sorted((_below(folder, path, info["name"]), info) for info in infos)
    files = [_entry(uri, info) for uri, info in named if info["type"] == "file"]
    return [f for f in files if f is not None], [uri for uri, info in named if info["type"] == "directory"]


def walk(folder: str) -> Iterator[Entry]:
    """List every file below a folder, sorted within each folder; folders with hidden names are not entered.

    A hidden folder comes as an entry of its own, with a trailing slash.
    Local links to folders are followed unless they lead back to a folder above them.
    """
    if is_local(folder):
        yield from _reached(folder, _walk_local(folder, frozenset()))
        return
    fs, path = connect(folder)
    try:
        fs.invalidate_cache(path)
        infos = remote.patiently()(remote.files_below, fs, path)
    except Exception as error:
        raise out_of_reach(folder, error) from error
    hidden: set[str] = set()
    for name in sorted(infos):
        uri = _below(folder, path, name)
        inner = uri[len(folder.rstrip("/")) + 1 :].split("/")
        cloaked = next((k for k, step in enumerate(inner[:-1]) if step.startswith(".")), None)
        if cloaked is None:
            if infos[name].get("type") == "file" and not name.endswith("/"):
                yield _entry(uri, infos[name])
            continue
        root = "/".join([folder.rstrip("/"), *inner[: cloaked + 1]]) + "/"
        if root not in hidden:
            hidden.add(root)
            yield Entry(root)


def _reached(place: str, entries: Iterator[Entry]) -> Iterator[Entry]:
    try:
        yield from entries
    except FileNotFoundError:
        raise
    except OSError as error:
        raise out_of_reach(place, error) from error


def _walk_local(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    identity = _identity(folder)
    if identity in above:
        return
    with os.scandir(folder) as found:
        inside = sorted(found, key=lambda item: item.name)
    for item in inside:
        if not _is_folder(item):
            entry = _local_item(item.path)
            if entry is not None:
                yield entry
        elif item.name.startswith("."):
            yield Entry(item.path + "/")
        else:
            yield from _walk_local(item.path, above | {identity})


def expand(pattern: str) -> Iterator[Entry]:
    """List the files that match a glob pattern; `**` crosses folders, but not a link back to one above it.

    Raises:
        SerpipeError: MANIFEST_OUT_OF_REACH, on local and network disks also where a folder that the pattern leads into
            cannot be listed.
    """
    if is_local(pattern):
        root = pattern_root(pattern)
        steps = [step for step in pattern[len(root) :].split("/") if step]
        yield from _reached(pattern, _matching(root, steps, _identities(root)))
        return
    fs, path = connect(pattern)
    try:
        fs.invalidate_cache()
        infos = remote.patiently()(fs.glob, path, detail=True)
    except Exception as error:
        raise out_of_reach(pattern, error) from error
    fixed, fixed_path = pattern_root(pattern), pattern_root(path)
    for name in sorted(infos):
        if infos[name].get("type") == "file":
            yield _entry(_below(fixed, fixed_path, name), infos[name])


def _matching(folder: str, steps: list[str], above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    """Files below a folder that match, step by step; not by Python's glob, which leaves out what it cannot list."""
    step, further = steps[0], steps[1:]
    if not _MAGIC.search(step):
        yield from _within(os.path.join(folder, step), further, above)
        return
    if step == "**" and further:
        yield from _matching(folder, further, above)
    try:
        with os.scandir(folder) as found:
            inside = sorted(found, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in inside:
        if item.name.startswith(".") and not step.startswith("."):
            continue
        if step != "**" and not fnmatchcase(item.name, step):
            continue
        if _is_folder(item):
            yield from _within(item.path, steps if step == "**" else further, above)
        elif not further:
            yield from _within(item.path, further, above)


def _within(path: str, steps: list[str], above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    """What matches further steps below a folder; without any, the file itself."""
    if steps:
        own = _stat(path)
        if own is not None and file_mode.S_ISDIR(own.st_mode) and (own.st_dev, own.st_ino) not in above:
            yield from _matching(path, steps, above | {(own.st_dev, own.st_ino)})
    elif (entry := _local_item(path)) is not None:
        yield entry


def _identity(folder: str) -> tuple[int, int]:
    own = os.stat(folder)
    return own.st_dev, own.st_ino


def _identities(folder: str) -> frozenset[tuple[int, int]]:
    """A folder and all above it, as the file system tells them apart."""
    found = set()
    while os.path.exists(folder):
        found.add(_identity(folder))
        if folder == os.path.dirname(folder):
            break
        folder = os.path.dirname(folder)
    return frozenset(found)


def pattern_root(pattern: str) -> str:
    """Give the folder below which everything lies that a pattern can match.

    Examples:
        >>> pattern_root("s3://bucket/a/*/b.wav")
        's3://bucket/a'
    """
    first = _MAGIC.search(pattern)
    fixed = pattern[: first.start()] if first else pattern
    return fixed.rsplit("/", 1)[0] or "/"


def parent(uri: str) -> str:
    """Give the folder a file lies in.

    Examples:
        >>> parent("s3://bucket/a.wav"), parent("/a.wav")
        ('s3://bucket', '/')
    """
    return uri.rsplit("/", 1)[0] or "/"


def open_bytes(uri: str, query: str | None = None) -> BinaryIO:
    """Open a file for reading, decompressed where its name says that it is compressed.

    Raises:
        OSError: as the file system has it.
        UsageError: MANIFEST_NO_FILESYSTEM, MANIFEST_NO_COMPRESSION.
    """
    fs, path = connect(uri)
    raw: BinaryIO = fs.open(f"{uri}?{query}" if query and is_web(uri) else path, "rb")
    packed = infer_compression(uri)
    if packed is None:
        return raw
    if packed not in compr:
        raise UsageError(
            "MANIFEST_NO_COMPRESSION",
            f"{uri} is {packed}, which this Python cannot unpack; unpack it yourself",
        )
    unpacked: BinaryIO = compr[packed](raw, mode="rb")
    return unpacked


def open_lines(uri: str, query: str | None = None) -> BinaryIO:
    """Open a file for reading line by line, as `open_bytes` does.

    Raises:
        UsageError: MANIFEST_LINE_TOO_LONG, on reading.
    """
    return cast("BinaryIO", io.BufferedReader(_Lines(open_bytes(uri, query), uri), 1 << 16))


class _Lines(io.RawIOBase):
    def __init__(self, raw: BinaryIO, uri: str) -> None:
        self._raw, self._uri, self._length = raw, uri, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        end = data.rfind(b"\n")
        self._length = len(data) - 1 - end if end >= 0 else self._length + len(data)
        if self._length > LONGEST_LINE:
            raise UsageError(
                "MANIFEST_LINE_TOO_LONG",
                f"{self._uri} has a line of more than {LONGEST_LINE >> 20} MiB; is it a manifest?",
            )
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def out_of_reach(uri: str, error: Exception) -> SerpipeError:
    """Say that a store refused or did not answer; nothing may be concluded about its files."""
    refused = remote.trouble(error) is remote.Trouble.FORBIDDEN
    hint = "check the credentials and their rights to list and read" if refused else "try again"
    if remote.without_credentials(error):
        hint = remote.SET_CREDENTIALS
    return SerpipeError("MANIFEST_OUT_OF_REACH", f"{uri} cannot be read ({said(error)}); {hint}", transient=not refused)


def said(error: Exception) -> str:
    """Quote an error without the signatures that web clients repeat in theirs.

    Examples:
        >>> said(OSError("403, url='https://h.org/a?X-Amz-Signature=1'"))
        "403, url='https://h.org/a?…'"
    """
    return redact(str(error).strip()) or type(error).__name__


def _below(folder: str, path: str, name: str) -> str:
    """Keep the spelling of the folder's uri: file systems differ in what they call the root of a name."""
    return folder.rstrip("/") + "/" + name[len(path.rstrip("/")) :].lstrip("/")


def _stat(path: str) -> os.stat_result | None:
    """What is known of a file or folder; None where there is none."""
    try:
        return os.stat(path)
    except OSError as error:
        # Also a link that leads to itself, and what is no name at all.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _local_entry(path: str) -> Entry | None:
    found = _stat(path)
    if found is None or not file_mode.S_ISREG(found.st_mode):
        return None
    return Entry(path, found.st_size, None, found.st_mtime_ns)


def _local_item(path: str) -> Entry | None:
    # A link that leads nowhere was meant to be audio: whoever decodes it will say that it is gone.
    return _local_entry(path) or (Entry(path) if os.path.islink(path) and not os.path.isdir(path) else None)


def _entry(uri: str, info: dict[str, Any]) -> Entry:
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    changed = next((info[name] for name in _CHANGED if info.get(name) is not None), None)
    size = info.get("size")
    return Entry(uri, None if size is None else int(size), plain_etag(str(etag)) if etag else None, _ns(changed))


def _ns(moment: object) -> int | None:
    if isinstance(moment, str):
        try:
            moment = datetime.datetime.fromisoformat(moment)
        except ValueError:
            return None
    if isinstance(moment, datetime.datetime):
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        past = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return (past.days * 86_400 + past.seconds) * 1_000_000_000 + past.microseconds * 1_000
    return round(moment * 1e6) * 1_000 if isinstance(moment, (int, float)) else None
