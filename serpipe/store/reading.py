"""Reading a store: only what the ledger vouches for, as Arrow, pandas, DuckDB relations or Ray Datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from serpipe.errors import UsageError
from serpipe.store import current, failing, layout, ledger, parquet, rewrite, runs, schemas, streaming, version
from serpipe.store.storage import Storage

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import ray.data

TABLES = ("recordings", "segments", "predictions", "embeddings", "frames", "quarantine", "failing")
"""What `Store.arrow`, `pandas`, `sql` and `dataset` know by name."""

_OF_MODELS = ("predictions", "embeddings", "frames")
_ASKED = {"embeddings": "utterance", "frames": "frame"}
"""Of `--embeddings`."""


def open(store: str) -> Store:
    """Open a store for reading.

    Args:
        store: directory or fsspec URL.

    Raises:
        UsageError: `STORE_NOT_FOUND`, there is none.
        StoreError: `STORE_OTHER_VERSION`.
    """
    storage = Storage(store)
    if not storage.exists(version.NAME):
        raise UsageError("STORE_NOT_FOUND", f"{store} is no store; `serpipe label MANIFEST {store}` makes one")
    version.check(storage)
    return Store(storage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a table is read from, so that others than this process may read it piece by piece.

    Attributes:
        table: its name.
        schema: of its files, without partitions.
        keys: partition columns.
        files: partition values and name of each file that is there.
        stale: rows that newer ones have taken the place of, by the columns they are known by.
        hidden: columns that only `stale` needs.
    """

    table: str
    schema: pa.Schema
    keys: tuple[str, ...]
    files: tuple[tuple[tuple[str, ...], str], ...]
    stale: pa.Table
    hidden: tuple[str, ...] = ()

    def read(self, storage: Storage) -> pa.Table:
        """The current rows of these files."""
        return current.without(_partitioned(storage, self.files, self.keys, self.schema), self.stale).drop_columns(
            list(self.hidden)
        )


@dataclass(frozen=True)
class Store:
    """A store's tables.

    `recordings`, `segments`, `predictions` and their like give Arrow. `pandas`, `sql` and `dataset` give the same rows
    to other programs.

    Attributes:
        storage: what it lies in.

    Examples:
        >>> import serpipe, tempfile
        >>> from serpipe.testing import write_speech
        >>> archive, store = tempfile.mkdtemp(), tempfile.mkdtemp()
        >>> _ = write_speech(archive + "/a.wav", seconds=8.0)
        >>> _ = serpipe.label(archive, store, segmentation="window:4/4")
        >>> serpipe.open(store).predictions().column("end_s").to_pylist()
        [4.0, 8.0]
        >>> serpipe.open(store).sql("SELECT count(*) FROM predictions JOIN segments USING (segment_id)").fetchall()
        [(2,)]
    """

    storage: Storage

    @cached_property
    def entries(self) -> pa.Table:
        """The ledger as it was when it was first asked for."""
        return ledger.load(self.storage)

    @cached_property
    def stale(self) -> current.Stale:
        """What newer rows have taken the place of; plain Parquet readers see it until `serpipe gc` drops it."""
        return current.stale(self.entries, self.versions)

    @cached_property
    def versions(self) -> pa.Table:
        """Recordings that decoded to their end, in every content that their files ever had."""
        commits = self.entries["commit"].unique().to_pylist()
        rows = self._read([layout.recordings(commit) for commit in commits], schemas.RECORDINGS)
        return self._once(rows, "recording_id")

    def recordings(self) -> pa.Table:
        """Recordings that decoded to their end, the newest version of each uri."""
        return current.without(self.versions, pa.table({"recording_id": self.stale.versions}))

    def segments(self) -> pa.Table:
        """Segments that current labels belong to, with the column `audio`."""
        return self._table("segments")

    def predictions(self, model: str | None = None) -> pa.Table:
        """Current predictions of one model or of all, with the columns `model` and `fp`."""
        return self._table("predictions", model)

    def embeddings(self, model: str) -> pa.Table:
        """Current utterance embeddings of one model, with the columns `model` and `fp`."""
        return self._table("embeddings", model)

    def frames(self, model: str) -> pa.Table:
        """Current frame embeddings of one model, with the columns `model` and `fp`."""
        return self._table("frames", model)

    def quarantine(self) -> pa.Table:
        """The log of everything that failed."""
        return streaming.afresh(lambda: self._read(self.storage.list("quarantine/"), schemas.QUARANTINE))

    def failing(self) -> pa.Table:
        """What fails now: the last event of each recording, segment and model that nothing has mended since."""
        return failing.failing(self.storage, self.quarantine(), self.entries, self.versions)

    def runs(self) -> list[runs.Run]:
        """Every run, oldest first."""
        return runs.load(self.storage)

    def arrow(self, table: str, model: str | None = None) -> pa.Table:
        """One of `TABLES` by name.

        Args:
            table: one of `TABLES`.
            model: the only one wanted, of `predictions`; of `embeddings` and `frames` it may be left out where the
                store has them of one model alone.

        Raises:
            UsageError: `TABLE_UNKNOWN`, `TABLE_OF_MODELS`.
        """
        model = self._asked(table, model)
        return self._table(table, model) if table in _OF_MODELS else getattr(self, table)()

    def pandas(self, table: str, model: str | None = None) -> pd.DataFrame:
        """The same as a pandas frame; ids are `bytes`, lists are NumPy arrays.

        Args:
            table: one of `TABLES`.
            model: as for `arrow`.

        Raises:
            UsageError: `TABLE_UNKNOWN`, `TABLE_OF_MODELS`.
        """
        frame: pd.DataFrame = self.arrow(table, model).to_pandas()
        return frame

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation; the query names tables of the store like any others.

        Args:
            query: one statement of DuckDB's SQL. Tables whose names stand in it are read whole.

        Raises:
            UsageError: `TABLE_OF_MODELS`.
            duckdb.Error: the query is wrong.
        """
        import duckdb

        connection = duckdb.connect()
        for table in TABLES:
            if re.search(rf"\b{table}\b", query, re.IGNORECASE):
                connection.register(table, self.arrow(table))
        return connection.sql(query)

    def dataset(self, table: str, model: str | None = None) -> ray.data.Dataset:
        """A Ray Dataset, read by the workers of the cluster and not by this process.

        Args:
            table: one of `TABLES`.
            model: as for `arrow`.

        Raises:
            UsageError: `TABLE_UNKNOWN`, `TABLE_OF_MODELS`.
        """
        from serpipe.engine.tables import dataset

        return dataset(self, table, self._asked(table, model))

    def parts(self, table: str, model: str | None = None) -> Parts | None:
        """What a table is read from; None where only `arrow` can tell its rows.

        Args:
            table: one of `TABLES`.
            model: as for `arrow`.
        """
        if table in ("recordings", "quarantine", "failing") or rewrite.under_way(self.storage):
            return None
        return self._parts(table, model)

    def _asked(self, table: str, model: str | None) -> str | None:
        if table not in TABLES:
            raise UsageError("TABLE_UNKNOWN", f"a store has no table {table!r}; it has {', '.join(TABLES)}")
        if model is not None and table not in _OF_MODELS:
            raise UsageError("TABLE_OF_MODELS", f"{table} are of no model; leave the model out")
        if model is None and table in ("embeddings", "frames"):
            # Their width is the model's, so two models do not fit one table.
            models = sorted({name.split("model=", 1)[1].split("/", 1)[0] for name in self.storage.list(f"{table}/")})
            if len(models) != 1:
                raise UsageError(
                    "TABLE_OF_MODELS",
                    f"{self.storage.shown} has {table} of {', '.join(models) or 'no model'}; "
                    + ("name one" if models else f"`serpipe label --embeddings {_ASKED[table]}` keeps them"),
                )
            return models[0]
        return model

    def _table(self, table: str, model: str | None = None) -> pa.Table:
        rows = self._parts(table, model).read(self.storage)
        return self._once(rows, "segment_id") if table == "segments" else rows

    def _parts(self, table: str, model: str | None) -> Parts:
        if table == "segments":
            pairs = _pairs(self.entries.group_by(["audio", "commit"]).aggregate([]))
            files = [((audio,), layout.segments(audio, commit)) for audio, commit in pairs]
            return Parts(
                table=table,
                schema=schemas.SEGMENTS,
                keys=("audio",),
                files=_there(self.storage, files),
                stale=self.stale.segments,
            )
        place = {"predictions": layout.predictions, "embeddings": layout.embeddings, "frames": layout.frames}[table]
        there = _there(
            self.storage,
            [((name, fp, audio), place(name, fp, commit)) for name, fp, audio, commit in self._commits(model)],
        )
        return Parts(
            table=table,
            schema=self._schema(table, there),
            keys=("model", "fp", "audio"),
            files=there,
            stale=self.stale.labels,
            hidden=("audio",),
        )

    def _schema(self, table: str, files: Sequence[tuple[tuple[str, ...], str]]) -> pa.Schema:
        if table == "predictions":
            return schemas.PREDICTIONS
        width = 0
        if files:
            with self.storage.fs.open(self.storage.path(files[0][1]), "rb") as opened:
                written = pq.read_schema(opened)
            kind = written.field("embedding").type if table == "embeddings" else written.field("frames").type.value_type
            width = kind.list_size
        return schemas.embeddings(width) if table == "embeddings" else schemas.frames(width)

    def _commits(self, model: str | None) -> list[tuple[str, str, str, str]]:
        entries = self.entries
        if model is not None:
            entries = entries.filter(pc.equal(entries["model"], model))
        return _pairs(entries.group_by(["model", "fp", "audio", "commit"]).aggregate([]))

    def _once(self, rows: pa.Table, key: str) -> pa.Table:
        """Rows without those that a rewrite has put to a new place and not yet taken from the old one."""
        if not rewrite.under_way(self.storage):
            return rows
        numbered = rows.select([key]).append_column("row", pa.array(range(rows.num_rows), pa.int64()))
        return rows.take(numbered.group_by(key).aggregate([("row", "min")])["row_min"])

    def _read(self, names: list[str], schema: pa.Schema) -> pa.Table:
        return _partitioned(self.storage, _there(self.storage, [((), name) for name in names]), (), schema)


def _there(storage: Storage, files: Sequence[tuple[tuple[str, ...], str]]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """The files that are there; a commit without rows of a kind has no file of it."""
    there = set(storage.list(files[0][1].split("/", 1)[0] + "/")) if files else set()
    return tuple(sorted((values, name) for values, name in files if name in there))


def _partitioned(
    storage: Storage, files: Sequence[tuple[tuple[str, ...], str]], keys: tuple[str, ...], schema: pa.Schema
) -> pa.Table:
    """Read files, their partition values as columns."""
    full = pa.schema([*schema, *(pa.field(key, pa.string()) for key in keys)])
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


def _expression(values: dict[str, str]) -> ds.Expression:
    expression = ds.scalar(True)
    for key, value in values.items():
        expression = expression & (ds.field(key) == value)
    return expression


def _pairs(table: pa.Table) -> list[Any]:
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))
