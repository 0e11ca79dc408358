"""The owner's values as text, the same text whichever format they came in."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe.manifest.schemas import META


def render(value: object) -> str | None:
    """Write one value as text.

    Text stays as it is. Whole numbers have no point (`3`), floating ones are Python's shortest that reads
    back (`3.0`, `0.1`, `nan`), truth is `true` or `false`, dates are ISO 8601, nested values are compact JSON
    with sorted keys. Nothing, the empty text and bytes are None: they are not kept.

    Examples:
        >>> render(3), render(3.0), render("3"), render(True), render(""), render({"b": [1, None], "a": None})
        ('3', '3.0', '3', 'true', None, '{"b":[1,null]}')
    """
    if isinstance(value, str):
        return value or None
    if value is None or isinstance(value, bytes):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Drop absent keys: a Parquet struct always has all of its fields, a JSON object may leave some out."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else render(value)


def render_array(array: pa.Array) -> pa.Array:
    """Write a column of any Arrow type as text, by the rules of `render`.

    Examples:
        >>> render_array(pa.array([0.1, None], pa.float32())).to_pylist()
        ['0.1', None]
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        text = pc.cast(array, pa.string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pc.cast(array, pa.string())
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        # The shortest text of the narrow number: 0.1, where widening first would give 0.10000000149011612.
        wide = array.to_numpy(zero_copy_only=False)
        kept = array.is_valid().to_pylist()
        return pa.array([str(v) if ok else None for v, ok in zip(wide, kept, strict=True)], pa.string())
    if pa.types.is_map(kind):
        values: list[Any] = array.to_pylist(maps_as_pydicts="lossy")
    else:
        values = array.to_pylist()
    return pa.array([render(value) for value in values], pa.string())


def meta_of_columns(names: Sequence[str], columns: Sequence[pa.Array], rows: int) -> pa.MapArray:
    """Fold text columns of equal length into one map a row, sorted by name, without nulls and empty text.

    Examples:
        >>> meta_of_columns(["b", "a"], [pa.array(["1", None]), pa.array(["2", "3"])], 2).to_pylist()
        [[('a', '2'), ('b', '1')], [('a', '3')]]
    """
    order = sorted(range(len(names)), key=lambda k: names[k])
    if not order or not rows:
        return empty_meta(rows)
    # Column k's value of row i lies at k*rows+i; reading the matrix by rows interleaves the columns.
    flat = pa.concat_arrays([columns[k] for k in order])
    by_row = np.arange(len(order) * rows, dtype=np.int64).reshape(len(order), rows).T.ravel()
    kept = pc.fill_null(pc.not_equal(flat, ""), False).to_numpy(zero_copy_only=False)[by_row]
    keys = pa.DictionaryArray.from_arrays(
        pa.array(np.tile(np.arange(len(order), dtype=np.int32), rows)[kept]),
        pa.array([names[k] for k in order]),
    )
    counts = kept.reshape(rows, len(order)).sum(axis=1)
    return _map(counts, keys.dictionary_decode(), flat.take(pa.array(by_row[kept])))


def meta_of_dicts(metas: Sequence[Mapping[str, str]]) -> pa.MapArray:
    """Fold one mapping a row into one map a row, sorted by name.

    Examples:
        >>> meta_of_dicts([{"b": "1", "a": "2"}, {}]).to_pylist()
        [[('a', '2'), ('b', '1')], []]
    """
    pairs = [pair for meta in metas for pair in sorted(meta.items())]
    counts = np.fromiter((len(meta) for meta in metas), np.int64, len(metas))
    keys = pa.array([key for key, _ in pairs], pa.string())
    return _map(counts, keys, pa.array([value for _, value in pairs], pa.string()))


def empty_meta(rows: int) -> pa.MapArray:
    """Give `rows` maps without entries."""
    return _map(np.zeros(rows, np.int64), pa.array([], pa.string()), pa.array([], pa.string()))


def _map(counts: np.ndarray[Any, Any], keys: pa.Array, values: pa.Array) -> pa.MapArray:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values).cast(META)
