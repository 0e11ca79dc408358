"""Failures that the ledger knows of against `quarantine`, which says why: none may be without a reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.store import layout
from serpipe.store.look import OF_QUARANTINE, Seen
from serpipe.store.rowsets import having, lacking, tuples
from serpipe.store.runs import Run

_UNIT = ["recording_id", "unit", "audio"]


def untold(entries: pa.Table, files: Iterable[Seen], every: Iterable[Run]) -> pa.Table:
    """Entries of units that failed, whole or in part, of which no row says why.

    Args:
        entries: the ledger.
        files: of `quarantine`, those that are whole.
        every: the runs of the store, which know what audio their segments were cut by.
    """
    logs = [(found.content, found.commit) for found in files if found.content is not None]
    return pa.concat_tables([_failed(entries, logs), _short(entries, logs, _audio_of(entries, every))])


def of_file(entries: pa.Table, found: Seen) -> pa.Table:
    """Entries that failed whole, of the recordings that a damaged file of `quarantine` may have told of.

    An older event of such a recording may stand elsewhere, and is not the reason that holds now.
    """
    if found.name != layout.quarantine(found.commit):
        return entries.slice(0, 0)
    failed = entries.filter(pc.equal(entries["status"], "failed"))
    return having(failed, failed.filter(pc.equal(failed["commit"], found.commit)), _UNIT)


def _failed(entries: pa.Table, logs: list[tuple[pa.Table, str]]) -> pa.Table:
    """Units that are settled as failed: the rest of a recording, from there on."""
    told = [
        rows.filter(
            pc.and_(
                pc.and_(pc.is_null(rows["segment_id"]), pc.invert(rows["transient"])),
                pc.invert(pc.is_in(rows["stage"], value_set=pa.array(["segment", "manifest"]))),
            )
        ).select(["recording_id"])
        for rows, _ in logs
    ]
    failed = entries.filter(pc.equal(entries["status"], "failed"))
    return lacking(failed, pa.concat_tables(told), ["recording_id"]) if told else failed


def _short(entries: pa.Table, logs: list[tuple[pa.Table, str]], audio_of: Mapping[str, str]) -> pa.Table:
    """Units with fewer predictions than segments, and too few rows that say why."""
    before: dict[tuple[Any, ...], set[bytes]] = defaultdict(set)
    refused: dict[tuple[Any, ...], set[bytes]] = defaultdict(set)
    for rows, commit in logs:
        rows = rows.filter(pc.is_valid(rows["segment_id"]))
        for recording, segment, unit, model, fp, _, _, run in tuples(rows, OF_QUARANTINE):
            if model is None:
                before[recording, unit, audio_of.get(run)].add(segment)
            else:
                refused[recording, unit, model, fp, commit].add(segment)
    short = entries.filter(pc.less(entries["rows"], entries["segments"]))
    names = ["recording_id", "unit", "model", "fp", "commit"]
    lacks = [
        segments - rows - len(refused[tuple(key)])
        for segments, rows, *key in tuples(short, ["segments", "rows", *names])
    ]
    units = list(tuples(short, _UNIT))
    # What fails before any model is told once, for all of them: it is missing where it is missing to each.
    least: dict[tuple[Any, ...], int] = {}
    for unit, count in zip(units, lacks, strict=True):
        least[unit] = min(least.get(unit, count), count)
    whole = set(tuples(entries.filter(pc.greater_equal(entries["rows"], entries["segments"])), _UNIT))
    told = {unit: len(before[unit]) + len(before[(*unit[:2], None)]) for unit in least}
    wrong = [count > told[unit] for unit, count in zip(units, lacks, strict=True)]
    untold = short.filter(pa.array(wrong, pa.bool_()))
    of_all = [unit not in whole and least[unit] > told[unit] for unit in tuples(untold, _UNIT)]
    of_units = having(entries, untold.filter(pa.array(of_all, pa.bool_())), _UNIT)
    return pa.concat_tables([of_units, untold.filter(pa.array([not every for every in of_all], pa.bool_()))])


def _audio_of(entries: pa.Table, every: Iterable[Run]) -> dict[str, str]:
    """The audio fingerprint of each run; where a run's record is gone, its entries know."""
    return dict(_by_entries(entries)) | {run.run_id: run.audio for run in every}


def _by_entries(entries: pa.Table) -> Iterator[tuple[str, str]]:
    for commit, audio in tuples(entries.group_by(["commit", "audio"]).aggregate([]), ["commit", "audio"]):
        yield layout.run_of(commit), audio
