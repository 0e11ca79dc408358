"""One writer a store: numbered claims, of which the highest counts, kept alive while the run lives.

A claim is never taken away from another: whoever finds the highest one given back, or its holder dead, claims the next
number, and numbers are never used twice. So two that find the same dead holder cannot undo each other's claim, and a
late sign of life goes to a claim that no longer counts.

Where a store creates exclusively, a number belongs to one claim, and that is a promise. Elsewhere every claim has a
name of its own: write, wait, list, the lowest of the number wins. That holds while a claim is listed within `SETTLE_S`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from serpipe.errors import StoreError
from serpipe.store import runs
from serpipe.store.storage import Storage

FOLDER = "lease/"

CLOCK = f"{FOLDER}clock"
"""Written to learn what time the store has. Signs of life are dated by the store, so no two clocks are compared."""

LIFETIME_S = 120.0
"""Seconds without a sign of life after which a holder counts as dead."""

GRACE_S = 5.0
"""Seconds between taking a store from a dead holder and working on it: its workers may outlive it, and one that has
just looked at the lease may still be writing."""

SETTLE_S = 5.0
"""Seconds until a claim is seen by everyone, on a store that cannot create exclusively."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who claimed a store.

    Attributes:
        token: tells claims apart.
        run_id: the run that writes.
        host: where, for people.
        pid: its process.
        place: machine, boot and process namespace, in which `pid` means something.
        since: UTC, ISO 8601.
        state: `claimed` while it waits for others' claims to show.
    """

    token: str
    run_id: str
    host: str
    pid: int
    place: str
    since: str
    state: Literal["claimed", "held", "released"]


class Lease:
    """Held for the length of a `with` block.

    Args:
        storage: the store.
        run_id: the run that wants to write.

    Raises:
        StoreError: `STORE_HELD`, another run writes there; the message says which, where and since when.

    Examples:
        >>> import tempfile
        >>> storage = Storage(tempfile.mkdtemp())
        >>> with Lease(storage, "R1"):
        ...     holder(storage).run_id
        'R1'
        >>> holder(storage) is None
        True
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._me = Holder(
            token=secrets.token_hex(8),
            run_id=run_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            place=_place(),
            since=runs.now(),
            state="held" if storage.exclusive else "claimed",
        )
        self._name = ""
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> Lease:
        for _ in range(3):
            number, claims = _highest(self._storage)
            for name, other in claims.items():
                if not _gone(self._storage, name, other):
                    raise self._refused(other)
            if self._claim(number + 1):
                break
        else:
            raise self._refused(None)
        for name in _claims(self._storage):
            if _number(name) <= number:
                self._storage.delete(name)
        if any(other.state != "released" for other in claims.values()):
            time.sleep(GRACE_S)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beat.join()
        # What was given back stays until the next claim, so that its number is not used again.
        self._write("released")

    def check(self) -> None:
        """Make sure that the store is still held, before something that must not be done by two.

        Raises:
            StoreError: `STORE_LOST`.
        """
        check(self._storage, self._me.run_id)

    def _claim(self, number: int) -> bool:
        """Claim a number; False where it is too late for it.

        Raises:
            StoreError: `STORE_HELD`, several claimed it and another's counts.
        """
        if self._storage.exclusive:
            self._name = f"{FOLDER}{number:010d}.json"
            if not self._storage.create(self._name, _text(self._me)):
                return False
            if _highest(self._storage)[0] == number:
                return True
            # Free again only because higher ones came and went since the claims were listed.
            self._storage.delete(self._name)
            return False
        self._name = f"{FOLDER}{number:010d}-{self._me.token}.json"
        self._write("claimed")
        time.sleep(SETTLE_S)
        highest, claims = _highest(self._storage)
        others = [other for other in claims.values() if other.token != self._me.token]
        # One that holds already has waited as long, and saw none of us.
        rivals = [
            other for other in others if highest > number or other.state == "held" or other.token < self._me.token
        ]
        if rivals:
            self._storage.delete(self._name)
            raise self._refused(rivals[0])
        self._write("held")
        return True

    def _refused(self, other: Holder | None) -> StoreError:
        who = (
            f"run {other.run_id} on {other.host} (process {other.pid}) since {other.since}"
            if other
            else "runs that come and go"
        )
        return StoreError(
            "STORE_HELD",
            f"{self._storage.root} is being written by {who}; wait for it, or end it and try again "
            f"after {LIFETIME_S:.0f} s",
            transient=True,
        )

    def _keep_alive(self) -> None:
        while not self._ended.wait(LIFETIME_S / 6):
            try:
                # Harmless where another has taken over: this claim is no longer the highest.
                self._write("held")
            except (OSError, StoreError):
                # A store that is out of reach for a moment: the next beat tries again, well within the lifetime.
                continue

    def _write(self, state: Literal["claimed", "held", "released"]) -> None:
        self._storage.put(self._name, _text(replace(self._me, state=state)))


def holder(storage: Storage) -> Holder | None:
    """Who holds a store, or None. One whose process is known to have ended does not; one elsewhere may be dead too."""
    _, claims = _highest(storage)
    held = [claim for claim in claims.values() if claim.state == "held" and not _ended_here(claim)]
    return held[0] if held else None


def check(storage: Storage, run_id: str) -> None:
    """Make sure that a run still holds the store, for workers that may have outlived it.

    Raises:
        StoreError: `STORE_LOST`, it does not; what it has not committed is another run's to do.
    """
    _, claims = _highest(storage)
    held = [claim for claim in claims.values() if claim.state == "held"]
    if not held or held[0].run_id != run_id:
        raise StoreError("STORE_LOST", f"run {run_id} no longer holds {storage.root}; its last rows are not committed")


def _claims(storage: Storage) -> list[str]:
    return [name for name in storage.list(FOLDER) if name != CLOCK]


def _number(name: str) -> int:
    return int(name.removeprefix(FOLDER)[:10])


def _highest(storage: Storage) -> tuple[int, dict[str, Holder]]:
    """The highest number, and its claims in order; more than one only where create is not exclusive."""
    names = _claims(storage)
    number = max(map(_number, names), default=0)
    found = {}
    for name in names:
        if _number(name) == number:
            try:
                found[name] = Holder(**json.loads(storage.get(name)))
            except FileNotFoundError:
                # Withdrawn, or given way to a higher one, since it was listed.
                continue
    return number, found


def _text(claim: Holder) -> bytes:
    return json.dumps(asdict(claim)).encode()


def _gone(storage: Storage, name: str, claim: Holder) -> bool:
    """Whether a claim stands in nobody's way: given back, or its holder dead."""
    if claim.state == "released" or _ended_here(claim):
        return True
    storage.put(CLOCK, b"")
    try:
        return storage.modified(CLOCK) - storage.modified(name) > LIFETIME_S
    except FileNotFoundError:
        # Withdrawn, or given way to a higher one: who claims the next number will see.
        return True


def _ended_here(claim: Holder) -> bool:
    return claim.place == _place() and not _running(claim.pid)


def _place() -> str:
    """Where process numbers mean the same: two containers on one host may even share its name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
