"""From text to rows: uris made canonical, numbers read, times checked, each fault kept beside its row."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.ids import canonical_uri, plain_etag
from serpipe.manifest.roots import Roots
from serpipe.manifest.schemas import META, ROWS
from serpipe.redact import redact, strip_secrets

Faults = dict[int, tuple[str, str]]
"""Position in a batch to the code and the sentence of the first thing that is wrong there."""

_SECONDS = ("start", "end", "duration", "claim")
_WHOLE = {
    "channel": np.iinfo(np.int32).max,
    "size": np.iinfo(np.int64).max,
    "mtime_ns": np.iinfo(np.int64).max,
}
_NANOSECONDS = 9
"""Digits kept where an end is computed from a start and a duration, so that 0.1 s + 0.2 s end at 0.3 s."""


@dataclass(slots=True)
class Batch:
    """What a reader hands over: columns of text, all of one length.

    Attributes:
        source: the part the rows stand in.
        numbers: line or row number of each, from 1.
        fields: role to a column of text; roles that the part lacks are absent. `claim`, the length of the
            whole recording beside a segment of it, is known to lhotse only.
        meta: the owner's columns.
        faults: rows that the reader itself could not make sense of.
    """

    source: str
    numbers: Sequence[int] | NDArray[np.int64]
    fields: Mapping[str, pa.Array]
    meta: pa.MapArray
    faults: Faults = field(default_factory=dict)


def build_rows(batch: Batch, base: str, roots: Roots | None = None) -> pa.Table:
    """Turn a batch of text into `ROWS`; what cannot be used carries its reason instead of raising.

    Args:
        batch: columns of text.
        base: folder that relative uris start from.
        roots: where the uris must lie; anywhere by default.

    Returns:
        A table of schema `ROWS`, one row for each of the batch, in its order.

    Examples:
        >>> from serpipe.manifest.text import empty_meta
        >>> fields = {"uri": pa.array(["a.wav", "b.wav"]), "start": pa.array(["nan", "1.5"])}
        >>> rows = build_rows(Batch("/m.csv", [2, 3], fields, empty_meta(2)), "/data")
        >>> rows["uri"].to_pylist(), rows["error"].to_pylist()
        (['/data/a.wav', '/data/b.wav'], ['start is nan, not a number of seconds', None])
    """
    length, faults = len(batch.numbers), dict(batch.faults)
    nothing = pa.nulls(length, pa.string())
    uri, query = _uris(batch.fields.get("uri", nothing), base, roots, faults)
    seconds = {role: _seconds(batch.fields.get(role, nothing), role, faults) for role in _SECONDS}
    whole = {role: _whole(batch.fields.get(role, nothing), role, faults) for role in _WHOLE}
    start, end, claim = _times(seconds, faults)
    etag = batch.fields.get("etag", nothing)
    if etag.null_count < length:
        etag = pa.array([None if e is None else plain_etag(e) for e in etag.to_pylist()], pa.string())
    code, message = _columns_of(faults, length)
    return pa.table(
        [
            pa.array(np.asarray(batch.numbers, np.int64)),
            pa.repeat(pa.scalar(batch.source, pa.string()), length),
            uri,
            query,
            _nullable(start),
            _nullable(end),
            whole["channel"].cast(pa.int32()),
            _nullable(claim),
            whole["size"],
            etag,
            whole["mtime_ns"],
            _without_secrets(batch.meta),
            message,
            code,
        ],
        schema=ROWS,
    )


def text_array(values: Sequence[str | None], faults: Faults) -> pa.Array:
    r"""Make a column of text; a value that is not valid Unicode becomes null and a fault of its row.

    Examples:
        >>> faults: Faults = {}
        >>> text_array(["ä", "\udce4", ""], faults).to_pylist(), faults[1][0]
        (['ä', None, None], 'MANIFEST_BAD_ENCODING')
    """
    try:
        array = pa.array(values, pa.string())
    except UnicodeEncodeError:
        sound = list(values)
        for i, value in enumerate(values):
            if value is not None and not encodable(value):
                shown = value.encode("utf-8", "backslashreplace").decode()
                faults.setdefault(i, ("MANIFEST_BAD_ENCODING", f"{shown[:80]!r} is not valid UTF-8"))
                sound[i] = None
        array = pa.array(sound, pa.string())
    return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)


def encodable(text: str) -> bool:
    """Whether text can be stored: a lone surrogate, which stands for a stray byte, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _uris(texts: pa.Array, base: str, roots: Roots | None, faults: Faults) -> tuple[pa.Array, pa.Array]:
    # A manifest of segments names each recording many times over: each distinct text is looked at once.
    coded = texts.dictionary_encode()
    uris: list[str | None] = []
    queries: list[str | None] = []
    wrong: dict[int, tuple[str, str]] = {}
    for k, text in enumerate(coded.dictionary.to_pylist()):
        try:
            uri, query = canonical_uri(text, base)
            _known_scheme(uri)
        except ValueError as error:
            wrong[k] = "MANIFEST_BAD_URI", f"{text[:200]!r} cannot be opened: {error}"
            uris.append(None)
            queries.append(None)
        else:
            if roots and not roots.hold(uri):
                wrong[k] = "URI_OUTSIDE_ROOTS", f"{uri} lies in none of the allowed roots"
            uris.append(uri)
            queries.append(query)
    indices = coded.indices
    for i in np.flatnonzero(indices.is_null().to_numpy(zero_copy_only=False)).tolist():
        faults.setdefault(i, ("MANIFEST_MISSING_URI", "the row does not say where its audio is"))
    if wrong:
        for i, k in enumerate(indices.to_pylist()):
            if k in wrong:
                faults.setdefault(i, wrong[k])
    return pa.array(uris, pa.string()).take(indices), pa.array(queries, pa.string()).take(indices)


_SCHEMES = {"file", "local", *fsspec.available_protocols()}


def _known_scheme(uri: str) -> None:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+):(?://|:)", uri)
    if scheme and scheme.group(1) not in _SCHEMES:
        raise ValueError(f"no file system is known for {scheme.group(1)}://")


def _seconds(texts: pa.Array, role: str, faults: Faults) -> NDArray[np.float64]:
    """Read a column of seconds: NaN where there is none, and where there is a fault."""
    values, unread = _numbers(texts, pa.float64())
    given = texts.is_valid().to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(given & ~np.isfinite(values)).tolist():
        shown = repr(texts[i].as_py()) if i in unread else texts[i].as_py().strip()
        hint = f"; `--column {role}=` if the column means something else" if i in unread else ""
        faults.setdefault(i, ("MANIFEST_BAD_TIME", f"{role} is {shown}, not a number of seconds{hint}"))
    return np.where(np.isfinite(values), values, np.nan)


def _whole(texts: pa.Array, role: str, faults: Faults) -> pa.Array:
    """Read a column of whole numbers from 0 on; `3.0`, as pandas writes a column with gaps, is one."""
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), pa.int64())
    code = "MANIFEST_BAD_CHANNEL" if role == "channel" else "MANIFEST_BAD_NUMBER"
    try:
        values = pc.cast(pc.utf8_trim_whitespace(texts), pa.int64()).to_pylist()
    except pa.ArrowInvalid:
        floats, _ = _numbers(texts, pa.float64())
        values = [_exact(t, f) for t, f in zip(texts.to_pylist(), floats.tolist(), strict=True)]
    for i, (text, value) in enumerate(zip(texts.to_pylist(), values, strict=True)):
        if text is not None and (value is None or not 0 <= value <= _WHOLE[role]):
            wanted = "a channel's number, counted from 0" if role == "channel" else "a whole number"
            hint = f"; `--column {role}=` if the column means something else"
            faults.setdefault(i, (code, f"{role} is {text!r}, not {wanted}{hint}"))
            values[i] = None
    return pa.array(values, pa.int64())


def _exact(text: str | None, value: float) -> int | None:
    if text is None or not math.isfinite(value) or value != int(value):
        return None
    return int(text) if text.strip().isdecimal() else int(value)


def _numbers(texts: pa.Array, kind: pa.DataType) -> tuple[NDArray[np.float64], set[int]]:
    """Read text as numbers; what is none is NaN, and its position is told."""
    if texts.null_count == len(texts):
        return np.full(len(texts), np.nan), set()
    trimmed = pc.utf8_trim_whitespace(texts)
    try:
        return _floats(pc.cast(trimmed, kind)), set()
    except pa.ArrowInvalid:
        values = np.full(len(texts), np.nan)
        unread: set[int] = set()
        for i, text in enumerate(trimmed.to_pylist()):
            try:
                values[i] = np.nan if text is None else pc.cast(pa.scalar(text), kind).as_py()
            except pa.ArrowInvalid:
                unread.add(i)
        return values, unread


def _times(
    seconds: Mapping[str, NDArray[np.float64]], faults: Faults
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Tell segments from whole recordings: start, end and the claimed length of each row, NaN for none."""
    start, end, duration, claim = (seconds[role] for role in _SECONDS)
    segment, ends, lasts = ~np.isnan(start), ~np.isnan(end), ~np.isnan(duration)
    reached = np.where(ends, end, np.round(start + duration, _NANOSECONDS))

    def flag(where: NDArray[np.bool_], sentence: str) -> None:
        for i in np.flatnonzero(where).tolist():
            told = {"start": start[i], "end": reached[i] if segment[i] else end[i]}
            text = sentence.format(**told, duration=duration[i], claim=claim[i])
            faults.setdefault(i, ("MANIFEST_BAD_TIME", text))

    flag(segment & (start < 0), "start is {start}, before the recording begins")
    flag(lasts & (duration < 0), "duration is {duration}, less than nothing")
    flag(~segment & ends, "there is an end ({end}) but no start")
    flag(segment & (reached <= start), "the segment ends at {end}, not after its start at {start}")
    flag(claim < 0, "the recording is said to last {claim} s, less than nothing")
    return start, np.where(segment, reached, np.nan), np.where(segment, claim, duration)


def _columns_of(faults: Faults, length: int) -> tuple[pa.Array, pa.Array]:
    if not faults:
        return pa.nulls(length, pa.string()), pa.nulls(length, pa.string())
    codes: list[str | None] = [None] * length
    messages: list[str | None] = [None] * length
    for i, (code, message) in faults.items():
        codes[i], messages[i] = code, redact(message)
    return pa.array(codes, pa.string()), pa.array(messages, pa.string())


def _without_secrets(meta: pa.MapArray) -> pa.MapArray:
    """The owner's columns are stored; a second, signed url among them opens what the first does."""
    items = meta.items
    if not pc.any(pc.match_substring(items, "://")).as_py():
        return meta
    kept = pa.array([None if text is None else strip_secrets(text) for text in items.to_pylist()], pa.string())
    return pa.MapArray.from_arrays(meta.offsets, meta.keys, kept, META)


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _floats(array: Any) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = pc.fill_null(array, math.nan).to_numpy(zero_copy_only=False)
    return filled
