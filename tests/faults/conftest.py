from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest

from serpipe.store import damage, lease, ledger, runs
from serpipe.store.storage import Storage
from tests.faults.crashes import Pass
from tests.faults.scenarios import pass_of
from tests.faults.world import RUN_IDS
from tests.store.conftest import bucket as bucket


@pytest.fixture(autouse=True)
def _the_killed_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever held a store when it was killed is this process, which lives on."""
    monkeypatch.setattr(lease, "_running", lambda pid: False)
    monkeypatch.setattr(lease, "GRACE_S", 0.0)
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(runs, "new_run_id", RUN_IDS)
    # One at a time, so that what is killed is killed in the same state again.
    monkeypatch.setattr(ledger, "_AT_ONCE", 1)
    monkeypatch.setattr(lease, "_AT_ONCE", 1)
    # A store that is copied has other dates than the one that was verified.
    monkeypatch.setattr(damage, "stamp", _content)
    # A kill, not a power cut: what was written is there.
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def passes() -> dict[str, Pass]:
    return {}


@pytest.fixture
def passed(passes: dict[str, Pass]) -> Callable[[str], Pass]:
    """Each undisturbed pass, made once."""

    def once(name: str) -> Pass:
        if name not in passes:
            passes[name] = pass_of(name)
        return passes[name]

    return once


def _content(storage: Storage, name: str) -> str | None:
    return hashlib.sha256(storage.get(name)).hexdigest() if storage.exists(name) else None
