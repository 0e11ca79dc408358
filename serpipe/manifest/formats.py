"""One small reader for each format; each gives batches of text and knows nothing of what makes a row good."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.errors import UsageError
from serpipe.manifest import storage
from serpipe.manifest.columns import find_columns, no_uri_column, refuse_twins
from serpipe.manifest.rows import Batch, Faults, encodable, text_array
from serpipe.manifest.text import meta_of_columns, meta_of_dicts, render, render_array

BATCH_ROWS = 65_536
"""Rows that travel together: tens of megabytes with transcripts, however long the manifest."""

_HEAD_BYTES = 65_536
_DELIMITERS = ",;\t|"
_TABBED = (".tsv", ".tab")
csv.field_size_limit(1 << 24)  # transcripts of whole recordings; the default of 128 KiB is too small

Described = tuple[dict[str, str | None], dict[str, str]]
"""Of one row: role to text, and the owner's columns."""


class BadRowError(Exception):
    """A row that its reader can make nothing of; `args` are the code and the sentence."""


def open_text(uri: str, query: str | None = None, *, newline: str | None = None) -> TextIO:
    """Open a text file, decompressed, by its byte order mark or as UTF-8; stray bytes become lone surrogates.

    Raises:
        UsageError: MANIFEST_UNREADABLE, when the file is no text.
    """
    with storage.open_bytes(uri, query) as raw:
        start = raw.read(_HEAD_BYTES)
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in start and not wide:
        raise UsageError("MANIFEST_UNREADABLE", f"{uri} is not text; say what it is with `--format`")
    raw = storage.open_lines(uri, query)
    encoding = "utf-16" if wide else "utf-8-sig"
    return io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline=newline)


def read_table_text(
    uri: str, query: str | None, named: Mapping[str, str], batch_rows: int = BATCH_ROWS
) -> Iterator[Batch]:
    """Read CSV or TSV with a header. A row's number is the line on which it begins.

    CSV is RFC 4180, and what Excel makes of it: a byte order mark, `;` for `,`, quoted line breaks. TSV has
    no line breaks within a value; quotes count only where they enclose a value and are doubled inside, so
    that `"No," he said` stays what it is.
    """
    with open_text(uri, query, newline="") as stream:
        first = stream.readline()
        names, split = _header(uri, first)
        refuse_twins(names, uri)
        roles = find_columns(names, named)
        if "uri" not in roles:
            raise no_uri_column(names, uri)
        records = split(stream)
        while chunk := list(islice(records, batch_rows)):
            yield _table_batch(uri, names, roles, chunk)


Record = tuple[int, list[str] | str]
"""A row's first line, and its values, or why they cannot be told."""


def _header(uri: str, line: str) -> tuple[list[str], Callable[[TextIO], Iterator[Record]]]:
    text = line.rstrip("\r\n")
    likely = "\t" if _bare(uri).endswith(_TABBED) else ","
    delimiter = likely if likely in text else max(_DELIMITERS, key=text.count)
    if delimiter == "\t":
        names = [_unquoted(name) for name in text.split("\t")]
        return [n.strip() for n in names], _tab_records
    names = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    # A header that puts a space behind every delimiter is followed by rows that do.
    spaced = len(names) > 1 and len(re.findall(re.escape(delimiter) + " ", text)) == len(names) - 1

    def records(stream: TextIO) -> Iterator[Record]:
        return _comma_records(stream, delimiter, spaced)

    return [n.strip() for n in names], records


def _comma_records(stream: TextIO, delimiter: str, spaced: bool) -> Iterator[Record]:
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    while True:
        lines.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.first, f"the row is not CSV: {error}"
            # A quote that nobody closes, or that closes in another row, takes lines with it that are rows of their own.
            lines.give_back()
            continue
        if values:
            yield lines.first, values


class _Lines:
    """The lines of a table behind its header, of which those of a record can be had once more.

    Attributes:
        first: number of the record's first line; the header is line 1.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self.first = 2

    def begin(self) -> None:
        """A record begins with the next line."""
        self.first += len(self._taken)
        self._taken.clear()

    def give_back(self) -> None:
        """All lines of the record but its first are to be read again."""
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._stream)
        self._taken.append(line)
        return line


def _tab_records(stream: TextIO) -> Iterator[Record]:
    for line, text in enumerate(stream, 2):
        text = text.rstrip("\r\n")
        if text:
            yield line, [_unquoted(value) for value in text.split("\t")]


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


def _table_batch(uri: str, names: Sequence[str], roles: Mapping[str, str], chunk: Sequence[Record]) -> Batch:
    faults: Faults = {}
    rows: list[list[str]] = []
    nothing = [""] * len(names)
    for i, (_, values) in enumerate(chunk):
        if isinstance(values, str):
            faults[i] = ("MANIFEST_BAD_ROW", values)
        elif len(values) != len(names):
            faults[i] = ("MANIFEST_BAD_ROW", f"the row has {len(values)} values, the header {len(names)}")
        rows.append(nothing if i in faults else cast("list[str]", values))
    columns = {name: text_array(values, faults) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    owners = [name for name in names if name and name not in roles.values()]
    meta = meta_of_columns(owners, [columns[name] for name in owners], len(rows))
    fields = {role: columns[name] for role, name in roles.items()}
    return Batch(uri, [line for line, _ in chunk], fields, meta, faults)


def read_parquet(
    uri: str, query: str | None, named: Mapping[str, str], batch_rows: int = BATCH_ROWS
) -> Iterator[Batch]:
    """Read Parquet; columns of bytes are not read, and columns of anything else come as text.

    Raises:
        UsageError: `MANIFEST_NO_URI_COLUMN`; `MANIFEST_UNSUPPORTED`, the column of uris holds no text.
    """
    with storage.open_bytes(uri, query) as raw, pq.ParquetFile(raw) as file:
        schema = file.schema_arrow
        refuse_twins(schema.names, uri)
        unfit = {f.name for f in schema if not _holds_text(f.type)}
        roles = find_columns(schema.names, named, unfit=unfit)
        if "uri" not in roles:
            raise no_uri_column(schema.names, uri)
        if roles["uri"] in unfit:
            raise UsageError(
                "MANIFEST_UNSUPPORTED",
                f"column {roles['uri']!r} of {uri} holds no text; audio inside a table is not read",
            )
        wanted = [f.name for f in schema if f.name in roles.values() or not _holds_bytes(f.type)]
        done = 0
        for batch in file.iter_batches(batch_size=batch_rows, columns=wanted):
            columns = {name.strip(): render_array(batch.column(name)) for name in batch.schema.names}
            taken = {name.strip() for name in roles.values()}
            owners = [name for name in columns if name and name not in taken]
            meta = meta_of_columns(owners, [columns[name] for name in owners], batch.num_rows)
            fields = {role: columns[name.strip()] for role, name in roles.items()}
            yield Batch(uri, range(done + 1, done + 1 + batch.num_rows), fields, meta)
            done += batch.num_rows


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    if pa.types.is_binary_view(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return any(_holds_bytes(kind.field(k).type) for k in range(kind.num_fields))


def read_json_lines(
    uri: str,
    query: str | None,
    describe: Callable[[dict[str, object]], Described],
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Batch]:
    """Read one JSON object a line; blank lines are skipped.

    Args:
        uri: the file.
        query: what must be added to open it.
        describe: says what a row means, or raises `BadRowError`.
        batch_rows: rows that travel together.
    """
    with open_text(uri, query) as stream:
        lines = ((number, line) for number, line in enumerate(stream, 1) if not line.isspace())
        while chunk := list(islice(lines, batch_rows)):
            numbers, found, faults = [n for n, _ in chunk], [], Faults()
            for i, (_, line) in enumerate(chunk):
                try:
                    found.append(describe(_json_object(line)))
                except BadRowError as bad:
                    faults[i] = (bad.args[0], bad.args[1])
                    found.append(({}, {}))
            yield described_batch(uri, numbers, found, faults)


def described_batch(uri: str, numbers: Sequence[int], found: Sequence[Described], faults: Faults) -> Batch:
    """Turn rows that were looked at one by one into columns."""
    roles = dict.fromkeys(role for fields, _ in found for role in fields)
    columns = {role: text_array([fields.get(role) for fields, _ in found], faults) for role in roles}
    return Batch(uri, numbers, columns, meta_of_dicts([meta for _, meta in found]), faults)


def _json_object(line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        shown = line.strip()[:80].encode("utf-8", "backslashreplace").decode()
        raise BadRowError("MANIFEST_BAD_JSON", f"{shown!r} is not JSON: {error}") from None
    except RecursionError:
        raise BadRowError("MANIFEST_BAD_JSON", "the row is nested too deeply") from None
    if not isinstance(row, dict):
        raise BadRowError("MANIFEST_BAD_JSON", f"the row is {type(row).__name__}, not an object of names and values")
    if not encodable(line) or ("\\ud" in line.lower() and not encodable(json.dumps(row, ensure_ascii=False))):
        raise BadRowError("MANIFEST_BAD_ENCODING", "the row holds text that is not valid UTF-8")
    return row


def plain_row(named: Mapping[str, str]) -> Callable[[dict[str, object]], Described]:
    """Make the reading of a JSON object whose keys are columns, as serpipe, NeMo and most others write it.

    Examples:
        >>> plain_row({})({"audio_filepath": "a.wav", "offset": 0, "duration": 1.5, "text": "hi"})
        ({'uri': 'a.wav', 'start': '0', 'duration': '1.5'}, {'text': 'hi'})
    """
    known: dict[tuple[str, ...], dict[str, str]] = {}

    def describe(row: dict[str, object]) -> Described:
        names = tuple(row)
        if names not in known:
            # A row may lack an optional key; whether a named column exists at all was settled on opening.
            there = {name.strip().casefold() for name in names}
            here = {role: name for role, name in named.items() if not name.strip() or name.strip().casefold() in there}
            absent = {role: "" for role in named if role not in here}
            if len(known) > 4096:
                known.clear()
            known[names] = find_columns(names, {**here, **absent})
        roles = known[names]
        if isinstance(row.get(roles.get("uri", "")), (dict, list)):
            raise BadRowError("MANIFEST_UNSUPPORTED", f"{roles['uri']} is a nested value, not one file's path")
        if "shard_id" in row and "audio_filepath" in row:
            raise BadRowError("MANIFEST_UNSUPPORTED", "the audio lies inside a NeMo tar shard; unpack the shards first")
        fields = {role: render(row[name]) for role, name in roles.items()}
        taken = set(roles.values())
        meta = {k.strip(): t for k, v in row.items() if k not in taken and k.strip() and (t := render(v))}
        return fields, meta

    return describe


def _bare(uri: str) -> str:
    return uri.lower().removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz").removesuffix(".zst")
