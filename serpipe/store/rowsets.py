"""Rows of one table by the keys of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def having(rows: pa.Table, others: pa.Table, keys: list[str]) -> pa.Table:
    """Rows with a counterpart among others, in their order.

    Examples:
        >>> units = pa.table({"unit": [0, 1, 2], "meta": [["a"], [], ["b"]]})
        >>> having(units, pa.table({"unit": [2, 0, 2]}), ["unit"])["meta"].to_pylist()
        [['a'], ['b']]
    """
    return _joined(rows, others, keys, "left semi")


def lacking(rows: pa.Table, others: pa.Table, keys: list[str]) -> pa.Table:
    """Rows without a counterpart among others, in their order.

    Examples:
        >>> units = pa.table({"unit": [0, 1, 2]})
        >>> lacking(units, pa.table({"unit": [2, 0, 2]}), ["unit"])["unit"].to_pylist()
        [1]
    """
    return _joined(rows, others, keys, "left anti")


def tuples(rows: pa.Table, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Columns as Python values, row by row."""
    return zip(*(rows[column].to_pylist() for column in columns), strict=True)


def _joined(rows: pa.Table, others: pa.Table, keys: list[str], how: Literal["left semi", "left anti"]) -> pa.Table:
    # Arrow joins no nested columns, hence by place.
    placed = rows.select(keys).append_column("place", pa.array(np.arange(rows.num_rows)))
    others = others.select(keys).cast(pa.schema([rows.schema.field(key) for key in keys]))
    places = placed.join(others, keys, join_type=how, use_threads=False)["place"]
    return rows.take(places.take(pc.sort_indices(places)))
