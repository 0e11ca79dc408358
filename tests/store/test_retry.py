"""What failed for good becomes work again, and nothing else; what is mended leaves the list of failures."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from serpipe.cli import main
from serpipe.store import failing, layout, parquet, runs, schemas
from serpipe.store.lease import Lease
from serpipe.store.reading import Store
from serpipe.store.retry import retry
from serpipe.store.rows import RunFacts, quarantine_rows
from serpipe.store.storage import Storage
from tests.bench import Bench
from tests.faults import world as worlds
from tests.faults.world import Recording, World
from tests.store.worlds import contents, memory, small


def codes(storage: Storage) -> list[str]:
    return sorted(Store(storage).failing()["code"].to_pylist())


def test_a_recording_that_breaks_off_is_tried_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    world, storage = small(), memory()
    world.label(storage)
    assert codes(storage) == ["READ_FAILED"]
    assert not world.label(storage).left, "what failed for good is settled"
    done = retry(Store(storage))
    assert (done.codes, done.recordings, done.units) == ({"READ_FAILED": 1}, 1, 1)
    assert codes(storage) == ["READ_FAILED"], "until it is tried"
    assert world.label(storage).left == 1
    assert codes(storage) == ["READ_FAILED"], "it failed again"
    world.add(Recording(uri="/other/broken.wav", units=(1, 2, 1)))
    retry(Store(storage))
    world.label(storage)
    assert codes(storage) == []
    calm = memory()
    world.label(calm)
    assert contents(storage)[:2] == contents(calm)[:2]
    assert Store(storage).quarantine().num_rows == 2, "the log stays"


def test_segments_that_one_model_refuses_are_tried_by_that_model(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(models={"m1": "f1", "m2": "g1"}).add(
        Recording(uri="/long.wav", units=(2, 2, 2)), Recording(uri="/other.wav", units=(2,))
    )
    storage, calm = memory(), memory()
    stubborn = lambda model, segment: model == "m2" and segment == doomed  # noqa: E731
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    world.label(calm)
    (doomed,) = [
        row["segment_id"] for row in contents(calm)[0]["segments"].values() if row["start_s"] == 301.0
    ]  # fmt: skip
    monkeypatch.setattr(worlds, "refuses", stubborn)
    world.label(storage)
    assert codes(storage) == ["MODEL_FAILED"]
    (row,) = Store(storage).failing().to_pylist()
    assert (row["unit"], row["model"], row["segment_id"]) == (1, "m2", doomed)
    before = {name: storage.get(name) for name in storage.list("predictions/model=m1/")}
    done = retry(Store(storage), code="MODEL_FAILED")
    assert (done.codes, done.recordings, done.units) == ({"MODEL_FAILED": 1}, 1, 1)
    world.label(storage)
    assert codes(storage) == ["MODEL_FAILED"], "refused again: told once"
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    retry(Store(storage))
    world.label(storage)
    assert codes(storage) == []
    assert {name: storage.get(name) for name in before} == before, "the other model's labels were not touched"
    assert contents(storage)[:2] == contents(calm)[:2]


def test_only_the_code_that_was_asked_for() -> None:
    world, storage = small(), memory()
    world.label(storage)
    assert set(codes(storage)) == {"READ_FAILED", "MODEL_FAILED"}
    before = contents(storage)
    assert retry(Store(storage), code="NO_SUCH").units == 0
    assert contents(storage) == before
    done = retry(Store(storage), code="READ_FAILED")
    assert (done.codes, done.units) == ({"READ_FAILED": 1}, 1)


def test_transient_failures_need_no_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    world, storage = World().add(Recording(uri="/a.wav", units=(1, 1), ends="open")), memory()
    world.label(storage)
    assert codes(storage) == ["READ_FAILED"]
    done = retry(Store(storage))
    assert (done.codes, done.units, done.unasked) == ({}, 0, 1)
    done = retry(Store(storage), transient=True)
    assert (done.codes, done.units, done.unasked) == ({"READ_FAILED": 1}, 0, 1)
    told = CliRunner().invoke(main, ["retry", storage.root, "--transient"]).output
    assert "READ_FAILED: 1 recordings" in told
    assert "1 failures are transient: the next `serpipe label` tries them without being asked" in told
    world.add(Recording(uri="/a.wav", units=(1, 1, 1)))
    world.label(storage)
    assert codes(storage) == []


def test_silence_is_tried_by_all_models_and_told_once(bench: Bench, tmp_path: Path) -> None:
    """A segment that failed before any model; the other segments of its unit are labelled again with it."""
    storage = Storage(str(tmp_path))
    bench.run(storage)
    before = Store(storage).predictions().num_rows
    assert codes(storage).count("SEGMENT_SILENT") == 2
    (unit,) = {row["unit"] for row in Store(storage).failing().to_pylist() if row["code"] == "SEGMENT_SILENT"}
    assert unit == 1
    told = CliRunner().invoke(main, ["retry", storage.root, "--code", "SEGMENT_SILENT"])
    assert told.exit_code == 0
    assert told.output.startswith(
        "SEGMENT_SILENT: 1 recordings\n2 units of 1 recordings are work again; `serpipe label"
    )
    assert bench.run(storage) == 1
    assert codes(storage).count("SEGMENT_SILENT") == 2
    assert Store(storage).predictions().num_rows == before
    log = Store(storage).quarantine().to_pylist()
    assert len({row["run_id"] for row in log if row["code"] == "SEGMENT_SILENT"}) == 2


def test_a_store_that_is_held_is_left_alone(tmp_path: Path) -> None:
    world, storage = small(), Storage(str(tmp_path))
    world.label(storage)
    with Lease(storage, "R"):
        told = CliRunner().invoke(main, ["retry", storage.root])
    assert told.exit_code == 1
    assert "STORE_HELD" in told.output


def events(storage: Storage, run: str, *rows: dict[str, object]) -> pa.Table:
    columns = pa.schema([field for field in schemas.QUARANTINE if field.name not in ("run_id", "time")])
    base = {"stage": "manifest", "transient": False, "attempt": 1, "message": "it is wrong"}
    table = pa.Table.from_pylist([base | row for row in rows], schema=columns)
    return quarantine_rows(table, RunFacts(run_id=run, audio="a1", models={}))


def test_rows_that_were_mended_in_the_manifest_leave() -> None:
    storage = memory()
    first = {"recording_id": b"a" * 16, "code": "MANIFEST_TIMES", "uri": "/a.wav"}
    second = {"recording_id": b"b" * 16, "code": "MANIFEST_TIMES", "uri": "/b.wav"}

    def read(manifest: str, *rows: dict[str, object]) -> None:
        run = runs.new_run_id()
        failing.log_manifest(storage, run, manifest, events(storage, run, *rows))

    def failed() -> list[str]:
        return sorted(Store(storage).failing()["uri"].to_pylist())

    read("/list.csv")
    assert storage.list("quarantine/") == [], "a manifest without fault is not worth a word"
    read("/list.csv", first, second)
    read("/other.csv", {"recording_id": b"c" * 16, "code": "MANIFEST_TIMES", "uri": "/c.wav"})
    assert failed() == ["/a.wav", "/b.wav", "/c.wav"]
    read("/list.csv", second, first)
    assert len(storage.list("quarantine/")) == 2, "the same is not told again"
    read("/list.csv", second)
    assert failed() == ["/b.wav", "/c.wav"]
    read("/list.csv")
    read("/list.csv")
    assert failed() == ["/c.wav"]
    assert len(storage.list("quarantine/")) == 4
    read("/list.csv", first)
    assert failed() == ["/a.wav", "/c.wav"]
    assert retry(Store(storage)).of_manifest == 2


def test_a_file_with_another_content_leaves_its_old_failures_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    world, storage = World().add(Recording(uri="/a.wav", units=(1,), ends="failed")), memory()
    world.label(storage)
    world.add(Recording(uri="/a.wav", version=2, units=(1,), ends="failed"))
    world.label(storage)
    (row,) = Store(storage).failing().to_pylist()
    assert row["recording_id"] == world.recordings["/a.wav"].id
    world.add(Recording(uri="/a.wav", version=3, units=(1,)))
    world.label(storage)
    assert codes(storage) == []


def test_a_segment_that_failed_stays_when_another_model_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: model == "m1")
    world, storage = World().add(Recording(uri="/a.wav", units=(2,))), memory()
    world.label(storage)
    world.models = {"m1": "f1", "m2": "g1"}
    world.label(storage)
    assert codes(storage) == ["MODEL_FAILED"] * 2
    assert {row["model"] for row in Store(storage).failing().to_pylist()} == {"m1"}


def test_a_quarantine_without_units_is_read(tmp_path: Path) -> None:
    """Rows of a whole recording have none."""
    storage = memory()
    rows = events(storage, "R1", {"recording_id": b"a" * 16, "stage": "run", "code": "WORK_LOST", "transient": True})
    parquet.write(storage, layout.quarantine("R1-0"), rows, schemas.QUARANTINE, {})
    assert codes(storage) == ["WORK_LOST"]
