"""What failed for good becomes work again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import closing, ledger, rewrite, runs
from serpipe.store.damage import UNITS
from serpipe.store.lease import Lease
from serpipe.store.reading import Store
from serpipe.store.rowsets import having, tuples


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What will be tried again.

    Attributes:
        codes: recordings by the code they failed with.
        recordings: recordings that are work for the next run.
        units: entries taken out of the ledger, those with labels included.
        unasked: failures of the codes asked for that the next run tries again in any case.
        of_manifest: failures that are rows of a manifest, where they must be mended.
    """

    codes: dict[str, int]
    recordings: int
    units: int
    unasked: int
    of_manifest: int


def retry(store: Store, *, code: str | None = None, transient: bool = False) -> Retried:
    """Forget the units in which something failed for good, so that the next run labels them.

    A unit with one failed segment is labelled again whole, by the models that failed on it; by all, where it failed
    before any model.

    Args:
        store: the store.
        code: only what failed with this code.
        transient: also what failed for now. The next run tries that unasked; units that are settled in spite of it
            are forgotten.

    Raises:
        StoreError: `STORE_HELD`, another run writes there.
    """
    storage = store.storage
    with Lease(storage, runs.new_run_id()):
        closing.close_interrupted(storage)
        failing = Store(storage).failing()
        if code is not None:
            failing = failing.filter(pc.equal(failing["code"], code))
        of_manifest = pc.equal(failing["stage"], "manifest")
        meant = failing.filter(pc.invert(of_manifest))
        passing = pc.sum(meant["transient"]).as_py() or 0
        if not transient:
            meant = meant.filter(pc.invert(meant["transient"]))
        forgotten = rewrite.forget(storage, _units(meant, ledger.of(storage, meant["recording_id"])))
    pairs = set(tuples(meant, ["code", "recording_id"]))
    return Retried(
        codes=dict(Counter(str(name) for name, _ in pairs).most_common()),
        recordings=forgotten.recordings,
        units=forgotten.units,
        unasked=passing,
        of_manifest=pc.sum(of_manifest).as_py() or 0,
    )


def _units(failing: pa.Table, entries: pa.Table) -> pa.Table:
    """The ledger's units in which something failed."""
    failed = entries.filter(pc.equal(entries["status"], "failed"))
    of_segment = pc.or_(pc.is_valid(failing["segment_id"]), pc.equal(failing["stage"], "segment"))
    ended = entries.filter(entries["final"])
    unit = pc.is_valid(failing["unit"])
    model = pc.is_valid(failing["model"])
    parts = [
        # The rest of a recording, at whichever unit it broke off.
        having(failed, failing.filter(pc.invert(of_segment)), ["recording_id"]),
        having(entries, failing.filter(pc.and_(unit, model)), ["recording_id", "unit", "model", "fp"]),
        having(entries, failing.filter(_all(of_segment, unit, pc.invert(model))), ["recording_id", "unit"]),
        # Of a segment that was never cut only the recording is known.
        having(ended, failing.filter(_all(of_segment, pc.invert(unit))), ["recording_id"]),
    ]
    return pa.concat_tables(parts).group_by(UNITS.names).aggregate([]).cast(UNITS)


def _all(*conditions: pa.ChunkedArray) -> pa.ChunkedArray:
    return reduce(pc.and_, conditions)
