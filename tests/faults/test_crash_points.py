"""Killed at every point of everything that writes a store, and done again: the tables are an undisturbed run's."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from serpipe.store import lease, ledger, rewrite
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from tests.faults.contents import on_disk
from tests.faults.crashes import Pass, forget, observe, prepare, readable, recover
from tests.faults.points import CHANGES, LOOKS, State, operations, restore
from tests.faults.scenarios import IN_FULL, SCENARIOS, world
from tests.faults.world import forget_failed


def test_every_operation_of_a_storage_is_a_point() -> None:
    assert operations() == {*CHANGES, *LOOKS}


@pytest.mark.parametrize("name", IN_FULL)
def test_killed_at_every_point(passed: Callable[[str], Pass], name: str) -> None:
    """Before, within and after each operation, reads and listings too."""
    seen = passed(name)
    assert len(seen.points) > 2 * len(seen.states) > 8
    _some("memory", seen, name, "memory://killed", every=1)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in IN_FULL])
def test_killed_at_every_third_state(passed: Callable[[str], Pass], name: str) -> None:
    """`make test-long` takes them all."""
    _some("memory", passed(name), name, "memory://third", every=3)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in IN_FULL])
def test_killed_at_every_point_of_the_others(passed: Callable[[str], Pass], name: str) -> None:
    _some("memory", passed(name), name, "memory://other", every=1)


def test_a_mended_store_is_an_undamaged_one(passed: Callable[[str], Pass]) -> None:
    (mended, *_), (whole, *_) = passed("mending").calm, passed("first run").calm
    assert mended == whole


def test_killed_at_every_point_on_disk(passed: Callable[[str], Pass], tmp_path: Path) -> None:
    """With the half-written file that a kill leaves beside the others."""
    seen = passed("first run")
    assert sum(len(torn) > len(state) for torn, state in zip(seen.torn, seen.states, strict=True)) > 20
    recover("local disk", str(tmp_path), seen, SCENARIOS["first run"].again, states=seen.torn, between=readable)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "first run"])
def test_killed_at_every_point_of_all_on_disk(passed: Callable[[str], Pass], name: str, tmp_path: Path) -> None:
    seen, scenario = passed(name), SCENARIOS[name]
    recover("local disk", str(tmp_path), seen, scenario.again, states=seen.torn, between=scenario.between)


@pytest.mark.parametrize("name", ["first run", "retry"])
def test_killed_over_s3(passed: Callable[[str], Pass], name: str, bucket: str) -> None:
    """A few states, over the real protocol; `make test-long` takes more."""
    _some("S3 (moto)", passed(name), name, f"{bucket}/{name.replace(' ', '-')}", every=9)


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_many_points_over_s3(passed: Callable[[str], Pass], name: str, bucket: str) -> None:
    """Of the first run all, of the others every fourth state."""
    every = 1 if name == "first run" else 4
    _some("S3 (moto)", passed(name), name, f"{bucket}/many-{name.replace(' ', '-')}", every=every)


@pytest.mark.s3
@pytest.mark.parametrize("name", IN_FULL)
def test_killed_over_a_real_store(passed: Callable[[str], Pass], name: str, real_s3: str) -> None:
    """Every fourth state, on a store that does not create exclusively."""
    _some("S3 (Swift)", passed(name), name, f"{real_s3}/{name.replace(' ', '-')}", every=4)


def _some(where: str, seen: Pass, name: str, root: str, *, every: int) -> None:
    chosen = range(every // 2, len(seen.states), every)
    points = [point for point in seen.points if point.state in chosen]
    states = [seen.states[place] for place in chosen]
    scenario = SCENARIOS[name]
    recover(where, root, seen, scenario.again, states=states, points=points, between=scenario.between)


@pytest.mark.parametrize("name", ["first run", "retry", "compaction"])
def test_killed_twice(passed: Callable[[str], Pass], name: str) -> None:
    """And once more while the first death is made good, at each point of that."""
    seen = passed(name)
    _twice(seen, name, [len(seen.states) * 2 // 3])


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_twice_at_many_pairs_of_points(passed: Callable[[str], Pass], name: str) -> None:
    """In every tenth state, then at each point of making that good; of the first run in each state."""
    seen = passed(name)
    _twice(seen, name, range(0, len(seen.states), 1 if name == "first run" else 10))


def _twice(seen: Pass, name: str, places: Iterable[int]) -> None:
    scenario = SCENARIOS[name]
    for place in places:
        second = observe(seen.states[place], scenario.again)
        assert second.calm == seen.calm
        recover("memory, killed twice", "memory://twice", second, scenario.again, between=scenario.between)


@pytest.fixture
def nobody_is_seen_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead were elsewhere: only their silence tells."""
    monkeypatch.setattr(lease, "_place", lambda: secrets.token_hex(4))
    monkeypatch.setattr(lease, "LIFETIME_S", -2.0)
    monkeypatch.setattr(Lease, "_keep_alive", lambda self: None)


def _take(storage: Storage) -> None:
    with Lease(storage, "R1") as mine:
        mine.check()


def _take_among_many(storage: Storage) -> None:
    storage.exclusive = False
    _take(storage)


def _die_holding(storage: Storage) -> None:
    Lease(storage, "R0").__enter__()


@pytest.mark.usefixtures("nobody_is_seen_to_end")
@pytest.mark.parametrize("take", [_take, _take_among_many])
@pytest.mark.parametrize("before", [[], [_take], [_take_among_many], [_die_holding]])
def test_killed_at_every_point_of_a_lease(
    take: Callable[[Storage], None], before: list[Callable[[Storage], None]]
) -> None:
    state: State = {}
    for act in before:
        state = prepare(state, act)
    seen = observe(state, take)
    kinds = {point.kind for point in seen.points}
    assert kinds >= {"list lease/", "put lease/", "get lease/"} - ({"get lease/"} if not before else set())
    recover("memory, lease alone", "memory://lease", seen, take)


def test_a_rewrite_that_another_finished_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine was stopped in the middle of a retry; meanwhile another run finished it and labelled its units."""
    storage = restore("memory://stopped", prepare({}, world().label))
    before = on_disk(storage)
    meanwhile: list[int] = []
    of = ledger.of

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if rewrite.under_way(storage) and not meanwhile:
            meanwhile.append(0)
            meanwhile.append(world().label(Storage(storage.root)).left)
        return of(*args, **kwargs)

    monkeypatch.setattr(ledger, "of", stopped)
    forget_failed(storage)
    assert meanwhile[1] > 2
    assert on_disk(storage) == before
    readable(storage)
    forget(storage.root)
