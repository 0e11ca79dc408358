"""Mending what a verification has marked: damaged units are forgotten, so that the run that follows labels them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from serpipe.store import damage, layout, ledger, parquet, rewrite, schemas
from serpipe.store.damage import UNITS, Finding
from serpipe.store.look import look
from serpipe.store.rowsets import having, lacking
from serpipe.store.storage import Storage


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done about damage.

    Attributes:
        findings: those that were mended.
        units: entries taken out of the ledger, for the next run to label.
        files: damaged and orphaned ones that were deleted.
    """

    findings: int
    units: int
    files: int


def mend(storage: Storage) -> Mended | None:
    """Mend what the last `verify` has marked. Safe to repeat and to interrupt.

    For the holder of the store's lease, when no run is open; a rewrite may wait to be finished.

    Returns:
        What was done; None where nothing was marked.

    Raises:
        StoreError: `STORE_DAMAGED`, there is more damage than was marked.
    """
    marks = damage.marks(storage)
    if not marks:
        return None
    still = [mark.finding for mark in marks if not mark.finding.file or _as_it_was(storage, mark)]
    _mend_index(storage, [found for found in still if found.remedy == "index"])
    entries = ledger.load(storage, columns=["model", "fp", "audio", "commit"])
    files = [found.file for found in still if found.remedy == "again" and found.drop]
    files += [found.file for found in still if found.remedy == "orphan" and not _vouched(entries, found.file)]
    units = pa.concat_tables([UNITS.empty_table(), *(found.units for found in still if found.remedy == "again")])
    forgotten = rewrite.forget(storage, units, files=files)
    damage.unmark(storage)
    return Mended(len(still), forgotten.units, len(files))


def _as_it_was(storage: Storage, mark: damage.Mark) -> bool:
    return damage.stamp(storage, mark.finding.file) == mark.stamp


def _vouched(entries: pa.Table, file: str) -> bool:
    """Whether a run or another mending has given an orphan its entries since."""
    steps = dict(step.split("=", 1) for step in file.split("/")[1:-1])
    mine = pa.table(
        {name: pa.array([value], pa.string()) for name, value in (*steps.items(), ("commit", layout.stem(file)))}
    )
    return bool(having(entries, mine, mine.column_names).num_rows)


def _mend_index(storage: Storage, findings: Sequence[Finding]) -> None:
    """Make the ledger say what the footers of predictions say."""
    damaged = [found.file for found in findings if found.drop]
    if damaged:
        # What all other objects hold, and only then without those that are damaged: interrupted, it begins again.
        names = [name for name in storage.list("ledger/") if name not in damaged]
        _index(storage, storage.list("predictions/"), parquet.read(storage, names, schemas.LEDGER))
        for name in damaged:
            storage.delete(name)
    wrong = [found for found in findings if not found.drop]
    if wrong:
        ledger.forget(storage, pa.concat_tables([found.units for found in wrong]))
        _index(storage, [found.file for found in wrong], ledger.load(storage))


def _index(storage: Storage, files: Sequence[str], entries: pa.Table) -> None:
    """Add to the ledger what footers settle and no entry says."""
    for file in files:
        seen = look(storage, file)
        if seen is None or seen.code is not None or seen.content is None:
            continue
        missing = lacking(seen.content, entries, UNITS.names)
        if missing.num_rows:
            # Not the name of the commit's own part, which a compacted object may stand for and be damaged.
            name = f"ledger/{seen.commit}.{hashlib.blake2b(file.encode(), digest_size=4).hexdigest()}.parquet"
            parquet.write(storage, name, missing, schemas.LEDGER, {"commit": seen.commit})
