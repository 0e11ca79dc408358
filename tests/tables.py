"""Comparing stores: the same rows, whatever the run, the files and the order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from serpipe.store.storage import Storage

KEYS = {
    "recordings": ["recording_id"],
    "segments": ["segment_id"],
    "predictions": ["model", "fp", "segment_id"],
    "embeddings": ["model", "fp", "segment_id"],
    "quarantine": ["recording_id", "segment_id", "model", "stage", "code"],
    "ledger": ["recording_id", "unit", "model", "fp", "audio"],
}
OF_THE_RUN = {"run_id", "attempt", "time", "first_seen", "commit", "codec_messages"}


def read(store: str, name: str) -> pa.Table:
    """A table as any Parquet reader sees it: every file in its folder."""
    storage = Storage(store)
    if not storage.list(f"{name}/"):
        return pa.table({})
    return ds.dataset(storage.path(name), filesystem=storage.fs, format="parquet", partitioning="hive").to_table()


def tables(store: str) -> list[str]:
    """Every table of a store; embeddings model by model, for each has its own width."""
    folders = {name.rsplit("/fp=", 1)[0] for name in Storage(store).list("embeddings/")}
    return [name for name in KEYS if name != "embeddings"] + sorted(folders)


def assert_same(calm: str, other: str, *, tolerance: float = 1e-4, but_for: tuple[str, ...] = ()) -> None:
    """Every table of one store equals the other's, floats within a tolerance of their spread."""
    assert tables(calm) == tables(other)
    for name in tables(calm):
        if name in but_for:
            continue
        keys = [key for key in KEYS[name.split("/")[0]] if "/" not in name or key != "model"]
        left, right = read(calm, name), read(other, name)
        assert left.num_rows == right.num_rows, f"{name}: {left.num_rows} rows against {right.num_rows}"
        if not left.num_rows:
            continue
        assert len(set(zip(*(left[key].to_pylist() for key in keys), strict=True))) == left.num_rows, (
            f"{name}: rows twice"
        )
        order = [(key, "ascending") for key in keys]
        left, right = left.sort_by(order), right.sort_by(order)
        for column in left.column_names:
            if column not in OF_THE_RUN:
                assert_column(f"{name}.{column}", left[column], right[column], tolerance)


def assert_column(
    where: str, left: pa.Array | pa.ChunkedArray, right: pa.Array | pa.ChunkedArray, tolerance: float
) -> None:
    if isinstance(left, pa.ChunkedArray):
        left, right = left.combine_chunks(), right.combine_chunks()
    while pa.types.is_list(left.type) or pa.types.is_fixed_size_list(left.type):
        left, right = left.flatten(), right.flatten()
    if pa.types.is_struct(left.type):
        for field in left.type:
            assert_column(f"{where}.{field.name}", left.field(field.name), right.field(field.name), tolerance)
        return
    if not pa.types.is_floating(left.type):
        assert left.to_pylist() == right.to_pylist(), where
        return
    assert left.is_null().equals(right.is_null()), where
    a = pc.drop_null(left).to_numpy(zero_copy_only=False).astype(np.float64)
    b = pc.drop_null(right).to_numpy(zero_copy_only=False).astype(np.float64)
    if pa.types.is_float16(left.type):
        tolerance = 2e-3
    if len(a):
        assert np.max(np.abs(a - b)) <= tolerance * max(np.std(a), 1.0), where
