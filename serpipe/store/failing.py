"""What fails now: a view of the quarantine log, which itself is never rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import layout, ledger, parquet, schemas, streaming
from serpipe.store.storage import Storage

_KEYS = ["recording_id", "segment_id", "model", "stage", "start_s", "end_s"]
"""A given segment outside its recording has no id, only times."""

_OF_ENTRIES = ["recording_id", "unit", "model", "final", "status", "commit"]


def log_manifest(storage: Storage, run: str, manifest: str, rows: pa.Table) -> None:
    """Put the rows of a manifest that cannot be used in quarantine, where they are others than the last time.

    Args:
        storage: the store.
        run: the run that read the manifest.
        manifest: where it lies.
        rows: all of them, of `schemas.QUARANTINE`; none says that the manifest is mended.
    """
    before: set[tuple[object, ...]] = set()
    for name, told in _manifests(storage):
        if told == manifest:
            before = _said(parquet.read(storage, [name], schemas.QUARANTINE))
    if before != _said(rows):
        name = layout.quarantine(layout.of_driver(run, "manifest"))
        parquet.write(storage, name, rows, schemas.QUARANTINE, {"manifest": manifest})


def now(storage: Storage, log: pa.Table, recordings: Iterable[str]) -> pa.Table:
    """What of a log fails now; memory holds what concerns the log alone.

    Args:
        storage: the store.
        log: rows of `schemas.QUARANTINE`.
        recordings: the objects of `recordings/` that may know of newer contents.
    """
    if not log.num_rows:
        return log
    columns, uris = ["uri", "recording_id", "run_id"], log["uri"].unique()
    newer = [schemas.RECORDINGS.empty_table().select(columns)]
    for rows in streaming.joined(storage, recordings, schemas.RECORDINGS, columns):
        newer.append(rows.filter(pc.is_in(rows["uri"], value_set=uris)))
    entries = ledger.of(storage, log["recording_id"], columns=_OF_ENTRIES)
    return failing(storage, log, entries, pa.concat_tables(newer))


def failing(storage: Storage, log: pa.Table, entries: pa.Table, recordings: pa.Table) -> pa.Table:
    """The last event of each recording, segment and model that nothing has mended since.

    Events of a file's old content leave when a later run has met another content of it.

    Args:
        storage: the store.
        log: rows of `schemas.QUARANTINE`.
        entries: the ledger, or what of it concerns these recordings.
        recordings: rows of `schemas.RECORDINGS`, at least where they lie and which run met them.
    """
    if not log.num_rows:
        return log
    log = _of_manifests_as_they_are(storage, log)
    order = log.append_column("row", pa.array(range(log.num_rows), pa.int64())).sort_by("time")
    last = order.group_by(_KEYS, use_threads=False).aggregate([("row", "last")])
    log = _of_contents_as_they_are(log.take(last["row_last"]), recordings)
    runs = _Runs(entries, log["recording_id"])
    return log.filter(pa.array([not runs.mended(event) for event in _events(log)], pa.bool_()))


class _Runs:
    """Which runs settled what, of the recordings of a log."""

    def __init__(self, entries: pa.Table, recordings: pa.ChunkedArray) -> None:
        wanted = recordings.unique().cast(pa.binary())
        mine = entries.filter(pc.is_in(entries["recording_id"].cast(pa.binary()), value_set=wanted))
        self._ended: dict[bytes, str] = {}
        self._first: dict[tuple[bytes, int], str] = {}
        self._last: dict[tuple[bytes, int, str], str] = {}
        columns = (mine[name].to_pylist() for name in _OF_ENTRIES)
        for recording, unit, model, final, status, commit in zip(*columns, strict=True):
            run = layout.run_of(commit)
            if final and status != "failed":
                self._ended[recording] = max(self._ended.get(recording, ""), run)
            self._first[recording, unit] = min(self._first.get((recording, unit), run), run)
            key = recording, unit, model
            self._last[key] = max(self._last.get(key, ""), run)

    def mended(self, event: dict[str, Any]) -> bool:
        """Whether a later run did again, and well, what the event is about: it would have told if it had not."""
        recording, unit, model = (event[name] for name in ("recording_id", "unit", "model"))
        run: str = event["run_id"]
        if event["stage"] == "manifest":
            return False
        if event["segment_id"] is None and event["stage"] != "segment":
            return self._ended.get(recording, "") > run
        if unit is None:
            return False
        if model is not None:
            return self._last.get((recording, unit, model), "") > run
        # Segments are cut when the first model settles their unit; what another adds later says nothing about them.
        return self._first.get((recording, unit), "") > run


def _of_manifests_as_they_are(storage: Storage, log: pa.Table) -> pa.Table:
    """The log without rows of manifests that a later run read and found mended, or broken in another way."""
    bad = pc.equal(log["stage"], "manifest")
    if not pc.any(bad).as_py():
        return log
    latest = {told: layout.run_of(layout.stem(name)) for name, told in _manifests(storage)}
    stands = pc.is_in(log["run_id"], value_set=pa.array(sorted(latest.values()), pa.string()))
    return log.filter(pc.or_(pc.invert(bad), stands))


def _of_contents_as_they_are(log: pa.Table, recordings: pa.Table) -> pa.Table:
    """The log without events of contents that a file no longer has."""
    names = ["uri", "recording_id", "run_id"]
    named = log.filter(pc.and_(pc.is_valid(log["uri"]), pc.not_equal(log["stage"], "manifest")))
    same = recordings.filter(pc.is_in(recordings["uri"], value_set=named["uri"].combine_chunks().unique()))
    newest: dict[str, tuple[str, bytes]] = {}
    for met in (named, same):
        for uri, recording, run in zip(*(met[name].to_pylist() for name in names), strict=True):
            newest[uri] = max(newest.get(uri, ("", b"")), (run, recording))
    stands = [
        stage == "manifest" or uri not in newest or newest[uri][1] == recording or newest[uri][0] <= run
        for uri, recording, run, stage in zip(*(log[name].to_pylist() for name in (*names, "stage")), strict=True)
    ]
    return log.filter(pa.array(stands, pa.bool_()))


def _manifests(storage: Storage) -> Iterator[tuple[str, str]]:
    """What was logged of manifests, oldest first: the file, and where the manifest lies."""
    for name in storage.list("quarantine/"):
        if layout.stem(name).endswith(layout.of_driver("", "manifest")):
            yield name, parquet.facts(storage, name).get("manifest", "")


def _said(rows: pa.Table) -> set[tuple[object, ...]]:
    return set(zip(*(rows[name].to_pylist() for name in ("recording_id", "code", "message")), strict=True))


def _events(log: pa.Table) -> Iterator[dict[str, Any]]:
    names = ("recording_id", "segment_id", "unit", "model", "stage", "run_id")
    for values in zip(*(log[name].to_pylist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))
