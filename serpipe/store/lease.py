"""One writer a store: numbered claims, of which the highest counts, kept alive while the run lives.

A claim is never taken away from another: whoever finds the highest one given back, or its holder dead, claims the next
number, and numbers are never used twice. So two that find the same dead holder cannot undo each other's claim, and a
late sign of life goes to a claim that no longer counts.

A claim is for the whole store or for a shard of it. Claims for different shards of one count stand side by side; of any
others the higher number counts. A claim takes away only claims that everything it stands against would count over, so
what has been taken over stays so.

Where a store creates exclusively, a number belongs to one claim, and that is a promise. Elsewhere every claim has a
name of its own: write, wait, list, the lowest of the number wins. That holds while a claim is listed within `SETTLE_S`.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from serpipe.errors import StoreError
from serpipe.shard import Shard
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

LATE = "COMMIT_LATE"
"""What a worker is told whose run has given it up."""

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
        shard: what of the store it is for, as `0/4`; nothing stands for the whole.
        step: which pass over its plan the run is at, from 0.
    """

    token: str
    run_id: str
    host: str
    pid: int
    place: str
    since: str
    state: Literal["claimed", "held", "released"]
    shard: str = ""
    step: int = 0

    def conflicts(self, other: Holder) -> bool:
        """Whether two must not hold at once."""
        if not self.shard or not other.shard:
            return True
        return Shard.parse(self.shard).conflicts(Shard.parse(other.shard))


class Lease:
    """Held for the length of a `with` block.

    Args:
        storage: the store.
        run_id: the run that wants to write.
        shard: the recordings it will write of; all by default.

    Raises:
        StoreError: `STORE_HELD`, another run writes there, or in the same shard; the message says which, where and
            since when.

    Examples:
        >>> import tempfile
        >>> storage = Storage(tempfile.mkdtemp())
        >>> with Lease(storage, "R1"):
        ...     [holder.run_id for holder in holders(storage)]
        ['R1']
        >>> holders(storage)
        []
    """

    def __init__(self, storage: Storage, run_id: str, *, shard: Shard | None = None) -> None:
        self._storage = storage
        self._me = Holder(
            token=secrets.token_hex(8),
            run_id=run_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            place=_place(),
            since=runs.now(),
            state="held" if storage.exclusive else "claimed",
            shard="" if shard is None else str(shard),
        )
        self._name = ""
        self._lock = threading.Lock()
        self._signed = time.monotonic()
        self._trouble: Exception | None = None
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> Lease:
        for attempt in range(_TRIES):
            found = _read(self._storage)
            rivals = self._rivals(found)
            self._refuse_living(rivals)
            if self._claim(max(map(_number, found), default=0) + 1, gone=rivals):
                break
            # Others claim shards of their own at the same moment.
            time.sleep(random.uniform(0, 0.02) * attempt)
        else:
            raise self._refused(None)
        self._clear()
        # Also for one that another shard has taken over from, perhaps just now. Shards leave a dead claim of the whole
        # store where it is, so each of their runs waits until one of the whole store has cleared it.
        if any(other.state != "released" and self._me.conflicts(other) for other in found.values()):
            time.sleep(GRACE_S)
        self._signed = time.monotonic()
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
            StoreError: `STORE_LOST`, it is not, or nobody can know it any more.
        """
        check(self._storage, self._me.run_id)
        silent = time.monotonic() - self._signed
        if self._trouble is not None and silent > LIFETIME_S:
            raise StoreError(
                "STORE_LOST",
                f"run {self._me.run_id} could not sign that it holds {self._storage.shown} for {silent:.0f} s "
                f"({type(self._trouble).__name__}: {self._trouble}), so another may take it; what is committed counts, "
                "and the same command goes on from there",
            )

    def advance(self) -> int:
        """Begin another pass over the run's plan: workers of the passes before it commit nothing more.

        Returns:
            What the workers of the new one give to `check`.
        """
        with self._lock:
            self._me = replace(self._me, step=self._me.step + 1)
        self._write("held")
        return self._me.step

    def _claim(self, number: int, *, gone: Collection[str] = ()) -> bool:
        """Claim a number; False where it is too late for it.

        Args:
            number: above every one that was listed.
            gone: claims that were found to stand in nobody's way.

        Raises:
            StoreError: `STORE_HELD`, several claimed it and another's counts.
        """
        if self._storage.exclusive:
            self._name = f"{FOLDER}{number:010d}.json"
            if not self._storage.create(self._name, _text(self._me)):
                return False
        else:
            self._name = f"{FOLDER}{number:010d}-{self._me.token}.json"
            self._write("claimed")
            time.sleep(SETTLE_S)
        found = _read(self._storage)
        late = self._storage.exclusive and max(map(_number, found), default=0) > number
        others = {name: other for name, other in found.items() if name != self._name}
        # A listing is not of one moment: one that began in the meantime may show only now.
        new = {name: other for name, other in self._rivals(others).items() if name not in gone}
        try:
            if self._storage.exclusive:
                self._refuse_living({} if late else new)
            else:
                self._refuse_rivals(number, new)
        except StoreError:
            self._storage.delete(self._name)
            raise
        if late:
            # Free again only because higher ones came and went since the claims were listed.
            self._storage.delete(self._name)
            return False
        if not self._storage.exclusive:
            self._write("held")
        return True

    def _refuse_rivals(self, number: int, new: dict[str, Holder]) -> None:
        for name, other in new.items():
            # One that holds already has waited as long, and saw none of us.
            if (
                _number(name) > number
                or other.state == "held"
                or (_number(name), other.token) < (number, self._me.token)
            ):
                raise self._refused(other)

    def _rivals(self, found: dict[str, Holder]) -> dict[str, Holder]:
        """Those that count of the claims that must not stand beside this one."""
        return {name: other for name, other in _counting(found).items() if self._me.conflicts(other)}

    def _refuse_living(self, rivals: dict[str, Holder]) -> None:
        for name, other in rivals.items():
            if not _gone(self._storage, name, other):
                raise self._refused(other)

    def _clear(self) -> None:
        """Delete lower claims; those beside which others stand only where this one stands against all of them too."""
        number = _number(self._name)
        for name, other in _read(self._storage).items():
            if _number(name) < number and self._me.shard in ("", other.shard):
                self._storage.delete(name)

    def _refused(self, other: Holder | None) -> StoreError:
        who = "runs that come and go"
        if other:
            of = f" of shard {other.shard}" if other.shard else ""
            who = f"run {other.run_id}{of} on {other.host} (process {other.pid}) since {other.since}"
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
            except Exception as error:
                # Mostly a store that is out of reach for a moment: the next beat tries again, well within the lifetime.
                # Whatever it is, a thread that ended here would let the claim die unseen.
                self._trouble = error
            else:
                self._trouble, self._signed = None, time.monotonic()

    def _write(self, state: Literal["claimed", "held", "released"]) -> None:
        # One at a time: a sign of life that was on its way would take a new step back.
        with self._lock:
            self._storage.put(self._name, _text(replace(self._me, state=state)))


def holders(storage: Storage) -> list[Holder]:
    """Who holds a store, or shards of it. Whose process is known to have ended does not; one elsewhere may be dead."""
    return [claim for claim in _held(storage).values() if not _ended_here(claim)]


def signs(storage: Storage) -> list[tuple[Holder, float]]:
    """Who holds a store, or shards of it, each with the seconds since its last sign of life.

    Nothing is written, so the seconds are this machine's, of a time that the store's clock told.
    """
    found = []
    for name, claim in _held(storage).items():
        if not _ended_here(claim):
            try:
                found.append((claim, max(time.time() - storage.modified(name), 0.0)))
            except FileNotFoundError:
                # Given way to a higher claim since it was listed.
                continue
    return found


def check(storage: Storage, run_id: str, step: int | None = None) -> None:
    """Make sure that a run still holds the store or its shard, for workers that may have outlived it.

    Args:
        storage: the store.
        run_id: the run.
        step: the pass over its plan that the worker belongs to; any by default.

    Raises:
        StoreError: `STORE_LOST`, it does not; what it has not committed is another run's to do. `COMMIT_LATE`, it does,
            and has given the worker up; what that has not committed is done again by a later pass.
    """
    mine = [claim for claim in _held(storage).values() if claim.run_id == run_id]
    if not mine:
        raise StoreError("STORE_LOST", f"run {run_id} no longer holds {storage.root}; its last rows are not committed")
    if step is not None and mine[0].step != step:
        raise StoreError(
            LATE, f"run {run_id} has gone on without this worker and does its work again; its rows are not committed"
        )


def _number(name: str) -> int:
    return int(name.removeprefix(FOLDER)[:10])


def _read(storage: Storage) -> dict[str, Holder]:
    """Every claim by name, in order."""
    names = [name for name in storage.list(FOLDER) if _NAME.fullmatch(name)]
    if len(names) > 1:
        with ThreadPoolExecutor(min(len(names), _AT_ONCE)) as pool:
            claims = list(pool.map(lambda name: _claim_of(storage, name), names))
    else:
        claims = [_claim_of(storage, name) for name in names]
    return {name: claim for name, claim in zip(names, claims, strict=True) if claim is not None}


def _claim_of(storage: Storage, name: str) -> Holder | None:
    try:
        return Holder(**json.loads(storage.get(name)))
    except FileNotFoundError:
        # Withdrawn, or given way to a higher one, since it was listed.
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(
            "STORE_DAMAGED",
            f"{storage.path(name)} is not a claim as serpipe writes it, so nobody can tell who holds {storage.shown}; "
            "make sure that nothing writes there, delete it, then try again",
        ) from error


def _counting(found: dict[str, Holder]) -> dict[str, Holder]:
    """Claims that no higher one stands against; several of one number only where create is not exclusive."""
    return {
        name: claim
        for name, claim in found.items()
        if not any(_number(above) > _number(name) and other.conflicts(claim) for above, other in found.items())
    }


def _held(storage: Storage) -> dict[str, Holder]:
    """Claims that hold: of those of one number that stand against each other, the first."""
    held: dict[str, Holder] = {}
    for name, claim in _counting(_read(storage)).items():
        if claim.state == "held" and not any(other.conflicts(claim) for other in held.values()):
            held[name] = claim
    return held


_NAME = re.compile(re.escape(FOLDER) + r"[0-9]{10}(-[0-9a-f]+)?\.json")
"""Of a claim; what else somebody puts there claims nothing."""

_TRIES = 30

_AT_ONCE = 16


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
