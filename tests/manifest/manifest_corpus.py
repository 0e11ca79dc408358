"""One corpus written in every convention, and read back as plain values that can be compared."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Row:
    """A line of the corpus: a whole recording, or a segment of one."""

    name: str
    start: float | None = None
    end: float | None = None
    meta: dict[str, str] = field(default_factory=dict)


def flat(row: Row, uri: str = "uri") -> dict[str, Any]:
    times = {} if row.start is None else {"start": row.start, "end": row.end}
    return {uri: row.name, **times, **row.meta}


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in flat(row)))


def write_csv(path: Path, rows: Sequence[Row], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _columns(rows), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(flat(row) for row in rows)


def write_tsv(path: Path, rows: Sequence[Row]) -> None:
    write_csv(path, rows, "\t")


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(flat(row)) + "\n" for row in rows), encoding="utf-8")


def write_jsonl_gz(path: Path, rows: Sequence[Row]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(flat(row), ensure_ascii=False) + "\n" for row in rows)


def write_nemo(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            times = {}
            if row.start is not None and row.end is not None:
                times = {"offset": row.start, "duration": row.end - row.start}
            stream.write(json.dumps({"audio_filepath": row.name, **times, **row.meta}) + "\n")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    table = pa.Table.from_pylist([dict.fromkeys(_columns(rows)) | flat(row) for row in rows])
    pq.write_table(table, path, row_group_size=3)


def write_pandas_parquet(path: Path, rows: Sequence[Row]) -> None:
    pd.DataFrame([flat(row) for row in rows]).to_parquet(path)


def write_polars_parquet(path: Path, rows: Sequence[Row]) -> None:
    pl.DataFrame([dict.fromkeys(_columns(rows)) | flat(row) for row in rows], infer_schema_length=None).write_parquet(
        path
    )


WRITERS: dict[str, Callable[[Path, Sequence[Row]], None]] = {
    "list.csv": write_csv,
    "list.tsv": write_tsv,
    "list.jsonl": write_jsonl,
    "list.jsonl.gz": write_jsonl_gz,
    "nemo.json": write_nemo,
    "list.parquet": write_parquet,
    "pandas.parquet": write_pandas_parquet,
    "polars.parquet": write_polars_parquet,
}
"""File name to the function that writes a corpus so."""


def plain(recordings: pa.Table) -> list[dict[str, Any]]:
    """Give recordings as plain values, maps as dicts."""
    found = recordings.to_pylist(maps_as_pydicts="strict")
    return [dict(recording) for recording in found]


def lhotse_recording(name: str, duration: float = 10.0, channels: Sequence[int] = (0,)) -> dict[str, Any]:
    source = {"type": "file", "channels": list(channels), "source": name}
    return {
        "id": name,
        "sources": [source],
        "sampling_rate": 16000,
        "num_samples": int(duration * 16000),
        "duration": duration,
        "channel_ids": list(channels),
    }
