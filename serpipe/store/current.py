"""Which rows are current: of each uri the newest version, of each recording and model the newest whole labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LABELS = ["recording_id", "model", "fp", "audio"]
"""What a recording's labels of one making have in common."""


@dataclass(frozen=True, slots=True)
class Stale:
    """Rows of a store that others have taken the place of.

    Attributes:
        versions: `recording_id` of versions of a uri that are not the newest.
        labels: rows of `LABELS` that newer ones of the same model have replaced, or that belong to an old version.
        segments: rows of `recording_id` and `audio` that no current labels have.
    """

    versions: pa.Array
    labels: pa.Table
    segments: pa.Table


def stale(entries: pa.Table, recordings: pa.Table) -> Stale:
    """Find what is not current.

    Of one recording and model the newest labels count that are whole and did not end in a failure, before whole ones
    that did, before all others. Of one uri the version counts that was brought to its end last.

    Args:
        entries: rows of `serpipe.store.schemas.LEDGER`.
        recordings: rows of `serpipe.store.schemas.RECORDINGS`.
    """
    old = _old_versions(recordings)
    per = makings(entries)
    sound = pc.and_(per["whole"], pc.invert(per["failed"]))
    names = ("recording_id", "model", "sound", "whole", "newest")
    place = per.append_column("sound", sound).sort_by([(name, "ascending") for name in names])
    following = [
        pc.equal(place[name].slice(1), place[name].slice(0, max(place.num_rows - 1, 0))).combine_chunks()
        for name in ("recording_id", "model")
    ]
    replaced = pa.concat_arrays([pc.and_(*following), pa.array([False] * min(place.num_rows, 1), pa.bool_())])
    gone = pc.or_(replaced, among(place["recording_id"], old).combine_chunks())
    pairs = ["recording_id", "audio"]
    shown = place.filter(pc.invert(gone)).group_by(pairs).aggregate([])
    kept = among(key(place, pairs), key(shown, pairs))
    return Stale(
        versions=old,
        labels=place.filter(gone).select(LABELS),
        segments=place.filter(pc.invert(kept)).group_by(pairs).aggregate([]),
    )


def makings(entries: pa.Table) -> pa.Table:
    """The labels of each making: of each recording by one model fingerprint on one audio fingerprint.

    Args:
        entries: rows of `serpipe.store.schemas.LEDGER`.

    Returns:
        `LABELS`, `whole` (the last unit and every one before it are settled), `failed` (the last unit is settled as
        failed), `segments`, `rows` (predictions), `newest` (rank of the newest commit; later ones rank higher).
    """
    commits = entries["commit"].combine_chunks().dictionary_encode()
    # A commit's name begins with its run's, and that with its time.
    rank = np.argsort(np.argsort(np.asarray(commits.dictionary.to_pylist(), object)))
    newest = pa.array(rank, pa.int64()).take(commits.indices.cast(pa.int64()))
    last = pc.if_else(entries["final"], entries["unit"], pa.scalar(-1, pa.int32()))
    failed = pc.and_(entries["final"], pc.equal(entries["status"], "failed"))
    columns = {name: entries[name] for name in (*LABELS, "unit", "segments", "rows")}
    table = pa.table({**columns, "last": last, "failed": failed.cast(pa.int8()), "newest": newest})
    # Repeated entries of a unit are one entry.
    table = table.group_by([*LABELS, "unit"]).aggregate(
        [(name, "max") for name in ("segments", "rows", "last", "failed", "newest")]
    )
    most = [(f"{name}_max", "max") for name in ("last", "failed", "newest")]
    sums = [(f"{name}_max", "sum") for name in ("segments", "rows")]
    per = table.group_by(LABELS).aggregate([("unit", "count"), *most, *sums])
    return pa.table(
        {
            **{name: per[name] for name in LABELS},
            "whole": pc.equal(per["unit_count"], pc.add(per["last_max_max"].cast(pa.int64()), 1)),
            "failed": per["failed_max_max"].cast(pa.bool_()),
            "segments": per["segments_max_sum"],
            "rows": per["rows_max_sum"],
            "newest": per["newest_max_max"],
        }
    )


def without(rows: pa.Table, others: pa.Table) -> pa.Table:
    """The rows whose values in the columns of `others` are not among those of `others`."""
    if not others.num_rows or not rows.num_rows:
        return rows
    names = others.column_names
    return rows.filter(pc.invert(among(key(rows, names), key(others, names))))


def among(values: pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each id is one of the others."""
    if isinstance(others, pa.ChunkedArray):
        others = others.combine_chunks()
    return pc.is_in(values.cast(pa.binary()), value_set=others.cast(pa.binary()))


def key(rows: pa.Table, names: list[str]) -> pa.ChunkedArray:
    """Columns as one; only ids have a fixed width, so no two rows are confused."""
    if len(names) == 1:
        return rows[names[0]]
    return pc.binary_join_element_wise(*(rows[name].cast(pa.binary()) for name in names), pa.scalar(b"\0", pa.binary()))


def _old_versions(recordings: pa.Table) -> pa.Array:
    """Ids of all but the newest version of each uri."""
    columns = recordings.select(["uri", "run_id", "first_seen", "recording_id"])
    order = columns.sort_by([("uri", "ascending"), ("run_id", "ascending"), ("first_seen", "ascending")])
    if order.num_rows < 2:
        return pa.array([], pa.binary(16))
    same = pc.equal(order["uri"].slice(1), order["uri"].slice(0, order.num_rows - 1))
    other = pc.not_equal(order["recording_id"].slice(1), order["recording_id"].slice(0, order.num_rows - 1))
    return order["recording_id"].slice(0, order.num_rows - 1).filter(pc.and_(same, other)).combine_chunks()
