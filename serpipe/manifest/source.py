"""What a manifest is, where it lies and in which parts: found out once, from its first bytes."""

from __future__ import annotations

import codecs
import json
import posixpath
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import pyarrow as pa

from serpipe.errors import UsageError
from serpipe.ids import canonical_uri, content_version, fingerprint
from serpipe.manifest import kaldi, lhotse, storage
from serpipe.manifest.columns import check_roles, find_columns, no_uri_column
from serpipe.manifest.folder import leave_out, read_files, split_folder
from serpipe.manifest.formats import BATCH_ROWS, plain_row, read_json_lines, read_parquet, read_table_text
from serpipe.manifest.roots import Roots
from serpipe.manifest.rows import Batch, build_rows

FORMATS = ("parquet", "csv", "tsv", "jsonl", "nemo", "lhotse", "kaldi", "folder", "glob")
"""What `format` may be; left out, it is found from the name and the first lines."""

_BY_ENDING = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".scp": "kaldi",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_WITH_COLUMNS = ("parquet", "csv", "tsv", "jsonl", "nemo")
_LINES_LOOKED_AT = 100
_ENOUGH = 1 << 16


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a manifest that one task reads.

    Attributes:
        location: canonical uri of a file, a folder or a pattern.
        query: what must be added to open it; never stored.
        size: bytes; of a folder, those of all its files.
        etag: of a folder, a digest of its listing.
        mtime_ns: last change in nanoseconds since 1970.
        deep: of a folder, whether the folders in it belong to it.
    """

    location: str
    query: str | None = field(default=None, repr=False)
    size: int | None = None
    etag: str | None = None
    mtime_ns: int | None = None
    deep: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What to label, found but not yet read; `open_manifest` makes one.

    Attributes:
        location: canonical uri.
        format: one of `FORMATS`.
        parts: what can be read apart, in any order.
        fingerprint: 16 hexadecimal characters, other ones when a part, the format or an option changes; None
            where a server tells neither etags nor times, so that a change cannot be seen.
        base: folder that relative uris start from; empty: the folder of each part.
        roots: where recordings may lie; empty: anywhere.
        columns: roles named by hand.
        companions: of Kaldi, the files beside the `wav.scp`, name to uri.
        left_out: files of a folder that cannot be audio, counted by ending; hidden ones under `hidden`.
    """

    location: str
    format: str
    parts: tuple[Part, ...]
    fingerprint: str | None
    base: str = ""
    roots: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def read(self, part: Part, *, batch_rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """Read one part as a stream of tables, so that memory does not grow with it.

        Args:
            part: one of `parts`.
            batch_rows: rows of each table but the last.

        Yields:
            Tables of schema `serpipe.manifest.schemas.ROWS`. Rows that cannot be used carry `error`.

        Raises:
            UsageError: `MANIFEST_NOT_FOUND`, `MANIFEST_UNREADABLE`, `MANIFEST_NO_URI_COLUMN` and what else concerns
                all rows of the part.
            SerpipeError: `MANIFEST_OUT_OF_REACH`.
        """
        base = self.base or storage.parent(part.location)
        roots = Roots(self.roots)
        batches = self._batches(part, batch_rows)
        read = 0
        while True:
            try:
                batch = next(batches, None)
            except FileNotFoundError as error:
                raise UsageError("MANIFEST_NOT_FOUND", f"{part.location} has gone since it was found") from error
            except (PermissionError, ConnectionError, TimeoutError) as error:
                raise storage.out_of_reach(part.location, error) from error
            except (OSError, EOFError, zlib.error, UnicodeError, pa.ArrowException) as error:
                where = f"behind row {read}" if read else "from its beginning"
                what = f"{part.location} cannot be read as {self.format} {where}"
                raise UsageError("MANIFEST_UNREADABLE", f"{what} ({storage.said(error)}); is it complete?") from error
            if batch is None:
                return
            if len(batch.numbers):
                read = int(batch.numbers[-1])
                yield build_rows(batch, base, roots)

    def _batches(self, part: Part, batch_rows: int) -> Iterator[Batch]:
        uri, query, named = part.location, part.query, self.columns
        if self.format == "parquet":
            return read_parquet(uri, query, named, batch_rows)
        if self.format in ("csv", "tsv"):
            return read_table_text(uri, query, named, batch_rows)
        if self.format == "lhotse":
            return read_json_lines(uri, query, lhotse.describe, batch_rows)
        if self.format in ("jsonl", "nemo"):
            return read_json_lines(uri, query, plain_row(named), batch_rows)
        if self.format == "kaldi":
            return kaldi.read_kaldi(uri, query, dict(self.companions), batch_rows)
        return read_files(part, self.format == "glob", batch_rows)


def open_manifest(
    location: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
    roots: Sequence[str] = (),
) -> Manifest:
    r"""Find out what a manifest is, without reading it.

    Args:
        location: a file, a folder, or a glob pattern, as a local path or any uri that fsspec opens.
        format: one of `FORMATS`; found from the name and the first lines if left out.
        columns: role to column, for those that are not recognised; an empty name keeps a column from being
            taken. Roles are `serpipe.manifest.columns.ROLES`.
        base: folder that relative uris start from; the manifest's own if left out.
        roots: folders, buckets or prefixes; a row that names a file outside all of them is a bad one. None: anywhere.

    Returns:
        The manifest, whose `parts` can be read in any order, each by `read`.

    Raises:
        UsageError: MANIFEST_NOT_FOUND, MANIFEST_EMPTY, MANIFEST_UNKNOWN_FORMAT, MANIFEST_NO_URI_COLUMN,
            MANIFEST_NO_SUCH_COLUMN, MANIFEST_NO_SUCH_ROLE, MANIFEST_SAME_COLUMN, MANIFEST_UNREADABLE.
        SerpipeError: MANIFEST_OUT_OF_REACH.

    Examples:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "calls.csv")
        ...     _ = path.write_text("path,start,end,agent\n1.wav,0.5,2.0,ann\n")
        ...     manifest = open_manifest(str(path))
        ...     row = next(manifest.read(manifest.parts[0])).to_pylist()[0]
        >>> manifest.format, row["row"], row["start_s"], row["meta"]
        ('csv', 2, 0.5, [('agent', 'ann')])
    """
    named = dict(columns or {})
    check_roles(named)
    if format is not None and format not in FORMATS:
        raise UsageError("MANIFEST_UNKNOWN_FORMAT", f"no format is called {format!r}; known: {', '.join(FORMATS)}")
    try:
        place, query = canonical_uri(location)
    except ValueError as error:
        raise UsageError("MANIFEST_NOT_FOUND", f"{location!r} is no place: {error}") from None
    place = place.rstrip("/") or "/"
    kind, parts, companions, left_out = _find(place, query, format)
    if named and kind not in _WITH_COLUMNS:
        raise UsageError("MANIFEST_NO_SUCH_COLUMN", f"{place} is read as {kind}, which has no columns to name")
    root = place if not storage.is_pattern(place) and storage.is_folder(place) and kind == "parquet" else ""
    manifest = Manifest(
        location=place,
        format=kind,
        parts=parts,
        fingerprint=_fingerprint(kind, parts, companions, named, base, roots),
        base=canonical_uri(base)[0] if base else root,
        roots=tuple(roots),
        columns=named,
        companions={name: entry.uri for name, entry in companions.items()},
        left_out=left_out,
    )
    _look_inside(manifest)
    return manifest


_Found = tuple[str, tuple[Part, ...], dict[str, storage.Entry], dict[str, int]]


def _find(place: str, query: str | None, wanted: str | None) -> _Found:
    if storage.is_pattern(place):
        return _find_pattern(place, wanted)
    if storage.is_folder(place):
        return _find_folder(place, wanted)
    entry = storage.describe(place, query)
    if entry is None:
        raise UsageError("MANIFEST_NOT_FOUND", f"there is no {place}; give a manifest, a folder or a glob pattern")
    if entry.size == 0:
        raise UsageError("MANIFEST_EMPTY", f"{place} is empty; write a line for each recording into it")
    if wanted is None and _ending(place) not in _BY_ENDING and _is_binary(place, query):
        if leave_out(place) is not None:
            raise UsageError(
                "MANIFEST_UNKNOWN_FORMAT", f"{place} is neither audio nor a list that is read; save the list as CSV"
            )
        # No list is binary but Parquet: this is one recording, which is read as a pattern that only it matches.
        return "glob", (_part(entry, query),), {}, {}
    kind = _format_of(place, query, wanted)
    companions = {}
    if kind == "kaldi":
        found = {name: storage.describe(uri) for name, uri in kaldi.find_companions(place).items()}
        companions = {name: other for name, other in found.items() if other is not None}
    return kind, (_part(entry, query),), companions, {}


def _find_pattern(pattern: str, wanted: str | None) -> _Found:
    if wanted == "glob" or (wanted is None and _ending(pattern) not in _BY_ENDING):
        part, left_out, count = split_folder(pattern, glob=True)
        if not count:
            raise _no_audio(pattern, left_out)
        return "glob", tuple(Part(**p) for p in part), {}, left_out
    entries = sorted(storage.expand(pattern), key=lambda e: e.uri)
    if not entries:
        raise UsageError("MANIFEST_NOT_FOUND", f"nothing matches {pattern}")
    kind = _format_of(entries[0].uri, None, wanted)
    if kind == "kaldi":
        raise UsageError("MANIFEST_UNKNOWN_FORMAT", f"{pattern}: give Kaldi data folders one at a time")
    return kind, tuple(_part(e) for e in entries), {}, {}


def _find_folder(folder: str, wanted: str | None) -> _Found:
    scp = f"{folder.rstrip('/')}/wav.scp"
    if wanted == "kaldi" or (wanted is None and storage.describe(scp) is not None):
        return _find(scp, None, "kaldi")
    if wanted not in (None, "folder", "parquet"):
        raise UsageError("MANIFEST_UNKNOWN_FORMAT", f"{folder} is a folder; for {wanted} give a file or a pattern")
    if wanted != "parquet":
        parts, left_out, count = split_folder(folder, glob=False)
        if count:
            return "folder", tuple(Part(**p) for p in parts), {}, left_out
        if wanted == "folder" or ".parquet" not in left_out:
            raise _no_audio(folder, left_out)
    entries = [e for e in storage.walk(folder) if e.uri.lower().endswith(".parquet")]
    if not entries:
        raise UsageError("MANIFEST_EMPTY", f"there is no .parquet file below {folder}")
    return "parquet", tuple(_part(e) for e in entries), {}, {}


def _no_audio(place: str, left_out: Mapping[str, int]) -> UsageError:
    seen = ", ".join(f"{count} {ending}" for ending, count in sorted(left_out.items()))
    tables = [ending for ending in left_out if ending in _BY_ENDING]
    hint = f"; if {tables[0]} holds the manifest, name that file" if tables else "; name the folder they lie in"
    return UsageError("MANIFEST_EMPTY", f"no audio was found at {place} ({seen or 'no files at all'}){hint}")


def _part(entry: storage.Entry, query: str | None = None) -> Part:
    return Part(entry.uri, query, entry.size, entry.etag, entry.mtime_ns)


def _ending(uri: str) -> str:
    name = posixpath.basename(uri).lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return posixpath.splitext(name)[1]


def _is_binary(uri: str, query: str | None) -> bool:
    with storage.open_bytes(uri, query) as raw:
        return b"\0" in raw.read(_ENOUGH)


def _format_of(uri: str, query: str | None, wanted: str | None) -> str:
    kind = wanted or _BY_ENDING.get(_ending(uri))
    if kind in ("folder", "glob"):
        raise UsageError("MANIFEST_UNKNOWN_FORMAT", f"{uri} is a file, not a {kind}")
    if kind is None:
        raise UsageError(
            "MANIFEST_UNKNOWN_FORMAT",
            f"the name of {uri} does not say what it holds; give `--format`, one of {', '.join(FORMATS)}",
        )
    return _json_kind(uri, query) if kind == "jsonl" and wanted is None else kind


def _json_kind(uri: str, query: str | None) -> str:
    rows = _first_objects(uri, query)
    if not rows:
        return "jsonl"
    if "sources" in rows[0] or isinstance(rows[0].get("recording"), dict):
        return "lhotse"
    if "tracks" in rows[0] or str(rows[0].get("type", "")).endswith("Cut"):
        return "lhotse"
    return "nemo" if "audio_filepath" in rows[0] else "jsonl"


def _first_objects(uri: str, query: str | None) -> list[dict[str, object]]:
    """Read the first lines that are objects, and refuse what was never one object a line."""
    try:
        with storage.open_bytes(uri, query) as raw:
            start = raw.read(_ENOUGH)
            while b"\n" not in start and len(start) < storage.LONGEST_LINE and (more := raw.read(_ENOUGH)):
                start += more
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            "MANIFEST_UNREADABLE", f"{uri} cannot be read from its beginning ({storage.said(error)})"
        ) from error
    lines = start.removeprefix(codecs.BOM_UTF8).splitlines()[:_LINES_LOOKED_AT]
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    first = next((line.strip() for line in lines if line.strip()), b"")
    if first.startswith(b"[") or first == b"{":
        raise UsageError(
            "MANIFEST_UNKNOWN_FORMAT",
            f"{uri} is one JSON document; write one object a line, for example by "
            f"`jq -c '.[]' {posixpath.basename(uri)}`",
        )
    return rows


def _look_inside(manifest: Manifest) -> None:
    """Read one row, so that what is wrong with all of them is said before any work starts."""
    if manifest.format in ("folder", "glob"):
        return
    if manifest.format in ("jsonl", "nemo"):
        _check_json_columns(manifest)
    for part in manifest.parts:
        if next(manifest.read(part, batch_rows=1), None) is not None:
            return
    raise UsageError("MANIFEST_EMPTY", f"{manifest.location} holds no rows; write one for each recording")


def _check_json_columns(manifest: Manifest) -> None:
    part = manifest.parts[0]
    names = list(dict.fromkeys(name for row in _first_objects(part.location, part.query) for name in row))
    if names and "uri" not in find_columns(names, manifest.columns):
        raise no_uri_column(names, part.location)


def _fingerprint(
    kind: str,
    parts: tuple[Part, ...],
    companions: Mapping[str, storage.Entry],
    named: Mapping[str, str],
    base: str | None,
    roots: Sequence[str],
) -> str | None:
    facts: list[str] = []
    for thing in (*parts, *(_part(entry) for entry in companions.values())):
        if thing.etag is None and thing.mtime_ns is None:
            return None
        facts += [thing.location, content_version(thing.etag, thing.size, thing.mtime_ns)]
    state = blake2b(digest_size=16)
    for fact in facts:
        state.update(fact.encode("utf-8", "surrogateescape") + b"\0")
    chosen = [f"{role}={name}" for role, name in sorted(named.items())]
    chosen += [f"root:{root}" for root in roots]
    return fingerprint(kind, state.hexdigest(), base, *chosen)
