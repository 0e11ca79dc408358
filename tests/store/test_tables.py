"""The tables of a store for other programs: the rows of `serpipe.open`, whoever reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

import serpipe
from serpipe.errors import UsageError
from serpipe.store import layout
from serpipe.store.reading import TABLES, Store
from serpipe.store.storage import Storage
from tests.bench import Bench

KEYS = ("model", "segment_id", "recording_id")


@pytest.fixture
def store(calm: tuple[str, list[str]], bench: Bench, tmp_path: Path) -> Store:
    """A store with rows that no ledger entry speaks for."""
    shutil.copytree(calm[0], tmp_path / "store")
    storage = Storage(str(tmp_path / "store"))
    stray = "20300101T000000000000Z-00000000-0011223344556677"
    fp = bench.models["embedded"]
    for table, name in (
        ("predictions/model=embedded/", layout.predictions("embedded", fp, stray)),
        ("segments/", layout.segments(bench.audio, stray)),
        ("embeddings/model=embedded/", layout.embeddings("embedded", fp, stray)),
        ("frames/model=embedded/", layout.frames("embedded", fp, stray)),
    ):
        storage.put(name, storage.get(storage.list(table)[0]))
    return serpipe.open(storage.root)


def _ids(rows: pa.Table) -> list[tuple[object, ...]]:
    names = [name for name in KEYS if name in rows.column_names]
    return sorted(zip(*(rows[name].to_pylist() for name in names), strict=True), key=str)


@pytest.mark.parametrize("table", TABLES)
def test_every_program_gets_the_same_rows(table: str, store: Store, calm: tuple[str, list[str]]) -> None:
    model = "embedded" if table in ("embeddings", "frames") else None
    rows = store.arrow(table, model)
    assert _ids(rows) == _ids(serpipe.open(calm[0]).arrow(table, model))
    frame = store.pandas(table, model)
    assert (len(frame), list(frame.columns)) == (rows.num_rows, rows.column_names)
    if model is None:
        relation = store.sql(f"SELECT * FROM {table}")
        assert relation.columns == rows.column_names
        assert len(relation.fetchall()) == rows.num_rows


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("table", "model"), [("predictions", None), ("frames", "embedded"), ("recordings", None)])
def test_workers_read_the_same_rows(table: str, model: str | None, store: Store) -> None:
    rows = store.arrow(table, model)
    made = store.dataset(table, model)
    read = pa.concat_tables(list(made.iter_batches(batch_format="pyarrow", batch_size=None)))
    assert rows.num_rows
    assert set(read.column_names) == set(rows.column_names)
    assert _ids(read.select(rows.column_names)) == _ids(rows)


def test_a_query_joins_tables_and_outlives_the_store(calm: tuple[str, list[str]]) -> None:
    relation = serpipe.open(calm[0]).sql(
        "SELECT uri, count(*) FROM predictions JOIN recordings USING (recording_id) WHERE model = 'level' GROUP BY uri"
    )
    assert sum(count for _, count in relation.fetchall()) == serpipe.open(calm[0]).predictions("level").num_rows


@pytest.mark.parametrize(
    ("table", "model", "said"),
    [
        ("prediction", None, "TABLE_UNKNOWN: .*predictions"),
        ("embeddings", None, "TABLE_OF_MODELS: .*embedded, level; name one"),
        ("recordings", "embedded", "TABLE_OF_MODELS: .*leave the model out"),
    ],
)
def test_what_is_asked_wrongly_is_told(calm: tuple[str, list[str]], table: str, model: str | None, said: str) -> None:
    shown = serpipe.open(calm[0])
    for reader in (shown.arrow, shown.pandas, shown.dataset):
        with pytest.raises(UsageError, match=said):
            reader(table, model)


def test_tables_that_were_not_kept_are_told(tmp_path: Path) -> None:
    from serpipe.store import version

    version.check(Storage(str(tmp_path)))
    with pytest.raises(UsageError, match="no model; `serpipe label --embeddings frame` keeps them"):
        serpipe.open(str(tmp_path)).arrow("frames")
