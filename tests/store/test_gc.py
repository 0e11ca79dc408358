"""What newer labels replace is dropped; the only labels of a recording are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from serpipe.cli import main
from serpipe.errors import UsageError
from serpipe.store import lease, runs
from serpipe.store.gc import Partition, gc
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from tests.faults import world as worlds
from tests.faults.contents import on_disk, shown
from tests.faults.world import Recording, World
from tests.store.worlds import bytes_of, contents, memory


@pytest.fixture(autouse=True)
def _models_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)


def archive() -> World:
    return World().add(
        Recording(uri="/a.wav", units=(2, 1)), Recording(uri="/b.wav", units=(1,)), Recording(uri="/c.wav", units=(3,))
    )


def relabelled(storage: Storage, **change: object) -> World:
    """Every recording labelled twice, the second time with something changed."""
    world = archive()
    world.label(storage)
    for name, value in change.items():
        setattr(world, name, value)
    world.label(storage, relabel=True)
    return world


def fresh(world: World) -> Storage:
    storage = memory()
    world.label(storage)
    return storage


def test_a_store_without_old_labels_is_left_as_it_is() -> None:
    storage = memory()
    archive().label(storage)
    before = bytes_of(storage)
    done = gc(Store(storage))
    assert (done.partitions, done.leftovers, done.freed) == ((), (), 0)
    assert bytes_of(storage) == before


def test_labels_of_an_old_fingerprint_go_and_their_segments_stay() -> None:
    storage = memory()
    world = relabelled(storage, models={"m1": "f2"})
    seen = shown(Store(storage))
    assert len(on_disk(storage)["predictions"]) == 2 * 7
    plan = gc(Store(storage), dry_run=True)
    expected = Partition(model="m1", fp="f1", audio="a1", recordings=3, predictions=7, kept=0)
    assert plan.partitions == (expected,)
    assert plan.dry_run
    assert len(on_disk(storage)["predictions"]) == 2 * 7
    done = gc(Store(storage))
    assert done.partitions == (expected,)
    assert done.freed > 0
    assert storage.list("predictions/model=m1/fp=f1/") == []
    assert {name: shown(Store(storage))[name] for name in seen if name != "ledger"} == {
        name: seen[name] for name in seen if name != "ledger"
    }
    assert contents(storage)[:2] == contents(fresh(world))[:2]
    assert gc(Store(storage)).partitions == ()


def test_labels_of_an_old_segmentation_go_with_their_segments() -> None:
    storage = memory()
    world = relabelled(storage, audio="a2")
    done = gc(Store(storage))
    assert [part.audio for part in done.partitions] == ["a1"]
    assert storage.list("segments/audio=a1/") == []
    assert contents(storage)[:2] == contents(fresh(world))[:2]


def test_the_only_labels_of_a_recording_stay() -> None:
    """One recording was not labelled again; of another the newer labels end in a failure."""
    storage, world = memory(), archive()
    world.label(storage)
    world.models = {"m1": "f2"}
    left_out = world.recordings.pop("/a.wav")
    whole = world.recordings["/b.wav"]
    world.add(Recording(uri="/b.wav", units=(1,), ends="failed"))
    world.label(storage, relabel=True)
    (part,) = gc(Store(storage)).partitions
    assert part == Partition(model="m1", fp="f1", audio="a1", recordings=1, predictions=3, kept=2)
    rows = on_disk(storage)["predictions"].values()
    assert {row["recording_id"] for row in rows if row["fp"] == "f1"} == {left_out.id, whole.id}
    told = CliRunner().invoke(main, ["gc", storage.root]).output
    assert told == "nothing to drop\n"


def test_a_fingerprint_that_is_named_goes_whole() -> None:
    storage, world = memory(), archive()
    world.models = {"m1": "f1", "m2": "g1"}
    world.label(storage)
    (part,) = gc(Store(storage), fp="f1").partitions
    assert (part.fp, part.recordings, part.kept) == ("f1", 3, 0)
    assert {row["model"] for row in on_disk(storage)["predictions"].values()} == {"m2"}
    world.models = {"m2": "g1"}
    assert contents(storage)[:2] == contents(fresh(world))[:2]
    with pytest.raises(UsageError, match="FP_UNKNOWN"):
        gc(Store(storage), fp="f1")


def test_labels_of_an_old_content_go_when_the_new_one_has_them() -> None:
    storage, world = memory(), archive()
    world.models = {"m1": "f1", "m2": "g1"}
    world.label(storage)
    old = world.recordings["/a.wav"].id
    world.add(Recording(uri="/a.wav", version=2, units=(1,)))
    world.models = {"m1": "f1"}
    world.label(storage)
    (part,) = gc(Store(storage)).partitions
    assert (part.model, part.recordings, part.kept) == ("m1", 1, 3)
    rows = on_disk(storage)["predictions"].values()
    assert {row["model"] for row in rows if row["recording_id"] == old} == {"m2"}
    world.models = {"m1": "f1", "m2": "g1"}
    world.label(storage)
    gc(Store(storage))
    assert old not in {row["recording_id"] for row in on_disk(storage)["recordings"].values()}
    assert contents(storage)[:2] == contents(fresh(world))[:2]


def test_what_interrupted_writers_left_goes(tmp_path: Path) -> None:
    storage, world = Storage(str(tmp_path)), archive()
    world.label(storage)
    before = bytes_of(storage)
    old, new = tmp_path / "segments" / ".x.parquet.0badcafe.part", tmp_path / "segments" / ".y.parquet.0badcafe.part"
    for file in (old, new):
        file.write_bytes(b"PAR1 and then no more")
    past = os.stat(old).st_mtime - 2 * lease.LIFETIME_S
    os.utime(old, (past, past))
    dry = CliRunner().invoke(main, ["gc", storage.root, "--dry-run"])
    assert dry.output == "would drop segments/.x.parquet.0badcafe.part\n"
    assert old.exists()
    told = CliRunner().invoke(main, ["gc", storage.root])
    assert told.output.startswith("dropped segments/.x.parquet.0badcafe.part\n")
    assert told.output.endswith(" freed\n")
    assert not old.exists()
    assert new.exists(), "its writer may be at it"
    assert bytes_of(storage) == before


def test_passports_of_models_without_labels_go() -> None:
    storage, world = memory(), archive()
    world.label(storage)
    world.models = {"m1": "f2"}
    for name in ("passports/m1-f1-00ff.json", "passports/m1-f2-00ff.json", "passports/m-9-f9-00ff.json"):
        storage.put(name, b"{}")
    world.label(storage, relabel=True)
    done = gc(Store(storage))
    assert done.leftovers == ("passports/m-9-f9-00ff.json", "passports/m1-f1-00ff.json")
    assert storage.list("passports/") == ["passports/m1-f2-00ff.json"]


def test_what_an_interrupted_run_left_is_closed_first() -> None:
    storage, world = memory(), archive()
    world.label(storage)
    record = runs.load(storage)[0]
    runs.save(storage, runs.Run(run_id=record.run_id, audio="a1", models={"m1": "f1"}))
    gc(Store(storage))
    assert runs.unfinished(storage) == []
    assert len(shown(Store(storage))["predictions"]) == 7
