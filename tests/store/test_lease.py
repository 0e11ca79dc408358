"""One writer a store: who holds it, when a dead holder gives way, that nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serpipe.errors import StoreError
from serpipe.store import lease
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "GRACE_S", 0.0)


def _hold(storage: Storage, **facts: Any) -> dict[str, Any]:
    """A lease as another process wrote it."""
    holder = {
        "token": "theirs",
        "run_id": "R0",
        "host": "elsewhere",
        "pid": 17,
        "since": "2026-01-02T03:04:05+00:00",
        "alive": time.time(),
    } | facts
    storage.put(lease.NAME, json.dumps(holder).encode())
    return holder


def test_the_second_is_refused_with_who_where_and_since_when(storage: Storage) -> None:
    _hold(storage)
    with pytest.raises(StoreError) as caught, Lease(storage, "R1"):
        pass
    assert caught.value.code == "STORE_HELD"
    assert caught.value.transient
    for fact in ("R0", "elsewhere", "process 17", "2026-01-02T03:04:05", storage.root):
        assert fact in str(caught.value)
    assert json.loads(storage.get(lease.NAME))["token"] == "theirs"


def test_a_process_refuses_itself_and_lets_go(storage: Storage) -> None:
    with Lease(storage, "R1"):
        with pytest.raises(StoreError, match="R1 on"), Lease(storage, "R2"):
            pass
        assert json.loads(storage.get(lease.NAME))["run_id"] == "R1"
    assert storage.list("") == []
    with Lease(storage, "R2"):
        pass
    assert storage.list("") == []


def test_an_error_lets_go_too(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), Lease(storage, "R1"):
        raise ZeroDivisionError
    assert storage.list("") == []


def test_a_dead_holder_on_this_machine_gives_way_at_once(storage: Storage) -> None:
    program = (
        "import os, sys\n"
        "from serpipe.store.lease import Lease\n"
        "from serpipe.store.storage import Storage\n"
        "Lease(Storage(sys.argv[1]), 'R0').__enter__()\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, storage.root], timeout=60).returncode == 9
    assert json.loads(storage.get(lease.NAME))["run_id"] == "R0"
    with Lease(storage, "R1"):
        assert json.loads(storage.get(lease.NAME))["run_id"] == "R1"


def test_a_living_holder_on_this_machine_does_not(storage: Storage) -> None:
    import socket

    _hold(storage, host=socket.gethostname(), pid=os.getppid())
    with pytest.raises(StoreError), Lease(storage, "R1"):
        pass


@pytest.mark.parametrize(("silent_s", "gives_way"), [(lease.LIFETIME_S - 20, False), (lease.LIFETIME_S + 1, True)])
def test_a_silent_holder_elsewhere_gives_way_after_its_lifetime(
    storage: Storage, silent_s: float, gives_way: bool
) -> None:
    _hold(storage, alive=time.time() - silent_s)
    if gives_way:
        with Lease(storage, "R1"):
            assert json.loads(storage.get(lease.NAME))["run_id"] == "R1"
    else:
        with pytest.raises(StoreError), Lease(storage, "R1"):
            pass


def test_the_holder_gives_signs_of_life(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LIFETIME_S", 0.3)
    with Lease(storage, "R1"):
        first = json.loads(storage.get(lease.NAME))
        later = _wait(storage, lambda holder: holder["alive"] > first["alive"])
        assert {key: value for key, value in later.items() if key != "alive"} == {
            key: value for key, value in first.items() if key != "alive"
        }
    time.sleep(0.2)
    assert storage.list("") == []


def test_who_lost_the_lease_does_not_take_it_back(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped for minutes wakes up and finds another in its place."""
    monkeypatch.setattr(lease, "LIFETIME_S", 0.3)
    with Lease(storage, "R1"):
        theirs = _hold(storage)
        time.sleep(0.5)
        assert json.loads(storage.get(lease.NAME)) == theirs
    assert json.loads(storage.get(lease.NAME)) == theirs


def test_a_taken_store_is_not_touched_before_the_dead_holders_workers_are_done(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "GRACE_S", 0.4)
    _hold(storage, alive=0.0)
    began = time.monotonic()
    with Lease(storage, "R2"):
        assert time.monotonic() - began >= 0.4


def test_a_worker_that_outlived_its_run_is_told(storage: Storage) -> None:
    with Lease(storage, "R1"):
        lease.check(storage, "R1")
        with pytest.raises(StoreError, match="STORE_LOST: run R0 no longer holds"):
            lease.check(storage, "R0")
    with pytest.raises(StoreError, match="STORE_LOST"):
        lease.check(storage, "R1")


def _wait(storage: Storage, until: Any) -> dict[str, Any]:
    for _ in range(200):
        holder: dict[str, Any] = json.loads(storage.get(lease.NAME))
        if until(holder):
            return holder
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_over_s3(bucket: str) -> None:
    storage = Storage(f"{bucket}/lease")
    with Lease(storage, "R1"), pytest.raises(StoreError, match="R1 on"), Lease(storage, "R2"):
        pass
    assert storage.list("") == []
    _hold(storage, alive=time.time() - lease.LIFETIME_S - 1)
    with Lease(storage, "R2"):
        assert json.loads(storage.get(lease.NAME))["run_id"] == "R2"
