"""A commit that died and is carried out again, when meanwhile another of its recordings can be read, or cannot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pytest

from serpipe import plan
from serpipe.errors import StoreError
from serpipe.store import closing, commit, plans, runs, schemas, version
from serpipe.store.lease import Lease, check
from serpipe.store.reading import Store
from serpipe.store.rows import RunFacts
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.faults import world as worlds
from tests.faults.contents import failing, on_disk, shown
from tests.faults.crashes import forget
from tests.faults.mortal import Killed, Mortal
from tests.faults.world import Ends, Recording, World

_serial = itertools.count()


def archive(ends: Ends, others: int, models: int) -> World:
    """One recording that ends so, and others beside it in its pack that end well."""
    world = World(models={f"m{number}": "f1" for number in range(models)}, frames=True)
    world.add(Recording(uri="/a.wav", units=(2,) if ends == "well" else (), ends=ends))
    return world.add(*(Recording(uri=f"/b{number}.wav", units=(1,)) for number in range(others)))


def tries(
    storage: Storage, first: Ends, then: Ends, others: int, models: int, run: str = "", earlier: World | None = None
) -> Iterator[commit.Commit]:
    """Both tries at the one commit of a run that goes on meanwhile, behind an earlier one."""
    version.check(storage)
    if earlier is not None:
        earlier.label(storage)
    run, one = run or runs.new_run_id(), archive(first, others, models)
    plan.make_plan(storage, run, [one.catalogue], audio="a1", models=one.models, by_length=False)
    runs.save(storage, runs.Run(run_id=run, started=runs.now(), audio="a1", models=one.models))
    rows = pa.concat_tables(plans.groups(storage, run))
    facts = RunFacts(run_id=run, audio="a1", models=one.models)
    for world in (one, archive(then, others, models)):
        (ready,) = world.commits(facts, rows)
        yield ready


def carried_out_twice(
    first: Ends, then: Ends, others: int, models: int, earlier: World | None = None
) -> Iterator[Storage]:
    """The store behind the second try, for each operation that may have been the last of the first."""
    for at in itertools.count():
        storage = Storage(f"memory://again-{next(_serial)}")
        one, two = tries(storage, first, then, others, models, earlier=earlier)
        assert one.name == two.name
        try:
            commit.write(Mortal(storage.root, at), one)
        except Killed:
            pass
        else:
            assert at > 6
            return
        commit.write(storage, two)
        shown(Store(storage))
        runs.finish(storage, runs.load(storage)[-1])
        assert verify(storage).findings == ()
        yield storage
        assert verify(storage).findings == ()
        forget(storage.root)


@pytest.mark.parametrize(("others", "models"), [(0, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize(("first", "then"), [("well", "open"), ("open", "well"), ("open", "failed")])
def test_a_commit_carried_out_again_with_another_outcome(
    monkeypatch: pytest.MonkeyPatch, first: Ends, then: Ends, others: int, models: int
) -> None:
    """Killed at each of its operations; what the second try does not say is nowhere, and the next run is complete."""
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    calm = Storage(f"memory://calm-{next(_serial)}")
    archive("well", others, models).label(calm)
    for storage in carried_out_twice(first, then, others, models):
        if then == "failed":
            assert {row[6] for row in failing(Store(storage))} == {"READ_FAILED"}
        else:
            archive("well", others, models).label(storage)
            assert on_disk(storage) == on_disk(calm)
            assert failing(Store(storage)) == set()
    forget(calm.root)


EARLIER = {
    "labelled": World(models={"m0": "f1"}, audio="a0").add(Recording(uri="/a.wav", units=(2,))),
    "failed": World(models={"m0": "f1"}, audio="a1").add(Recording(uri="/a.wav", units=(), ends="failed")),
}


@pytest.mark.parametrize("earlier", EARLIER)
@pytest.mark.parametrize(("first", "then"), [("well", "well"), ("well", "open"), ("open", "well"), ("open", "failed")])
def test_a_commit_carried_out_again_whose_models_settle_different_units(
    monkeypatch: pytest.MonkeyPatch, first: Ends, then: Ends, earlier: str
) -> None:
    """Only one of them labels the recording that can be read, or cannot; the other did, or failed, before."""
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    later = archive("failed" if then == "failed" else "well", 1, 2)
    calm = Storage(f"memory://calm-{next(_serial)}")
    EARLIER[earlier].label(calm)
    later.label(calm)
    for storage in carried_out_twice(first, then, 1, 2, EARLIER[earlier]):
        left = later.label(storage).left
        assert left == 0 or first != then
        assert on_disk(storage) == on_disk(calm)
    forget(calm.root)


@pytest.mark.parametrize("looked", [0, 1])
def test_a_worker_that_its_run_gave_up_commits_nothing(monkeypatch: pytest.MonkeyPatch, looked: int) -> None:
    """Cut off from Ray, not from the store, which it may have looked at before: what the last pass made stands once."""
    monkeypatch.setattr(worlds, "refuses", lambda model, segment: False)
    storage, looks = Storage(f"memory://given-up-{next(_serial)}"), itertools.count()

    def late_guard() -> None:
        if next(looks) >= looked:
            check(storage, "R1", 0)

    with Lease(storage, "R1") as held:
        late, again = tries(storage, "well", "well", 1, 2, run="R1")
        (record,) = runs.load(storage)
        step = held.advance()
        held.check()
        closing.tidy(storage, record)
        commit.write(storage, renamed(again, f"R1-{'0' * 16}"), guard=lambda: check(storage, "R1", step))
        with pytest.raises(StoreError, match="COMMIT_LATE: run R1 has gone on without this worker"):
            commit.write(storage, late, guard=late_guard)
        closing.tidy(storage, record)
        runs.finish(storage, record)
    assert verify(storage).findings == ()
    tables = on_disk(storage)
    assert len(tables["recordings"]) == 2
    assert shown(Store(storage))["predictions"].keys() == tables["predictions"].keys()
    forget(storage.root)


def renamed(ready: commit.Commit, name: str) -> commit.Commit:
    """The same rows as another commit, as a later pass makes them."""
    place = schemas.LEDGER.get_field_index("commit")
    field = schemas.LEDGER.field(place)
    settled = [part.settled.set_column(place, field, pa.array([name] * len(part.settled))) for part in ready.models]
    parts = [replace(part, settled=rows) for part, rows in zip(ready.models, settled, strict=True)]
    return replace(ready, name=name, models=parts)
