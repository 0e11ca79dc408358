"""A run that dies at any storage operation is made good by the next: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import serpipe
from serpipe.errors import StoreError
from serpipe.store import closing, commit, layout, ledger, runs, schemas
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.bench import Bench, Killed, Mortal
from tests.tables import assert_same, read, tables


def test_the_calm_store_is_what_the_archive_holds(calm: tuple[str, list[str]]) -> None:
    root, _ = calm
    uris = [uri.rsplit("/", 1)[1] for uri in read(root, "recordings")["uri"].to_pylist()]
    assert sorted(uris) == ["long.wav", "other.wav", "short.wav", "silent.wav", "tiny.wav"]
    # 2 s windows: 9 s give 5, 5.5 s 3, 1.5 s 1, 7 s 4 of which the last two are silent, 0.01 s 1 that none takes.
    assert read(root, "segments").num_rows == 14
    assert Counter(read(root, "predictions")["model"].to_pylist()) == {"embedded": 11, "level": 11}
    assert read(root, "embeddings/model=embedded").num_rows == read(root, "frames").num_rows == 11
    assert Counter(read(root, "quarantine")["code"].to_pylist()) == {
        "AUDIO_UNDECODABLE": 1,
        "SEGMENT_SILENT": 2,
        "SEGMENT_TOO_SHORT": 2,
    }
    units = read(root, "ledger")
    assert units.num_rows == 2 * (3 + 2 + 1 + 1 + 2 + 1)
    assert Counter(units["status"].to_pylist()) == {"labelled": 18, "failed": 2}


def test_order_of_a_commits_files(calm: tuple[str, list[str]]) -> None:
    """What describes rows, then each model's commit, then the index."""
    kinds = ["recordings", "segments", "quarantine", "embeddings", "frames", "predictions", "ledger"]
    _, changes = calm
    for stem, group in itertools.groupby(changes[3:-1], key=layout.stem):
        folders = [name.split("/", 1)[0] for name in group]
        last = folders.index("predictions")
        assert set(folders[:last]) <= set(kinds[:5]), stem
        assert folders[last:] == ["predictions", "predictions", "ledger"], stem


@pytest.mark.parametrize("torn", [False, True], ids=["before", "within"])
def test_killed_at_every_change_of_a_run(bench: Bench, calm: tuple[str, list[str]], tmp_path: Path, torn: bool) -> None:
    root, changes = calm
    for at in range(len(changes)):
        store = str(tmp_path / f"{at}")
        with pytest.raises(Killed):
            bench.run(Mortal(store, at, torn=torn))
        there = _predicted(store)
        assert len(there) == len(set(there)), at
        bench.run(Storage(store))
        assert bench.run(Storage(store)) == 0
        assert_equal(root, store)


def test_killed_twice(bench: Bench, calm: tuple[str, list[str]], tmp_path: Path) -> None:
    """Once in a commit, then in closing it or in what comes after, at every change of the second run."""
    root, changes = calm
    stems = [layout.stem(name) for name in changes]
    third = list(dict.fromkeys(stems[3:-1]))[2]
    deaths = 0
    first_of_third = stems.index(third)
    for at in range(first_of_third, first_of_third + stems.count(third) + 1):
        for then in itertools.count():
            store = str(tmp_path / f"{at}-{then}")
            with pytest.raises(Killed):
                bench.run(Mortal(store, at))
            mortal = Mortal(store, then)
            try:
                bench.run(mortal)
            except Killed:
                pass
            else:
                break
            if mortal.changes[-1].endswith("/plan.parquet"):
                # Beyond closing; what dies there is told by the test above.
                break
            bench.run(Storage(store))
            assert_equal(root, store)
            deaths += 1
        assert then
    assert deaths > stems.count(third) + 5


def assert_equal(calm: str, other: str) -> None:
    """Every table is the same. What cannot be decoded may be tried, and logged, once more; it fails as it did."""
    assert_same(calm, other, but_for=("quarantine",))
    assert _failing(calm) == _failing(other)


def _failing(store: str) -> list[tuple[object, ...]]:
    columns = ("recording_id", "segment_id", "model", "stage", "code", "message", "start_s", "end_s", "transient")
    rows = serpipe.open(store).failing().select(columns)
    return sorted(zip(*(column.to_pylist() for column in rows.columns), strict=True), key=str)


def _predicted(store: str) -> list[tuple[object, ...]]:
    rows = read(store, "predictions")
    keys = ("model", "fp", "segment_id")
    return list(zip(*(rows[key].to_pylist() for key in keys), strict=True)) if rows.num_rows else []


def test_a_commit_carried_out_again_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (first, *_) = bench.commits("R1", bench.recordings)
    rows = commit.write(storage, first)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet") if "ledger" not in str(path)}
    assert len(before) > 4
    # A later attempt may come to slightly other numbers; those of the first stand.
    again = commit.write(storage, first)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(map(str, again.to_pylist())) == sorted(map(str, rows.to_pylist()))
    assert sorted(map(str, ledger.load(storage).to_pylist())) == sorted(map(str, rows.to_pylist()))


def test_a_commit_half_carried_out_adopts_its_first_model(bench: Bench, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (first, *_) = bench.commits("R1", bench.recordings)
    commit.write(storage, first)
    whole = {name: storage.get(name) for name in storage.list("")}
    (theirs,) = [name for name in whole if name.startswith("predictions/model=level/")]
    (index,) = [name for name in whole if name.startswith("ledger/")]
    storage.delete(theirs)
    storage.delete(index)
    commit.write(storage, first)
    assert storage.list("") == sorted(whole)
    assert Counter(ledger.load(storage)["model"].to_pylist()) == {
        part.model: part.settled.num_rows for part in first.models
    }


def test_every_file_says_what_it_is(calm: tuple[str, list[str]], bench: Bench) -> None:
    root, changes = calm
    for name in changes:
        if not name.endswith(".parquet") or name.startswith("runs/"):
            continue
        facts = {key.decode(): value.decode() for key, value in (pq.read_metadata(f"{root}/{name}").metadata).items()}
        assert facts["serpipe.schema"] == schemas.SCHEMA_VERSION
        assert facts["serpipe.commit"] == layout.stem(name)
        if name.split("/")[0] in ("predictions", "embeddings", "frames"):
            assert bench.models[facts["serpipe.model"]] == facts["serpipe.fp"]
            assert f"model={facts['serpipe.model']}/fp={facts['serpipe.fp']}/" in name
        assert ("serpipe.settled" in facts) == name.startswith("predictions/")


def test_a_recording_is_committed_with_its_last_unit(bench: Bench, tmp_path: Path) -> None:
    """Otherwise a crash between two commits leaves it settled, and out of `recordings` for good."""
    write_speech(tmp_path / "even.wav", seconds=8.0, seed=7)
    for packs in (bench.packs(bench.recordings), bench.packs(serpipe.read_manifest(str(tmp_path)))):
        for pack in packs:
            finals = {unit["recording_id"] for unit in pack["units"][0].as_py() if unit["final"]}
            assert {row["recording_id"] for row in pack["recordings"][0].as_py()} <= finals
            assert pack["units"][0].as_py(), "packs without units all have the same name"


def test_a_worker_that_outlived_its_run_commits_nothing(bench: Bench, tmp_path: Path) -> None:
    """Its run died and another closed it: whenever the store is taken from it, no row of its own is left to count."""
    (first, *_) = bench.commits("R1", bench.recordings)
    for held_for in range(5):
        storage, looks = Storage(str(tmp_path / f"{held_for}")), itertools.count()
        run = runs.Run(run_id="R1", audio=bench.audio, models=bench.models)
        runs.save(storage, run)

        def guard(held_for: int = held_for, looks: Iterator[int] = looks) -> None:
            if next(looks) == held_for:
                raise StoreError("STORE_LOST", "another run holds it")

        if held_for == 4:
            commit.write(storage, first, guard=guard)
        else:
            with pytest.raises(StoreError):
                commit.write(storage, first, guard=guard)
            # Nor are the files shown that went out before it was seen.
            assert ledger.load(storage).num_rows == 0
        closing.close_interrupted(storage)
        assert ledger.load(storage).num_rows == len(storage.list("predictions/")) * first.models[0].settled.num_rows
        assert len(storage.list("predictions/")) == min(max(held_for - 1, 0), 2)
        assert bool(storage.list("segments/")) == (held_for > 1)


def test_a_model_added_to_a_store_does_not_touch_it(bench: Bench, calm: tuple[str, list[str]], tmp_path: Path) -> None:
    root, _ = calm
    archive = Path(bench.recordings["uri"][0].as_py()).parent
    store = str(tmp_path)
    Bench(archive, ("embedded",), embeddings="frame").run(Storage(store))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    bench.run(Storage(store))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in tables(root):
        if name != "quarantine":  # what cannot be decoded is tried, and logged, once more for the new model
            assert read(store, name).num_rows == read(root, name).num_rows
    assert_same(root, store, but_for=("quarantine",))


def test_killed_over_s3(bench: Bench, calm: tuple[str, list[str]], bucket: str) -> None:
    """The same at a sample of changes in a bucket, where a put is atomic and a listing is a request."""
    root, changes = calm
    for at in range(3, len(changes), 5):
        store = f"{bucket}/killed-{at}"
        with pytest.raises(Killed):
            bench.run(Mortal(store, at))
        bench.run(Storage(store))
        assert_equal(root, store)
