"""What is in a store: as any reader of Parquet sees it, and as `serpipe.open` shows it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from tests.tables import KEYS, OF_THE_RUN

Rows = dict[tuple[Any, ...], dict[str, Any]]

TABLES = ("recordings", "segments", "predictions", "embeddings", "ledger")
FAILING = ("recording_id", "segment_id", "uri", "model", "fp", "stage", "code", "message", "transient")


def on_disk(storage: Storage) -> dict[str, Rows]:
    """Rows of all files by key, found without serpipe's own reader; none may be there twice."""
    return {table: keyed(table, files(storage, table)) for table in TABLES}


def shown(store: Store) -> dict[str, Rows]:
    """Rows that `serpipe.open` shows by key; none may be there twice, or without its segment or recording."""
    tables = {
        "recordings": keyed("recordings", [store.recordings()]),
        "segments": keyed("segments", [store.segments()]),
        "predictions": keyed("predictions", [store.predictions()]),
        "ledger": keyed("ledger", [store.entries]),
    }
    segments = {row["segment_id"] for row in tables["segments"].values()}
    assert {row["segment_id"] for row in tables["predictions"].values()} <= segments, "predictions of no segment"
    units = {row["recording_id"] for row in tables["ledger"].values()}
    for name in ("recordings", "segments", "predictions"):
        assert {row["recording_id"] for row in tables[name].values()} <= units, f"{name} that no ledger entry covers"
    return tables


def failing(store: Store) -> set[tuple[Any, ...]]:
    """What fails now."""
    rows = store.failing().select(FAILING).to_pylist()
    return {tuple(row.values()) for row in rows}


def keyed(table: str, parts: list[pa.Table]) -> Rows:
    rows = [row for part in parts for row in part.to_pylist()]
    keys = [tuple(row.get(key) for key in KEYS[table]) for row in rows]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    assert not twice, f"{table}: twice {twice}"
    left_out = OF_THE_RUN | {"logits"}
    return {
        key: {name: value for name, value in row.items() if name not in left_out}
        for key, row in zip(keys, rows, strict=True)
    }


def files(storage: Storage, table: str) -> list[pa.Table]:
    tables = []
    for name in storage.list(f"{table}/"):
        part = pq.ParquetFile(pa.BufferReader(storage.get(name))).read(use_threads=False)
        for step in name.split("/")[1:-1]:
            key, value = step.split("=")
            part = part.append_column(key, pa.array([value] * part.num_rows))
        tables.append(part)
    return tables
