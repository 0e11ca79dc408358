"""Units that are taken out leave every table, and nothing else does; the next run brings the store back."""

from __future__ import annotations

import itertools
import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serpipe.errors import StoreError
from serpipe.store import closing, layout, ledger, mend, parquet, rewrite
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.faults.contents import on_disk, shown
from tests.faults.world import Recording, World
from tests.store.worlds import bytes_of, contents, entries_of, memory, small, two_runs


def counts(storage: Storage) -> dict[str, int]:
    return {name: len(rows) for name, rows in on_disk(storage).items()}


def test_a_models_rows_leave_and_what_the_other_needs_stays() -> None:
    world, storage = two_runs()
    calm = contents(storage)
    before = counts(storage)
    first = entries_of(storage, model="m1")
    done = rewrite.forget(storage, first)
    assert (done.units, done.recordings) == (first.num_rows, 4)
    after = counts(storage)
    assert after["recordings"] == before["recordings"] == 3
    assert after["segments"] == before["segments"]
    assert after["predictions"] == sum(key[0] == "m2" for key in calm[0]["predictions"])
    assert {row["model"] for row in on_disk(storage)["embeddings"].values()} == {"m2"}
    assert not set(shown(Store(storage))["ledger"]) - {key for key in calm[1]["ledger"] if key[2] == "m2"}
    assert len(shown(Store(storage))["segments"]) == before["segments"], (
        "segments of commits that are gone are not found"
    )
    world.label(storage)
    assert contents(storage) == calm


def test_a_unit_in_the_middle_leaves_with_its_segments() -> None:
    world, storage = two_runs()
    calm = contents(storage)
    recording = world.recordings["/feed/long.wav"].id
    unit = entries_of(storage, recording_id=recording, unit=1)
    rewrite.forget(storage, unit)
    gone = [row for row in calm[0]["segments"].values() if (row["recording_id"], row["unit"]) == (recording, 1)]
    assert len(gone) == 3
    assert counts(storage)["segments"] == len(calm[0]["segments"]) - 3
    assert counts(storage)["recordings"] == 3, "its last unit is still there"
    left = {key for key in calm[0]["predictions"] if key[2] not in {row["segment_id"] for row in gone}}
    assert set(on_disk(storage)["predictions"]) == set(on_disk(storage)["embeddings"]) == left
    todo = world.label(storage)
    assert todo.left == 1
    assert contents(storage) == calm


def test_who_wakes_behind_another_that_finished_it_deletes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped between what it intended and the first deletion; the freed name is used again."""
    _, storage = two_runs()
    (file, *_) = storage.list("segments/")
    there, put = storage.get(file), storage.put

    def stopped(name: str, content: bytes) -> None:
        put(name, content)
        if name.startswith(rewrite.FOLDER):
            monkeypatch.setattr(storage, "put", put)
            assert rewrite.finish_interrupted(storage)
            put(file, there)

    monkeypatch.setattr(storage, "put", stopped)
    with pytest.raises(StoreError, match="STORE_LOST"):
        rewrite.forget(storage, entries_of(storage, model="m1"), files=[file])
    assert storage.get(file) == there


def test_a_recordings_row_leaves_with_its_last_unit() -> None:
    world, storage = two_runs()
    calm = contents(storage)
    recording = world.recordings["/feed/one.wav"].id
    rewrite.forget(storage, entries_of(storage, recording_id=recording, model="m1"))
    assert counts(storage)["recordings"] == 3
    rewrite.forget(storage, entries_of(storage, recording_id=recording, model="m2"))
    assert counts(storage)["recordings"] == 2
    world.label(storage)
    assert contents(storage) == calm


def test_rows_that_moved_are_found_by_the_next_rewrite() -> None:
    """The first run's commits are gone; its segments lie with the second's, and leave with them."""
    world, storage = two_runs()
    rewrite.forget(storage, entries_of(storage, model="m1"))
    rewrite.forget(storage, entries_of(storage, model="m2"))
    assert set(counts(storage).values()) == {0}
    assert storage.list("segments/") == storage.list("recordings/") == storage.list("ledger/") == []
    fresh = memory()
    world.label(fresh)
    world.label(storage)
    assert contents(storage)[:2] == contents(fresh)[:2]


def test_what_is_left_in_a_file_keeps_its_facts() -> None:
    world, storage = two_runs()
    recording = world.recordings["/feed/long.wav"].id
    units = entries_of(storage, recording_id=recording, model="m1", unit=0)
    name = layout.predictions("m1", "f1", units["commit"][0].as_py())
    before = parquet.facts(storage, name)
    rewrite.forget(storage, units)
    after = parquet.facts(storage, name)
    assert {key: after[key] for key in before if key not in ("settled", "beside", "digest")} == {
        key: before[key] for key in before if key not in ("settled", "beside", "digest")
    }
    settled = parquet.unpack_table(after["settled"])
    assert sorted(settled.to_pylist(), key=str) == sorted(
        [
            row
            for row in parquet.unpack_table(before["settled"]).to_pylist()
            if (row["recording_id"], row["unit"]) != (recording, 0)
        ],
        key=str,
    )
    assert json.loads(after["beside"])["embeddings"] == pc.sum(settled["rows"]).as_py()


def test_forgetting_what_is_not_there_changes_nothing() -> None:
    _, storage = two_runs()
    before = bytes_of(storage)
    units = entries_of(storage, model="m1")
    other = units.set_column(units.column_names.index("fp"), "fp", pa.array(["f9"] * units.num_rows))
    assert rewrite.forget(storage, other) == rewrite.Forgotten(0, 0)
    assert rewrite.forget(storage, units.slice(0, 0)).units == 0
    assert bytes_of(storage) == before


def test_the_quarantine_log_stays() -> None:
    _, storage = two_runs()
    log = Store(storage).quarantine().to_pylist()
    rewrite.forget(storage, ledger.load(storage))
    assert Store(storage).quarantine().to_pylist() == log


def test_a_large_rewrite_is_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "AT_ONCE", 3)
    world, storage = two_runs()
    calm = contents(storage)
    assert rewrite.forget(storage, ledger.load(storage)).units > 9
    assert set(counts(storage).values()) == {0}
    world.label(storage)
    assert contents(storage)[:2] == calm[:2]


class Died(BaseException):
    """The process is gone."""


class Dying(Storage):
    """Dies before its nth change."""

    def __init__(self, root: str, at: int) -> None:
        super().__init__(root)
        self.left = at

    def put(self, name: str, data: bytes) -> None:
        self._change()
        super().put(name, data)

    def delete(self, name: str) -> None:
        self._change()
        super().delete(name)

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Died


@pytest.mark.parametrize("model", ["m1", "m2"])
def test_killed_at_every_change_it_is_finished_by_the_next_start(model: str) -> None:
    """And a reader who comes in between sees no row twice, and none without its segment."""
    world, storage = two_runs()
    calm = contents(storage)
    start = bytes_of(storage)
    units = entries_of(storage, model=model)
    rewrite.forget(storage, units)
    after = contents(storage)
    for at in range(1000):
        other = memory()
        for name, data in start.items():
            other.put(name, data)
        try:
            rewrite.forget(Dying(other.root, at), units)
        except Died:
            shown(Store(other))
            closing.close_interrupted(other)
            assert contents(other) in ((calm, after) if at == 0 else (after,)), at
            assert not rewrite.under_way(other)
        else:
            break
    assert at >= 10
    world.label(other)
    assert contents(other)[:2] == calm[:2]


def test_a_large_mending_is_finished_wherever_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its units leave part by part, and the damaged file that they lay in with the first of them."""
    monkeypatch.setattr(rewrite, "AT_ONCE", 2)
    world, storage = World(per_pack=5).add(Recording(uri="/feed/long.wav", units=(1, 2, 1, 1, 1))), memory()
    world.label(storage)
    calm = contents(storage)
    (name,) = storage.list("predictions/")
    storage.put(name, storage.get(name)[:-3])
    start = bytes_of(storage)
    for at in itertools.count():
        other = memory()
        for there, data in start.items():
            other.put(there, data)
        assert [finding.file for finding in verify(other).findings] == [name]
        try:
            mend.mend(Dying(other.root, at))
        except Died:
            world.label(other)
            assert contents(other) == calm, at
            assert verify(other).findings == ()
        else:
            break
    assert at >= 15


def test_a_large_rewrite_that_meets_damage_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is its last part that is damaged."""
    monkeypatch.setattr(rewrite, "AT_ONCE", 3)
    _, storage = two_runs()
    name = layout.predictions("m2", "g1", max(entries_of(storage, model="m2")["commit"].to_pylist()))
    storage.put(name, storage.get(name)[:-1])
    before = bytes_of(storage)
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*nothing was changed"):
        rewrite.forget(storage, ledger.load(storage))
    assert bytes_of(storage) == before


def test_a_rewrite_that_meets_damage_changes_nothing() -> None:
    world, storage = two_runs()
    recording = world.recordings["/feed/long.wav"].id
    units = entries_of(storage, recording_id=recording, unit=1)
    name = layout.embeddings(
        "m2", "g1", entries_of(storage, recording_id=recording, unit=1, model="m2")["commit"][0].as_py()
    )
    storage.put(name, storage.get(name)[:-1])
    before = bytes_of(storage)
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*cut off.*nothing was changed.*serpipe verify"):
        rewrite.forget(storage, units)
    assert bytes_of(storage) == before


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_units_leave_and_come_back(data: st.DataObject) -> None:
    world, storage = small(), memory()
    world.models = {"m1": "f1", "m2": "g1"}
    world.per_pack = data.draw(st.integers(1, 3))
    world.label(storage)
    calm = contents(storage)
    for _ in range(data.draw(st.integers(1, 3))):
        entries = ledger.load(storage)
        chosen = data.draw(st.lists(st.booleans(), min_size=entries.num_rows, max_size=entries.num_rows))
        units = entries.filter(pa.array(chosen, pa.bool_()))
        rewrite.forget(storage, units)
        assert ledger.load(storage).num_rows == entries.num_rows - units.num_rows
        shown(Store(storage))
        if data.draw(st.booleans()):
            world.label(storage)
            assert contents(storage)[:2] == calm[:2]
    world.label(storage)
    assert contents(storage)[:2] == calm[:2]
