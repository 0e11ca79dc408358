"""Run records: what a run was asked, by whom the store was held, how it ended."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from serpipe.errors import StoreError
from serpipe.store import layout
from serpipe.store.storage import Storage

TABLES = ("recordings", "segments", "predictions", "embeddings", "frames", "quarantine", "ledger")
"""What a run's commits are made of."""

MANY = 16
"""Records of a remote store above which they are read side by side."""

_TIME = "%Y%m%dT%H%M%S%fZ"

State = Literal["running", "stopped", "finished", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of `label`.

    Attributes:
        run_id: sorts by time.
        state: `running` until it ended; `stopped` by an error or on request. What a stopped run, or a dead one still
            marked `running`, left open is closed by the next run, which marks it `interrupted`.
        started: UTC, ISO 8601.
        ended: UTC, ISO 8601.
        shard: the recordings it asked for, as `0/4`; nothing stands for all.
        manifest: where the manifest lies, without a query.
        audio: audio fingerprint.
        models: name to model fingerprint.
        asked: the options, for the record.
        result: counts at the end; of a stopped run, under `stopped`, what stopped it.
        forecast: what `serpipe plan` had said of it; empty where it was not given.
    """

    run_id: str
    state: State = "running"
    started: str = ""
    ended: str | None = None
    shard: str = ""
    manifest: str = ""
    audio: str = ""
    models: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    forecast: dict[str, Any] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether it began and did not come to its end, and no later run has closed it."""
        return self.state in ("running", "stopped")


def new_run_id() -> str:
    """Sorts by start; two of one moment differ.

    Examples:
        >>> len(new_run_id())
        31
    """
    return f"{datetime.now(UTC):{_TIME}}-{secrets.token_hex(4)}"


def now() -> str:
    """UTC as stored in run records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(storage: Storage, run: Run) -> None:
    """Write or rewrite a run's record."""
    storage.put(layout.run(run.run_id), json.dumps(asdict(run), indent=1, default=str).encode())


def finish(storage: Storage, run: Run, *, state: State = "finished", result: dict[str, Any] | None = None) -> None:
    """Mark a run as ended."""
    record = asdict(run) | {"state": state, "ended": run.ended or now(), "result": result or run.result}
    save(storage, Run(**record))


def load(storage: Storage) -> list[Run]:
    """Every run of the store, oldest first.

    Raises:
        StoreError: `STORE_DAMAGED`, a record cannot be read.
    """
    found, damaged = readable(storage)
    if damaged:
        raise unreadable(storage, damaged)
    return found


def unreadable(storage: Storage, damaged: Sequence[str]) -> StoreError:
    """What is said of records that cannot be read."""
    return StoreError(
        "STORE_DAMAGED",
        f"{storage.path(layout.run(damaged[0]))} is not a run's record as serpipe writes it; the next `serpipe label` "
        "without --shard, `retry` or `gc` makes a new one from what the run has written",
    )


def readable(storage: Storage) -> tuple[list[Run], list[str]]:
    """Every run whose record can be read, oldest first, and the ids of the others."""
    names = sorted(name for name in storage.list("runs/") if name.endswith("/run.json"))
    # A year of nights, one request after the other, is most of what an empty night takes on a remote store.
    with ThreadPoolExecutor(1 if storage.local or len(names) < MANY else MANY) as pool:
        texts = pool.map(storage.get, names)
        found = {name.split("/")[1]: _parsed(text) for name, text in zip(names, texts, strict=True)}
    return [run for run in found.values() if run is not None], [name for name, run in found.items() if run is None]


def _parsed(text: bytes) -> Run | None:
    try:
        return Run(**json.loads(text))
    except (ValueError, TypeError):
        return None


def made_anew(storage: Storage, run_id: str) -> Run:
    """A record for a run whose own cannot be read, as of one that did not end: what it wrote tells enough to close it.

    Args:
        storage: the store.
        run_id: the run.
    """
    models, audio = _written_by(storage, run_id)
    result = {"record": "damaged, and made anew"}
    return Run(run_id=run_id, started=_began(run_id), audio=audio, models=models, result=result)


def _began(run_id: str) -> str:
    try:
        began = datetime.strptime(run_id.split("-")[0], _TIME)
    except ValueError:
        return ""
    return began.replace(tzinfo=UTC).isoformat(timespec="seconds")


def _written_by(storage: Storage, run_id: str) -> tuple[dict[str, str], str]:
    """With which models and audio a run labelled, from where its files lie."""
    models, audio = {}, ""
    for table in ("predictions", "embeddings", "frames", "segments"):
        for name in storage.list(f"{table}/"):
            if layout.run_of(layout.stem(name)) == run_id:
                steps = dict(step.split("=", 1) for step in name.split("/")[1:-1])
                audio = steps.get("audio", audio)
                if "model" in steps:
                    models[steps["model"]] = steps["fp"]
    return models, audio


def unfinished(storage: Storage) -> list[Run]:
    """Runs that began and did not come to their end, and that no later run has closed."""
    return [run for run in load(storage) if run.open]


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of a run beside its forecast.

    Attributes:
        what: `wall`, `recordings`, `audio`, `segments`, `quarantine`, `bytes`, or `cost` where a price was given.
        unit: `s`, `h`, `price` in whatever currency, or empty for a count.
        forecast: what was said.
        actual: what it was.
    """

    what: str
    unit: str
    forecast: float
    actual: float

    @property
    def ratio(self) -> float | None:
        """Actual over forecast; None where the forecast was nothing."""
        return self.actual / self.forecast if self.forecast else None


def compared(run: Run) -> list[Compared]:
    """What a run took beside what was forecast; nothing for one without a forecast or an end.

    Examples:
        >>> run = Run(
        ...     run_id="R1",
        ...     state="finished",
        ...     result={"elapsed_s": 90.0, "audio_s": 7200.0, "recordings": 2, "segments": 9, "failed": 0,
        ...             "bytes": 50},
        ...     forecast={
        ...         "wall_s": 100.0,
        ...         "work": {"recordings": 2, "audio_s": {"value": 3600.0}},
        ...         "segments": {"value": 10.0},
        ...         "quarantined": {"value": 0.0},
        ...         "bytes": {"segments": 40.0},
        ...         "cost": 5.0,
        ...     },
        ... )
        >>> [(line.what, line.ratio) for line in compared(run)]
        [('wall', 0.9), ('recordings', 1.0), ('audio', 2.0), ('segments', 0.9), ('quarantine', None), ('bytes', 1.25),
         ('cost', 0.9)]
    """
    said, was = run.forecast, run.result
    if not said or "elapsed_s" not in was:
        return []
    # The forecast's machines for as long as it truly took; whether the run had those is not known here.
    cost = said.get("cost")
    costs = [Compared("cost", "price", cost, cost / said["wall_s"] * was["elapsed_s"])] if cost else []
    return [
        Compared("wall", "s", said["wall_s"], was["elapsed_s"]),
        # Where they differ, as for a shard or a second try, so will the rest.
        Compared("recordings", "", said["work"]["recordings"], was["recordings"]),
        Compared("audio", "h", said["work"]["audio_s"]["value"] / 3600, was["audio_s"] / 3600),
        Compared("segments", "", said["segments"]["value"], was["segments"]),
        Compared("quarantine", "", said["quarantined"]["value"], was["failed"]),
        Compared("bytes", "", sum(said["bytes"].values()), was["bytes"]),
        *costs,
    ]


def told(line: Compared) -> str:
    """A figure beside its forecast, for people.

    Examples:
        >>> told(Compared("wall", "s", 100.0, 90.0)), told(Compared("quarantine", "", 0.0, 2))
        ('wall: forecast 100 s, was 90 s (0.90)', 'quarantine: forecast 0, was 2')
        >>> told(Compared("cost", "price", 2.5, 2.0))
        'cost: forecast 2.50, was 2.00 (0.80)'
    """
    form = ",.2f" if line.unit in ("h", "price") else ",.0f"
    unit = f" {line.unit}" if line.unit in ("s", "h") else ""
    ratio = "" if line.ratio is None else f" ({line.ratio:.2f})"
    return f"{line.what}: forecast {line.forecast:{form}}{unit}, was {line.actual:{form}}{unit}{ratio}"


def written(storage: Storage, run_id: str) -> int:
    """Bytes that a run has put into the tables of the store."""
    names = [name for table in TABLES for name in storage.list(f"{table}/") if f"/{run_id}-" in name]
    with ThreadPoolExecutor(1 if storage.local else MANY) as pool:
        return sum(pool.map(lambda name: int(storage.fs.size(storage.path(name))), names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; for show only.

    Attributes:
        at: UTC, ISO 8601, when this was so.
        elapsed_s: seconds since the pipeline started.
        audio_s: seconds of audio labelled.
        total_s: seconds of audio the plan expects; a guess where the manifest has no durations.
        segments: segments labelled.
        quarantined: rows put in quarantine.
    """

    at: str
    elapsed_s: float
    audio_s: float
    total_s: float
    segments: int
    quarantined: int

    @property
    def x_realtime(self) -> float:
        """Seconds of audio labelled in a second."""
        return self.audio_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at this speed; None where it cannot be told.

        Examples:
            >>> Progress(at="", elapsed_s=10.0, audio_s=100.0, total_s=150.0, segments=9, quarantined=0).left_s
            5.0
        """
        if not self.audio_s or self.audio_s > self.total_s:
            # Without claimed durations the total is a guess from file sizes, and this one was too low.
            return None
        return (self.total_s - self.audio_s) * self.elapsed_s / self.audio_s


def save_progress(storage: Storage, run_id: str, progress: Progress) -> None:
    """Tell other processes how far a run is."""
    storage.put(layout.progress(run_id), json.dumps(asdict(progress), indent=1).encode())


def load_progress(storage: Storage, run_id: str) -> Progress | None:
    """How far a run was when it last told; None where it never did, or not so that it can be read."""
    try:
        return Progress(**json.loads(storage.get(layout.progress(run_id))))
    except (FileNotFoundError, ValueError, TypeError):
        return None
