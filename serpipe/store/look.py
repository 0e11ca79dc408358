"""One file of a store, looked at by itself: its bytes, its place, its schema, its rows against its own footer."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serpipe.store import layout, parquet, schemas, seal
from serpipe.store.rowsets import lacking
from serpipe.store.storage import Storage

TABLES = ("recordings", "segments", "predictions", "embeddings", "frames", "quarantine")

OF_QUARANTINE = ["recording_id", "segment_id", "unit", "model", "fp", "stage", "transient", "run_id"]
"""What it takes to tell whose reason a row of `quarantine` is."""

_FIXED = {
    "recordings": schemas.RECORDINGS,
    "segments": schemas.SEGMENTS,
    "predictions": schemas.PREDICTIONS,
    "quarantine": schemas.QUARANTINE,
    "ledger": schemas.LEDGER,
}

_WIDE = {"embeddings": schemas.embeddings, "frames": schemas.frames}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a file is and holds.

    Attributes:
        name: of the object.
        size: bytes.
        code: what is wrong with it; None where nothing is.
        why: the same in words.
        facts: what its footer says.
        rows: their number.
        content: of predictions, the units its footer settles; of segments, their number by `recording_id` and `unit`;
            of recordings, their ids; of quarantine, whom its rows are about.
        ids: a sum over its segments' ids in which their order does not count.
    """

    name: str
    size: int = 0
    code: str | None = None
    why: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    content: pa.Table | None = None
    ids: int = 0

    @property
    def table(self) -> str:
        """Its table."""
        return self.name.split("/", 1)[0]

    @property
    def commit(self) -> str:
        """Its commit."""
        return layout.stem(self.name)

    @property
    def partition(self) -> dict[str, str]:
        """What its folders say."""
        steps = self.name.split("/")[1:-1]
        return dict(step.split("=", 1) for step in steps)

    @property
    def beside(self) -> dict[str, int]:
        """Rows of the files that were written with these predictions."""
        counts: dict[str, int] = json.loads(self.facts.get("beside", "{}"))
        return counts


def look(storage: Storage, name: str) -> Seen | None:
    """Read one file whole; None where it is gone."""
    try:
        data = storage.get(name)
    except FileNotFoundError:
        return None
    why = seal.broken(io.BytesIO(data))
    if why is not None:
        return Seen(name=name, size=len(data), code="FILE_DAMAGED", why=why)
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        seen = Seen(name=name, size=len(data), facts=parquet.facts_of(file.metadata), rows=file.metadata.num_rows)
        code, why = _misplaced(seen, file.schema_arrow.remove_metadata())
        if code is not None:
            return replace(seen, code=code, why=why)
        return _read(seen, file)


def _misplaced(seen: Seen, found: pa.Schema) -> tuple[str | None, str]:
    written_as = seen.facts.get("name", "?")
    if written_as != seen.name:
        return "FILE_SWAPPED", f"it was written as {written_as}"
    if seen.facts["schema"] != schemas.SCHEMA_VERSION:
        return "FILE_SCHEMA", f"its tables are of version {seen.facts['schema']}"
    wanted = _FIXED.get(seen.table) or _wide(seen.table, found)
    if wanted is None or not found.equals(wanted):
        return "FILE_SCHEMA", f"its columns are not those of {seen.table}"
    return None, ""


def _wide(table: str, found: pa.Schema) -> pa.Schema | None:
    """The schema of vectors as wide as those that were found."""
    kind = found.field(2).type if len(found) > 2 else None
    while kind is not None and not pa.types.is_fixed_size_list(kind):
        kind = kind.value_type if pa.types.is_list(kind) else None
    return None if kind is None else _WIDE[table](kind.list_size)


def _read(seen: Seen, file: pq.ParquetFile) -> Seen:
    if seen.table == "predictions":
        rows = file.read(["segment_id", "recording_id", "unit"], use_threads=False)
        settled = parquet.unpack_table(seen.facts["settled"]).cast(schemas.LEDGER)
        code, why = _against_footer(rows, settled, seen)
        return replace(seen, content=settled, ids=_sum(rows["segment_id"]), code=code, why=why)
    if seen.table == "segments":
        rows = file.read(["segment_id", "recording_id", "unit"], use_threads=False)
        counts = rows.group_by(["recording_id", "unit"], use_threads=False).aggregate([("segment_id", "count")])
        counts = counts.rename_columns(["recording_id", "unit", "count"])
        twice = _twice(rows["segment_id"])
        return replace(seen, content=counts, code="ROWS_TWICE" if twice else None, why=twice)
    if seen.table == "recordings":
        rows = file.read(["recording_id"], use_threads=False)
        twice = _twice(rows["recording_id"])
        return replace(seen, content=rows, code="ROWS_TWICE" if twice else None, why=twice)
    if seen.table == "quarantine":
        return replace(seen, content=file.read(OF_QUARANTINE, use_threads=False))
    if seen.table in _WIDE:
        rows = file.read(["segment_id"], use_threads=False)
        twice = _twice(rows["segment_id"])
        return replace(seen, ids=_sum(rows["segment_id"]), code="ROWS_TWICE" if twice else None, why=twice)
    return seen


def _against_footer(rows: pa.Table, settled: pa.Table, seen: Seen) -> tuple[str | None, str]:
    """A predictions file's rows against the units its footer settles."""
    twice = _twice(rows["segment_id"])
    if twice:
        return "ROWS_TWICE", twice
    keys = ["recording_id", "unit"]
    place = {"model": seen.partition["model"], "fp": seen.partition["fp"], "commit": seen.commit}
    for column, value in place.items():
        if pc.any(pc.not_equal(settled[column], value)).as_py():
            return "ROWS_DIFFER", f"its footer settles units of another {column}"
    counts = rows.group_by(keys, use_threads=False).aggregate([("segment_id", "count")])
    counts = counts.rename_columns([*keys, "rows"]).cast(pa.schema([schemas.LEDGER.field(n) for n in (*keys, "rows")]))
    claimed = settled.filter(pc.greater(settled["rows"], 0)).select([*keys, "rows"])
    missing, extra = lacking(claimed, counts, [*keys, "rows"]), lacking(counts, claimed, [*keys, "rows"])
    if missing.num_rows or extra.num_rows:
        claims = pc.sum(claimed["rows"]).as_py() or 0
        return (
            "ROWS_DIFFER",
            f"it has {rows.num_rows:,} rows, its footer settles {claims:,}, or they are of other units",
        )
    return None, ""


def _twice(ids: pa.ChunkedArray) -> str:
    extra = len(ids) - len(ids.unique())
    return f"{extra:,} rows are there twice" if extra else ""


def _sum(ids: pa.ChunkedArray) -> int:
    words = np.frombuffer(b"".join(ids.to_pylist()), np.uint64)
    return int(words.sum(dtype=np.uint64)) if len(words) else 0
