"""Run records: what a run was asked, by whom the store was held, how it ended."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from serpipe.store import layout
from serpipe.store.storage import Storage

State = Literal["running", "finished", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of `label`.

    Attributes:
        run_id: sorts by time.
        state: `running` until it ended; a record left `running` by a dead process is closed by the next run.
        started: UTC, ISO 8601.
        ended: UTC, ISO 8601.
        manifest: where the manifest lies, without a query.
        audio: audio fingerprint.
        models: name to model fingerprint.
        asked: the options, for the record.
        result: counts at the end.
    """

    run_id: str
    state: State = "running"
    started: str = ""
    ended: str | None = None
    manifest: str = ""
    audio: str = ""
    models: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


def new_run_id() -> str:
    """Sorts by start; two of one moment differ.

    Examples:
        >>> len(new_run_id())
        31
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(4)}"


def now() -> str:
    """UTC as stored in run records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(storage: Storage, run: Run) -> None:
    """Write or rewrite a run's record."""
    storage.put(layout.run(run.run_id), json.dumps(asdict(run), indent=1, default=str).encode())


def finish(storage: Storage, run: Run, *, state: State = "finished", result: dict[str, Any] | None = None) -> None:
    """Mark a run as ended."""
    record = asdict(run) | {"state": state, "ended": now(), "result": result or run.result}
    save(storage, Run(**record))


def load(storage: Storage) -> list[Run]:
    """Every run of the store, oldest first."""
    names = [name for name in storage.list("runs/") if name.endswith("/run.json")]
    return [Run(**json.loads(storage.get(name))) for name in sorted(names)]


def unfinished(storage: Storage) -> list[Run]:
    """Runs that began and never ended."""
    return [run for run in load(storage) if run.state == "running"]
