"""What runs took, those that were stopped or died among them: a machine costs the same while it works in vain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from serpipe.store import runs
from serpipe.store.storage import Storage


@dataclass(frozen=True, slots=True)
class Spent:
    """Machine time.

    Attributes:
        seconds: of each run by its id, as far as it is known.
        unfinished: runs that came to no end, or have not yet.
        unfinished_s: seconds of them, part of the total.
        unknown: runs of which nothing is known.
    """

    seconds: dict[str, float]
    unfinished: int
    unfinished_s: float
    unknown: int

    @property
    def total_s(self) -> float:
        """Seconds of all runs."""
        return sum(self.seconds.values())


def spent(storage: Storage, records: Sequence[runs.Run]) -> Spent:
    """Add up what runs took.

    Args:
        storage: the store, which knows how far runs were that never told their end.
        records: the runs.
    """
    seconds: dict[str, float] = {}
    unfinished: list[str] = []
    unknown = 0
    for record in records:
        if record.state == "finished":
            # One that had nothing to do says nothing.
            seconds[record.run_id] = record.result.get("elapsed_s") or 0.0
            continue
        took = _until_stopped(record)
        if took is None:
            # Its last word: whatever came after it and before its death is not known.
            told = runs.load_progress(storage, record.run_id)
            took = told.elapsed_s if told else None
        unfinished.append(record.run_id)
        if took is None:
            unknown += 1
        else:
            seconds[record.run_id] = took
    return Spent(seconds, len(unfinished), sum(seconds.get(run, 0.0) for run in unfinished), unknown)


def _until_stopped(record: runs.Run) -> float | None:
    """Of a run that wrote down that it was stopped; who closes another's record writes down only when that was."""
    if "stopped" not in record.result or not record.started or not record.ended:
        return None
    return (datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)).total_seconds()
