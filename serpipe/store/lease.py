"""One writer a store: a lease by exclusive create, kept alive while the run lives."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from serpipe.errors import StoreError
from serpipe.store import runs
from serpipe.store.storage import Storage

NAME = "lease.json"

LIFETIME_S = 120.0
"""Seconds without a sign of life after which a holder counts as dead."""

GRACE_S = 5.0
"""Seconds between taking a store from a dead holder and working on it: its workers may outlive it, and one that has
just looked at the lease may still be writing."""


class Lease:
    """Held for the length of a `with` block.

    Args:
        storage: the store.
        run_id: the run that wants to write.

    Raises:
        StoreError: `STORE_HELD`, another run writes there; the message says which, where and since when.
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._holder = {
            "token": secrets.token_hex(8),
            "run_id": run_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": runs.now(),
        }
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> Lease:
        taken = False
        for _ in range(3):
            if self._storage.create(NAME, self._sign()):
                self._beat.start()
                if taken:
                    time.sleep(GRACE_S)
                return self
            holder = _read(self._storage)
            if holder is None:
                continue
            if not _dead(holder):
                break
            self._storage.delete(NAME)
            taken = True
        holder = _read(self._storage) or {}
        raise StoreError(
            "STORE_HELD",
            f"{self._storage.root} is being written by run {holder.get('run_id')} on {holder.get('host')} "
            f"(process {holder.get('pid')}) since {holder.get('since')}; wait for it, or end it and try again "
            f"after {LIFETIME_S:.0f} s",
            transient=True,
        )

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beat.join()
        holder = _read(self._storage)
        if holder is not None and holder["token"] == self._holder["token"]:
            self._storage.delete(NAME)

    def _keep_alive(self) -> None:
        while not self._ended.wait(LIFETIME_S / 6):
            try:
                holder = _read(self._storage)
                if holder is None or holder["token"] != self._holder["token"]:
                    # Taken over while this process did not get to run: the new holder's sign must stand.
                    return
                self._storage.put(NAME, self._sign())
            except OSError:
                # A store that is out of reach for a moment: the next beat tries again, well within the lifetime.
                continue

    def _sign(self) -> bytes:
        return json.dumps(self._holder | {"alive": time.time()}).encode()


def check(storage: Storage, run_id: str) -> None:
    """Make sure that a run still holds the store, for workers that may have outlived it.

    Raises:
        StoreError: `STORE_LOST`, it does not; what it has not committed is another run's to do.
    """
    holder = _read(storage)
    if holder is None or holder["run_id"] != run_id:
        raise StoreError("STORE_LOST", f"run {run_id} no longer holds {storage.root}; its last rows are not committed")


def _read(storage: Storage) -> dict[str, Any] | None:
    try:
        holder: dict[str, Any] = json.loads(storage.get(NAME))
    except FileNotFoundError:
        return None
    return holder


def _dead(holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname() and not _running(holder["pid"]):
        return True
    return bool(time.time() - holder["alive"] > LIFETIME_S)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
