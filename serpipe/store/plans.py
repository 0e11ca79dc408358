"""Frozen plans: pieces of Parquet, in them row groups, of which a read task takes one or several."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serpipe.manifest.schemas import RECORDINGS as CATALOGUE
from serpipe.store import layout, parquet
from serpipe.store.storage import Storage

SETTLED = pa.struct(
    [
        pa.field("unit", pa.int32()),
        pa.field("model", pa.string()),
        pa.field("fp", pa.string()),
        pa.field("status", pa.string()),
        pa.field("final", pa.bool_()),
    ]
)

PLAN = pa.schema(
    [
        *(field for field in CATALOGUE if field.name != "query"),
        pa.field("settled", pa.list_(SETTLED)),  # units the ledger holds already
        pa.field("kept", pa.list_(pa.string())),  # models that leave it the labels of an older fingerprint
        pa.field("signed", pa.bool_()),  # opens only with a query, which is not stored
        pa.field("known", pa.bool_()),  # `recordings` has its row already
        pa.field("attempts", pa.int32()),  # failures so far
        pa.field("work_s", pa.float64()),  # seconds it is thought to last; balances work, cuts nothing
    ]
)
"""One row per recording with work left."""

WORK = pa.schema([*PLAN, pa.field("query", pa.string())])
"""The same with what must not be stored."""

GROUPS_PER_PIECE = 200
"""Who reads a row group reads the footer of its piece, which has a kilobyte or two for each."""


class Writer:
    """Writes a plan; memory holds one piece.

    Args:
        storage: the store.
        run: the run.

    Attributes:
        groups: number of recordings of each row group.
        work_s: seconds of audio that each row group is thought to hold.
        queries: signed queries by row group, for those that have any; in memory only.
    """

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage, self._run = storage, run
        self._sink = io.BytesIO()
        self._piece: pq.ParquetWriter | None = None
        self.groups: list[int] = []
        self.work_s: list[float] = []
        self.queries: dict[int, pa.Array] = {}

    def add(self, rows: pa.Table, sizes: Sequence[int]) -> None:
        """Append row groups.

        Args:
            rows: of `WORK`, in order.
            sizes: how many rows each group takes.
        """
        start = 0
        for size in sizes:
            group = rows.slice(start, size).combine_chunks()
            start += size
            if group["query"].null_count < size:
                self.queries[len(self.groups)] = group["query"].combine_chunks()
            if self._piece is None:
                self._piece = pq.ParquetWriter(self._sink, PLAN, compression="zstd")
            self._piece.write_table(group.select(PLAN.names), row_group_size=size)
            self.groups.append(size)
            self.work_s.append(float(pc.sum(group["work_s"]).as_py() or 0.0))
            if len(self.groups) % GROUPS_PER_PIECE == 0:
                self._end_piece()

    def end(self) -> None:
        """Write what is left; a plan without a row leaves nothing."""
        if self._piece is not None:
            self._end_piece()

    def _end_piece(self) -> None:
        assert self._piece is not None
        self._piece.close()
        place = (len(self.groups) - 1) // GROUPS_PER_PIECE
        self._storage.put(layout.plan(self._run, place), self._sink.getvalue())
        self._sink, self._piece = io.BytesIO(), None


def read(storage: Storage, run: str, groups: range) -> pa.Table:
    """The recordings of neighbouring row groups, in order."""
    tables = []
    for piece, inside in groupby(groups, key=lambda group: group // GROUPS_PER_PIECE):
        wanted = [group % GROUPS_PER_PIECE for group in inside]
        name = layout.plan(run, piece)

        def rows(name: str = name, wanted: list[int] = wanted) -> pa.Table:
            with storage.fs.open(storage.path(name), "rb") as file, parquet.damage_told(storage, name):
                return pq.ParquetFile(file).read_row_groups(wanted)

        tables.append(storage.carefully(name, rows))
    return pa.concat_tables(tables)


def groups(storage: Storage, run: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The recordings of each row group, in order; memory holds one piece.

    Args:
        storage: the store.
        run: the run.
        columns: the columns wanted; all by default.
    """
    for place in range(len(storage.list(layout.plan(run).removesuffix(".parquet")))):
        name = layout.plan(run, place)
        data = pa.BufferReader(storage.get(name))
        with parquet.damage_told(storage, name):
            file = pq.ParquetFile(data)
        for group in range(file.num_row_groups):
            with parquet.damage_told(storage, name):
                rows = file.read_row_group(group, columns=columns)
            yield rows
