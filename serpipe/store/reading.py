"""Reading a store: only what the ledger vouches for, as Arrow, pandas, DuckDB relations or Ray Datasets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serpipe.errors import UsageError
from serpipe.store import current, failing, layout, ledger, rewrite, runs, schemas, steady, streaming, version
from serpipe.store.parts import File, Parts, partitioned
from serpipe.store.storage import Storage

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import ray.data

TABLES = (
    "recordings",
    "segments",
    "predictions",
    "embeddings",
    "frames",
    "pseudo_labels",
    "quarantine",
    "failing",
)
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
        names = [layout.recordings(commit) for commit in self.entries["commit"].unique().to_pylist()]

        def read(there: Collection[str]) -> pa.Table:
            rows = partitioned(self.storage, [((), name) for name in sorted(there)], (), schemas.RECORDINGS)
            return self._once(rows, "recording_id")

        return steady.steadily(self.storage, names, read)

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

    def pseudo_labels(self, generation: int | None = None) -> pa.Table:
        """Verdicts of one generation or of all, with the column `generation`.

        Raises:
            UsageError: `GENERATION_UNKNOWN`.
        """
        return self._pseudo_labels(generation).read(self.storage)

    def quarantine(self) -> pa.Table:
        """The log of everything that failed."""

        def read() -> pa.Table:
            files = [((), name) for name in self.storage.list("quarantine/")]
            return partitioned(self.storage, files, (), schemas.QUARANTINE)

        return streaming.afresh(read)

    def failing(self) -> pa.Table:
        """What fails now: the last event of each recording, segment and model that nothing has mended since."""
        return streaming.afresh(lambda: failing.failing(self.storage, self.quarantine(), self.entries, self.versions))

    def runs(self) -> list[runs.Run]:
        """Every run, oldest first."""
        return runs.load(self.storage)

    def arrow(self, table: str, model: str | None = None, *, generation: int | None = None) -> pa.Table:
        """One of `TABLES` by name.

        Args:
            table: one of `TABLES`.
            model: the only one wanted, of `predictions`; of `embeddings` and `frames` it may be left out where the
                store has them of one model alone.
            generation: the only one wanted, of `pseudo_labels`.

        Raises:
            UsageError: `TABLE_UNKNOWN`, `TABLE_OF_MODELS`, `TABLE_OF_GENERATIONS`, `GENERATION_UNKNOWN`.
            StoreError: `STORE_CHANGING`, transient.
        """
        model = self._asked(table, model, generation)
        if table == "pseudo_labels":
            return self.pseudo_labels(generation)
        return self._table(table, model) if table in _OF_MODELS else getattr(self, table)()

    def pandas(self, table: str, model: str | None = None, *, generation: int | None = None) -> pd.DataFrame:
        """The same as a pandas frame; ids are `bytes`, lists are NumPy arrays.

        Args:
            table: one of `TABLES`.
            model: as for `arrow`.
            generation: as for `arrow`.

        Raises:
            UsageError: `TABLE_UNKNOWN`, `TABLE_OF_MODELS`, `TABLE_OF_GENERATIONS`, `GENERATION_UNKNOWN`.
            StoreError: `STORE_CHANGING`, transient.
        """
        frame: pd.DataFrame = self.arrow(table, model, generation=generation).to_pandas()
        return frame

    def sql(self, query: str, model: str | None = None) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation; the query names tables of the store like any others.

        Args:
            query: one statement of DuckDB's SQL. Tables that it reads are read whole.
            model: whose `embeddings` and `frames`, where the store has them of several models. Other tables tell
                models apart by their column `model`, and generations by `generation`.

        Raises:
            UsageError: `TABLE_OF_MODELS`.
            StoreError: `STORE_CHANGING`, transient.
            duckdb.Error: the query is wrong.
        """
        from serpipe.store import sql

        return sql.relation(query, TABLES, lambda table: self.arrow(table, model if table in _ASKED else None))

    def dataset(self, table: str, model: str | None = None, *, generation: int | None = None) -> ray.data.Dataset:
        """A Ray Dataset, read by the workers of the cluster and not by this process.

        Labels that a `retry` or `gc` takes out before the workers come to them are not in it. Where segments were
        moved meanwhile, a worker says so with `STORE_CHANGING`.

        Args:
            table: one of `TABLES`.
            model: as for `arrow`.
            generation: as for `arrow`.

        Raises:
            UsageError: `TABLE_UNKNOWN`, `TABLE_OF_MODELS`, `TABLE_OF_GENERATIONS`, `GENERATION_UNKNOWN`.
        """
        from serpipe.engine.tables import dataset

        return dataset(self, table, self._asked(table, model, generation), generation)

    def parts(self, table: str, model: str | None = None, generation: int | None = None) -> Parts | None:
        """What a table is read from; None where only `arrow` can tell its rows.

        Args:
            table: one of `TABLES`.
            model: as for `arrow`.
            generation: as for `arrow`.
        """
        if table == "pseudo_labels":
            return self._pseudo_labels(generation)
        if table in ("recordings", "quarantine", "failing") or rewrite.under_way(self.storage):
            return None
        before = steady.stamps(self.storage, table) if table in steady.MOVING else None
        files = self._files(table, model)
        parts = steady.steadily(
            self.storage, [name for _, name in files], lambda there: self._parts(table, files, there)
        )
        return replace(parts, stamps=before)

    def _asked(self, table: str, model: str | None, generation: int | None) -> str | None:
        if table not in TABLES:
            raise UsageError("TABLE_UNKNOWN", f"a store has no table {table!r}; it has {', '.join(TABLES)}")
        if model is not None and table not in _OF_MODELS:
            raise UsageError("TABLE_OF_MODELS", f"{table} are of no model; leave the model out")
        if generation is not None and table != "pseudo_labels":
            raise UsageError("TABLE_OF_GENERATIONS", f"{table} are of no generation; leave the generation out")
        if model is None and table in ("embeddings", "frames"):
            # Their width is the model's, so two models do not fit one table.
            models = sorted({name.split("model=", 1)[1].split("/", 1)[0] for name in self.storage.list(f"{table}/")})
            if len(models) != 1:
                raise UsageError(
                    "TABLE_OF_MODELS",
                    f"{self.storage.shown} has {table} of {', '.join(models) or 'no model'}; "
                    + (
                        "name one, in SQL too: `sql(query, model=…)`"
                        if models
                        else f"`serpipe label --embeddings {_ASKED[table]}` keeps them"
                    ),
                )
            return models[0]
        return model

    def _table(self, table: str, model: str | None = None) -> pa.Table:
        files = self._files(table, model)

        def read(there: Collection[str]) -> pa.Table:
            rows = self._parts(table, files, there).read(self.storage)
            return self._once(rows, "segment_id") if table == "segments" else rows

        return steady.steadily(self.storage, [name for _, name in files], read)

    def _files(self, table: str, model: str | None) -> list[File]:
        """The files that the ledger speaks of; a commit without rows of a kind has no file of it."""
        if table == "segments":
            pairs = _pairs(self.entries.group_by(["audio", "commit"]).aggregate([]))
            return [((audio,), layout.segments(audio, commit)) for audio, commit in pairs]
        place = {"predictions": layout.predictions, "embeddings": layout.embeddings, "frames": layout.frames}[table]
        return [((name, fp, audio), place(name, fp, commit)) for name, fp, audio, commit in self._commits(model)]

    def _parts(self, table: str, files: Sequence[File], there: Collection[str]) -> Parts:
        names = set(there)
        found = tuple(sorted(file for file in files if file[1] in names))
        if table == "segments":
            return Parts(table=table, schema=schemas.SEGMENTS, keys=("audio",), files=found, stale=self.stale.segments)
        return Parts(
            table=table,
            schema=self._schema(table, found),
            keys=("model", "fp", "audio"),
            files=found,
            stale=self.stale.labels,
            hidden=("audio",),
        )

    def _pseudo_labels(self, number: int | None) -> Parts:
        from serpipe.pseudolabel import generation
        from serpipe.pseudolabel.schemas import PSEUDO_LABELS, folder

        if number is not None:
            generation.load(self.storage, number)
        wanted = generation.numbers(self.storage) if number is None else [number]
        files = [((one,), name) for one in wanted for name in self.storage.list(f"{folder(one)}part-")]
        nothing = pa.table({"segment_id": pa.array([], pa.binary(16))})
        return Parts(
            table="pseudo_labels", schema=PSEUDO_LABELS, keys=("generation",), files=tuple(files), stale=nothing
        )

    def _schema(self, table: str, files: Sequence[File]) -> pa.Schema:
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


def _pairs(table: pa.Table) -> list[Any]:
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))
