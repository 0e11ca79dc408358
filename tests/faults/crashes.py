"""Kill at a point, go on, compare with the undisturbed: what every exhaustive test here does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fsspec.implementations.memory import MemoryFileSystem

from serpipe.store import lease, version
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from tests.faults.contents import failing, on_disk, shown
from tests.faults.points import Point, Points, State, restore, snapshot

TRIED: Counter[tuple[str, str]] = Counter()
"""Points and recoveries that ended as they should, by where."""

_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Pass:
    """One undisturbed pass over a store, point by point.

    Attributes:
        points: in order.
        states: what they find.
        torn: the same on a local disk, where a file that was being written lies beside the others.
        calm: what is in the store at the end.
    """

    points: list[Point]
    states: list[State]
    torn: list[State]
    calm: tuple[object, ...]


def prepare(before: State, act: Callable[[Storage], object]) -> State:
    """A store as something leaves it."""
    root = f"memory://made-{next(_serial)}"
    act(restore(root, before))
    after = snapshot(Storage(root))
    forget(root)
    return after


def observe(before: State, act: Callable[[Storage], object]) -> Pass:
    """Do something with a store as it was left, and note every point of it."""
    root = f"memory://pass-{next(_serial)}"
    restore(root, before)
    storage = Points(root)
    act(storage)
    # What was written past the storage would be missing from the states.
    points, states = list(storage.points), list(storage.states)
    now = {path[len(storage.path()) + 1 :]: file.getvalue() for path, file in _below(storage.path())}
    assert now == states[-1], "written past the storage"
    assert not any(point.operation == "write" for point in points)
    seen = Pass(points, states, storage.torn(), _all(Storage(root)))
    forget(root)
    return seen


def recover(
    where: str,
    root: str,
    seen: Pass,
    again: Callable[[Storage], object],
    *,
    states: Iterable[State] | None = None,
    points: Sequence[Point] | None = None,
    between: Callable[[Storage], None] | None = None,
) -> None:
    """Kill at every point, do it again, and find what the undisturbed pass left.

    Args:
        where: for the count.
        root: below which the stores are made.
        seen: the undisturbed pass.
        again: what the operator does after a kill.
        states: those to try; all by default.
        points: those that find them; all by default.
        between: what must hold in each state before anything mends it.
    """
    tried = list(seen.states if states is None else states)
    for state in tried:
        at = f"{root}/{next(_serial)}"
        storage = restore(at, state)
        if between is not None and version.NAME in state:
            between(storage)
        again(storage)
        assert lease.holders(storage) == []
        assert _all(storage) == seen.calm
        forget(at)
    # Only passes of which every state was made good are counted.
    TRIED[where, "points"] += len(seen.points if points is None else points)
    TRIED[where, "states"] += len(tried)


def readable(storage: Storage) -> None:
    """A reader who comes in this moment sees no row twice, and none without its segment and its ledger entry."""
    shown(Store(storage))


def forget(root: str) -> None:
    """Memory is all that stores in memory live in."""
    if root.startswith("memory://"):
        for path, _ in _below(Storage(root).path()):
            del MemoryFileSystem.store[path]


def summary() -> Iterable[str]:
    for where in sorted({where for where, _ in TRIED}):
        yield f"{where}: {TRIED[where, 'points']} points, {TRIED[where, 'states']} stores recovered from"


def _all(storage: Storage) -> tuple[object, ...]:
    store = Store(storage)
    tables, seen = on_disk(storage), shown(store)
    for name, rows in seen.items():
        assert rows.keys() <= tables[name].keys(), f"{name}: shown and not on disk"
    return tables, seen, failing(store)


def _below(path: str) -> list[tuple[str, MemoryFileSystem]]:
    return [(name, file) for name, file in MemoryFileSystem.store.items() if name.startswith(f"{path}/")]
