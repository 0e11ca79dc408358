"""Runs that are tries of the same work: what all of them together had to do, and what of it is in quarantine now.

A run that is killed has settled a share of its recordings, and the one that goes on from there sees only the rest. Were
its exit code of that rest, a bad night would look good once it had been tried twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import failing, plans, runs, schemas, streaming
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.storage import Storage


@dataclass(frozen=True, slots=True)
class Together:
    """What several tries come to.

    Attributes:
        recordings: that one of them had to do.
        failed: of these, those in quarantine now, whole or in part.
    """

    recordings: int = 0
    failed: int = 0


def before(records: Sequence[runs.Run], *, manifest: str, shard: str, night: str | None) -> list[str]:
    """The runs that one about to start is another try of.

    Those are the runs on the same manifest and shard since the last one that came to its end, for nobody has answered
    for what they did; and all of the same night, whether they came to their end or not.

    Args:
        records: of all earlier runs, oldest first.
        manifest: where the manifest lies, as runs record it.
        shard: as runs record it.
        night: as `serpipe.label` has it.
    """
    found: list[str] = []
    unanswered = True
    for run in reversed(records):
        if (run.manifest, run.shard) != (manifest, shard):
            continue
        unanswered = unanswered and run.state != "finished"
        if unanswered or (night is not None and run.asked.get("night") == night):
            found.append(run.run_id)
    return found


def together(storage: Storage, tries: Sequence[str]) -> Together:
    """Count the recordings that some runs planned, and those of them that fail now.

    Args:
        storage: the store.
        tries: the runs; one that had nothing to do has no plan.
    """
    planned = pa.chunked_array(
        [
            chunk
            for run in tries
            for group in plans.groups(storage, run, ["recording_id"])
            for chunk in group["recording_id"].chunks
        ],
        schemas.QUARANTINE.field("recording_id").type,
    ).unique()
    if not len(planned):
        return Together()
    log = streaming.afresh(lambda: _log(storage, Ids(pairs_of(planned))))
    # A file whose content has changed since its failure was labelled by one of the tries, if at all.
    names = [name for run in tries for name in storage.list(f"recordings/{run}-")]
    now = failing.now(storage, log, names)
    return Together(len(planned), len(now["recording_id"].unique()))


def _log(storage: Storage, ids: Ids) -> pa.Table:
    found = [schemas.QUARANTINE.empty_table()]
    for rows in streaming.joined(storage, storage.list("quarantine/"), schemas.QUARANTINE):
        mine = pc.and_(pa.array(ids.holds(rows["recording_id"])), pc.not_equal(rows["stage"], "manifest"))
        found.append(rows.filter(mine))
    return pa.concat_tables(found)
