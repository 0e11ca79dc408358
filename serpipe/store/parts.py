"""What a table is read from: files and the values of their partitions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from serpipe.store import current, parquet, steady
from serpipe.store.storage import Storage

_KINDS = {"generation": pa.int32()}
"""Of partition columns that are no text."""

File = tuple[tuple[Any, ...], str]
"""Partition values and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a table is read from, so that others than this process may read it piece by piece.

    Attributes:
        table: its name.
        schema: of its files, without partitions.
        keys: partition columns.
        files: partition values and name of each file that is there.
        stamps: what tells that the files are still the same, where rows may move between them.
        stale: rows that newer ones have taken the place of, by the columns they are known by.
        hidden: columns that only `stale` needs.
    """

    table: str
    schema: pa.Schema
    keys: tuple[str, ...]
    files: tuple[File, ...]
    stale: pa.Table
    hidden: tuple[str, ...] = ()
    stamps: steady.Stamps | None = None

    def read(self, storage: Storage) -> pa.Table:
        """The current rows of these files."""
        return current.without(partitioned(storage, self.files, self.keys, self.schema), self.stale).drop_columns(
            list(self.hidden)
        )

    def read_later(self, storage: Storage) -> pa.Table:
        """The current rows of these files, some time after they were found.

        Raises:
            StoreError: `STORE_CHANGING`, transient: rows may have moved to files that are not among these.
        """
        names = [name for _, name in self.files]
        rows = steady.steadily(storage, names, lambda there: self.of(there).read(storage))
        if self.stamps is not None and steady.changed(storage, self.table, names, self.stamps):
            raise steady.changing(storage, self.table)
        return rows

    def of(self, names: Collection[str]) -> Parts:
        """The parts among some files."""
        wanted = set(names)
        return replace(self, files=tuple(file for file in self.files if file[1] in wanted))


def partitioned(storage: Storage, files: Sequence[File], keys: tuple[str, ...], schema: pa.Schema) -> pa.Table:
    """Read files, their partition values as columns."""
    full = pa.schema([*schema, *(pa.field(key, _KINDS.get(key, pa.string())) for key in keys)])
    if not files:
        return full.empty_table()
    dataset = ds.FileSystemDataset.from_paths(
        [storage.path(name) for _, name in files],
        schema=full,
        format=ds.ParquetFileFormat(),
        filesystem=storage.arrow,
        partitions=[_expression(dict(zip(keys, values, strict=True))) for values, _ in files],
    )

    def rows() -> pa.Table:
        with parquet.damage_told(storage):
            return dataset.to_table()

    return storage.carefully(files[0][1], rows)


def _expression(values: dict[str, Any]) -> ds.Expression:
    expression = ds.scalar(True)
    for key, value in values.items():
        expression = expression & (ds.field(key) == value)
    return expression
