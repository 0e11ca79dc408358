"""Stores of several runs, without audio or networks, for what is done to stores."""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import ledger
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from tests.faults.contents import failing, on_disk, shown
from tests.faults.world import Recording, World

_serial = itertools.count()


def memory() -> Storage:
    """A store of its own, in memory."""
    return Storage(f"memory://worlds-{next(_serial)}")


def small() -> World:
    """Recordings of several units, of one, of none that can be labelled, and one that breaks off."""
    return World(models={"m1": "f1"}).add(
        Recording(uri="/feed/long.wav", units=(2, 3, 1, 0)),
        Recording(uri="/feed/one.wav", units=(3,)),
        Recording(uri="/other/broken.wav", units=(1, 2), ends="failed"),
        Recording(uri="/other/last.wav", units=(1, 1)),
    )


def two_runs() -> tuple[World, Storage]:
    """A store whose second run added a model to the recordings of the first."""
    world, storage = small(), memory()
    world.frames = True
    world.label(storage)
    world.models = {"m1": "f1", "m2": "g1"}
    world.label(storage)
    return world, storage


def contents(storage: Storage) -> tuple[Any, ...]:
    """Rows on disk and as shown, which are the same where nothing is superseded, and what fails."""
    tables, seen = on_disk(storage), shown(Store(storage))
    for name, rows in seen.items():
        assert rows.keys() == tables[name].keys(), name
    return tables, seen, failing(Store(storage))


def entries_of(storage: Storage, **values: object) -> pa.Table:
    """The ledger's entries with some values."""
    entries = ledger.load(storage)
    for column, value in values.items():
        entries = entries.filter(pc.equal(entries[column], pa.scalar(value, entries.schema.field(column).type)))
    return entries


def bytes_of(storage: Storage, prefix: str = "") -> dict[str, bytes]:
    """Every object but the lease's."""
    return {name: storage.get(name) for name in storage.list(prefix) if not name.startswith("lease/")}
