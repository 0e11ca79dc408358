"""The end of a run: plan against ledger. What is missing without a reason gets one, and everything is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from serpipe import plan
from serpipe.errors import StoreError
from serpipe.redact import redact
from serpipe.store import damage, layout, ledger, parquet, schemas, streaming
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.damage import UNITS
from serpipe.store.rows import RunFacts, quarantine_rows
from serpipe.store.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a run's plan ended.

    Attributes:
        failed: recordings in quarantine, whole or in part.
        unsettled: of these, those the next run tries again unasked.
        codes: of the failed recordings, how many each code is a reason for, most first.
        segments: segments the run settled.
        predictions: predictions it wrote.
        audio_s: seconds of audio of the recordings it brought to their end.
        twice: units that two of its workers labelled.
    """

    failed: int
    unsettled: int
    codes: dict[str, int]
    segments: int
    predictions: int
    audio_s: float
    twice: int


def settle(storage: Storage, facts: RunFacts, why: Mapping[bytes, str]) -> Settled:
    """Compare plan and ledger, put what is missing without a reason in quarantine, and count.

    Args:
        storage: the store.
        facts: the run.
        why: of recordings that were done again alone to no avail, by id, what happened.
    """
    left = plan.missing(storage, facts.run_id, audio=facts.audio, models=facts.models)
    log = parquet.read(storage, storage.list(f"quarantine/{facts.run_id}-"), schemas.QUARANTINE)
    waiting = log.filter(log["transient"])["recording_id"]
    lost = left.filter(pc.invert(_among(left["recording_id"], waiting)))
    if lost.num_rows:
        extra = quarantine_rows(_lost(lost, why), facts)
        name = layout.quarantine(layout.of_driver(facts.run_id, "lost"))
        parquet.write(storage, name, extra, schemas.QUARANTINE, {})
        log = pa.concat_tables([log, extra])
    columns = [*UNITS.names, "final", "status", "segments", "rows", "commit"]
    mine = ledger.load(storage, columns=columns, run=facts.run_id)
    per_unit = mine.group_by(["recording_id", "unit"]).aggregate([("segments", "max")])
    reasons = _reasons(storage, log, mine)
    # What a dead decoder had handed on Ray skips by its place when another decodes again. Where a recording could not
    # be read before and can be now, others are in other packs then, and may come twice.
    twice = damage.twice(mine)
    return Settled(
        failed=len(reasons["recording_id"].unique()),
        unsettled=left.num_rows,
        codes=dict(Counter(reasons["code"].to_pylist()).most_common()),
        segments=pc.sum(per_unit["segments_max"]).as_py() or 0,
        predictions=pc.sum(mine["rows"]).as_py() or 0,
        audio_s=_audio_s(storage, facts.run_id, mine),
        twice=0 if twice is None else twice.units.num_rows,
    )


def committed(storage: Storage, run_id: str) -> tuple[int, int]:
    """What a run has committed so far, for the word that goes with its early end.

    Returns:
        Predictions, and recordings they belong to.
    """
    mine = ledger.load(storage, run=run_id, columns=["recording_id", "rows", "commit"])
    return pc.sum(mine["rows"]).as_py() or 0, len(mine["recording_id"].unique())


def _reasons(storage: Storage, log: pa.Table, mine: pa.Table) -> pa.Table:
    """Each failed recording of the run with each code it failed with."""
    keys = ["recording_id", "code"]
    log = log.filter(pc.not_equal(log["stage"], "manifest")).select(keys)
    failed = mine.filter(pc.equal(mine["status"], "failed"))["recording_id"].unique()
    unlogged = failed.filter(pc.invert(_among(failed, log["recording_id"])))
    if len(unlogged):
        # An earlier run, or another model of it, failed on the same unit; the log has it once.
        # A run of another shard takes away what an interrupted one left there.
        whole = streaming.afresh(
            lambda: parquet.read(storage, storage.list("quarantine/"), schemas.QUARANTINE, [*keys, "segment_id"])
        )
        whole = whole.filter(pc.is_null(whole["segment_id"])).select(keys)
        log = pa.concat_tables([log, whole.filter(_among(whole["recording_id"], unlogged))])
    return log.group_by(keys).aggregate([])


def _among(ids: pa.ChunkedArray | pa.Array, others: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if isinstance(others, pa.ChunkedArray):
        others = others.combine_chunks()
    return pc.is_in(ids.cast(pa.binary()), value_set=others.cast(pa.binary()))


def _lost(left: pa.Table, why: Mapping[bytes, str]) -> pa.Table:
    count = left.num_rows
    message = "its worker died, or its block was lost, more often than it is tried; the next run tries it again"
    alone = [why.get(recording) for recording in left["recording_id"].to_pylist()]
    told = pa.table(
        {
            "recording_id": left["recording_id"],
            "uri": left["uri"],
            "stage": pa.array(["run"] * count, pa.string()),
            "code": pa.array(["WORK_LOST"] * count, pa.string()),
            "message": pa.array([message] * count, pa.string()),
            "transient": pa.array([True] * count, pa.bool_()),
            "attempt": pc.add(left["attempts"], pa.scalar(1, pa.int32())),
        }
    )
    # What others raise may hold what opens their stores.
    more = pa.array([f" (alone: {redact(how.splitlines()[0])})" if how else "" for how in alone], pa.string())
    return told.set_column(4, "message", pc.binary_join_element_wise(told["message"], more, ""))


def _audio_s(storage: Storage, run_id: str, mine: pa.Table) -> float:
    """Seconds of the recordings whose end a run settled, whichever run has their rows."""
    ended = mine.filter(pc.and_(mine["final"], pc.not_equal(mine["status"], "failed")))["recording_id"].unique()
    found = _lengths(storage, storage.list(f"recordings/{run_id}-"), ended)
    known = ended.filter(pc.invert(_among(ended, found["recording_id"])))
    if len(known):
        # What is damaged there is for `verify` to tell: no run must fail at its end for want of a figure.
        with suppress(StoreError, FileNotFoundError):
            others = streaming.afresh(lambda: _lengths(storage, storage.list("recordings/"), known))
            found = pa.concat_tables([found, others])
    once = found.group_by("recording_id").aggregate([("duration_s", "max")])
    return float(pc.sum(once["duration_s_max"]).as_py() or 0.0)


def _lengths(storage: Storage, names: Sequence[str], recordings: pa.Array) -> pa.Table:
    """How long some recordings are, as far as these objects know."""
    columns, ids = ["recording_id", "duration_s"], Ids(pairs_of(recordings))
    found = [schemas.RECORDINGS.empty_table().select(columns)]
    for rows in streaming.joined(storage, names, schemas.RECORDINGS, columns):
        found.append(rows.filter(pa.array(ids.holds(rows["recording_id"]))))
        if sum(map(len, found)) >= len(recordings):
            break
    return pa.concat_tables(found)
