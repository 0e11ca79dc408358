"""One writer a store: who holds it, when a dead holder gives way, that two never hold it at once."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from serpipe.errors import StoreError, UsageError
from serpipe.shard import Shard
from serpipe.store import lease
from serpipe.store.lease import Holder, Lease
from serpipe.store.storage import Storage

THEIRS = Holder(
    token="ffff",
    run_id="R0",
    host="elsewhere",
    pid=17,
    place="another machine",
    since="2026-01-02T03:04:05+00:00",
    state="held",
)


class Shared(Storage):
    """A store where several may create the same object."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.exclusive = False

    def create(self, name: str, data: bytes) -> bool:
        raise AssertionError("it cannot do that")


@pytest.fixture(params=[Storage, Shared], ids=["exclusive", "shared"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    made: Storage = request.param(str(tmp_path))
    return made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "GRACE_S", 0.0)
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)


def _hold(storage: Storage, *, number: int = 7, silent_s: float = 0.0, **facts: Any) -> str:
    """A claim as another process wrote it."""
    name = f"lease/{number:010d}.json" if storage.exclusive else f"lease/{number:010d}-{THEIRS.token}.json"
    storage.put(name, json.dumps(asdict(THEIRS) | facts).encode())
    written = time.time() - silent_s
    os.utime(storage.path(name), (written, written))
    return name


def _held_by(storage: Storage) -> str | None:
    found = lease.holders(storage)
    return found[0].run_id if found else None


def test_the_second_is_refused_with_who_where_and_since_when(storage: Storage) -> None:
    _hold(storage)
    with pytest.raises(StoreError) as caught, Lease(storage, "R1"):
        pass
    assert caught.value.code == "STORE_HELD"
    assert caught.value.transient
    for fact in ("R0", "elsewhere", "process 17", "2026-01-02T03:04:05", storage.root):
        assert fact in str(caught.value)
    assert _held_by(storage) == "R0"


def test_a_process_refuses_itself_and_lets_go(storage: Storage) -> None:
    with Lease(storage, "R1"):
        with pytest.raises(StoreError, match="R1 on"), Lease(storage, "R2"):
            pass
        assert _held_by(storage) == "R1"
    assert _held_by(storage) is None
    with Lease(storage, "R2"):
        assert _held_by(storage) == "R2"
    assert _held_by(storage) is None
    # What was given back goes with the next claim: a store does not fill with them.
    assert len(set(storage.list("lease/")) - {lease.CLOCK}) == 1


def test_an_error_lets_go_too(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), Lease(storage, "R1"):
        raise ZeroDivisionError
    assert _held_by(storage) is None


def test_a_dead_holder_on_this_machine_gives_way_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from serpipe.store.lease import Lease\n"
        "from serpipe.store.storage import Storage\n"
        "Lease(Storage(sys.argv[1]), 'R0').__enter__()\n"
        "os._exit(9)\n"
    )
    storage = Storage(str(tmp_path))
    assert subprocess.run([sys.executable, "-c", program, storage.root], timeout=60).returncode == 9
    assert b"R0" in storage.get(storage.list("lease/")[0])
    assert _held_by(storage) is None
    with Lease(storage, "R1"):
        assert _held_by(storage) == "R1"


def test_a_living_holder_on_this_machine_does_not(storage: Storage) -> None:
    _hold(storage, place=lease._place(), pid=os.getppid())
    with pytest.raises(StoreError), Lease(storage, "R1"):
        pass


def test_a_process_number_means_nothing_in_another_container_of_the_same_name(storage: Storage) -> None:
    nobody = 2**22 + 1
    _hold(storage, host=socket.gethostname(), pid=nobody)
    with pytest.raises(StoreError), Lease(storage, "R1"):
        pass
    _hold(storage, host=socket.gethostname(), pid=nobody, place=lease._place())
    with Lease(storage, "R1"):
        pass


@pytest.mark.parametrize(("silent_s", "gives_way"), [(lease.LIFETIME_S - 20, False), (lease.LIFETIME_S + 1, True)])
def test_a_silent_holder_elsewhere_gives_way_after_its_lifetime(
    storage: Storage, silent_s: float, gives_way: bool
) -> None:
    _hold(storage, silent_s=silent_s)
    if gives_way:
        with Lease(storage, "R1"):
            assert _held_by(storage) == "R1"
    else:
        with pytest.raises(StoreError), Lease(storage, "R1"):
            pass


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_wrong_clock_kills_nobody_and_keeps_nobody_alive(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Only the store's clock counts: whoever judges may live in another hour."""
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + hours * 3600)
    for silent_s, gives_way in ((10.0, False), (lease.LIFETIME_S + 10.0, True)):
        name = _hold(storage)
        written = true_time() - silent_s
        os.utime(storage.path(name), (written, written))
        try:
            with Lease(storage, "R1"):
                assert gives_way
        except StoreError:
            assert not gives_way


def test_the_holder_gives_signs_of_life(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LIFETIME_S", 0.3)
    with Lease(storage, "R1"):
        (name,) = storage.list("lease/")
        first, text = storage.modified(name), storage.get(name)
        assert _comes(lambda: storage.modified(name) > first)
        assert storage.get(name) == text
    released = storage.modified(name)
    time.sleep(0.2)
    assert storage.modified(name) == released


def test_who_lost_the_store_does_not_take_it_back(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was stopped for minutes wakes up, gives a sign of life, ends: another holds, and keeps, it."""
    monkeypatch.setattr(lease, "LIFETIME_S", 0.3)
    with Lease(storage, "R1") as held:
        (mine,) = storage.list("lease/")
        _hold(storage, number=2)
        before = storage.modified(mine)
        assert _comes(lambda: storage.modified(mine) > before)
        with pytest.raises(StoreError, match="STORE_LOST: run R1 no longer holds"):
            held.check()
        assert _held_by(storage) == "R0"
    assert _held_by(storage) == "R0"


def test_a_taken_store_is_not_touched_before_the_dead_holders_workers_are_done(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(lease, "GRACE_S", 0.25)
    monkeypatch.setattr(lease.time, "sleep", waits.append)
    _hold(storage, silent_s=lease.LIFETIME_S + 1)
    with Lease(storage, "R2"):
        pass
    assert 0.25 in waits
    waits.clear()
    with Lease(storage, "R3"):
        pass
    assert 0.25 not in waits


@pytest.mark.parametrize("dead", ["", "0/2"])
def test_every_shard_waits_for_the_dead_holders_workers(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    """The first shard's claim takes the whole store's away; the second finds only one that it may stand beside."""
    waits: list[float] = []
    monkeypatch.setattr(lease, "GRACE_S", 0.25)
    monkeypatch.setattr(lease.time, "sleep", waits.append)
    _hold(storage, silent_s=lease.LIFETIME_S + 1, shard=dead)
    with Lease(storage, "R1", shard=Shard(0, 2)):
        assert waits.count(0.25) == 1
        with Lease(storage, "R2", shard=Shard(1, 2)) as second:
            second.check()
            assert waits.count(0.25) == (1 if dead else 2)
    with Lease(storage, "R3"):
        pass
    waits.clear()
    with Lease(storage, "R4", shard=Shard(1, 2)):
        assert 0.25 not in waits


def test_a_worker_that_outlived_its_run_is_told(storage: Storage) -> None:
    with Lease(storage, "R1"):
        lease.check(storage, "R1")
        with pytest.raises(StoreError, match="STORE_LOST: run R0 no longer holds"):
            lease.check(storage, "R0")
    with pytest.raises(StoreError, match="STORE_LOST"):
        lease.check(storage, "R1")


def test_a_store_out_of_reach_for_a_moment_costs_no_lease(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LIFETIME_S", 0.3)
    put, tries = storage.put, []

    def unreachable(name: str, data: bytes) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise (OSError("no route"), StoreError("STORE_OUT_OF_REACH", "no route", transient=True))[len(tries) % 2]
        put(name, data)

    with Lease(storage, "R1"):
        (name,) = storage.list("lease/")
        first = storage.modified(name)
        monkeypatch.setattr(storage, "put", unreachable)
        assert _comes(lambda: storage.modified(name) > first)


def test_no_error_ends_the_signs_of_life_and_the_run_is_told_of_lasting_ones(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a bucket that is not found for a moment, which is a mistake in a request and not a store out of reach."""
    monkeypatch.setattr(lease, "LIFETIME_S", 0.3)
    put = storage.put

    def refused(name: str, data: bytes) -> None:
        raise UsageError("STORE_NO_BUCKET", f"{name} cannot be written: there is no such bucket")

    with Lease(storage, "R1") as held:
        (name,) = storage.list("lease/")
        monkeypatch.setattr(storage, "put", refused)
        held.check()

        def told() -> bool:
            try:
                held.check()
            except StoreError as error:
                return "STORE_LOST: run R1 could not sign" in str(error) and "no such bucket" in str(error)
            return False

        assert _comes(told)
        monkeypatch.setattr(storage, "put", put)
        first = storage.modified(name)
        assert _comes(lambda: storage.modified(name) > first)
        held.check()


FIRST, SECOND, HALF = Shard(0, 4), Shard(1, 4), Shard(0, 2)


def test_shards_are_held_side_by_side_and_nothing_else_is(storage: Storage) -> None:
    with Lease(storage, "R0", shard=FIRST) as first, Lease(storage, "R1", shard=SECOND) as second:
        assert {holder.run_id for holder in lease.holders(storage)} == {"R0", "R1"}
        for shard in (None, FIRST, SECOND, HALF):
            with pytest.raises(StoreError, match=r"run R[01] of shard [01]/4 on"), Lease(storage, "R2", shard=shard):
                pass
        first.check()
        second.check()
    assert lease.holders(storage) == []
    with Lease(storage, "R3"):
        for shard in (FIRST, HALF):
            with pytest.raises(StoreError, match="run R3 on"), Lease(storage, "R4", shard=shard):
                pass
    # Who holds all takes away every claim below.
    assert len(set(storage.list("lease/")) - {lease.CLOCK}) == 1


@pytest.mark.parametrize("dead", ["", "0/4", "0/2"])
def test_a_shard_takes_over_what_conflicts_with_it_and_is_dead(storage: Storage, dead: str) -> None:
    name = _hold(storage, silent_s=lease.LIFETIME_S + 1, shard=dead)
    beside = _hold(storage, number=8, shard="1/4") if dead == "0/4" else None
    with Lease(storage, "R1", shard=FIRST):
        # The dead one wakes up.
        storage.put(name, json.dumps(asdict(THEIRS) | {"shard": dead}).encode())
        with pytest.raises(StoreError, match="STORE_LOST"):
            lease.check(storage, "R9" if beside else "R0")
        lease.check(storage, "R1")


def test_what_was_taken_over_stays_so_when_shards_come_and_go(storage: Storage) -> None:
    """A dead shard's run was taken over by one of the whole store; another shard's run does not bring it back."""
    name = _hold(storage, silent_s=lease.LIFETIME_S + 1, shard="0/4")
    with Lease(storage, "R1"):
        pass
    with Lease(storage, "R2", shard=SECOND):
        storage.put(name, json.dumps(asdict(THEIRS) | {"shard": "0/4"}).encode())
        with pytest.raises(StoreError, match="STORE_LOST"):
            lease.check(storage, "R0")
        lease.check(storage, "R2")
        with Lease(storage, "R3", shard=FIRST) as third:
            third.check()


def test_many_shards_at_once_all_come_in(tmp_path: Path) -> None:
    """Each retries while others claim at the same moment; nobody is turned away for another's shard."""
    leave = threading.Barrier(8)

    def run(place: int) -> None:
        with Lease(Storage(str(tmp_path)), f"R{place}", shard=Shard(place, 8)) as held:
            leave.wait(60)
            held.check()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))


class Stepped(Storage):
    """Stops before each operation until it is told to go on, so that a test decides who is first."""

    def __init__(self, root: str, *, exclusive: bool) -> None:
        super().__init__(root)
        self.exclusive = exclusive
        self.turn, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def step(self) -> None:
        self.done.release()
        self.turn.acquire()

    def put(self, name: str, data: bytes) -> None:
        self.step()
        super().put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self.step()
        return super().create(name, data)

    def list(self, prefix: str) -> list[str]:
        self.step()
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self.step()
        super().delete(name)


def _race(
    root: str, order: Iterator[int], *, exclusive: bool, let_go: bool, shards: Sequence[Shard | None] = (None, None)
) -> tuple[int, int]:
    """Two go for one store, an operation at a time in a given order.

    Returns:
        How many came to hold it, and how many held it at once at most.
    """
    inside: list[str] = []
    refusals: set[str] = set()
    most = came = 0
    lock = threading.Lock()
    racers = [Stepped(root, exclusive=exclusive) for _ in range(2)]
    finished = [False, False]

    def run(place: int) -> None:
        nonlocal most, came
        me = racers[place]
        try:
            with Lease(me, f"R{place}", shard=shards[place]) as held:
                me.step()
                held.check()
                with lock:
                    inside.append(f"R{place}")
                    came, most = came + 1, max(most, len(inside))
                if not let_go:
                    me.step()
                with lock:
                    inside.remove(f"R{place}")
        except StoreError as error:
            refusals.add(error.code)
        finally:
            finished[place] = True
            me.done.release()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, place) for place in range(2)]
        for racer in racers:
            racer.done.acquire()
        while not all(finished):
            place = next(order)
            if finished[place]:
                place = 1 - place
            racers[place].turn.release()
            racers[place].done.acquire()
        for future in futures:
            future.result()
    assert refusals <= {"STORE_HELD"}
    return came, most


@pytest.mark.parametrize("dead", [False, True], ids=["free", "dead-holder"])
@pytest.mark.parametrize("let_go", [False, True], ids=["holding", "letting-go"])
def test_two_that_race_never_hold_it_at_once(tmp_path: Path, dead: bool, let_go: bool) -> None:
    """Two find the same dead holder, or nobody: in every one of many orders one at most is in."""
    choose = random.Random(4)
    held = 0
    for trial in range(60):
        root = str(tmp_path / f"{trial}")
        if dead:
            _hold(Storage(root), silent_s=lease.LIFETIME_S + 1)
        order = iter(lambda: choose.randrange(2), 2)
        came, most = _race(root, order, exclusive=True, let_go=let_go)
        assert most <= 1, trial
        held += came
    assert held >= 60


@pytest.mark.parametrize("shards", [(None, FIRST), (FIRST, FIRST), (HALF, FIRST), (FIRST, SECOND)])
def test_shards_that_race_never_hold_the_same_at_once(tmp_path: Path, shards: tuple[Shard | None, Shard]) -> None:
    choose = random.Random(5)
    both = 0
    for trial in range(40):
        order = iter(lambda: choose.randrange(2), 2)
        came, most = _race(str(tmp_path / f"{trial}"), order, exclusive=True, let_go=False, shards=shards)
        assert came >= 1
        assert most <= (2 if shards == (FIRST, SECOND) else 1), trial
        both += came == 2
    if shards == (FIRST, SECOND):
        assert both == 40


def test_a_number_that_is_free_again_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed long ago: since then others took the store, gave it back, and one holds it."""
    storage = Storage(str(tmp_path))
    _hold(storage, silent_s=lease.LIFETIME_S + 1)
    create, late = storage.create, []

    def after_others(name: str, data: bytes) -> bool:
        if not late:
            late.append(name)
            with Lease(Storage(storage.root), "R1"):
                pass
            late.append(Lease(Storage(storage.root), "R2").__enter__())
        return create(name, data)

    monkeypatch.setattr(storage, "create", after_others)
    with pytest.raises(StoreError, match="run R2 on"), Lease(storage, "R3"):
        pass
    assert _held_by(storage) == "R2"
    late[1].__exit__()


class Together(Shared):
    """All have listed before any of them writes, and all have written before any of them lists again."""

    steps = threading.Barrier(5)

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.listed = 0

    def list(self, prefix: str) -> list[str]:
        self.listed += 1
        if self.listed == 2:
            self.steps.wait(10)
        names = super().list(prefix)
        if self.listed <= 2:
            self.steps.wait(10)
        return names


def test_of_several_claims_the_lowest_wins(tmp_path: Path) -> None:
    """On a store without exclusive create all write, wait and list."""
    tokens: list[str] = []
    winners: list[str] = []
    leave = threading.Barrier(5)

    def run(place: int) -> str:
        mine = Lease(Together(str(tmp_path)), f"R{place}")
        tokens.append(mine._me.token)
        try:
            with mine as held:
                leave.wait(10)
                held.check()
                winners.append(held._me.token)
                return "held"
        except StoreError as error:
            leave.wait(10)
            return error.code

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(run, range(5))) == ["STORE_HELD"] * 4 + ["held"]
    assert winners == [min(tokens)]
    assert len(Storage(str(tmp_path)).list("lease/")) == 1


def test_a_late_claim_gives_way_to_one_that_holds(tmp_path: Path) -> None:
    """It is lower, but the other one has waited already."""
    storage = Shared(str(tmp_path))
    name = _hold(storage, number=1)

    class Late(Lease):
        def __enter__(self) -> Lease:
            self._claim(1)
            return self

    late = Late(storage, "R1")
    assert late._me.token < THEIRS.token
    with pytest.raises(StoreError, match="run R0"):
        late.__enter__()
    assert storage.list("lease/") == [name]


def test_over_s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"{bucket}/lease")
    with Lease(storage, "R1"), pytest.raises(StoreError, match="R1 on"), Lease(storage, "R2"):
        pass
    assert _held_by(storage) is None
    storage.put("lease/0000000009.json", json.dumps(asdict(THEIRS)).encode())
    with pytest.raises(StoreError, match="R0 on"), Lease(storage, "R2"):
        pass
    monkeypatch.setattr(lease, "LIFETIME_S", -2.0)
    monkeypatch.setattr(Lease, "_keep_alive", lambda self: None)
    with Lease(storage, "R2"):
        assert _held_by(storage) == "R2"


@pytest.mark.s3
def test_a_race_on_a_store_that_creates_not_exclusively(real_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six at once, some rounds: never two, and the one that is refused is told by whom."""
    monkeypatch.setattr(lease, "SETTLE_S", 2.0)
    assert not Storage(real_s3).exclusive
    for _ in range(4):
        start, leave = threading.Barrier(6), threading.Barrier(6)

        def run(place: int, start: threading.Barrier = start, leave: threading.Barrier = leave) -> str:
            mine = Lease(Storage(f"{real_s3}/race"), f"R{place}")
            start.wait(60)
            try:
                with mine as held:
                    leave.wait(60)
                    held.check()
                    return "held"
            except StoreError as error:
                leave.wait(60)
                return error.code

        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(run, range(6))) == ["STORE_HELD"] * 5 + ["held"]


def _comes(true: Callable[[], bool]) -> bool:
    for _ in range(200):
        if true():
            return True
        time.sleep(0.02)
    return False
