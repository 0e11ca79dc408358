"""The rows a report counts: current labels, in a database on disk so that memory does not grow with the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from serpipe.errors import UsageError
from serpipe.labels import CANONICAL
from serpipe.store import layout, parquet, schemas
from serpipe.store.current import without
from serpipe.store.reading import Store

MEMORY = "1GB"
"""Of the database; what is more goes to disk."""

DATES = ("date", "published", "published_at", "pubdate", "recorded", "recorded_at", "timestamp", "datetime")
"""Owner's columns that say when a recording is from, first one that is a time."""

_SAID = f"""
CREATE TABLE said AS
SELECT segment_id, recording_id, channel, start_s, end_s, run_id, model, coalesce(emotion, label) AS said, confidence,
  confidence - coalesce(list_reverse_sort(scores)[2], 0) AS margin,
  {", ".join(f"emotion_scores.{emotion} AS {emotion}" for emotion in CANONICAL)}, arousal, valence
FROM predictions ANTI JOIN stale USING (recording_id, model, fp, audio)
"""

_ABOUT = f"""
CREATE TABLE about AS
SELECT recording_id, uri, duration_s, size, etag, coalesce(meta['feed'], rtrim(parse_dirpath(uri), '/')) AS feed,
  coalesce({", ".join(f"try_cast(meta['{name}'] AS TIMESTAMP)" for name in DATES)}) AS dated,
  first_seen::TIMESTAMP AS seen
FROM recordings
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a report is about.

    Attributes:
        store: the store.
        run: the run it is limited to; None for everything current.
        entries: the ledger's entries of it.
        db: tables `said`, a row a prediction, and `about`, a row a recording.
    """

    store: Store
    run: str | None
    entries: pa.Table
    db: duckdb.DuckDBPyConnection

    def all(self, query: str, *values: object) -> list[dict[str, Any]]:
        """The rows of a query."""
        found = self.db.execute(query, list(values))
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@contextmanager
def opened(store: Store, run: str | None = None) -> Iterator[Rows]:
    """Gather a store's current labels, or those that one run committed.

    Args:
        store: the store.
        run: id of a run; everything current where left out.

    Raises:
        UsageError: `RUN_UNKNOWN`.
    """
    if run is not None and run not in {known.run_id for known in store.runs()}:
        raise UsageError(
            "RUN_UNKNOWN",
            f"{store.storage.shown} has no run {run}; `serpipe status {store.storage.shown}` names its runs",
        )
    entries = without(store.entries, store.stale.labels)
    if run is not None:
        entries = entries.filter(pc.starts_with(entries["commit"], f"{run}-"))
    with (
        tempfile.TemporaryDirectory(prefix="serpipe-report-") as folder,
        duckdb.connect(f"{folder}/rows.duckdb", config={"memory_limit": MEMORY}) as db,
    ):
        rows = Rows(store, run, entries, db)
        with parquet.damage_told(store.storage):
            _load(rows)
        yield rows


def _load(rows: Rows) -> None:
    recordings = rows.store.recordings()
    if rows.run is not None:
        mine = pc.is_in(recordings["recording_id"], value_set=rows.entries["recording_id"].combine_chunks())
        recordings = recordings.filter(mine)
    rows.db.register("recordings", recordings)
    rows.db.execute(_ABOUT)
    rows.db.unregister("recordings")
    stale = rows.store.stale.labels
    rows.db.register("stale", stale)
    rows.db.register("predictions", _predictions(rows))
    rows.db.execute(_SAID)
    rows.db.unregister("predictions")


def _predictions(rows: Rows) -> ds.Dataset:
    """The predictions files that the ledger names, to be read column by column."""
    storage = rows.store.storage
    keys = ["model", "fp", "audio", "commit"]
    settled = rows.entries.filter(pc.greater(rows.entries["rows"], 0)).group_by(keys).aggregate([])
    there = set(storage.list("predictions/"))
    partition = pa.schema([pa.field(key, pa.string()) for key in keys[:3]])
    full = pa.schema([*schemas.PREDICTIONS, *partition])
    files, places = [], []
    for row in settled.sort_by([(key, "ascending") for key in keys]).to_pylist():
        name = layout.predictions(row["model"], row["fp"], row["commit"])
        if name in there:
            files.append(storage.path(name))
            places.append(_where(row, keys[:3]))
    if not files:
        return ds.dataset(full.empty_table())
    return ds.FileSystemDataset.from_paths(
        files, schema=full, format=ds.ParquetFileFormat(), filesystem=storage.arrow, partitions=places
    )


def _where(row: dict[str, Any], keys: Sequence[str]) -> ds.Expression:
    expression = ds.scalar(True)
    for key in keys:
        expression = expression & (ds.field(key) == row[key])
    return expression
