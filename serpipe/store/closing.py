"""Closing what an interrupted run left open: what it committed counts, what it did not is taken away."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pyarrow as pa

from serpipe.errors import StoreError
from serpipe.shard import Shard
from serpipe.store import commit, layout, mend, rewrite, runs, schemas
from serpipe.store.storage import Storage

_NOTHING = schemas.LEDGER.empty_table()


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing one run found.

    Attributes:
        run: the run.
        adopted: commits whose predictions count, the ledger mended where it lacked them.
        deleted: files without a commit, removed.
    """

    run: str
    adopted: int
    deleted: int


def close_interrupted(storage: Storage, shard: Shard | None = None) -> list[Closed]:
    """Finish a rewrite and close every run that began and never ended. Safe to repeat and to interrupt.

    Args:
        storage: the store; its lease, or that of the shard, is held.
        shard: closes only runs that may hold recordings of the shard. What other shards of the same count left is
            theirs, for their runs may be alive.

    Raises:
        StoreError: `STORE_REWRITING`, a rewrite was interrupted, and a shard alone may not finish it; `STORE_DAMAGED`,
            something needed for it cannot be read.
    """
    found, damaged = runs.readable(storage)
    if shard is None:
        found += [runs.made_anew(storage, run_id) for run_id in damaged]
        if rewrite.under_way(storage):
            # A rewrite that meets damage goes no further; what `verify` has marked since is made good first.
            mend.mend(storage)
        rewrite.finish_interrupted(storage)
    elif rewrite.under_way(storage):
        raise StoreError(
            "STORE_REWRITING",
            f"taking units out of {storage.shown} was interrupted, and a run of one shard may not finish it; "
            "`serpipe label` without --shard, `retry` or `gc` does",
        )
    elif damaged:
        raise runs.unreadable(storage, damaged)
    return [_close(storage, record) for record in found if record.open and _concerns(record, shard)]


def _concerns(record: runs.Run, shard: Shard | None) -> bool:
    return shard is None or shard.conflicts(Shard.parse(record.shard) if record.shard else None)


def _close(storage: Storage, record: runs.Run) -> Closed:
    closed = tidy(storage, record)
    runs.finish(storage, record, state="interrupted")
    return closed


def tidy(storage: Storage, record: runs.Run) -> Closed:
    """Take away what belongs to no commit of a run, and mend its ledger; the run itself may go on afterwards."""
    start = f"{record.run_id}-"
    predictions = {
        model: storage.list(layout.predictions(model, fp, start).removesuffix(".parquet"))
        for model, fp in record.models.items()
    }
    # A ledger file is written after the last predictions file, so one that is there is complete.
    indexed = {layout.stem(file) for file in storage.list(layout.ledger(start).removesuffix(".parquet"))}
    committed: dict[str, list[pa.Table]] = defaultdict(list)
    orphans: set[str] = set()
    for model, fp in record.models.items():
        stems = set()
        for file in predictions[model]:
            settled = _NOTHING if layout.stem(file) in indexed else commit.adoptable(storage, file)
            if settled is None:
                # Damaged before anybody knew what it settles: no commit, so its units are work.
                orphans.add(file)
                continue
            committed[layout.stem(file)].append(settled)
            stems.add(layout.stem(file))
        for place in (layout.embeddings(model, fp, start), layout.frames(model, fp, start)):
            orphans |= {f for f in storage.list(place.removesuffix(".parquet")) if layout.stem(f) not in stems}
        orphans |= {
            f
            for f in storage.list(layout.quarantine(start).removesuffix(".parquet"))
            if f.endswith(f".{model}.parquet") and layout.stem(f) not in stems
        }
    # What the driver itself put in quarantine belongs to no commit, and is whole.
    kept = {*committed, *(layout.of_driver(record.run_id, what) for what in ("manifest", "lost"))}
    for place in (layout.recordings(start), layout.segments(record.audio, start), layout.quarantine(start)):
        orphans |= {f for f in storage.list(place.removesuffix(".parquet")) if layout.stem(f) not in kept}
    for name, parts in sorted(committed.items()):
        if name not in indexed:
            # Its other models may have been about to settle more, which the next run makes and describes anew.
            commit.only_settled(storage, name, record.audio, parts)
            commit.index(storage, name, parts)
    for file in sorted(orphans):
        storage.delete(file)
    return Closed(record.run_id, len(committed), len(orphans))
