"""Closing what a run left open: what it committed counts, what it did not is taken away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from serpipe.store import closing, layout, ledger, parquet, runs, schemas
from serpipe.store.rows import quarantine_rows
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.bench import Bench, Killed, Mortal
from tests.faults.world import Recording, World
from tests.store.worlds import contents, memory


@pytest.fixture
def torn(bench: Bench, calm: tuple[str, list[str]], tmp_path: Path) -> Storage:
    """A run that died when it had one model's predictions of its second commit."""
    _, changes = calm
    at = [place for place, name in enumerate(changes) if name.startswith("predictions/")][3]
    with pytest.raises(Killed):
        bench.run(Mortal(str(tmp_path), at))
    return Storage(str(tmp_path))


def test_closing_is_idempotent(torn: Storage) -> None:
    (closed,) = closing.close_interrupted(torn)
    assert closed.adopted == 2
    assert closed.deleted == 1  # the second model's embeddings
    before = {name: torn.get(name) for name in torn.list("")}
    assert closing.close_interrupted(torn) == []
    assert {name: torn.get(name) for name in torn.list("")} == before


def test_closing_again_after_a_lost_mark_changes_nothing_else(torn: Storage) -> None:
    (record,) = runs.load(torn)
    closing.close_interrupted(torn)
    before = {name: torn.get(name) for name in torn.list("") if not name.endswith("run.json")}
    runs.save(torn, record)
    (closed,) = closing.close_interrupted(torn)
    assert (closed.run, closed.adopted, closed.deleted) == (record.run_id, 2, 0)
    assert {name: torn.get(name) for name in torn.list("") if not name.endswith("run.json")} == before


def test_the_ledger_is_rebuilt_from_footers(calm: tuple[str, list[str]], tmp_path: Path) -> None:
    root, _ = calm
    shutil.copytree(root, tmp_path / "store")
    storage = Storage(str(tmp_path / "store"))
    whole = sorted(map(str, ledger.load(storage).to_pylist()))
    for name in storage.list("ledger/"):
        storage.delete(name)
    assert ledger.load(storage).num_rows == 0
    (record,) = runs.load(storage)
    runs.finish(storage, record, state="running")
    closing.close_interrupted(storage)
    assert sorted(map(str, ledger.load(storage).to_pylist())) == whole
    assert sorted(storage.list("")) == sorted(Storage(root).list(""))


def test_other_runs_files_are_left_alone(torn: Storage, bench: Bench) -> None:
    """Another run's files, whole or not, are not this run's to judge."""
    (record,) = runs.load(torn)
    other = record.run_id.replace("Z-", "Y-") + "-0011223344556677"
    model, fp = next(iter(bench.models.items()))
    strays = [layout.segments(bench.audio, other), layout.embeddings(model, fp, other), layout.quarantine(other, model)]
    for name in strays:
        torn.put(name, b"")
    closing.close_interrupted(torn)
    assert all(torn.exists(name) for name in strays)


def test_what_the_driver_put_in_quarantine_stays(torn: Storage, bench: Bench) -> None:
    (record,) = runs.load(torn)
    rows = quarantine_rows(parquet.read(torn, [], schemas.QUARANTINE).drop_columns(["time"]), bench.facts("x"))
    names = [layout.quarantine(layout.of_driver(record.run_id, what)) for what in ("manifest", "lost")]
    orphan = layout.quarantine(f"{record.run_id}-0011223344556677")
    for name in (*names, orphan):
        parquet.write(torn, name, rows, schemas.QUARANTINE, {})
    closing.close_interrupted(torn)
    assert all(torn.exists(name) for name in names)
    assert not torn.exists(orphan)


def test_a_run_that_ended_is_not_closed(calm: tuple[str, list[str]]) -> None:
    root, _ = calm
    assert closing.close_interrupted(Storage(root)) == []
    assert [run.state for run in runs.load(Storage(root))] == ["finished"]


class WithoutTheSecond(Storage):
    """Dies when one model has committed and the other is about to."""

    def put(self, name: str, data: bytes) -> None:
        if name.startswith("predictions/model=m2/"):
            raise Killed
        super().put(name, data)


@pytest.mark.parametrize("before", ["labelled", "failed"])
def test_what_only_a_killed_model_settles_is_described_once(before: str) -> None:
    """The first model has labelled a recording with other segments, or it failed then; another shares its commit."""
    calm, storage = memory(), memory()
    for store in (calm, storage):
        world = World().add(Recording(uri="/a.wav", units=(2, 1)))
        if before == "failed":
            world.add(Recording(uri="/a.wav", units=(), ends="failed"))
        world.label(store)
        world.models = {"m1": "f1", "m2": "f1"}
        world.audio = "a2" if before == "labelled" else "a1"
        world.add(Recording(uri="/a.wav", units=(2, 1)), Recording(uri="/b.wav", units=(1,)))
        if store is storage:
            with pytest.raises(Killed):
                world.label(WithoutTheSecond(store.root))
        world.label(store)
    assert contents(storage) == contents(calm)
    assert verify(storage).findings == ()
