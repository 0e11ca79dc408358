"""The tables of a store for other programs: the rows of `serpipe.open`, whoever reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import serpipe
from serpipe.errors import UsageError
from serpipe.pseudolabel import generation
from serpipe.pseudolabel.schemas import PSEUDO_LABELS
from serpipe.store import layout
from serpipe.store.reading import TABLES, Store
from serpipe.store.storage import Storage
from serpipe.testing.labelled import MadeUpModel, write_labelled_store
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
    relation = store.sql(f"SELECT * FROM {table}", model)
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


def test_a_query_reads_the_tables_it_means_and_no_others(calm: tuple[str, list[str]]) -> None:
    shown = serpipe.open(calm[0])
    count = shown.predictions().num_rows
    for query in (
        "SELECT count(*) AS embeddings FROM predictions",
        "SELECT count(*) FROM Predictions -- frames and embeddings\n",
        "SELECT count(*) FROM predictions WHERE label <> 'embeddings'",
        "WITH embeddings AS (FROM predictions) SELECT count(*) FROM embeddings",
        "SELECT sum(columns(*)) FROM (PIVOT (SELECT 1 AS embeddings FROM predictions) ON embeddings USING count(*))",
    ):
        assert shown.sql(query).fetchall() == [(count,)], query


def test_a_query_meets_the_embeddings_of_the_model_named(calm: tuple[str, list[str]]) -> None:
    shown = serpipe.open(calm[0])
    query = "SELECT p.model, len(any_value(embedding)) FROM embeddings JOIN predictions p USING (segment_id) GROUP BY 1"
    assert sorted(shown.sql(query, "level").fetchall()) == [("embedded", 2), ("level", 2)]
    assert sorted(shown.sql(query, model="embedded").fetchall()) == [("embedded", 64), ("level", 64)]
    vectors = [row for (row,) in shown.sql("SELECT embedding FROM embeddings ORDER BY segment_id", "level").fetchall()]
    expected = shown.embeddings("level").sort_by("segment_id")["embedding"].to_pylist()
    assert [list(map(float, row)) for row in vectors] == [list(map(float, row)) for row in expected]
    with pytest.raises(UsageError, match=r"TABLE_OF_MODELS: .*embedded, level; name one, in SQL too"):
        shown.sql(query)


def test_a_wrong_query_is_duckdbs_word(calm: tuple[str, list[str]]) -> None:
    shown = serpipe.open(calm[0])
    for query in ("SELEC", "FROM nothing", "SELECT nothing FROM predictions"):
        with pytest.raises(duckdb.Error):
            shown.sql(query)


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of two generations."""
    root = str(tmp_path_factory.mktemp("generations"))
    write_labelled_store(root, [MadeUpModel(name="a"), MadeUpModel(name="b")], recordings=4, segments=10)
    for _ in range(2):
        generation.make(root)
    return serpipe.open(root)


@pytest.mark.parametrize("number", [None, 2])
def test_pseudo_labels_are_a_table_like_others(generations: Store, number: int | None) -> None:
    rows = generations.arrow("pseudo_labels", generation=number)
    wanted = [1, 2] if number is None else [number]
    parts = [generation.rows(generations.storage, one) for one in wanted]
    assert rows.schema.names == [*PSEUDO_LABELS.names, "generation"]
    assert sorted(rows["generation"].unique().to_pylist()) == wanted
    assert _ids(rows) == _ids(pa.concat_tables(parts))
    assert rows.equals(generations.pseudo_labels(number))
    frame = generations.pandas("pseudo_labels", generation=number)
    assert list(frame.groupby("generation").size()) == [part.num_rows for part in parts]
    where = "" if number is None else f"WHERE generation = {number}"
    query = f"SELECT sum(kept::INT) FROM pseudo_labels JOIN segments USING (segment_id) {where}"
    assert generations.sql(query).fetchall() == [(pc.sum(rows["kept"]).as_py(),)]


@pytest.mark.usefixtures("ray_session")
def test_workers_read_pseudo_labels(generations: Store) -> None:
    read = generations.dataset("pseudo_labels", generation=2).to_pandas()
    assert set(read["generation"]) == {2}
    assert len(read) == generation.rows(generations.storage, 2).num_rows
    assert generations.dataset("pseudo_labels").count() == generations.pseudo_labels().num_rows


def test_generations_that_are_not_there_are_told(generations: Store, calm: tuple[str, list[str]]) -> None:
    assert serpipe.open(calm[0]).pseudo_labels().num_rows == 0
    with pytest.raises(UsageError, match=r"GENERATION_UNKNOWN: .* no generation 9"):
        generations.arrow("pseudo_labels", generation=9)
    with pytest.raises(UsageError, match="TABLE_OF_GENERATIONS: segments are of no generation"):
        generations.arrow("segments", generation=1)
    with pytest.raises(UsageError, match="TABLE_OF_MODELS: pseudo_labels are of no model"):
        generations.arrow("pseudo_labels", "a")


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
