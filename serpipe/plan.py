"""What is left to do, cut into read tasks. Arrow only: planning needs no cluster."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serpipe.manifest import claim_seconds
from serpipe.manifest.schemas import RECORDINGS as CATALOGUE
from serpipe.store import layout, ledger, parquet, schemas
from serpipe.store.storage import Storage

SETTLED = pa.struct(
    [
        pa.field("unit", pa.int32()),
        pa.field("model", pa.string()),
        pa.field("fp", pa.string()),
        pa.field("status", pa.string()),
    ]
)

PLAN = pa.schema(
    [
        *(field for field in CATALOGUE if field.name != "query"),
        pa.field("settled", pa.list_(SETTLED)),  # units the ledger holds already
        pa.field("known", pa.bool_()),  # `recordings` has its row already
        pa.field("attempts", pa.int32()),  # failures so far
        pa.field("work_s", pa.float64()),  # seconds it is thought to last; balances work, cuts nothing
    ]
)
"""One row per recording with work left; a row group is a read task."""

_WORK = pa.schema([*PLAN, pa.field("query", pa.string())])

SHORTEST_TASK_S, LONGEST_TASK_S = 60.0, 1800.0
"""Seconds of audio a read task is worth: enough to outweigh its start, little enough to balance."""

TASKS_PER_DECODER = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """Work left, frozen in the store.

    Attributes:
        tasks: number of recordings of each read task.
        queries: signed queries by task, for those that have any; in memory only.
        work_s: seconds of audio that are thought to be left.
        left: recordings with work left.
        done: recordings of the manifest that need nothing.
    """

    tasks: list[int]
    queries: dict[int, pa.Array]
    work_s: float
    left: int
    done: int


def outstanding(recordings: pa.Table, entries: pa.Table, *, audio: str, models: dict[str, str]) -> pa.Table:
    """Recordings that some model has not settled whole.

    A recording is settled for a model when the ledger holds a final unit and every unit before it.

    Args:
        recordings: rows with `recording_id`.
        entries: ledger rows, of `serpipe.store.schemas.LEDGER`.
        audio: audio fingerprint wanted.
        models: name to fingerprint wanted.

    Returns:
        The rows of `recordings` that need work.
    """
    same_audio = entries.filter(pc.equal(entries["audio"], audio))
    complete = None
    for model, fp in models.items():
        mine = same_audio.filter(pc.and_(pc.equal(same_audio["model"], model), pc.equal(same_audio["fp"], fp)))
        last = pc.if_else(mine["final"], mine["unit"], pa.scalar(-1, pa.int32()))
        mine = pa.table({"recording_id": mine["recording_id"], "unit": mine["unit"], "last": last})
        per = mine.group_by("recording_id").aggregate([("unit", "count_distinct"), ("last", "max")])
        whole = pc.equal(
            pc.cast(per["unit_count_distinct"], pa.int64()), pc.add(pc.cast(per["last_max"], pa.int64()), 1)
        )
        ids = per["recording_id"].filter(whole).combine_chunks()
        done = pc.is_in(recordings["recording_id"].cast(pa.binary()), value_set=ids.cast(pa.binary()))
        complete = done if complete is None else pc.and_(complete, done)
    return recordings if complete is None else recordings.filter(pc.invert(complete))


def make_plan(
    storage: Storage,
    run: str,
    parts: Iterable[Callable[[], pa.Table]],
    *,
    audio: str,
    models: dict[str, str],
    by_length: bool,
    decoders: int,
) -> Plan:
    """Cut what is left into read tasks of about equal work and freeze it as `runs/RUN/plan.parquet`.

    Args:
        storage: the store.
        run: the run.
        parts: read the catalogue part by part; memory holds one at a time.
        audio: audio fingerprint wanted.
        models: name to fingerprint wanted.
        by_length: longest first, so that a pack holds like lengths; otherwise in order of uri, feed by feed.
        decoders: how many decode at once.
    """
    entries = ledger.load(storage, columns=LEDGER_COLUMNS)
    failures = _attempts(storage)
    tasks: list[int] = []
    queries: dict[int, pa.Array] = {}
    work_s, total = 0.0, 0
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, PLAN, compression="zstd") as writer:
        for read in parts:
            recordings = read()
            total += recordings.num_rows
            left = outstanding(recordings, entries, audio=audio, models=models)
            rows = _rows(left, entries, failures, audio=audio, by_length=by_length)
            work_s += float(pc.sum(rows["work_s"]).as_py() or 0.0)
            start = 0
            for count in balance(rows["work_s"].to_numpy(), decoders=decoders):
                task = rows.slice(start, count).combine_chunks()
                if task["query"].null_count < count:
                    queries[len(tasks)] = task["query"].combine_chunks()
                writer.write_table(task.select(PLAN.names), row_group_size=count)
                tasks.append(count)
                start += count
    if tasks:
        storage.put(layout.plan(run), sink.getvalue())
    return Plan(tasks, queries, work_s, sum(tasks), total - sum(tasks))


def missing(storage: Storage, run: str, *, audio: str, models: dict[str, str]) -> pa.Table:
    """Recordings of a run's plan that are still not settled: what the run did not bring to an end.

    Returns:
        `recording_id`, `uri` and `attempts` of each.
    """
    entries = ledger.load(storage, columns=LEDGER_COLUMNS)
    with storage.fs.open(storage.path(layout.plan(run)), "rb") as file:
        planned = pq.read_table(file, columns=["recording_id", "uri", "attempts"])
    return outstanding(planned, entries, audio=audio, models=models)


def balance(work: np.ndarray, *, decoders: int) -> list[int]:
    """Cut a row of recordings into read tasks of about equal work, in order.

    Args:
        work: seconds of each recording.
        decoders: how many decode at once.

    Returns:
        Number of recordings of each task.

    Examples:
        >>> balance(np.array([30.0, 30.0, 200.0, 10.0]), decoders=1)
        [2, 1, 1]
    """
    if not len(work):
        return []
    share = float(np.clip(work.sum() / (TASKS_PER_DECODER * decoders), SHORTEST_TASK_S, LONGEST_TASK_S))
    tasks, count, seconds = [], 0, 0.0
    for length in work:
        if count and seconds + length > share:
            tasks.append(count)
            count, seconds = 0, 0.0
        count, seconds = count + 1, seconds + float(length)
    return [*tasks, count]


def _rows(left: pa.Table, entries: pa.Table, failures: dict[bytes, int], *, audio: str, by_length: bool) -> pa.Table:
    work = claim_seconds(left)
    order = np.argsort(-work, kind="stable") if by_length else np.asarray(pc.sort_indices(left["uri"]))
    left, work = left.take(pa.array(order)), work[order]
    ids = left["recording_id"]
    rows = (
        left.append_column("settled", _settled(ids, entries.filter(pc.equal(entries["audio"], audio))))
        .append_column("known", _known(ids, entries))
        .append_column("attempts", pa.array([failures.get(i, 0) for i in ids.to_pylist()], pa.int32()))
        .append_column("work_s", pa.array(work, pa.float64()))
    )
    return rows.select(_WORK.names).cast(_WORK)


def _attempts(storage: Storage) -> dict[bytes, int]:
    """Failures so far by recording."""
    log = parquet.read(storage, storage.list("quarantine/"), schemas.QUARANTINE, ["recording_id", "attempt"])
    most = log.group_by("recording_id").aggregate([("attempt", "max")])
    return dict(zip(most["recording_id"].to_pylist(), most["attempt_max"].to_pylist(), strict=True))


def _settled(ids: pa.ChunkedArray, held: pa.Table) -> pa.ListArray:
    """For each id the ledger's entries, as lists in the order of the ids."""
    found = pc.index_in(held["recording_id"].cast(pa.binary()), value_set=ids.combine_chunks().cast(pa.binary()))
    place = found.to_numpy(zero_copy_only=False) if len(found) else np.zeros(0)
    keep = np.flatnonzero(~np.isnan(place.astype(float)))
    rows = keep[np.argsort(place[keep].astype(np.int64), kind="stable")]
    counts = np.bincount(place[rows].astype(np.int64), minlength=len(ids)) if len(rows) else np.zeros(len(ids), int)
    entries = held.select([field.name for field in SETTLED]).take(pa.array(rows)).combine_chunks()
    values = pa.StructArray.from_arrays(
        [entries[field.name].combine_chunks() for field in SETTLED], fields=list(SETTLED)
    )
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), values)


def _known(ids: pa.ChunkedArray, entries: pa.Table) -> pa.ChunkedArray:
    ended = entries.filter(pc.and_(entries["final"], pc.not_equal(entries["status"], "failed")))
    return pc.is_in(ids.cast(pa.binary()), value_set=ended["recording_id"].combine_chunks().cast(pa.binary()))


LEDGER_COLUMNS = [name for name in schemas.LEDGER.names if name not in ("segments", "rows", "commit")]
"""Of the ledger, what planning reads."""
