"""Every file of a store against its own bytes, its place, its footer and the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.errors import StoreError
from serpipe.store import beside, damage, layout, lease, ledger, parquet, reasons, rewrite, runs, schemas
from serpipe.store.damage import UNITS, Finding
from serpipe.store.look import TABLES, Seen, look
from serpipe.store.rowsets import having, lacking, tuples
from serpipe.store.storage import Storage

AT_ONCE = 4
"""Files in memory."""

_LABELS = ["model", "fp", "commit"]
_UNIT = ["recording_id", "unit", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification found.

    Attributes:
        files: looked at, those of runs and generations among them.
        size: their bytes.
        predictions: rows of predictions in them.
        entries: of the ledger.
        findings: what is wrong, in the order of their files.
    """

    files: int
    size: int
    predictions: int
    entries: int
    findings: tuple[Finding, ...]


def verify(storage: Storage) -> Verified:
    """Look at every file of a store, and mark what is damaged, so that the next run of the whole store mends it.

    Needs no lease: what a run that is under way has not yet committed is not judged. Where taking units out was
    interrupted, rows are in two places, and only what is wrong with files by themselves is told: the next run may not
    get past it.

    Raises:
        StoreError: `STORE_REWRITING`, units are being taken out, or that was interrupted and no file is in the way.
    """
    interrupted = _interrupted(storage)
    judged = _Judged(storage)
    # The ledger before the files: all that it vouches for is then there to be listed.
    broken, entries = _ledger(storage)
    broken += list(_of_records(judged))
    names = [name for table in TABLES for name in storage.list(f"{table}/") if name.endswith(".parquet")]
    seen = list(_looked_at(storage, names))
    judged.close()
    whole = [found for found in seen if found.code is None]
    aside = beside.look(storage, {run.run_id for run in judged.runs} - judged.open)
    broken += aside.findings
    if any(found.file.startswith("ledger/") for found in broken):
        entries = _rebuilt(entries, whole)
    if interrupted:
        findings = [*broken, *_of_files(seen, entries, half_done=True)]
        if not findings:
            raise _rewriting(storage)
    else:
        entries, unknown = _adopted(entries, whole, judged)
        findings = [*broken, *unknown, *_of_files(seen, entries)]
        findings += _of_labels(whole, seen, entries, judged)
        findings += _of_segments(whole, entries, judged)
        findings += _of_recordings(whole, entries, judged)
        findings += _of_failures(whole, entries, judged.runs)
        findings += beside.passports(storage, whole)
        # One that began meanwhile has moved rows under these eyes.
        if rewrite.under_way(storage):
            raise _rewriting(storage)
    findings.sort(key=lambda found: (found.file, found.code))
    damage.mark(storage, findings)
    return Verified(
        files=len(seen) + aside.files,
        size=sum(found.size for found in seen) + aside.size,
        predictions=sum(found.rows for found in whole if found.table == "predictions"),
        entries=entries.num_rows,
        findings=tuple(findings),
    )


def _interrupted(storage: Storage) -> bool:
    """Whether a rewrite waits to be finished that nobody is at.

    Raises:
        StoreError: `STORE_REWRITING`, somebody may be at it.
    """
    if not rewrite.under_way(storage):
        return False
    if lease.holders(storage):
        raise _rewriting(storage)
    return True


def _rewriting(storage: Storage) -> StoreError:
    return StoreError(
        "STORE_REWRITING",
        f"units are being taken out of {storage.shown}, or that was interrupted; wait for it, or let the next "
        "`serpipe label`, `retry` or `gc` finish it",
        transient=True,
    )


class _Judged:
    """Which commits a verification may call orphans: not those of runs that were open at any time while it looked."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.runs, self.damaged = runs.readable(storage)
        self._before = {run.run_id for run in self.runs}
        # A run whose record cannot be read may not have ended.
        self.open = {run.run_id for run in self.runs if run.open} | set(self.damaged)

    def close(self) -> None:
        now, damaged = runs.readable(self._storage)
        self.open |= {run.run_id for run in now if run.open or run.run_id not in self._before} | set(damaged)

    def __contains__(self, commit: str) -> bool:
        return not any(commit.startswith(f"{run}-") for run in self.open)


def _looked_at(storage: Storage, names: list[str]) -> Iterator[Seen]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(names), 64):
            for found in pool.map(lambda name: look(storage, name), names[start : start + 64]):
                if found is not None:
                    yield found


def _ledger(storage: Storage) -> tuple[list[Finding], pa.Table]:
    """Damaged objects of the ledger, and what the others hold."""
    seen = list(_looked_at(storage, storage.list("ledger/")))
    broken = [
        Finding(code="LEDGER_DAMAGED", file=found.name, message=f"{found.why}; its entries are in the tables' footers",
                remedy="index", drop=True)
        for found in seen
        if found.code is not None
    ]  # fmt: skip
    if not broken:
        return [], ledger.load(storage)
    entries = parquet.read(storage, [found.name for found in seen if found.code is None], schemas.LEDGER)
    return broken, entries.group_by(schemas.LEDGER.names).aggregate([]).cast(schemas.LEDGER)


def _rebuilt(entries: pa.Table, whole: list[Seen]) -> pa.Table:
    """The ledger as it will be when it is mended from the footers."""
    footers = [found.content for found in whole if found.table == "predictions"]
    settled = pa.concat_tables([schemas.LEDGER.empty_table(), *footers])
    return pa.concat_tables([entries, lacking(settled, entries, UNITS.names)])


def _adopted(entries: pa.Table, whole: list[Seen], judged: _Judged) -> tuple[pa.Table, list[Finding]]:
    """The ledger with the commits it lacks, where nothing else settles their units."""
    vouched = set(tuples(entries.group_by(_LABELS).aggregate([]), _LABELS))
    findings = []
    for found in whole:
        if found.table != "predictions" or _labels(found) in vouched or found.commit not in judged:
            continue
        assert found.content is not None
        if found.content.num_rows and not having(found.content, entries, UNITS.names).num_rows:
            entries = pa.concat_tables([entries, found.content])
            message = f"the ledger lacks the {found.content.num_rows:,} units that its footer settles; they are added"
            findings.append(Finding(code="LEDGER_LACKS", file=found.name, message=message, remedy="index"))
    return entries, findings


def _of_records(judged: _Judged) -> Iterator[Finding]:
    """Records of runs that cannot be read; whatever closes runs makes them anew."""
    for run in judged.damaged:
        message = "it is not a run's record as serpipe writes it; a new one is made from what the run has written"
        yield Finding(code="RECORD_DAMAGED", file=layout.run(run), message=message, remedy="record")


def _of_files(seen: list[Seen], entries: pa.Table, *, half_done: bool = False) -> Iterator[Finding]:
    """Files that are wrong by themselves.

    Args:
        seen: all that were looked at.
        entries: the ledger.
        half_done: a rewrite was interrupted, so that nothing else tells what damaged segments and recordings belong to.
    """
    for found in seen:
        if found.code is not None:
            again = "it goes; its rows are made again"
            units = UNITS.empty_table()
            if found.table == "quarantine":
                again = "it goes; what failed for good is tried again, and says why"
                units = _units(reasons.of_file(entries, found))
            elif half_done and found.table in ("segments", "recordings"):
                units = _units(having(entries, entries.filter(pc.equal(entries["commit"], found.commit)), _UNIT))
            elif found.table in ("predictions", "embeddings", "frames"):
                units = _units_of(entries, found)
            elif found.table == "segments" and found.content is not None:
                # Damaged ones are missed below, unit by unit; these rows can be read, and are as wrong.
                units = _units(having(entries, found.content, ["recording_id", "unit"]))
            yield Finding(
                code=found.code,
                file=found.name,
                message=f"{found.why}; {again}",
                remedy="again",
                units=units,
                drop=True,
            )


def _of_labels(whole: list[Seen], seen: list[Seen], entries: pa.Table, judged: _Judged) -> Iterator[Finding]:
    """Predictions, embeddings and frames against the ledger."""
    vouched = set(tuples(entries.group_by(_LABELS).aggregate([]), _LABELS))
    predictions = {_labels(found): found for found in whole if found.table == "predictions"}
    there = {found.name: found for found in seen}
    for key, found in predictions.items():
        assert found.content is not None
        if key not in vouched and found.content.num_rows and found.commit in judged:
            yield _orphan(found)
    for found in whole:
        if found.table in ("embeddings", "frames") and found.commit in judged and _labels(found) not in vouched:
            yield _orphan(found)
    for model, fp, commit in sorted(vouched):
        name = f"predictions/model={model}/fp={fp}/{commit}.parquet"
        mine = None
        if name not in there:
            mine = Seen(name=name)
            yield _again("FILE_MISSING", mine, "the ledger has units that only this file can hold", entries)
        elif (model, fp, commit) in predictions:
            mine = predictions[model, fp, commit]
            for kind, rows in mine.beside.items():
                beside = there.get(name.replace("predictions", kind, 1))
                if beside is None and rows:
                    lost = Seen(name=name.replace("predictions", kind, 1))
                    yield _again("FILE_MISSING", lost, f"its {rows:,} {kind} were written", entries)
                elif beside is not None and beside.code is None and (beside.rows, rows) != (rows, beside.rows):
                    yield _again("ROWS_DIFFER", beside, f"it has {beside.rows:,} rows, {rows:,} were written", entries)
                elif beside is not None and beside.code is None and rows == mine.rows and beside.ids != mine.ids:
                    yield _again("ROWS_DIFFER", beside, "its rows are not of the segments that were labelled", entries)
    yield from _against_ledger(predictions, entries)


def _against_ledger(predictions: dict[tuple[object, ...], Seen], entries: pa.Table) -> Iterator[Finding]:
    """What footers settle against the ledger, and units that are settled twice."""
    vouched = set(tuples(entries.group_by(_LABELS).aggregate([]), _LABELS))
    settled = [found.content for key, found in predictions.items() if key in vouched]
    footers = pa.concat_tables([schemas.LEDGER.empty_table(), *settled])
    names = schemas.LEDGER.names
    readable = pa.Table.from_pylist(
        [dict(zip(_LABELS, key, strict=True)) for key in predictions],
        schema=pa.schema([schemas.LEDGER.field(name) for name in _LABELS]),
    )
    comparable = having(entries, readable, _LABELS)
    wrong = pa.concat_tables([lacking(comparable, footers, names), lacking(footers, comparable, names)])
    for key, rows in _grouped(wrong, _LABELS):
        found = predictions[key]
        yield Finding(
            code="LEDGER_DIFFERS",
            file=found.name,
            message="the ledger and this file's footer tell different things; the footer is right",
            remedy="index",
            units=_units(rows),
        )
    twice = damage.twice(footers)
    if twice is not None:
        yield twice


def _of_segments(whole: list[Seen], entries: pa.Table, judged: _Judged) -> Iterator[Finding]:
    """Segments against the ledger, which says how many each unit has."""
    labelled = entries.filter(pc.not_equal(entries["status"], "failed"))
    wanted = labelled.group_by(_UNIT).aggregate([("segments", "max")])
    homes = labelled.group_by([*_UNIT, "commit"]).aggregate([])
    commits = set(tuples(entries, ["audio", "commit"]))
    tables = []
    for found in whole:
        if found.table != "segments":
            continue
        audio = found.partition["audio"]
        if (audio, found.commit) not in commits:
            if found.commit in judged:
                yield _orphan(found)
            continue
        assert found.content is not None
        count = found.rows and found.content.num_rows
        placed = found.content.append_column("audio", pa.array([audio] * count, pa.string()))
        placed = placed.append_column("commit", pa.array([found.commit] * count, pa.string()))
        strays = lacking(placed, homes, [*_UNIT, "commit"])
        if strays.num_rows:
            message = f"it has segments of {strays.num_rows:,} units that no entry of the ledger places there"
            units = _units(having(entries, placed, _UNIT))
            yield Finding(
                code="ROWS_UNVOUCHED", file=found.name, message=message, remedy="again", units=units, drop=True
            )
        tables.append(placed)
    keys = [*_UNIT, "segments"]
    kinds = pa.schema([schemas.LEDGER.field(name) for name in keys])
    wanted = wanted.rename_columns(keys).cast(kinds)
    held = pa.concat_tables(tables) if tables else kinds.empty_table().rename_columns([*_UNIT, "count"])
    held = held.group_by(_UNIT).aggregate([("count", "sum")]).rename_columns(keys).cast(kinds)
    open_units = wanted.filter(pc.greater(wanted["segments"], 0))
    wrong = lacking(open_units, held, keys)
    if wrong.num_rows:
        units = _units(having(entries, wrong, _UNIT))
        message = "units whose segments are not all there, or there twice; they are labelled again"
        yield Finding(code="SEGMENTS_DIFFER", file="", message=message, remedy="again", units=units)


def _of_recordings(whole: list[Seen], entries: pa.Table, judged: _Judged) -> Iterator[Finding]:
    """Rows of recordings against the ledger, which says which were brought to their end."""
    ended = entries.filter(pc.and_(entries["final"], pc.not_equal(entries["status"], "failed")))
    commits = set(entries["commit"].unique().to_pylist())
    held: dict[object, int] = defaultdict(int)
    homes = set(tuples(ended, ["recording_id", "commit"]))
    for found in whole:
        if found.table != "recordings":
            continue
        if found.commit not in commits:
            if found.commit in judged:
                yield _orphan(found)
            continue
        assert found.content is not None
        ids = found.content["recording_id"].to_pylist()
        strays = sum((name, found.commit) not in homes for name in ids)
        if strays:
            message = f"it has {strays:,} recordings that no entry of the ledger ends there"
            units = _units(having(ended, found.content, ["recording_id"]))
            yield Finding(
                code="ROWS_UNVOUCHED", file=found.name, message=message, remedy="again", units=units, drop=True
            )
        for name in ids:
            held[name] += 1
    wrong = [name for name in ended["recording_id"].unique().to_pylist() if held[name] != 1]
    if wrong:
        names = pa.table({"recording_id": pa.array(wrong, UNITS.field("recording_id").type)})
        units = _units(having(ended, names, ["recording_id"]))
        message = f"{len(wrong):,} recordings whose row is not there, or there twice; their last units are done again"
        yield Finding(code="RECORDINGS_DIFFER", file="", message=message, remedy="again", units=units)


def _of_failures(whole: list[Seen], entries: pa.Table, every: list[runs.Run]) -> Iterator[Finding]:
    """Failures against the rows of quarantine that say why."""
    untold = _units(reasons.untold(entries, [found for found in whole if found.table == "quarantine"], every))
    if untold.num_rows:
        message = "units that failed, whole or in part, and no row of quarantine says why; they are tried again"
        yield Finding(code="FAILURES_UNTOLD", file="", message=message, remedy="again", units=untold)


def _labels(found: Seen) -> tuple[object, ...]:
    return found.partition["model"], found.partition["fp"], found.commit


def _units_of(entries: pa.Table, found: Seen) -> pa.Table:
    """The units that a file of labels holds."""
    mine = pc.equal(entries["commit"], found.commit)
    for column in ("model", "fp"):
        mine = pc.and_(mine, pc.equal(entries[column], found.partition[column]))
    return _units(entries.filter(mine))


def _units(entries: pa.Table) -> pa.Table:
    return entries.group_by(UNITS.names).aggregate([]).select(UNITS.names).cast(UNITS)


def _again(code: str, found: Seen, message: str, entries: pa.Table) -> Finding:
    return Finding(
        code=code,
        file=found.name,
        message=f"{message}; its units are labelled again",
        remedy="again",
        units=_units_of(entries, found),
        drop=True,
    )


def _orphan(found: Seen) -> Finding:
    message = f"no entry of the ledger vouches for its {found.rows:,} rows; it goes"
    return Finding(code="FILE_ORPHAN", file=found.name, message=message, remedy="orphan", drop=True)


def _grouped(rows: pa.Table, keys: list[str]) -> Iterator[tuple[tuple[object, ...], pa.Table]]:
    places: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, key in enumerate(tuples(rows, keys)):
        places[key].append(place)
    for key, mine in places.items():
        yield key, rows.take(pa.array(mine))
