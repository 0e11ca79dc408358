"""A store's state: what is done, what is left, what fails, what runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import current, layout, lease, plans, runs
from serpipe.store.reading import Store

LAST_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """What one model fingerprint has done of what a store holds now.

    Attributes:
        model: name.
        fp: model fingerprint.
        recordings: labelled to their end.
        hours: audio of these.
        segments: predictions.
        failed_recordings: those of which a part, or all, is settled as failed.
        failed_segments: segments the model itself fails on.
        left_recordings: of the last plan, or failing, and settled by nobody yet.
        left_hours: about how much audio that is.
    """

    model: str
    fp: str
    recordings: int
    hours: float
    segments: int
    failed_recordings: int
    failed_segments: int
    left_recordings: int
    left_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A run that holds a store, or a shard of it, or died while it did.

    Attributes:
        run_id: which.
        host: where.
        pid: its process there.
        since: UTC, ISO 8601.
        shard: its shard of the recordings, as `0/4`; nothing stands for all.
        progress: how far it is; None before its pipeline has started.
        sign_s: seconds since its last sign of life, which it gives every `serpipe.store.lease.LIFETIME_S` / 6.
        alive: whether that is recent enough for others to be kept out.
    """

    run_id: str
    host: str
    pid: int
    since: str
    shard: str
    progress: runs.Progress | None
    sign_s: float
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A store at one moment.

    Attributes:
        store: where it lies.
        recordings: newest versions that decoded to their end.
        hours: audio of these.
        models: by name, then fingerprint.
        failing: what fails now, rows by code, most first.
        running: who holds it, each a shard of its own where there are several; who has died is not `alive`.
        runs: the last ones, oldest first; one that died is `interrupted`.
    """

    store: str
    recordings: int
    hours: float
    models: tuple[ModelStatus, ...]
    failing: dict[str, int]
    running: tuple[Running, ...]
    runs: tuple[runs.Run, ...]


def status(store: Store) -> Status:
    """Look at a store, and at the runs that write there."""
    running = tuple(
        Running(
            run_id=held.run_id,
            host=held.host,
            pid=held.pid,
            since=held.since,
            shard=held.shard,
            progress=runs.load_progress(store.storage, held.run_id),
            sign_s=sign_s,
            alive=sign_s <= lease.LIFETIME_S,
        )
        for held, sign_s in lease.signs(store.storage)
    )
    alive = {run.run_id for run in running if run.alive}
    every = [
        replace(run, state="interrupted") if run.state == "running" and run.run_id not in alive else run
        for run in store.runs()
    ]
    recordings, failing = store.recordings(), store.failing()
    return Status(
        store=store.storage.shown,
        recordings=recordings.num_rows,
        hours=_hours(recordings["duration_s"]),
        models=tuple(_models(store, recordings, failing, every)),
        failing=dict(Counter(failing["code"].to_pylist()).most_common()),
        running=running,
        runs=tuple(every[-LAST_RUNS:]),
    )


def lines(status: Status) -> Iterator[str]:
    """A store's state for people."""
    yield f"{status.recordings:,} recordings, {status.hours:.2f} h of audio"
    for model in status.models:
        yield (
            f"model {model.model} fp {model.fp}: {model.segments:,} segments of {model.recordings:,} recordings "
            f"({model.hours:.2f} h) labelled, {model.left_recordings:,} recordings ({model.left_hours:.2f} h) left, "
            f"{model.failed_recordings:,} recordings and {model.failed_segments:,} segments failed"
        )
    for code, count in status.failing.items():
        yield f"failing {code}: {count:,}"
    for run in status.runs:
        ended = f", ended {run.ended}" if run.ended else ""
        yield f"run {run.run_id}: {run.state}, started {run.started}{ended}, {run.manifest}"
        for line in runs.compared(run):
            yield f"  {runs.told(line)}"
    yield from map(_running, status.running)


def _running(run: Running) -> str:
    shard = f", shard {run.shard}," if run.shard else ""
    who = f"{run.run_id}{shard} on {run.host} (process {run.pid}) since {run.since}"
    now = run.progress
    if not run.alive:
        told = "" if now is None else f", at {now.audio_s / 3600:.2f} of {now.total_s / 3600:.2f} h"
        return f"interrupted: {who}; no sign of life for {run.sign_s:,.0f} s{told}; the same command goes on from there"
    who = f"running: {who}, last sign {run.sign_s:.0f} s ago"
    if now is None:
        return f"{who}; it has not begun to label"
    left = "an unknown time" if now.left_s is None else f"{now.left_s:.0f} s"
    return (
        f"{who}; {now.audio_s / 3600:.2f} of {now.total_s / 3600:.2f} h, {now.x_realtime:.0f} x real time, "
        f"{left} left, {now.quarantined:,} quarantined, as of {now.at}"
    )


def _models(store: Store, recordings: pa.Table, failing: pa.Table, every: list[runs.Run]) -> Iterator[ModelStatus]:
    labels = current.makings(store.entries)
    left = _left(store, labels, failing, every)
    shown = current.without(labels, store.stale.labels)
    pairs = shown.group_by(["model", "fp"]).aggregate([]).to_pylist()
    for model, fp in sorted({(pair["model"], pair["fp"]) for pair in pairs} | set(left)):
        mine = shown.filter(pc.and_(pc.equal(shown["model"], model), pc.equal(shown["fp"], fp)))
        ended = mine.filter(pc.and_(mine["whole"], pc.invert(mine["failed"])))["recording_id"]
        durations = recordings.filter(current.among(recordings["recording_id"], ended))["duration_s"]
        refused = pc.and_(pc.equal(failing["model"], model), pc.equal(failing["fp"], fp))
        left_recordings, left_hours = left.get((model, fp), (0, 0.0))
        yield ModelStatus(
            model=model,
            fp=fp,
            recordings=len(ended.unique()),
            hours=_hours(durations),
            segments=pc.sum(mine["rows"]).as_py() or 0,
            failed_recordings=len(mine.filter(mine["failed"])["recording_id"].unique()),
            failed_segments=pc.sum(pc.and_(refused, pc.is_valid(failing["segment_id"]))).as_py() or 0,
            left_recordings=left_recordings,
            left_hours=left_hours,
        )


def _left(
    store: Store, labels: pa.Table, failing: pa.Table, every: list[runs.Run]
) -> dict[tuple[str, str], tuple[int, float]]:
    """Recordings and hours that each model of the last plan has not settled."""
    there = set(store.storage.list("runs/"))
    planned = [run for run in every if layout.plan(run.run_id) in there]
    if not planned:
        return {}
    run = planned[-1]
    # The runs of several shards make one plan together.
    together = {other.shard: other for other in planned if other.shard.partition("/")[2] == run.shard.partition("/")[2]}
    work = pa.concat_tables(
        table
        for other in together.values()
        for table in plans.groups(store.storage, other.run_id, ["recording_id", "work_s", "kept"])
    )
    kept = work["kept"].to_pylist()
    events = failing.filter(pc.not_equal(failing["stage"], "manifest"))["recording_id"].unique()
    other = events.filter(pc.invert(current.among(events, work["recording_id"])))
    found = {}
    for model, fp in run.models.items():
        whole = labels.filter(pc.and_(pc.equal(labels["model"], model), labels["whole"]))
        wanted = pc.and_(pc.equal(whole["fp"], fp), pc.equal(whole["audio"], run.audio))
        ended = whole.filter(wanted)["recording_id"]
        asked = work.filter(pa.array([model not in names for names in kept], pa.bool_()))
        rest = asked.filter(pc.invert(current.among(asked["recording_id"], ended)))
        retried = pc.sum(pc.invert(current.among(other, whole["recording_id"]))).as_py() or 0
        found[model, fp] = (rest.num_rows + retried, _hours(rest["work_s"]))
    return found


def _hours(seconds: pa.ChunkedArray) -> float:
    return (pc.sum(seconds).as_py() or 0.0) / 3600
