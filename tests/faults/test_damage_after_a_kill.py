"""A store that was left half done and is damaged besides: one sentence says what to do, and that mends it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest

from serpipe.errors import StoreError
from serpipe.shard import Shard
from serpipe.store import damage, layout, lease, rewrite, runs, summary, version
from serpipe.store.lease import Lease
from serpipe.store.reading import Store
from serpipe.store.retry import retry
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.faults.contents import failing, on_disk
from tests.faults.crashes import Pass, prepare
from tests.faults.points import State, restore
from tests.faults.scenarios import world

_serial = itertools.count()


def store(state: State) -> Storage:
    return restore(f"memory://damaged-{next(_serial)}", state)


def cut(storage: Storage, name: str) -> None:
    storage.put(name, storage.get(name)[:-5])


def flipped(storage: Storage, name: str) -> None:
    """In the footer, which still stands at the end."""
    data = bytearray(storage.get(name))
    for place in range(len(data) - 60, len(data) - 40):
        data[place] ^= 255
    storage.put(name, bytes(data))


def made(storage: Storage) -> tuple[object, ...]:
    return on_disk(storage), failing(Store(storage))


@pytest.fixture
def killed_runs(passed: Callable[[str], Pass]) -> list[State]:
    """Of a first run, killed with predictions that are in no ledger."""
    return [state for state in passed("first run").states if _stems(state, "predictions/") - _stems(state, "ledger/")]


def _stems(state: State, prefix: str) -> set[str]:
    return {layout.stem(name) for name in state if name.startswith(prefix)}


@pytest.mark.parametrize("harm", [cut, flipped])
def test_predictions_damaged_before_they_were_adopted_are_work(
    killed_runs: list[State], passed: Callable[[str], Pass], harm: Callable[[Storage, str], None]
) -> None:
    assert len(killed_runs) > 4
    for state in killed_runs[:: len(killed_runs) // 4]:
        storage = store(state)
        indexed = {layout.stem(name) for name in storage.list("ledger/")}
        for name in storage.list("predictions/"):
            if layout.stem(name) not in indexed:
                harm(storage, name)
        world().label(storage)
        assert on_disk(storage) == passed("first run").calm[0]
        assert verify(storage).findings == ()


@pytest.fixture
def killed_rewrites(passed: Callable[[str], Pass]) -> list[State]:
    """Of a retry, killed with its intent written, in the middle, and before the ledger forgets."""
    found = [state for state in passed("retry").states if any(name.startswith(rewrite.FOLDER) for name in state)]
    return [found[0], found[len(found) // 2], found[-4]]


@pytest.mark.parametrize("table", ["ledger", "predictions", "embeddings", "segments", "recordings", "quarantine"])
def test_damage_in_the_way_of_an_interrupted_rewrite_is_mended(
    killed_rewrites: list[State], passed: Callable[[str], Pass], table: str
) -> None:
    calm = passed("first run").calm
    for state in killed_rewrites if table == "ledger" else killed_rewrites[1:2]:
        for name in sorted(name for name in state if name.startswith(f"{table}/"))[::2]:
            storage = store(state)
            cut(storage, name)
            for _ in range(2):
                with suppress(StoreError):
                    world().label(storage)
                verify(storage)
            world().label(storage)
            assert on_disk(storage) == calm[0], name
            assert failing(Store(storage)) == calm[2], name


def test_a_rewrite_says_what_is_in_its_way(killed_rewrites: list[State]) -> None:
    storage = store(killed_rewrites[0])
    cut(storage, storage.list("ledger/")[0])
    for act in (lambda: world().label(storage), lambda: retry(Store(storage))):
        with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*`serpipe verify"):
            act()
    assert [finding.code for finding in verify(storage).findings] == ["LEDGER_DAMAGED"]
    assert damage.marks(storage)


def test_an_intent_that_cannot_be_read_is_told(killed_rewrites: list[State], passed: Callable[[str], Pass]) -> None:
    storage = store(killed_rewrites[1])
    (name,) = storage.list(rewrite.FOLDER)
    cut(storage, name)
    with pytest.raises(StoreError, match=rf"STORE_DAMAGED: .*{name}.*delete it, then `serpipe verify"):
        world().label(storage)
    storage.delete(name)
    verify(storage)
    world().label(storage)
    assert on_disk(storage) == passed("first run").calm[0]
    assert verify(storage).findings == ()


@pytest.mark.parametrize("killed", [True, False])
def test_the_record_of_a_run_is_made_anew(
    killed_runs: list[State], passed: Callable[[str], Pass], killed: bool
) -> None:
    """Of one that ended, and of one that did not and whose commits nobody has counted."""
    storage = store(killed_runs[-1] if killed else prepare({}, world().label))
    (name,) = [name for name in storage.list("runs/") if name.endswith("run.json")]
    for text in (storage.get(name)[:-5], b"\x80\x04", b"[]", b'{"run": 1}'):
        storage.put(name, text)
        with pytest.raises(StoreError, match=rf"STORE_DAMAGED: .*{name}.*`serpipe label`"):
            summary.status(Store(storage))
        assert "RECORD_DAMAGED" in {finding.code for finding in verify(storage).findings}
    world().label(storage)
    assert made(storage) == (passed("first run").calm[0], passed("first run").calm[2])
    assert verify(storage).findings == ()
    (record, *_) = runs.load(storage)
    assert (record.state, record.audio) == ("interrupted", "a1")
    assert record.started[:10] == f"{record.run_id[:4]}-{record.run_id[4:6]}-{record.run_id[6:8]}"
    assert summary.status(Store(storage)).models


def test_a_shard_leaves_damaged_records_to_who_holds_the_whole_store(killed_runs: list[State]) -> None:
    storage = store(killed_runs[-1])
    (name,) = [name for name in storage.list("runs/") if name.endswith("run.json")]
    cut(storage, name)
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*without --shard"):
        world().label(storage, shard=Shard(0, 2))


def test_what_is_no_claim_claims_nothing_and_a_broken_one_is_told() -> None:
    storage = store({})
    for name in ("readme", ".DS_Store", "0000000001.json.bak", "x-0000000002.json"):
        storage.put(lease.FOLDER + name, b"x")
    with Lease(storage, "R1") as mine:
        mine.check()
    (name,) = [name for name in storage.list(lease.FOLDER) if name.endswith("1.json")]
    for text in (b"", b"\x80\x04", b"[]", b"{}"):
        storage.put(name, text)
        with pytest.raises(StoreError, match=rf"STORE_DAMAGED: .*{name} is not a claim.*delete it"):
            Lease(storage, "R2").__enter__()
    storage.delete(name)
    with Lease(storage, "R2") as mine:
        mine.check()


def test_marks_that_cannot_be_read_are_written_anew() -> None:
    storage = store(prepare({}, world().label))
    storage.put(damage.MARKS, b"[{")
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*marks.json.*`serpipe verify"):
        world().label(storage)
    verify(storage)
    assert world().label(storage).left == 1


def test_killed_where_a_put_is_not_whole(passed: Callable[[str], Pass]) -> None:
    """As on a file system that writes in place: the first half of an object stands under its name."""
    seen, tried = passed("first run"), 0
    puts = [point for point in seen.points if point.operation in ("put", "create") and point.moment == "within"]
    for point in puts[::2]:
        whole = seen.states[point.state + 1].get(point.name, b"")
        storage = store(seen.states[point.state] | {point.name: whole[: len(whole) // 2]})
        for _ in range(3):
            refusal = refused(storage)
            if "delete it" in refusal or version.NAME in refusal:
                # As the sentence says; nothing writes there.
                assert point.name in refusal
                storage.delete(point.name)
            elif refusal:
                assert "`serpipe verify" in refusal
                verify(storage)
        assert made(storage) == (seen.calm[0], seen.calm[2]), point.name
        assert verify(storage).findings == ()
        tried += 1
    assert tried > 12


def refused(storage: Storage) -> str:
    """Why a run does not begin; nothing where it does, and ends."""
    try:
        world().label(storage)
    except StoreError as error:
        return str(error)
    return ""


def test_progress_that_cannot_be_read_is_not_shown() -> None:
    storage = store(prepare({}, world().label))
    (record,) = runs.load(storage)
    storage.put(layout.progress(record.run_id), b'{"at"')
    assert runs.load_progress(storage, record.run_id) is None
