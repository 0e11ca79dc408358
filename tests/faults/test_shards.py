"""Runs of several shards write one store at the same time; one dies, the others are not touched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from serpipe.errors import StoreError
from serpipe.shard import Shard
from serpipe.store import lease, rewrite, runs
from serpipe.store.lease import Holder
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.faults.contents import on_disk
from tests.faults.crashes import Pass
from tests.faults.mortal import Killed, Mortal
from tests.faults.scenarios import in_shards, label_and_die, world

ONE, TWO = Shard(0, 2), Shard(1, 2)


class Meanwhile(Storage):
    """Something happens after so many changes: in the middle of a commit, for the first ones are of the lease."""

    def __init__(self, root: str, after: int, act: Callable[[], object]) -> None:
        super().__init__(root)
        self._left, self._act = after, act

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        self._left -= 1
        if not self._left:
            self._act()


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Runs whose processes have ended; all others live."""
    found: set[str] = set()

    def ended(claim: Holder) -> bool:
        return claim.run_id in found

    monkeypatch.setattr(lease, "_ended_here", ended)
    return found


def test_shards_make_the_tables_of_one_run(passed: Callable[[str], Pass], tmp_path: Path) -> None:
    assert passed("shards").calm == passed("first run").calm
    storage = Storage(str(tmp_path))
    label_and_die(storage)
    in_shards(storage)
    assert on_disk(storage) == passed("first run").calm[0]


@pytest.mark.parametrize("after", range(2, 13))
def test_a_shard_dies_and_goes_on_while_another_is_writing(
    tmp_path: Path, dead: set[str], passed: Callable[[str], Pass], after: int
) -> None:
    """Killed at its nth change, whatever the other one is at; its successor closes its run and no other."""
    root, seen = str(tmp_path), []

    def other() -> None:
        before = {run.run_id for run in runs.load(Storage(root))}
        (living,) = lease.holders(Storage(root))
        with suppress(Killed):
            world().label(Mortal(root, after * 4), shard=TWO)
        dead.update(holder.run_id for holder in lease.holders(Storage(root)) if holder.run_id != living.run_id)
        left = set(Storage(root).list(""))
        for shard in (None, ONE, Shard(1, 3)):
            with pytest.raises(StoreError, match="STORE_HELD"):
                world().label(Storage(root), shard=shard)
        assert set(Storage(root).list("")) - left <= {lease.CLOCK}
        world().label(Storage(root), shard=TWO)
        assert {run.run_id for run in runs.unfinished(Storage(root))} <= before
        assert not verify(Storage(root)).findings
        seen.append(living)

    world().label(Meanwhile(root, after, other), shard=ONE)
    assert seen, "the run was over; it has fewer changes by now"
    world().label(Storage(root))
    assert on_disk(Storage(root)) == passed("first run").calm[0]
    assert not verify(Storage(root)).findings
    assert runs.unfinished(Storage(root)) == []


def test_a_shard_leaves_a_rewrite_to_who_holds_the_whole_store(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    world().label(storage)
    storage.put(f"{rewrite.FOLDER}begun.json", b"{}")
    with pytest.raises(StoreError, match="without --shard"):
        world().label(storage, shard=ONE)
