"""Reading a store: only what the ledger vouches for, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from serpipe.errors import UsageError
from serpipe.store import layout, ledger, runs, schemas, version
from serpipe.store.storage import Storage


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
    """

    storage: Storage

    @cached_property
    def entries(self) -> pa.Table:
        """The ledger as it was when it was first asked for."""
        return ledger.load(self.storage)

    def recordings(self) -> pa.Table:
        """Recordings that decoded to their end."""
        commits = self.entries["commit"].unique().to_pylist()
        return self._read([layout.recordings(commit) for commit in commits], schemas.RECORDINGS)

    def segments(self) -> pa.Table:
        """Segments of every audio fingerprint, with the column `audio`."""
        pairs = self.entries.group_by(["audio", "commit"]).aggregate([])
        return self._partitioned(
            [((audio,), layout.segments(audio, commit)) for audio, commit in _pairs(pairs)],
            ("audio",),
            schemas.SEGMENTS,
        )

    def predictions(self, model: str | None = None) -> pa.Table:
        """Predictions of one model or of all, with the columns `model` and `fp`."""
        return self._partitioned(
            [((name, fp), layout.predictions(name, fp, commit)) for name, fp, commit in self._commits(model)],
            ("model", "fp"),
            schemas.PREDICTIONS,
        )

    def embeddings(self, model: str) -> pa.Table:
        """Utterance embeddings of one model, with the columns `model` and `fp`."""
        files = [((name, fp), layout.embeddings(name, fp, commit)) for name, fp, commit in self._commits(model)]
        there = set(self.storage.list(f"embeddings/model={model}/"))
        width = 0
        for _, file in files:
            if file in there:
                with self.storage.fs.open(self.storage.path(file), "rb") as opened:
                    width = pq.read_schema(opened).field("embedding").type.list_size
                break
        return self._partitioned(files, ("model", "fp"), schemas.embeddings(width))

    def quarantine(self) -> pa.Table:
        """The log of everything that failed."""
        return self._read(self.storage.list("quarantine/"), schemas.QUARANTINE)

    def failing(self) -> pa.Table:
        """What fails now: the last event of each recording, segment and model that nothing has mended since."""
        log = self.quarantine()
        if not log.num_rows:
            return log
        # A given segment outside its recording has no id, only times.
        keys = ["recording_id", "segment_id", "model", "stage", "start_s", "end_s"]
        order = log.append_column("row", pa.array(range(log.num_rows))).sort_by("time")
        last = order.group_by(keys, use_threads=False).aggregate([("row", "last")])
        log = log.take(last["row_last"])
        whole = pc.and_(pc.is_null(log["segment_id"]), pc.not_equal(log["stage"], "segment"))
        return log.filter(pc.invert(pc.and_(self._mended(log), whole)))

    def _mended(self, log: pa.Table) -> pa.Array:
        """For each event whether a later run brought its recording to an end."""
        entries = self.entries
        there = pc.is_in(
            entries["recording_id"].cast(pa.binary()),
            value_set=log["recording_id"].combine_chunks().cast(pa.binary()),
        )
        settled = pc.and_(entries["final"], pc.not_equal(entries["status"], "failed"))
        ended = entries.filter(pc.and_(there, settled))
        last: dict[bytes, str] = {}
        for recording, commit in zip(ended["recording_id"].to_pylist(), ended["commit"].to_pylist(), strict=True):
            last[recording] = max(last.get(recording, ""), layout.run_of(commit))
        events = zip(log["recording_id"].to_pylist(), log["run_id"].to_pylist(), strict=True)
        return pa.array([last.get(recording, "") > run for recording, run in events], pa.bool_())

    def runs(self) -> list[runs.Run]:
        """Every run, oldest first."""
        return runs.load(self.storage)

    def _commits(self, model: str | None) -> list[tuple[str, str, str]]:
        entries = self.entries
        if model is not None:
            entries = entries.filter(pc.equal(entries["model"], model))
        return _pairs(entries.group_by(["model", "fp", "commit"]).aggregate([]))

    def _read(self, names: list[str], schema: pa.Schema) -> pa.Table:
        return self._partitioned([((), name) for name in names], (), schema)

    def _partitioned(
        self, files: Sequence[tuple[tuple[str, ...], str]], keys: tuple[str, ...], schema: pa.Schema
    ) -> pa.Table:
        """Read the files that are there; a commit without rows of a kind has no file of it."""
        there = set(self.storage.list(files[0][1].split("/", 1)[0] + "/")) if files else set()
        partition = pa.schema([pa.field(key, pa.string()) for key in keys])
        full = pa.schema([*schema, *partition])
        found = sorted((values, name) for values, name in files if name in there)
        if not found:
            return full.empty_table()
        dataset = ds.FileSystemDataset.from_paths(
            [self.storage.path(name) for _, name in found],
            schema=full,
            format=ds.ParquetFileFormat(),
            filesystem=pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self.storage.fs)),
            partitions=[_expression(dict(zip(keys, values, strict=True))) for values, _ in found],
        )
        return dataset.to_table()


def _expression(values: dict[str, str]) -> ds.Expression:
    expression = ds.scalar(True)
    for key, value in values.items():
        expression = expression & (ds.field(key) == value)
    return expression


def _pairs(table: pa.Table) -> list[Any]:
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))
