"""The ledger: which unit is settled for which model fingerprint, and how it ended.

Each commit writes its entries as one small object, a part. Compaction joins parts into a few large objects, which say
in their footers what they replace: what is replaced and still there is passed over. Names of compacted objects sort
behind those of parts, so that a listing that misses a part, deleted a moment ago, meets what replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import parquet, schemas, streaming
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.storage import Storage

MANY_PARTS = 64
"""Parts that a ledger may have before they are worth joining; a night's run makes fewer."""

FULL_ROWS = 500_000
"""Entries of a compacted object that is not joined again: some 2 MB, and 200 MB of memory while it is made."""

_COMPACTED = "ledger/compact-"

_KEYS = ["recording_id", "unit", "model", "fp", "audio"]

_AT_ONCE = 32
"""Small requests that wait for a remote store together."""

_FULL_AT_ONCE = 2
"""Compacted objects in memory at once."""


@dataclass(frozen=True, slots=True)
class _Objects:
    """What lies under `ledger/`.

    Attributes:
        compacted: with whether each is full, oldest first.
        parts: of single commits.
        replaced: what a compacted object has taken in.
    """

    compacted: dict[str, bool]
    parts: list[str]
    replaced: list[str]


def load(storage: Storage, *, columns: Sequence[str] | None = None, run: str | None = None) -> pa.Table:
    """Ledger entries, all in memory.

    Args:
        storage: the store.
        columns: the columns wanted; all by default.
        run: only what this run settled.

    Returns:
        Rows of `schemas.LEDGER`, each entry once.
    """
    wanted = schemas.LEDGER.names if columns is None else list(columns)
    empty = pa.schema([schemas.LEDGER.field(name) for name in wanted]).empty_table()
    # A compaction may take a part away between the listing and the reading.
    return streaming.afresh(lambda: pa.concat_tables([empty, *batches(storage, columns=wanted, run=run)]))


def batches(storage: Storage, *, columns: Sequence[str] | None = None, run: str | None = None) -> Iterator[pa.Table]:
    """Ledger entries table by table, for what must not grow with the ledger.

    Args:
        storage: the store.
        columns: the columns wanted; all by default.
        run: only what this run settled.

    Yields:
        Rows of `schemas.LEDGER`, each entry once.
    """
    wanted = schemas.LEDGER.names if columns is None else list(columns)
    found = _objects(storage)
    if run is None:
        yield from streaming.joined(storage, found.compacted, schemas.LEDGER, wanted, ahead=_FULL_AT_ONCE)
        yield from streaming.joined(storage, found.parts, schemas.LEDGER, wanted, ahead=_AT_ONCE)
        return
    with_commit = list(dict.fromkeys([*wanted, "commit"]))
    for table in streaming.joined(storage, found.compacted, schemas.LEDGER, with_commit, ahead=_FULL_AT_ONCE):
        yield table.filter(pc.starts_with(table["commit"], f"{run}-")).select(wanted)
    mine = [name for name in found.parts if name.startswith(f"ledger/{run}-")]
    yield from streaming.joined(storage, mine, schemas.LEDGER, wanted, ahead=_AT_ONCE)


def of(storage: Storage, recordings: pa.ChunkedArray | pa.Array, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Entries of some recordings; memory holds these alone.

    Args:
        storage: the store.
        recordings: their ids.
        columns: the columns wanted, `recording_id` among them; all by default.
    """
    ids = Ids(pairs_of(recordings))
    found = [schemas.LEDGER.empty_table().select(columns or schemas.LEDGER.names)]
    for table in batches(storage, columns=columns):
        found.append(table.filter(pa.array(ids.holds(table["recording_id"]))))
    return pa.concat_tables(found)


def compact(storage: Storage) -> int:
    """Join the parts of the ledger into large objects where there are many. Safe to repeat and to interrupt.

    For the holder of the store's lease, while no run is open: closing an open run looks for its parts.

    Args:
        storage: the store.

    Returns:
        Number of objects that were joined.
    """
    found = _objects(storage)
    _delete(storage, found.replaced)
    if len(found.parts) <= MANY_PARTS:
        return 0
    number = max((int(name.removeprefix(_COMPACTED).split(".")[0]) for name in found.compacted), default=0)
    names = [*(name for name, full in found.compacted.items() if not full), *found.parts]
    held: list[pa.Table] = []
    start = count = 0
    for place, (_, rows) in enumerate(streaming.each(storage, names, schemas.LEDGER, ahead=_AT_ONCE), start=1):
        held.append(rows)
        count += rows.num_rows
        if count >= FULL_ROWS or place == len(names):
            number += 1
            _join(storage, f"{_COMPACTED}{number:06d}.parquet", held, names[start:place])
            held, start, count = [], place, 0
    return len(names)


def forget(storage: Storage, units: pa.Table) -> int:
    """Take entries out of the ledger. Safe to repeat and to interrupt.

    For the holder of the store's lease, while no run is open.

    Args:
        storage: the store.
        units: `recording_id`, `unit`, `model`, `fp` and `audio` of each.

    Returns:
        Number of entries that were taken out.
    """
    if not units.num_rows:
        return 0
    found = _objects(storage)
    # Where all entries of an object are forgotten, nothing would say any more that it had replaced them.
    _delete(storage, found.replaced)
    units = units.select(_KEYS).cast(pa.schema([schemas.LEDGER.field(key) for key in _KEYS]))
    ids = Ids(pairs_of(units["recording_id"]))
    taken = 0
    for names in (list(found.compacted), found.parts):
        for name, rows in streaming.each(storage, names, schemas.LEDGER, ahead=_FULL_AT_ONCE):
            if ids.holds(rows["recording_id"]).any():
                taken += _take_out(storage, name, rows, units)
    return taken


def _take_out(storage: Storage, name: str, rows: pa.Table, units: pa.Table) -> int:
    placed = rows.select(_KEYS).append_column("place", pa.array(np.arange(rows.num_rows)))
    left = placed.join(units, _KEYS, join_type="left anti", use_threads=False)["place"].to_numpy()
    if len(left) == rows.num_rows:
        return 0
    if len(left):
        kept = rows.take(pa.array(np.sort(left)))
        parquet.write(storage, name, kept, schemas.LEDGER, parquet.facts(storage, name))
    else:
        storage.delete(name)
    return int(rows.num_rows - len(left))


def _objects(storage: Storage) -> _Objects:
    names = storage.list("ledger/")
    compacted = [name for name in names if name.startswith(_COMPACTED)]
    with ThreadPoolExecutor(_AT_ONCE) as pool, parquet.damage_told(storage):
        facts = dict(zip(compacted, pool.map(lambda name: parquet.facts(storage, name), compacted), strict=True))
    gone = {name for said in facts.values() for name in parquet.unpack_table(said["replaces"])["name"].to_pylist()}
    return _Objects(
        compacted={name: said["full"] == "yes" for name, said in facts.items() if name not in gone},
        parts=[name for name in names if name not in gone and name not in facts],
        replaced=[name for name in names if name in gone],
    )


def _join(storage: Storage, name: str, tables: Sequence[pa.Table], replaced: Sequence[str]) -> None:
    rows = pa.concat_tables(tables)
    said = {
        "replaces": parquet.pack_table(pa.table({"name": pa.array(replaced, pa.string())})),
        "full": "yes" if rows.num_rows >= FULL_ROWS else "no",
    }
    parquet.write(storage, name, rows, schemas.LEDGER, said)
    _delete(storage, replaced)


def _delete(storage: Storage, names: Sequence[str]) -> None:
    with ThreadPoolExecutor(1 if storage.local else _AT_ONCE) as pool:
        list(pool.map(storage.delete, names))
