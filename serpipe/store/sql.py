"""A store's tables in DuckDB: those that a query names, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from serpipe.errors import UsageError

_TEXTS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
"""Comments and strings, in which a word is no table."""


def relation(query: str, tables: Sequence[str], read: Callable[[str], pa.Table]) -> duckdb.DuckDBPyRelation:
    """Run a query over tables, each of which is read where the query is found to name it.

    Args:
        query: one statement of DuckDB's SQL.
        tables: names that it may use.
        read: gives one of them.

    Raises:
        duckdb.Error: the query is wrong.
    """
    connection = duckdb.connect()
    names, certain = _named(connection, query)
    for table in tables:
        if table not in names:
            continue
        try:
            rows = read(table)
        except UsageError:
            # The query may mean a table of its own, or a column; where it means this one, DuckDB says that it is not
            # there.
            if certain:
                raise
            continue
        connection.register(table, rows.cast(_readable(rows.schema)))
    return connection.sql(query)


def _named(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[set[str], bool]:
    """Tables that a query reads, in lower case, and whether that is certain."""
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()[0]
    parsed = json.loads(text)
    if parsed["error"]:
        # No plain query: EXPLAIN, PIVOT, COPY; or a mistake, which DuckDB itself explains best.
        return set(re.findall(r"\w+", _TEXTS.sub(" ", query).lower())), False
    own = {str(entry["key"]).lower() for found in _nodes(parsed, "cte_map") for entry in found["cte_map"]["map"]}
    names = {str(node["table_name"]).lower() for node in _nodes(parsed, "table_name") if node["type"] == "BASE_TABLE"}
    return names, not names & own


def _nodes(tree: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every object of a tree that has a key."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree
        for branch in tree.values():
            yield from _nodes(branch, key)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _nodes(branch, key)


def _readable(schema: pa.Schema) -> pa.Schema:
    """With single precision in the place of half, which DuckDB does not take from Arrow."""
    return pa.schema([field.with_type(_single(field.type)) for field in schema])


def _single(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_single(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_single(kind.value_type)))
    return kind
