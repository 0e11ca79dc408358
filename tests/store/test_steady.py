"""Reading a store in the moment in which somebody else rewrites it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pytest

from serpipe.errors import StoreError
from serpipe.store import gc, retry, rewrite
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from tests.store.worlds import entries_of, two_runs

_T = TypeVar("_T")

KEYS = {"recordings": "recording_id", "segments": "segment_id", "predictions": "segment_id", "embeddings": "segment_id"}


class Beside(Storage):
    """A store in which somebody else acts when files of a table were listed and are about to be read.

    Args:
        root: of the store.
        table: whose reading is met.
        act: what is done to the store then.
        times: how often.
    """

    def __init__(self, root: str, table: str, act: Callable[[], object], times: int = 1) -> None:
        super().__init__(root)
        self._table, self._act, self.left = table, act, times

    def carefully(self, name: str, operation: Callable[[], _T]) -> _T:
        if self.left and name.startswith(f"{self._table}/") and name.endswith(".parquet"):
            self.left -= 1
            self._act()
        return super().carefully(name, operation)


def _forget(storage: Storage, **values: object) -> Callable[[], object]:
    return lambda: rewrite.forget(storage, entries_of(storage, **values))


def _ids(table: str, rows: pa.Table) -> list[bytes]:
    return sorted(rows[KEYS[table]].to_pylist())


@pytest.mark.parametrize("values", [{"model": "m1"}, {"model": "m1", "unit": 0}], ids=["files go", "files shrink"])
@pytest.mark.parametrize("table", list(KEYS))
def test_what_is_rewritten_while_it_is_read_is_read_as_it_is(table: str, values: dict[str, object]) -> None:
    """The first model's labels go, and the second one's segments and recordings move to other files."""
    _, storage = two_runs()
    beside = Beside(storage.root, table, _forget(storage, **values))
    model = "m2" if table == "embeddings" else None
    before = _ids(table, Store(storage).arrow(table, model))
    read = _ids(table, Store(beside).arrow(table, model))
    assert beside.left == 0
    assert read == _ids(table, Store(storage).arrow(table, model))
    assert len(read) < len(before) or table != "predictions"


def test_failures_can_be_read_beside_a_retry() -> None:
    _, storage = two_runs()
    assert Store(storage).failing().num_rows
    beside = Beside(storage.root, "recordings", lambda: retry.retry(Store(storage)))
    assert Store(beside).failing().num_rows == Store(storage).failing().num_rows
    assert beside.left == 0


def test_a_table_can_be_read_beside_gc() -> None:
    world, storage = two_runs()
    world.models = {"m1": "f2"}
    world.label(storage, relabel=True)
    expected = _ids("predictions", Store(storage).predictions())
    beside = Beside(storage.root, "predictions", lambda: gc.gc(Store(storage)))
    assert _ids("predictions", Store(beside).predictions()) == expected
    assert beside.left == 0


def test_a_table_that_never_rests_is_told() -> None:
    _, storage = two_runs()
    (name, *_) = storage.list("segments/")

    def touch() -> None:
        storage.put(name, storage.get(name))

    with pytest.raises(StoreError, match=r"STORE_CHANGING: segments of .* read them again") as told:
        Store(Beside(storage.root, "segments", touch, times=100)).segments()
    assert told.value.transient
    assert Store(Beside(storage.root, "segments", touch, times=2)).segments().num_rows


def test_what_is_damaged_stays_damaged() -> None:
    _, storage = two_runs()
    for name in storage.list("segments/"):
        storage.put(name, storage.get(name)[:-50])
    with pytest.raises(StoreError, match="STORE_DAMAGED"):
        Store(storage).segments()


def test_workers_that_come_later_miss_what_went_and_never_what_moved() -> None:
    _, storage = two_runs()
    labels, segments = Store(storage).parts("predictions"), Store(storage).parts("segments")
    assert labels is not None
    assert segments is not None
    _forget(storage, model="m1")()
    assert _ids("predictions", labels.read_later(storage)) == _ids("predictions", Store(storage).predictions())
    with pytest.raises(StoreError, match="STORE_CHANGING"):
        segments.read_later(storage)
