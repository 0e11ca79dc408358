"""From rows to recordings: one line for each uri, with the segments that the manifest gives it."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.ids import content_version, recording_id
from serpipe.manifest.schemas import GIVEN, RECORDINGS, ROWS

_SHOWN = 5
_CONTENT = ("meta", "query", "duration_s", "etag", "size", "mtime_ns")


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """Find rows that say the same thing twice, and mark all but one of each as unusable.

    Two whole-recording rows of one uri are MANIFEST_DUPLICATE_URI, two equal segments of it
    MANIFEST_DUPLICATE_SEGMENT, and rows that give one uri two sizes, etags or times MANIFEST_CONFLICT, all of
    them. Which of two duplicates stays is decided by what else they say, not by their order. A
    whole-recording row beside segments is no duplicate: it describes the recording, and the segments are what
    is labelled.

    Args:
        rows: table of schema `ROWS`: all rows of every uri that is in it.

    Returns:
        The same rows in their order, with more errors.

    Examples:
        >>> from serpipe.manifest.rows import Batch, build_rows
        >>> from serpipe.manifest.text import empty_meta
        >>> batch = Batch("/m.csv", [2, 3], {"uri": pa.array(["a.wav", "./a.wav"])}, empty_meta(2))
        >>> mark_duplicates(build_rows(batch, "/data"))["error"].to_pylist()
        [None, 'the recording /data/a.wav stands in /m.csv, row 2 already']
    """
    usable = np.flatnonzero(rows["error"].is_null().to_numpy())
    if not usable.size:
        return rows
    keys = _Keys(rows, usable)
    faults: dict[int, tuple[str, str]] = {}
    _find_conflicts(rows, keys, faults)
    _find_twins(rows, keys, faults)
    if not faults:
        return rows
    codes, errors = rows["error_code"].to_pylist(), rows["error"].to_pylist()
    for i, (code, message) in faults.items():
        codes[i], errors[i] = code, message
    rows = rows.set_column(ROWS.get_field_index("error"), ROWS.field("error"), pa.array(errors, pa.string()))
    return rows.set_column(ROWS.get_field_index("error_code"), ROWS.field("error_code"), pa.array(codes, pa.string()))


def collapse(rows: pa.Table) -> pa.Table:
    """Fold the usable rows of each uri into one recording.

    Args:
        rows: table of schema `ROWS`, holding all rows of every uri that is in it, after `stat`; rows with an
            error are passed over.

    Returns:
        Table of schema `RECORDINGS`, the same for the same rows in any order.

    Raises:
        UsageError: two rows say the same thing twice (see `mark_duplicates`).

    Examples:
        >>> collapse(ROWS.empty_table()).num_rows
        0
    """
    marked = mark_duplicates(rows)
    if marked is not rows:
        new = marked.filter(pc.and_(pc.is_valid(marked["error"]), pc.is_null(rows["error"])))
        raise bad_rows_error(new)
    rows = rows.filter(pc.is_null(rows["error"]))
    if not rows.num_rows:
        return RECORDINGS.empty_table()
    keys = _Keys(rows, np.arange(rows.num_rows))
    first, order = keys.first, keys.order
    counts = np.diff(np.append(first, order.size))
    whole = ~keys.segment[order]
    # A whole-recording row sorts before the segments of its uri, so a recording's own row is its first.
    facts = {name: _largest(rows[name], order, first) for name in ("query", "size", "etag", "mtime_ns")}
    uri = rows["uri"].take(pa.array(order[first]))
    own = pa.array(np.where(whole[first], order[first], -1))
    meta = _take_or_empty(rows["meta"], own)
    segments = order[~whole]
    offsets = np.concatenate([[0], np.cumsum(counts - whole[first])]).astype(np.int32)
    given = pa.ListArray.from_arrays(pa.array(offsets), _given(rows, segments))
    claimed = _largest(rows["duration_s"], order, first)
    ids = pa.array(
        [
            recording_id(name, content_version(etag, size, mtime))
            for name, etag, size, mtime in zip(
                uri.to_pylist(), *(facts[f].to_pylist() for f in ("etag", "size", "mtime_ns")), strict=True
            )
        ],
        RECORDINGS.field("recording_id").type,
    )
    table = pa.table(
        [ids, uri, facts["query"], facts["size"], facts["etag"], facts["mtime_ns"], claimed, meta, given],
        schema=RECORDINGS,
    )
    return table.take(pc.sort_indices(ids))


def bad_rows_error(bad: pa.Table) -> UsageError:
    """Say in one sentence which rows cannot be used and why: the first five, and how many more.

    Args:
        bad: table of schema `ROWS` whose rows all carry an error.
    """
    lines = [
        f"{row['source']}, row {row['row']}: {row['error']} [{row['error_code']}]"
        for row in bad.select(["source", "row", "error", "error_code"]).slice(0, _SHOWN).to_pylist()
    ]
    more = f"\n  and {bad.num_rows - _SHOWN} more" if bad.num_rows > _SHOWN else ""
    codes = set(bad["error_code"].unique().to_pylist())
    code = codes.pop() if len(codes) == 1 else "MANIFEST_BAD_ROWS"
    said = "1 row cannot be used" if bad.num_rows == 1 else f"{bad.num_rows} rows cannot be used"
    return UsageError(
        code,
        f"{said}; mend the manifest, or pass `--skip-bad-rows` to quarantine them:\n  " + "\n  ".join(lines) + more,
    )


class _Keys:
    """Rows sorted by uri, then whole recordings before segments, then start, end and channel.

    Attributes:
        order: positions in the table, sorted.
        first: where in `order` each uri begins.
        segment: of each row of the table, whether it is one.
        times: of each row, (start, end, channel) as numbers that can be compared; no end is infinity, no
            channel -1.
    """

    def __init__(self, rows: pa.Table, usable: NDArray[np.int64]) -> None:
        coded = pc.rank(rows["uri"].combine_chunks(), tiebreaker="dense").to_numpy(zero_copy_only=False)
        start = _filled(rows["start_s"], -1.0)
        self.segment = start >= 0
        self.times = (start, _filled(rows["end_s"], np.inf), _filled(rows["channel"], -1))
        self.order = usable[np.lexsort([k[usable] for k in (*reversed(self.times), self.segment, coded)])]
        sorted_codes = coded[self.order]
        self.first = np.flatnonzero(np.append(True, sorted_codes[1:] != sorted_codes[:-1]))
        self.group = np.cumsum(np.append(True, sorted_codes[1:] != sorted_codes[:-1])) - 1


def _find_twins(rows: pa.Table, keys: _Keys, faults: dict[int, tuple[str, str]]) -> None:
    same = keys.group[1:] == keys.group[:-1]
    for values in (keys.segment, *keys.times):
        same &= values[keys.order][1:] == values[keys.order][:-1]
    if not same.any():
        return
    alike = np.cumsum(np.append(True, ~same))
    twins = np.flatnonzero(np.append(same, False) | np.append(False, same))
    positions = keys.order[twins].tolist()
    facts = rows.select(["source", "row", "uri", *_CONTENT]).take(pa.array(positions)).to_pylist()
    ranked = sorted(
        zip(alike[twins].tolist(), positions, facts, strict=True),
        key=lambda one: (one[0], json.dumps([one[2][n] for n in _CONTENT]), one[2]["source"], one[2]["row"]),
    )
    for _, group in groupby(ranked, key=lambda one: one[0]):
        (_, _, kept), *others = group
        for _, i, twin in others:
            code, what = _twin(keys, i, kept["uri"])
            place = f"{kept['source']}, row {kept['row']}"
            hint = "; what follows `?` does not tell recordings apart" if kept["query"] != twin["query"] else ""
            faults.setdefault(i, (code, f"{what} stands in {place} already{hint}"))


def _twin(keys: _Keys, i: int, uri: str) -> tuple[str, str]:
    if not keys.segment[i]:
        return "MANIFEST_DUPLICATE_URI", f"the recording {uri}"
    start, end, channel = (values[i] for values in keys.times)
    until = "the end" if np.isinf(end) else f"{end} s"
    where = "" if channel < 0 else f" of channel {channel:.0f}"
    return "MANIFEST_DUPLICATE_SEGMENT", f"the segment from {start} s to {until}{where} of {uri}"


def _find_conflicts(rows: pa.Table, keys: _Keys, faults: dict[int, tuple[str, str]]) -> None:
    for name in ("size", "etag", "mtime_ns"):
        if rows[name].null_count == rows.num_rows:
            continue
        table = pa.table(
            {"group": pa.array(keys.group), "value": rows[name].take(pa.array(keys.order)).combine_chunks()}
        )
        counted = table.group_by("group", use_threads=False).aggregate([("value", "min"), ("value", "max")])
        differ = counted.filter(pc.not_equal(counted["value_min"], counted["value_max"]))
        told = {
            one["group"]: f"is {one['value_min']} in one row, {one['value_max']} in another"
            for one in differ.to_pylist()
        }
        meant = np.flatnonzero(np.isin(keys.group, np.fromiter(told, np.int64, len(told))))
        positions = keys.order[meant].tolist()
        uris = rows["uri"].take(pa.array(positions, pa.int64())).to_pylist()
        for k, i, uri in zip(keys.group[meant].tolist(), positions, uris, strict=True):
            faults.setdefault(i, ("MANIFEST_CONFLICT", f"{name} of {uri} {told[k]}"))


def _largest(column: pa.ChunkedArray, order: NDArray[np.int64], first: NDArray[np.int64]) -> pa.Array:
    """Take the largest value of each group: the only one, save for queries, of which any opens the file."""
    if column.null_count == len(column):
        return pa.nulls(len(first), column.type)
    group = np.zeros(order.size, np.int64)
    group[first[1:]] = 1
    table = pa.table({"group": pa.array(np.cumsum(group)), "value": column.take(pa.array(order)).combine_chunks()})
    largest = table.group_by("group", use_threads=False).aggregate([("value", "max")]).sort_by("group")
    return largest["value_max"].combine_chunks()


def _given(rows: pa.Table, segments: NDArray[np.int64]) -> pa.StructArray:
    taken = rows.select(["start_s", "end_s", "channel", "meta"]).take(pa.array(segments)).combine_chunks()
    columns = [_single(taken[name]) for name in ("start_s", "end_s", "channel", "meta")]
    return pa.StructArray.from_arrays(columns, fields=list(GIVEN))


def _take_or_empty(meta: pa.ChunkedArray, rows: pa.Array) -> pa.Array:
    """Take maps by position; an empty map for -1, as no recording goes without."""
    empty: Any = pa.chunked_array([pa.array([[]], meta.type)])
    padded = pa.chunked_array([*empty.chunks, *meta.chunks])
    return _single(padded.take(pc.add(rows, 1)))


def _single(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
    return combined


def _filled(column: pa.ChunkedArray, value: float) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = pc.fill_null(column.cast(pa.float64()), value).to_numpy()
    return filled
