"""Folders and patterns of audio: every file is a recording unless its ending says that it cannot be."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from serpipe.manifest import storage
from serpipe.manifest.rows import Batch, Faults, text_array
from serpipe.manifest.text import empty_meta

if TYPE_CHECKING:
    from serpipe.manifest.source import Part

NEVER_AUDIO = frozenset((
    ".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml",
    ".toml", ".ini", ".cfg", ".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".xls", ".xlsx",
    ".ppt", ".pptx", ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".svg",
    ".parquet", ".arrow", ".feather", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".onnx", ".pkl",
    ".h5", ".hdf5", ".ark", ".scp", ".ctm", ".stm", ".rttm", ".uem", ".srt", ".vtt", ".lab",
    ".textgrid", ".eaf", ".trs", ".phn", ".wrd", ".py", ".ipynb", ".sh", ".log", ".db", ".sqlite",
    ".lock", ".sha256", ".md5", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar",
    ".ds_store",
))  # fmt: skip
"""Endings that are left out of folders and patterns.

Everything else is tried: audio comes under any name, and under none.
"""

_MANY_FOLDERS = 256
"""More folders than this, and one listing of all is quicker than one for each."""


def split_folder(place: str, *, glob: bool) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """List a folder or pattern once, cut it into what can be read apart, and count what is left out.

    Returns:
        The keywords of each `Part`, the files left out by ending, and the number of files that are kept.

    Raises:
        SerpipeError: MANIFEST_OUT_OF_REACH.
    """
    try:
        return _split(place, glob)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise storage.out_of_reach(place, error) from error


def _split(place: str, glob: bool) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    left_out: dict[str, int] = {}
    if glob:
        part, count = _sum_up(place, storage.expand(place), left_out, deep=True)
        return [part], left_out, count
    files, folders = storage.list_folder(place)
    hidden = [folder for folder in folders if _name(folder).startswith(".")]
    if hidden:
        left_out["hidden"] = len(hidden)
    folders = [folder for folder in folders if folder not in hidden]
    if len(folders) > _MANY_FOLDERS:
        left_out.clear()
        part, count = _sum_up(place, storage.walk(place), left_out, deep=True)
        return [part], left_out, count
    summed = [_sum_up(place, files, left_out, deep=False)]
    summed += [_sum_up(folder, storage.walk(folder), left_out, deep=True) for folder in folders]
    return [part for part, count in summed if count], left_out, sum(count for _, count in summed)


def read_files(part: Part, glob: bool, batch_rows: int) -> Iterator[Batch]:
    """Read a folder, a pattern or one recording as a manifest: one row a file, numbered in the order of the listing."""
    place = part.location
    query = ""
    if glob and not storage.is_pattern(place):
        found: Iterable[storage.Entry] = [_described(part)]
        query = f"?{part.query}" if part.query else ""
    elif glob:
        found = storage.expand(place)
    else:
        found = storage.walk(place) if part.deep else storage.list_folder(place)[0]
    kept = (entry for entry in found if leave_out(entry.uri) is None)
    done = 0
    while chunk := list(islice(kept, batch_rows)):
        faults: Faults = {}
        fields = {
            "uri": text_array([entry.uri + query for entry in chunk], faults),
            "etag": pa.array([entry.etag for entry in chunk], pa.string()),
            "size": _text([entry.size for entry in chunk]),
            "mtime_ns": _text([entry.mtime_ns for entry in chunk]),
        }
        source = place.encode("utf-8", "backslashreplace").decode()
        yield Batch(source, np.arange(done + 1, done + 1 + len(chunk)), fields, empty_meta(len(chunk)), faults)
        done += len(chunk)


def _described(part: Part) -> storage.Entry:
    """What is known of the one recording that a part is."""
    if (entry := storage.describe(part.location, part.query)) is None:
        raise FileNotFoundError(part.location)
    return entry


def leave_out(uri: str) -> str | None:
    """Say under which ending a file is left out; None if it is tried.

    Examples:
        >>> leave_out("/a/b.CSV"), leave_out("/a/.trash"), leave_out("/a/b"), leave_out("/a/b.mp3")
        ('.csv', 'hidden', None, None)
    """
    name = _name(uri)
    if name.startswith("."):
        return "hidden"
    ending = posixpath.splitext(name)[1].lower()
    return ending if ending in NEVER_AUDIO else None


def _sum_up(
    place: str, entries: Iterable[storage.Entry], left_out: dict[str, int], *, deep: bool
) -> tuple[dict[str, Any], int]:
    # The sum of the files' digests is the same in any order, and needs no memory.
    total, size, count = 0, 0, 0
    for entry in entries:
        ending = leave_out(entry.uri)
        if ending is not None:
            left_out[ending] = left_out.get(ending, 0) + 1
            continue
        facts = "\0".join(map(str, (entry.uri, entry.size, entry.etag, entry.mtime_ns)))
        total += int.from_bytes(blake2b(facts.encode("utf-8", "surrogateescape"), digest_size=16).digest())
        size, count = size + (entry.size or 0), count + 1
    etag = f"{total % (1 << 128):032x}"
    return {"location": place, "size": size, "etag": etag, "deep": deep}, count


def _name(uri: str) -> str:
    return posixpath.basename(uri.rstrip("/"))


def _text(values: Iterable[int | None]) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], pa.string())
