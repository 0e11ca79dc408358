"""What is left to do, and how it is cut into read tasks. Arrow only: planning needs no cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.manifest import claim_seconds
from serpipe.pack import ID
from serpipe.store import coverage, ledger, plans, schemas, streaming
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.damage import UNITS
from serpipe.store.rowsets import lacking
from serpipe.store.storage import Storage

SHORTEST_TASK_S, LONGEST_TASK_S = 60.0, 1800.0
"""Seconds of audio a read task is worth: enough to outweigh its start, little enough to balance."""

TASKS_PER_DECODER = 8

MOST_TASKS = 20_000
"""About how many a run has at most: a scheduler holds every one in memory, and starts with all of them."""

MOST_DECODERS = 512
"""How many a plan can keep busy to the end: how many there are is known only once there is a cluster."""

PLANNED_AT_ONCE = 100_000
"""Recordings with work left whose ledger entries are in memory together: some 100 MB at an hour each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Work left, frozen in the store as `serpipe.store.plans` lays it out.

    Attributes:
        groups: number of recordings of each row group, in order.
        work_s: seconds of audio that are thought to be left in each row group.
        queries: signed queries by row group, for those that have any; in memory only.
        left: recordings with work left.
        done: recordings of the manifest that need nothing.
        superseded: number of recordings left with old labels, by model, old model fingerprint, old audio fingerprint.
        models: those that some recording needs; the others have nothing to do.
        remote: whether any recording left must be fetched.
    """

    groups: list[int]
    work_s: list[float]
    queries: dict[int, pa.Array]
    left: int
    done: int
    superseded: dict[tuple[str, str, str], int] = field(default_factory=dict)
    models: frozenset[str] = frozenset()
    remote: bool = False

    @property
    def total_s(self) -> float:
        """Seconds of audio that are thought to be left."""
        return sum(self.work_s)

    def tasks(self, decoders: int) -> list[range]:
        """The row groups of each read task: of about equal work, and enough of them to balance.

        Args:
            decoders: how many decode at once.

        Examples:
            >>> Plan(groups=[1, 2, 1], work_s=[500.0, 500.0, 900.0], queries={}, left=4, done=0).tasks(decoders=1)
            [range(0, 1), range(1, 2), range(2, 3)]
        """
        ends = np.cumsum([0, *cut(np.array(self.work_s), share_s(self.total_s, decoders))])
        return [range(start, end) for start, end in pairwise(ends.tolist())]

    def queries_of(self, groups: range) -> pa.ChunkedArray | None:
        """The signed queries of the recordings of some row groups, null for those without; None where none has any."""
        if self.queries.keys().isdisjoint(groups):
            return None
        return pa.chunked_array(
            [self.queries.get(group, pa.nulls(self.groups[group], pa.string())) for group in groups], pa.string()
        )


def make_plan(
    storage: Storage,
    run: str,
    parts: Sequence[Callable[[], pa.Table]],
    *,
    audio: str,
    models: dict[str, str],
    by_length: bool,
    relabel: bool = False,
    reopened: pa.Table | None = None,
) -> Plan:
    """Find what is left and freeze it in the store, in row groups of about equal work.

    A recording is whole for a model when the ledger holds a final unit and every unit before it. One that is whole
    under another fingerprint of the same model, or another audio fingerprint, keeps those labels.

    Args:
        storage: the store.
        run: the run.
        parts: read the catalogue part by part; memory holds one at a time, and of the ledger an id a recording.
        audio: audio fingerprint wanted.
        models: name to fingerprint wanted.
        by_length: longest first, so that a pack holds like lengths; otherwise in order of uri, feed by feed.
        relabel: label again what is whole under other fingerprints alone.
        reopened: units that count as if the ledger did not hold them, of `serpipe.store.damage.UNITS`.
    """
    reopened = UNITS.empty_table() if reopened is None else reopened
    whole = _Whole(storage, audio=audio, models=models, relabel=relabel, reopened=reopened)
    failures: dict[bytes, int] | None = None
    plan = plans.Writer(storage, run)
    found_s = 0.0
    remote = False
    for left in _gathered(whole.left(parts)):
        failures = _failures(storage) if failures is None else failures
        left = _ordered(left, by_length=by_length)
        found_s += float(pc.sum(left["work_s"]).as_py())
        remote = remote or bool(pc.any(pc.match_substring(left["uri"], "://")).as_py())
        # What the parts that were read hold, the others will: a part is a share of the recordings by hash.
        share = share_s(found_s * len(parts) / whole.parts, MOST_DECODERS)
        for start in range(0, left.num_rows, PLANNED_AT_ONCE):
            rows = _with_history(storage, left.slice(start, PLANNED_AT_ONCE), failures, reopened, audio=audio)
            plan.add(rows, cut(rows["work_s"].to_numpy(), share))
    plan.end()
    todo = sum(plan.groups)
    return Plan(
        groups=plan.groups,
        work_s=plan.work_s,
        queries=plan.queries,
        left=todo,
        done=whole.asked - todo,
        superseded=dict(whole.superseded),
        models=frozenset(whole.needed),
        remote=remote,
    )


def missing(storage: Storage, run: str, *, audio: str, models: dict[str, str]) -> pa.Table:
    """Recordings of a run's plan that are still not whole: what the run did not bring to an end.

    Returns:
        `recording_id`, `uri` and `attempts` of each.
    """
    whole = _Whole(storage, audio=audio, models=models, relabel=True)
    left = [_MISSING.empty_table()]
    for planned in _gathered(plans.groups(storage, run, [*_MISSING.names, "kept"])):
        kept = planned["kept"].to_pylist()
        open_ = np.zeros(planned.num_rows, np.bool_)
        for model in models:
            asked = np.array([model not in names for names in kept], np.bool_)
            open_ |= asked & ~whole.now(model, planned["recording_id"])
        left.append(planned.filter(pa.array(open_)).select(_MISSING.names))
    return pa.concat_tables(left)


def share_s(total_s: float, decoders: int) -> float:
    """Seconds of audio that a read task should hold at most.

    Examples:
        >>> [share_s(total_s, decoders=2) for total_s in (10.0, 3600.0, 3.6e6, 3.6e8)]
        [60.0, 225.0, 1800.0, 18000.0]
    """
    fair = float(np.clip(total_s / (TASKS_PER_DECODER * decoders), SHORTEST_TASK_S, LONGEST_TASK_S))
    return max(fair, total_s / MOST_TASKS)


def cut(work: NDArray[np.float64], share: float) -> list[int]:
    """Cut a row of lengths into pieces, in order: as few as hold no more than a share each.

    Args:
        work: float64 of shape (n,): seconds of each.
        share: seconds of a piece; what is longer by itself is a piece by itself.

    Returns:
        How many lengths each piece takes.

    Examples:
        >>> cut(np.array([30.0, 30.0, 200.0, 10.0]), share=60.0)
        [2, 1, 1]
    """
    if not len(work):
        return []
    pieces, count, seconds = [], 0, 0.0
    for length in work.tolist():
        if count and seconds + length > share:
            pieces.append(count)
            count, seconds = 0, 0.0
        count, seconds = count + 1, seconds + length
    return [*pieces, count]


class _Whole:
    """Tells the recordings that need some model from those that need none.

    Args:
        storage: the store, whose ledger is read once.
        audio: audio fingerprint wanted.
        models: name to fingerprint wanted.
        relabel: whether labels of other fingerprints count for nothing.
        reopened: units that the ledger's entries of the wanted fingerprints count for nothing of.

    Attributes:
        parts: of the catalogue seen.
        asked: recordings in them.
        superseded: of these, those that keep old labels, by model, old model and audio fingerprint.
        needed: models that some of these need.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        audio: str,
        models: dict[str, str],
        relabel: bool,
        reopened: pa.Table | None = None,
    ) -> None:
        wanted = {model: (model, fp, audio) for model, fp in models.items()}
        entries = ledger.batches(storage, columns=coverage.COLUMNS)
        found = coverage.whole(entries, models, set(wanted.values()) if relabel else None)
        self._now = {model: found.pop(key, coverage.Ids.none()) for model, key in wanted.items()}
        self._reopened = {model: Ids(pairs_of(_ids_of(reopened, *key))) for model, key in wanted.items()}
        # Several old fingerprints may hold a recording; it counts for the one most like today's, then for the largest.
        self._before = dict(sorted(found.items(), key=lambda item: (*_unlike(item[0], wanted), -len(item[1]), item[0])))
        self.parts = self.asked = 0
        self.superseded: Counter[coverage.Key] = Counter()
        self.needed: set[str] = set()

    def now(self, model: str, ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Whether each recording is whole under the wanted fingerprints."""
        return self._now[model].holds(ids) & ~self._reopened[model].holds(ids)

    def left(self, parts: Iterable[Callable[[], pa.Table]]) -> Iterator[pa.Table]:
        """Of each part the recordings that need some model, with the models whose old labels they keep."""
        for read in parts:
            recordings = read()
            self.parts += 1
            self.asked += recordings.num_rows
            needed = np.zeros(recordings.num_rows, np.bool_)
            kept = {model: np.zeros(recordings.num_rows, np.bool_) for model in self._now}
            for model in self._now:
                open_ = ~self.now(model, recordings["recording_id"])
                for key, ids in self._before.items():
                    if key[0] == model and open_.any():
                        old = open_ & ids.holds(recordings["recording_id"])
                        self.superseded[key] += int(old.sum())
                        kept[model] |= old
                        open_ &= ~old
                if open_.any():
                    self.needed.add(model)
                needed |= open_
            left = recordings.filter(pa.array(needed))
            yield left.append_column("kept", _names({model: held[needed] for model, held in kept.items()}))


def _ids_of(units: pa.Table | None, model: str, fp: str, audio: str) -> pa.ChunkedArray:
    """Recordings of units of one making."""
    mine = UNITS.empty_table() if units is None else units
    for name, value in (("model", model), ("fp", fp), ("audio", audio)):
        mine = mine.filter(pc.equal(mine[name], value))
    return mine["recording_id"]


def _unlike(old: coverage.Key, wanted: Mapping[str, coverage.Key]) -> tuple[bool, bool]:
    """Whether an old making has another model fingerprint than the wanted one, and another audio fingerprint."""
    _, fp, audio = wanted[old[0]]
    return old[1] != fp, old[2] != audio


def _names(held: Mapping[str, NDArray[np.bool_]]) -> pa.ListArray:
    """For each row the names that hold there."""
    row, name = np.nonzero(np.stack(list(held.values()), axis=1))
    ends = np.searchsorted(row, np.arange(len(next(iter(held.values()))) + 1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(list(held), pa.string()).take(pa.array(name)))


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Small tables joined; none without rows."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count >= PLANNED_AT_ONCE:
            yield pa.concat_tables(held)
            held, count = [], 0
    if count:
        yield pa.concat_tables(held)


def _ordered(left: pa.Table, *, by_length: bool) -> pa.Table:
    work = claim_seconds(left)
    order = np.argsort(-work, kind="stable") if by_length else np.asarray(pc.sort_indices(left["uri"]))
    return left.append_column("work_s", pa.array(work, pa.float64())).take(pa.array(order))


def _with_history(
    storage: Storage, left: pa.Table, failures: Mapping[bytes, int], reopened: pa.Table, *, audio: str
) -> pa.Table:
    """Recordings with what the store knows of each, as rows of `plans.WORK`."""
    ids = left["recording_id"]
    entries = ledger.of(storage, ids, columns=_HISTORY)
    if reopened.num_rows:
        entries = lacking(entries, reopened, UNITS.names)
    rows = (
        left.append_column("settled", _settled(ids, entries.filter(pc.equal(entries["audio"], audio))))
        .append_column("signed", pc.is_valid(left["query"]))
        .append_column("known", _known(ids, entries))
        .append_column("attempts", pa.array([failures.get(i, 0) for i in ids.to_pylist()], pa.int32()))
    )
    return rows.select(plans.WORK.names).cast(plans.WORK)


def _failures(storage: Storage) -> dict[bytes, int]:
    """Attempts so far by recording."""
    # A run of another shard takes away what an interrupted one left there.
    return streaming.afresh(lambda: _attempts(storage))


def _attempts(storage: Storage) -> dict[bytes, int]:
    most = _ATTEMPTS.empty_table()
    for log in streaming.joined(storage, storage.list("quarantine/"), schemas.QUARANTINE, _ATTEMPTS.names):
        every = pa.concat_tables([most, log.cast(_ATTEMPTS)])
        counted = every.group_by("recording_id").aggregate([("attempt", "max")])
        most = counted.rename_columns(["recording_id", "attempt"]).cast(_ATTEMPTS)
    return dict(zip(most["recording_id"].to_pylist(), most["attempt"].to_pylist(), strict=True))


def _settled(ids: pa.ChunkedArray, held: pa.Table) -> pa.ListArray:
    """For each id the ledger's entries, as lists in the order of the ids."""
    found = pc.index_in(held["recording_id"].cast(pa.binary()), value_set=ids.combine_chunks().cast(pa.binary()))
    place = found.to_numpy(zero_copy_only=False) if len(found) else np.zeros(0)
    keep = np.flatnonzero(~np.isnan(place.astype(float)))
    rows = keep[np.argsort(place[keep].astype(np.int64), kind="stable")]
    counts = np.bincount(place[rows].astype(np.int64), minlength=len(ids)) if len(rows) else np.zeros(len(ids), int)
    entries = held.select([field.name for field in plans.SETTLED]).take(pa.array(rows)).combine_chunks()
    values = pa.StructArray.from_arrays(
        [entries[field.name].combine_chunks() for field in plans.SETTLED], fields=list(plans.SETTLED)
    )
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), values)


def _known(ids: pa.ChunkedArray, entries: pa.Table) -> pa.ChunkedArray:
    ended = entries.filter(pc.and_(entries["final"], pc.not_equal(entries["status"], "failed")))
    return pc.is_in(ids.cast(pa.binary()), value_set=ended["recording_id"].combine_chunks().cast(pa.binary()))


_MISSING = pa.schema([plans.PLAN.field(name) for name in ("recording_id", "uri", "attempts")])

_ATTEMPTS = pa.schema([pa.field("recording_id", ID), pa.field("attempt", pa.int32())])

_HISTORY = [*coverage.COLUMNS, "status"]
