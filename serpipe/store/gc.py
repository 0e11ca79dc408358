"""Dropping what newer labels have taken the place of, and what interrupted writers left."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.errors import UsageError
from serpipe.store import closing, current, layout, ledger, rewrite, runs
from serpipe.store.lease import LIFETIME_S, Lease
from serpipe.store.reading import Store
from serpipe.store.rowsets import having, lacking, tuples
from serpipe.store.storage import Storage

_PARTITION = ["model", "fp", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Labels of one making that newer ones have taken the place of.

    Attributes:
        model: model name.
        fp: model fingerprint.
        audio: audio fingerprint.
        recordings: recordings whose labels are dropped.
        predictions: rows of them.
        kept: recordings that keep their labels there, for nothing newer has taken their place.
    """

    model: str
    fp: str
    audio: str
    recordings: int
    predictions: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was dropped, or would be.

    Attributes:
        partitions: by model, fingerprint and audio.
        leftovers: files of interrupted writers, empty ones of dropped partitions, passports of models without labels.
        freed: bytes; of a dry run those of the leftovers alone, for rows are not rewritten to be counted.
        dry_run: whether nothing was dropped.
    """

    partitions: tuple[Partition, ...]
    leftovers: tuple[str, ...]
    freed: int
    dry_run: bool


def gc(store: Store, *, fp: str | None = None, dry_run: bool = False) -> Collected:
    """Drop labels that newer ones of the same model have taken the place of, and leftovers.

    Labels of a recording are dropped when the same model has labelled it again, whole and without a failure, under
    another fingerprint of model or audio; or has so labelled a newer content of the same file. The only labels of a
    recording are never dropped, unless `fp` names their fingerprint.

    Args:
        store: the store.
        fp: drop every label of this fingerprint of a model, replaced or not, and no other.
        dry_run: tell, and change nothing.

    Raises:
        UsageError: `FP_UNKNOWN`, nothing in the store has that fingerprint.
        StoreError: `STORE_HELD`, another run writes there.
    """
    storage = store.storage
    if dry_run:
        doomed = _doomed(store, fp)
        partitions = _partitions(doomed, store.entries)
        gone = _leftovers(storage, lacking(store.entries, doomed, current.LABELS))
        return Collected(partitions=partitions, leftovers=gone, freed=_bytes(storage, gone), dry_run=True)
    with Lease(storage, runs.new_run_id()):
        closing.close_interrupted(storage)
        store = Store(storage)
        doomed = _doomed(store, fp)
        partitions = _partitions(doomed, store.entries)
        before = _bytes(storage)
        if doomed.num_rows:
            rewrite.forget(storage, having(store.entries, doomed, current.LABELS))
        gone = _leftovers(storage, ledger.load(storage, columns=["model", "fp"]))
        for name in gone:
            storage.delete(name)
        return Collected(partitions=partitions, leftovers=gone, freed=max(before - _bytes(storage), 0), dry_run=False)


def _doomed(store: Store, fp: str | None) -> pa.Table:
    """Rows of `current.LABELS` to drop."""
    entries = store.entries
    if fp is not None:
        mine = entries.filter(pc.equal(entries["fp"], fp))
        if not mine.num_rows:
            raise UsageError(
                "FP_UNKNOWN",
                f"nothing in {store.storage.shown} was labelled with fp {fp}; `serpipe status` lists what was",
            )
        return mine.group_by(current.LABELS).aggregate([])
    per = current.makings(entries)
    sound = per.filter(pc.and_(per["whole"], pc.invert(per["failed"])))
    newest: dict[tuple[object, object], int] = {}
    for recording, model, rank in tuples(sound, ["recording_id", "model", "newest"]):
        newest[recording, model] = max(newest.get((recording, model), -1), rank)
    later = _later_contents(store)
    doomed = [
        newest.get((recording, model), -1) > rank or (later.get(recording), model) in newest
        for recording, model, rank in tuples(per, ["recording_id", "model", "newest"])
    ]
    return per.filter(pa.array(doomed, pa.bool_())).select(current.LABELS)


def _later_contents(store: Store) -> dict[object, object]:
    """Of each recording that is an old content of a file, the recording that is its newest."""
    old = set(store.stale.versions.to_pylist())
    if not old:
        return {}
    rows = store.versions
    newest = {uri: name for uri, name in tuples(rows, ["uri", "recording_id"]) if name not in old}
    return {name: newest[uri] for uri, name in tuples(rows, ["uri", "recording_id"]) if name in old and uri in newest}


def _partitions(doomed: pa.Table, entries: pa.Table) -> tuple[Partition, ...]:
    going = having(entries, doomed, current.LABELS)
    staying = lacking(entries, doomed, current.LABELS)
    kept = {tuple(row[key] for key in _PARTITION): row["recordings"] for row in _counts(staying).to_pylist()}
    return tuple(
        Partition(
            model=str(row["model"]),
            fp=str(row["fp"]),
            audio=str(row["audio"]),
            recordings=row["recordings"],
            predictions=row["rows"],
            kept=kept.get(tuple(row[key] for key in _PARTITION), 0),
        )
        for row in _counts(going).sort_by([(key, "ascending") for key in _PARTITION]).to_pylist()
    )


def _counts(entries: pa.Table) -> pa.Table:
    per = entries.group_by(_PARTITION).aggregate([("recording_id", "count_distinct"), ("rows", "sum")])
    return per.rename_columns([*_PARTITION, "recordings", "rows"])


def _leftovers(storage: Storage, entries: pa.Table) -> tuple[str, ...]:
    """Files that nothing needs, given the entries that stay."""
    held = set(tuples(entries, ["model", "fp"]))
    return tuple(sorted([*_parts(storage), *_unlabelled(storage, held)]))


def _unlabelled(storage: Storage, held: set[tuple[object, ...]]) -> Iterator[str]:
    """Passports, and commits that settle nothing, of models without labels."""
    unfinished = {run.run_id for run in runs.unfinished(storage)}
    for name in storage.list("passports/"):
        model, fp, _ = name.removeprefix("passports/").rsplit("-", 2)
        if (model, fp) not in held:
            yield name
    for name in storage.list("predictions/"):
        steps = dict(step.split("=", 1) for step in name.split("/")[1:-1])
        if (steps["model"], steps["fp"]) not in held and layout.run_of(layout.stem(name)) not in unfinished:
            yield name


def _parts(storage: Storage) -> Iterator[str]:
    """Half-written files on a local disk whose writers must be dead."""
    if not storage.local:
        return
    for name, entry in storage.listing("", hidden=True).items():
        file = posixpath.basename(name)
        if file.startswith(".") and file.endswith(".part") and entry["mtime"] < time.time() - LIFETIME_S:
            yield name


def _bytes(storage: Storage, names: tuple[str, ...] | None = None) -> int:
    """Size of some objects, or of all."""
    sizes = {name: entry["size"] or 0 for name, entry in storage.listing("", hidden=True).items()}
    return sum(sizes.values()) if names is None else sum(sizes.get(name, 0) for name in names)
