"""Explicit schemas, facts in footers, and files that are not whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serpipe.errors import StoreError
from serpipe.store import parquet, schemas
from serpipe.store.storage import Storage

SCHEMA = pa.schema([pa.field("id", schemas.ID, nullable=False), pa.field("value", pa.float32())])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def _table(count: int, first: int = 0) -> pa.Table:
    ids = [number.to_bytes(16, "big") for number in range(first, first + count)]
    return pa.table({"value": pa.array(range(count), pa.float64()), "id": pa.array(ids, pa.binary())})


def test_what_is_written_has_the_schemas_types_and_order(storage: Storage) -> None:
    parquet.write(storage, "a.parquet", _table(3), SCHEMA, {})
    written = pq.read_schema(storage.path("a.parquet"))
    assert written.remove_metadata().equals(SCHEMA)
    metadata = pq.read_metadata(storage.path("a.parquet"))
    assert {metadata.row_group(0).column(i).compression for i in range(2)} == {"ZSTD"}


def test_nulls_where_there_must_be_none_are_refused(storage: Storage) -> None:
    table = pa.table({"id": pa.array([None], schemas.ID), "value": pa.array([1.0])})
    with pytest.raises(ValueError, match="non-nullable"):
        parquet.write(storage, "a.parquet", table, SCHEMA, {})
    assert storage.list("") == []


def test_a_missing_column_is_refused(storage: Storage) -> None:
    with pytest.raises(KeyError, match="id"):
        parquet.write(storage, "a.parquet", pa.table({"value": [1.0]}), SCHEMA, {})


def test_read_gathers_files_and_picks_columns(storage: Storage) -> None:
    parquet.write(storage, "a.parquet", _table(3), SCHEMA, {})
    parquet.write(storage, "b.parquet", _table(2, first=3), SCHEMA, {})
    both = parquet.read(storage, ["a.parquet", "b.parquet"], SCHEMA)
    assert both.schema.remove_metadata().equals(SCHEMA)
    assert sorted(int.from_bytes(i, "big") for i in both["id"].to_pylist()) == [0, 1, 2, 3, 4]
    one = parquet.read(storage, ["b.parquet"], SCHEMA, ["value"])
    assert one.to_pydict() == {"value": [0.0, 1.0]}


def test_reading_nothing_gives_an_empty_table_of_the_right_types(storage: Storage) -> None:
    assert parquet.read(storage, [], SCHEMA).schema == SCHEMA
    assert parquet.read(storage, [], SCHEMA, ["value"]).schema.names == ["value"]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(st.characters(codec="utf-8"))))
def test_facts_come_back(facts: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        parquet.write(storage, "a.parquet", _table(1), SCHEMA, facts)
        found = parquet.facts(storage, "a.parquet")
        assert found == facts | {"schema": schemas.SCHEMA_VERSION, "name": "a.parquet", "digest": found["digest"]}


@given(
    st.lists(
        st.fixed_dictionaries({"unit": st.integers(0, 2**31 - 1), "id": st.binary(min_size=16, max_size=16)}),
        max_size=50,
    )
)
def test_a_table_survives_the_footer(rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=pa.schema([("unit", pa.int32()), ("id", schemas.ID)]))
    text = parquet.pack_table(table)
    assert text.isascii()
    assert parquet.unpack_table(text).equals(table)


def test_a_large_footer_is_read_by_other_programs(storage: Storage) -> None:
    """A commit of many units puts them all into one footer, which every reader must get past."""
    settled = pa.table({"id": pa.array([os.urandom(16) for _ in range(20_000)], schemas.ID)})
    facts = {"settled": parquet.pack_table(settled)}
    parquet.write(storage, "a.parquet", _table(3), SCHEMA, facts)
    path = storage.path("a.parquet")
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(3,)]
    assert polars.read_parquet(path).height == pandas.read_parquet(path).shape[0] == 3
    assert parquet.unpack_table(parquet.facts(storage, "a.parquet")["settled"]).equals(settled)


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_file_that_is_not_whole_is_an_error(storage: Storage, keep: float) -> None:
    parquet.write(storage, "a.parquet", _table(100), SCHEMA, {"a": "b"})
    data = storage.get("a.parquet")
    storage.put("a.parquet", data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*a\.parquet cannot be read"):
        parquet.facts(storage, "a.parquet")
