"""The rows a report counts: current labels, in a database on disk so that memory does not grow with the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from serpipe.errors import UsageError
from serpipe.labels import CANONICAL
from serpipe.store import layout, parquet, schemas, steady
from serpipe.store.current import without
from serpipe.store.reading import Store

MEMORY = "1GB"
"""Of the database; what is more goes to disk."""

DATES = ("date", "published", "published_at", "pubdate", "recorded", "recorded_at", "timestamp", "datetime")
"""Owner's columns that say when a recording is from, first one that is a time."""

_PARTITIONS = ("model", "fp", "audio")

_SAID = f"""
SELECT segment_id, recording_id, channel, start_s, end_s, run_id, model, coalesce(emotion, label) AS said, confidence,
  confidence - coalesce(list_reverse_sort(scores)[2], 0) AS margin,
  {", ".join(f"emotion_scores.{emotion} AS {emotion}" for emotion in CANONICAL)}, arousal, valence
FROM predictions ANTI JOIN stale USING (recording_id, model, fp, audio)
"""

_READ = [
    *("segment_id", "recording_id", "channel", "start_s", "end_s", "run_id", "label", "emotion", "confidence"),
    *("scores", "emotion_scores", "arousal", "valence", *_PARTITIONS),
]

_AT_ONCE = 200_000
"""Predictions in memory at once."""

# ISO 8601, what people write, RSS's (RFC 822), seconds or milliseconds since 1970. What means two days, as 03/04/2026,
# is none. A zone counts where the format has one; the session's own never does.
_MOMENT = r"""
CREATE MACRO moment(wrote) AS coalesce(
  try_cast(wrote AS TIMESTAMP),
  try_strptime(wrote, [
    '%Y%m%d', '%Y%m%dT%H%M%S', '%Y-%m', '%Y/%m/%d', '%Y/%m/%d %H:%M:%S',
    '%d.%m.%Y', '%d.%m.%Y %H:%M', '%d.%m.%Y %H:%M:%S', '%d %b %Y', '%d %B %Y']),
  make_timestamp(epoch_us(try_strptime(
    regexp_replace(regexp_replace(wrote, '^[A-Za-z]+, *', ''), ' (GMT|UTC|UT|Z)$', ' +0000'),
    ['%d %b %Y %H:%M:%S %z', '%d %b %Y %H:%M %z']))),
  CASE
    WHEN regexp_full_match(wrote, '\d{9,10}([.]\d+)?') THEN make_timestamp(CAST(1e6 * CAST(wrote AS DOUBLE) AS BIGINT))
    WHEN regexp_full_match(wrote, '\d{12,13}') THEN make_timestamp(1000 * CAST(wrote AS BIGINT))
  END)
"""

_ABOUT = f"""
CREATE TABLE about AS
WITH owned AS (
  SELECT *, list_filter([{", ".join(f"{{'name': '{n}', 'text': trim(meta['{n}'])}}" for n in DATES)}],
    lambda told: told.text <> '') AS told FROM recordings),
dated AS (SELECT *, list_filter(told, lambda one: moment(one.text) IS NOT NULL)[1] AS origin FROM owned)
SELECT recording_id, uri, duration_s, size, etag, coalesce(meta['feed'], rtrim(parse_dirpath(uri), '/')) AS feed,
  moment(origin.text) AS dated, origin.name AS dated_by, CASE WHEN origin IS NULL THEN told[1] END AS undated,
  make_timestamp(epoch_us(first_seen)) AS seen
FROM dated
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
    rows.db.execute(_MOMENT)
    rows.db.execute(_ABOUT)
    rows.db.unregister("recordings")
    rows.db.register("stale", rows.store.stale.labels)
    files = _files(rows)
    steady.steadily(
        rows.store.storage, list(files), lambda there: _load_said(rows, {name: files[name] for name in there})
    )


def _files(rows: Rows) -> dict[str, ds.Expression]:
    """The predictions files that the ledger names, and their partitions."""
    keys = [*_PARTITIONS, "commit"]
    settled = rows.entries.filter(pc.greater(rows.entries["rows"], 0)).group_by(keys).aggregate([])
    return {
        layout.predictions(row["model"], row["fp"], row["commit"]): _where(row)
        for row in settled.sort_by([(key, "ascending") for key in keys]).to_pylist()
    }


def _load_said(rows: Rows, files: dict[str, ds.Expression]) -> None:
    storage = rows.store.storage
    full = pa.schema([*schemas.PREDICTIONS, *(pa.field(key, pa.string()) for key in _PARTITIONS)])
    narrow = pa.schema([full.field(name) for name in _READ])
    _insert(rows, "CREATE OR REPLACE TABLE said AS", narrow.empty_table())
    if not files:
        return
    found = ds.FileSystemDataset.from_paths(
        [storage.path(name) for name in files],
        schema=full,
        format=ds.ParquetFileFormat(),
        filesystem=storage.arrow,
        partitions=list(files.values()),
    )
    held: list[pa.RecordBatch] = []
    # DuckDB could read this by itself, but would not come back from a file that is gone.
    for batch in found.to_batches(columns=_READ):
        held.append(batch)
        if sum(len(some) for some in held) >= _AT_ONCE:
            _insert(rows, "INSERT INTO said", pa.Table.from_batches(held, narrow))
            held = []
    _insert(rows, "INSERT INTO said", pa.Table.from_batches(held, narrow))


def _insert(rows: Rows, what: str, predictions: pa.Table) -> None:
    rows.db.register("predictions", predictions)
    rows.db.execute(f"{what} {_SAID}")
    rows.db.unregister("predictions")


def _where(row: dict[str, Any]) -> ds.Expression:
    expression = ds.scalar(True)
    for key in _PARTITIONS:
        expression = expression & (ds.field(key) == row[key])
    return expression
