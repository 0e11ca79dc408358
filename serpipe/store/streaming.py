"""Many small objects, or few large ones, read in bounded memory: some at once, each with a single request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.store import parquet
from serpipe.store.storage import Storage

JOINED_ROWS = 250_000
"""Small objects are joined to tables of so many rows: enough to outweigh what a table costs."""

_LOCAL_AT_ONCE = 2

_LISTINGS = 5

_T = TypeVar("_T")


def afresh(read: Callable[[], _T]) -> _T:
    """List objects and read them, again from the start where one was taken away in between.

    Args:
        read: does both.

    Raises:
        FileNotFoundError: that was so each of several times.
    """
    for _ in range(_LISTINGS - 1):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


def each(
    storage: Storage, names: Iterable[str], schema: pa.Schema, columns: Sequence[str] | None = None, *, ahead: int
) -> Iterator[tuple[str, pa.Table]]:
    """Read objects of one schema, one after the other.

    Args:
        storage: where from.
        names: objects.
        schema: what they hold.
        columns: the columns wanted; all by default.
        ahead: how many are read at once, and held.

    Yields:
        Each object's name and rows, in the order of the names.

    Raises:
        StoreError: `STORE_DAMAGED`, an object is no whole Parquet file.
        FileNotFoundError: an object is gone.
    """
    wanted = schema if columns is None else pa.schema([schema.field(column) for column in columns])
    # Requests wait for a remote store, so many of them wait together; reading from disk is work for the cores.
    with ThreadPoolExecutor(min(ahead, _LOCAL_AT_ONCE) if storage.local else ahead) as pool:
        waiting: deque[tuple[str, Future[pa.Table]]] = deque()
        try:
            for name in names:
                waiting.append((name, pool.submit(_read, storage, name, wanted)))
                if len(waiting) >= ahead:
                    first, rows = waiting.popleft()
                    yield first, rows.result()
            while waiting:
                first, rows = waiting.popleft()
                yield first, rows.result()
        finally:
            for _, rows in waiting:
                rows.cancel()


def joined(
    storage: Storage, names: Iterable[str], schema: pa.Schema, columns: Sequence[str] | None = None, *, ahead: int = 16
) -> Iterator[pa.Table]:
    """Read objects of one schema, small ones joined.

    Args:
        storage: where from.
        names: objects.
        schema: what they hold.
        columns: the columns wanted; all by default.
        ahead: how many are read at once, and held.

    Yields:
        Tables of about `JOINED_ROWS` rows, or of one larger object, in the order of the names.
    """
    held: list[pa.Table] = []
    count = 0
    for _, rows in each(storage, names, schema, columns, ahead=ahead):
        held.append(rows)
        count += rows.num_rows
        if count >= JOINED_ROWS:
            yield pa.concat_tables(held)
            held, count = [], 0
    if held:
        yield pa.concat_tables(held)


def _read(storage: Storage, name: str, wanted: pa.Schema) -> pa.Table:
    data = storage.get(name)
    with parquet.damage_told(storage):
        file = pq.ParquetFile(pa.BufferReader(data))
        # The objects themselves are what is read side by side.
        rows = file.read(columns=wanted.names, use_threads=False).replace_schema_metadata(None)
        return rows if rows.schema == wanted else rows.select(wanted.names).cast(wanted)
