"""The tables as other programs read them, and as `serpipe.open` shows them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import serpipe
from serpipe.errors import StoreError, UsageError
from serpipe.store import commit, layout, parquet, runs, schemas
from serpipe.store.rows import quarantine_rows
from serpipe.store.storage import Storage
from tests.bench import Bench, Killed, Mortal
from tests.tables import read

READERS = """
import json, sys
import duckdb, datasets, pandas, polars
import pyarrow.dataset as ds

root, folder = sys.argv[1], sys.argv[1] + "/predictions"
vectors = root + "/embeddings/model=embedded"
out = {}

table = ds.dataset(folder, partitioning="hive").to_table()
out["pyarrow"] = [table.num_rows, sorted(zip(*(table[c].to_pylist() for c in ("model", "fp", "confidence"))))[0]]
out["pyarrow vectors"] = sum(map(sum, ds.dataset(vectors).to_table()["embedding"].to_pylist()))

frame = pandas.read_parquet(folder)
first = frame.astype({"model": str, "fp": str}).sort_values(["model", "fp", "confidence"]).iloc[0]
out["pandas"] = [len(frame), [first.model, first.fp, float(first.confidence)]]
out["pandas vectors"] = float(sum(v.astype("float64").sum() for v in pandas.read_parquet(vectors).embedding))

query = f"FROM read_parquet('{folder}/**/*.parquet', hive_partitioning=true)"
first = duckdb.sql(f"SELECT model, fp, confidence {query} ORDER BY ALL LIMIT 1").fetchall()[0]
out["duckdb"] = [duckdb.sql(f"SELECT count(*) {query}").fetchall()[0][0], list(first)]
query = f"SELECT sum(list_sum(embedding::DOUBLE[])) FROM '{vectors}/**/*.parquet'"
out["duckdb vectors"] = duckdb.sql(query).fetchall()[0][0]

frame = polars.read_parquet(folder + "/**/*.parquet", hive_partitioning=True)
out["polars"] = [frame.height, list(frame.select("model", "fp", "confidence").sort("model", "fp", "confidence").row(0))]
frame = polars.read_parquet(vectors + "/**/*.parquet")
out["polars vectors"] = sum(map(sum, frame["embedding"].to_list()))

found = datasets.load_dataset("parquet", data_files=folder + "/model=embedded/**/*.parquet", split="train")
theirs = datasets.load_dataset("parquet", data_files=folder + "/model=level/**/*.parquet", split="train")
fp = sorted(table["fp"].filter([m == "embedded" for m in table["model"].to_pylist()]).to_pylist())[0]
out["datasets"] = [len(found) + len(theirs), ["embedded", fp, min(found["confidence"])]]
found = datasets.load_dataset("parquet", data_files=vectors + "/**/*.parquet", split="train")
out["datasets vectors"] = sum(map(sum, found["embedding"]))

for name in ("recordings", "segments", "quarantine", "ledger", "frames"):
    pandas.read_parquet(f"{root}/{name}"), polars.read_parquet(f"{root}/{name}/**/*.parquet")
    duckdb.sql(f"FROM '{root}/{name}/**/*.parquet'").to_arrow_table()
assert "ray" not in sys.modules and "serpipe" not in sys.modules
print(json.dumps(out))
"""


def test_plain_programs_read_the_tables(calm: tuple[str, list[str]], tmp_path: Path) -> None:
    root, _ = calm
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    out = subprocess.run(
        [sys.executable, "-c", READERS, root], env=environment, capture_output=True, text=True, timeout=200
    )
    assert out.returncode == 0, out.stderr
    seen = json.loads(out.stdout.splitlines()[-1])
    shown = serpipe.open(root)
    first = shown.predictions("embedded").sort_by("confidence").to_pylist()[0]
    total = sum(map(sum, shown.embeddings("embedded")["embedding"].to_pylist()))
    for reader in ("pyarrow", "pandas", "duckdb", "polars", "datasets"):
        count, (model, fp, confidence) = seen[reader]
        assert (count, model, fp) == (22, "embedded", first["fp"]), reader
        assert confidence == pytest.approx(first["confidence"], abs=1e-7), reader
        assert seen[f"{reader} vectors"] == pytest.approx(total, abs=1e-3), reader


def test_types_are_the_documented_ones(calm: tuple[str, list[str]], bench: Bench) -> None:
    root, _ = calm
    for name, schema in (
        ("recordings", schemas.RECORDINGS),
        ("segments", schemas.SEGMENTS),
        ("predictions", schemas.PREDICTIONS),
        ("quarantine", schemas.QUARANTINE),
        ("ledger", schemas.LEDGER),
        ("embeddings/model=embedded", schemas.embeddings(64)),
        ("embeddings/model=level", schemas.embeddings(2)),
        ("frames/model=embedded", schemas.frames(64)),
    ):
        for file in Path(root, name).rglob("*.parquet"):
            assert pa.parquet.read_schema(file).remove_metadata().equals(schema), file
    assert str(schemas.embeddings(64).field("embedding").type).startswith(
        "fixed_size_list<element: halffloat not null>"
    )
    assert schemas.RECORDINGS.field("meta").type == pa.map_(pa.string(), pa.string())


def test_partitions_are_columns(calm: tuple[str, list[str]], bench: Bench) -> None:
    root, _ = calm
    table = ds.dataset(f"{root}/predictions", partitioning="hive").to_table(filter=ds.field("model") == "level")
    assert table.num_rows == 11
    assert table["fp"].unique().to_pylist() == [bench.models["level"]]
    assert read(root, "segments")["audio"].unique().to_pylist() == [bench.audio]


def test_open_shows_what_the_ledger_vouches_for(calm: tuple[str, list[str]], bench: Bench, tmp_path: Path) -> None:
    root, _ = calm
    shutil.copytree(root, tmp_path / "store")
    storage = Storage(str(tmp_path / "store"))
    model, fp = "embedded", bench.models["embedded"]
    files = storage.list(f"predictions/model={model}/")
    name = max(files, key=lambda file: pq.read_metadata(tmp_path / "store" / file).num_rows)
    stray = "20300101T000000000000Z-00000000-0011223344556677"
    storage.put(layout.predictions(model, fp, stray), storage.get(name))
    storage.put(layout.segments(bench.audio, stray), storage.get(storage.list("segments/")[0]))
    storage.put(layout.embeddings(model, fp, stray), storage.get(storage.list("embeddings/model=embedded/")[0]))
    storage.put(layout.recordings(stray), storage.get(storage.list("recordings/")[0]))
    assert read(storage.root, "predictions").num_rows > read(root, "predictions").num_rows
    shown, calm_store = serpipe.open(storage.root), serpipe.open(root)
    for table in ("predictions", "segments", "recordings"):
        assert getattr(shown, table)().num_rows == getattr(calm_store, table)().num_rows
    assert shown.embeddings(model).num_rows == 11


def test_open_gives_the_partitions_as_columns(calm: tuple[str, list[str]], bench: Bench) -> None:
    shown = serpipe.open(calm[0])
    rows = shown.predictions()
    assert set(zip(rows["model"].to_pylist(), rows["fp"].to_pylist(), strict=True)) == set(bench.models.items())
    assert rows.schema.names == [*schemas.PREDICTIONS.names, "model", "fp"]
    assert shown.predictions("level").num_rows == 11
    assert shown.predictions("nobody").num_rows == 0
    assert shown.segments()["audio"].unique().to_pylist() == [bench.audio]
    assert shown.embeddings("level")["embedding"].type.list_size == 2


def test_rows_of_a_commit_that_is_under_way_are_not_shown(
    bench: Bench, calm: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Between the predictions and the ledger a run may die; until it is closed its rows are not shown."""
    _, changes = calm
    at = next(place for place, name in enumerate(changes) if name.startswith("ledger/"))
    with pytest.raises(Killed):
        bench.run(Mortal(str(tmp_path), at))
    shown = serpipe.open(str(tmp_path))
    assert read(str(tmp_path), "predictions").num_rows
    assert shown.predictions().num_rows == shown.segments().num_rows == shown.recordings().num_rows == 0


def test_a_store_that_was_just_made_is_empty(tmp_path: Path) -> None:
    from serpipe.store import version

    version.check(Storage(str(tmp_path)))
    shown = serpipe.open(str(tmp_path))
    assert shown.predictions().schema.names == [*schemas.PREDICTIONS.names, "model", "fp"]
    assert shown.failing().num_rows == shown.recordings().num_rows == len(shown.runs()) == 0


def test_no_store_and_another_versions_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"STORE_NOT_FOUND: .*serpipe label MANIFEST"):
        serpipe.open(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "store.json").write_text('{"schema": "0"}')
    with pytest.raises(StoreError, match="STORE_OTHER_VERSION"):
        serpipe.open(str(tmp_path))


RECORDING, OTHER = b"r" * 16, b"o" * 16
SEGMENT = b"s" * 16


def _event(code: str, stage: str = "read", recording: bytes = RECORDING, **more: object) -> dict[str, object]:
    return {
        "recording_id": recording,
        "stage": stage,
        "code": code,
        "message": code,
        "transient": False,
        "attempt": 1,
    } | more


def _log(storage: Storage, bench: Bench, run: str, *events: dict[str, object]) -> None:
    columns = [field for field in schemas.QUARANTINE if field.name not in ("run_id", "time")]
    rows = quarantine_rows(pa.Table.from_pylist(list(events), schema=pa.schema(columns)), bench.facts(run))
    parquet.write(
        storage, layout.quarantine(f"{run}-{len(storage.list('quarantine/')):016x}"), rows, schemas.QUARANTINE, {}
    )


def _settle(storage: Storage, run: str, recording: bytes, **more: object) -> None:
    row = {
        "recording_id": recording, "unit": 0, "final": True, "model": "embedded", "fp": "f", "audio": "a",
        "status": "labelled", "segments": 1, "rows": 1, "commit": f"{run}-{len(storage.list('ledger/')):016x}",
    } | more  # fmt: skip
    commit.index(storage, str(row["commit"]), [pa.Table.from_pylist([row], schema=schemas.LEDGER)])


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    from serpipe.store import version

    storage = Storage(str(tmp_path))
    version.check(storage)
    return storage


def _codes(storage: Storage) -> list[str]:
    return sorted(serpipe.open(storage.root).failing()["code"].to_pylist())


def test_the_last_event_of_a_key_is_what_fails(store: Storage, bench: Bench) -> None:
    first, second = runs.new_run_id(), runs.new_run_id()
    _log(store, bench, first, _event("RECORDING_GONE"), _event("RECORDING_GONE", recording=OTHER))
    _log(store, bench, second, _event("RECORDING_DENIED", attempt=2))
    assert _codes(store) == ["RECORDING_DENIED", "RECORDING_GONE"]
    assert serpipe.open(store.root).quarantine().num_rows == 3


def test_what_a_later_run_mended_does_not_fail(store: Storage, bench: Bench) -> None:
    first, second = runs.new_run_id(), runs.new_run_id()
    _log(store, bench, first, _event("RECORDING_GONE"), _event("WORK_LOST", stage="run", recording=OTHER))
    _settle(store, second, RECORDING)
    assert _codes(store) == ["WORK_LOST"]
    _settle(store, second, OTHER, status="empty")
    assert _codes(store) == []


def test_what_was_settled_before_it_failed_still_fails(store: Storage, bench: Bench) -> None:
    """A recording that one model labelled last month is out of reach today, for another model."""
    first, second = runs.new_run_id(), runs.new_run_id()
    _settle(store, first, RECORDING)
    _log(store, bench, second, _event("RECORDING_GONE", transient=True))
    assert _codes(store) == ["RECORDING_GONE"]


def test_a_part_or_a_failure_mends_nothing(store: Storage, bench: Bench) -> None:
    first, second = runs.new_run_id(), runs.new_run_id()
    _log(store, bench, first, _event("AUDIO_UNDECODABLE", stage="decode"))
    _settle(store, second, RECORDING, final=False)
    _settle(store, second, RECORDING, unit=1, status="failed")
    assert _codes(store) == ["AUDIO_UNDECODABLE"]


def test_segments_fail_each_for_itself_and_for_good(store: Storage, bench: Bench) -> None:
    first, second = runs.new_run_id(), runs.new_run_id()
    _log(
        store,
        bench,
        first,
        _event("SEGMENT_SILENT", "segment", segment_id=SEGMENT),
        _event("SEGMENT_TOO_SHORT", "model", segment_id=SEGMENT, model="embedded"),
        _event("SEGMENT_TOO_SHORT", "model", segment_id=SEGMENT, model="level"),
        _event("SEGMENT_OUTSIDE", "segment", start_s=100.0, end_s=101.0),
        _event("SEGMENT_OUTSIDE", "segment", start_s=200.0, end_s=201.0),
    )
    _settle(store, second, RECORDING)
    assert _codes(store) == ["SEGMENT_OUTSIDE"] * 2 + ["SEGMENT_SILENT"] + ["SEGMENT_TOO_SHORT"] * 2


def test_what_fails_in_a_real_store(calm: tuple[str, list[str]]) -> None:
    failing = serpipe.open(calm[0]).failing()
    names = {row["uri"].rsplit("/", 1)[1]: row["code"] for row in failing.to_pylist()}
    assert names == {
        "broken.wav": "AUDIO_UNDECODABLE",
        "silent.wav": "SEGMENT_SILENT",
        "tiny.wav": "SEGMENT_TOO_SHORT",
    }
    assert pc.all(pc.equal(failing["attempt"], 1)).as_py()
