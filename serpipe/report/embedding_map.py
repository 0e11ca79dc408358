"""Embeddings on a plane: a sample of segments, near each other where a model heard the same."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.linalg

from serpipe.report.rows import Rows
from serpipe.store import layout

POINTS = 1500

FILES = 24
"""Commits that are looked into; each is one file."""


@dataclass(frozen=True, slots=True)
class Map:
    """A sample of a model's embeddings on the plane of their first two principal components.

    Attributes:
        model: whose embeddings.
        points: `x`, `y`, `said`.
        explained: share of the variance that lies in the plane.
        commits: files that were looked into.
        of: files there are.
    """

    model: str
    points: list[dict[str, Any]]
    explained: float
    commits: int
    of: int


def draw(rows: Rows, primary: str) -> Map | None:
    """The map of the model that names the emotions, or of another one with embeddings."""
    storage = rows.store.storage
    there = set(storage.list("embeddings/"))
    entries = rows.entries.filter(pc.greater(rows.entries["rows"], 0))
    names: dict[str, list[str]] = {}
    for row in entries.group_by(["model", "fp", "commit"]).aggregate([]).to_pylist():
        name = layout.embeddings(row["model"], row["fp"], row["commit"])
        if name in there:
            names.setdefault(row["model"], []).append(name)
    if not names:
        return None
    model = primary if primary in names else min(names)
    files = sorted(names[model])
    chosen = [files[round(place)] for place in np.linspace(0, len(files) - 1, min(FILES, len(files)))]
    parts = [part for name in chosen if (part := _read(rows, name, -(-POINTS // len(chosen)))) is not None]
    sample = pa.concat_tables(parts) if parts else None
    if sample is None:
        return None
    rows.db.register("sampled", sample.select(["segment_id"]).append_column("row", pa.array(range(sample.num_rows))))
    said = rows.all(
        "SELECT row, said FROM said JOIN sampled USING (segment_id) WHERE model = ? AND said IS NOT NULL ORDER BY row",
        primary,
    )
    rows.db.unregister("sampled")
    if len(said) < 3:
        return None
    vectors = sample["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    place, explained = _plane(vectors.reshape(sample.num_rows, -1)[[row["row"] for row in said]].astype(np.float64))
    points = [{"x": float(x), "y": float(y), "said": row["said"]} for (x, y), row in zip(place, said, strict=True)]
    return Map(model, points, explained, len(chosen), len(files))


def _read(rows: Rows, name: str, count: int) -> pa.Table | None:
    """Rows of one file, evenly spread over its first row group; None where it went meanwhile."""
    storage = rows.store.storage
    with contextlib.suppress(FileNotFoundError), storage.fs.open(storage.path(name), "rb") as file:
        found = pq.ParquetFile(file).read_row_group(0, columns=["segment_id", "embedding"])
        places = np.unique(np.linspace(0, found.num_rows - 1, min(count, found.num_rows)).round().astype(int))
        return found.take(pa.array(places)).replace_schema_metadata(None)
    return None


def _plane(vectors: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """The first two principal components, and their share of the variance."""
    centred = vectors - vectors.mean(axis=0)
    spread = centred.T @ centred
    width = len(spread)
    sizes, axes = scipy.linalg.eigh(spread, subset_by_index=[max(width - 2, 0), width - 1])
    place = centred @ axes[:, ::-1]
    if width < 2:
        place = np.pad(place, ((0, 0), (0, 1)))
    # A component's sign is the solver's whim; the page must not change with it.
    place *= np.where(np.abs(place.min(axis=0)) > place.max(axis=0), -1, 1)
    return place, float(sizes.sum() / max(np.trace(spread), 1e-12))
