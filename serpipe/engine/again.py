"""What failed for now in earlier runs and is not named by tonight's manifest: tried again all the same.

A manifest with tonight's date names tonight's recordings alone, so what a network has kept from last night's would
never be met again. The plan of the run that failed on them says all there is to say of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serpipe import ids
from serpipe.engine import catalogue
from serpipe.engine.request import Cut
from serpipe.errors import SerpipeError
from serpipe.manifest import ROWS, Listings
from serpipe.manifest.roots import Roots
from serpipe.manifest.schemas import RECORDINGS
from serpipe.shard import Shard
from serpipe.store import failing, ledger, plans, runs, schemas, streaming
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.storage import Storage

Read = Callable[[], pa.Table]


def parts(
    storage: Storage,
    named: Sequence[Read],
    *,
    records: Sequence[runs.Run],
    cut: Cut,
    models: Collection[str],
    roots: Sequence[str],
    shard: Shard | None = None,
) -> list[Read]:
    """The parts of a manifest's catalogue, and one more with what earlier runs failed on for now.

    A recording comes again where the run that failed on it cut it as this one does and asked for no other models. Left
    out are those whose file tonight's manifest names, those outside of the roots, and those that only a signed uri
    opens: signatures are not stored.

    Args:
        storage: the store.
        named: reads the parts of the catalogue.
        records: of all earlier runs.
        cut: how this run cuts recordings.
        models: names of its models.
        roots: where recordings may lie; anywhere where there are none.
        shard: the recordings that the run asks for.

    Returns:
        What `serpipe.plan.make_plan` reads, in this order.
    """
    waiting = _waiting(storage, [run for run in records if _alike(run, cut, models) and _left(run)], Roots(roots))
    if waiting.num_rows:
        rest = _Rest(waiting)
        named = [*(rest.behind(part) for part in named), rest.read]
    return catalogue.of_share(named, shard)


class _Rest:
    """Recordings of which no part that has been read names the file."""

    def __init__(self, recordings: pa.Table) -> None:
        self._left = recordings

    def behind(self, part: Read) -> Read:
        """The same part, noticed."""

        def read() -> pa.Table:
            recordings = part()
            named = pc.is_in(self._left["uri"], value_set=recordings["uri"].combine_chunks())
            self._left = self._left.filter(pc.invert(named))
            return recordings

        return read

    def read(self) -> pa.Table:
        """What is left."""
        return self._left


def _waiting(storage: Storage, records: Sequence[runs.Run], roots: Roots) -> pa.Table:
    """Recordings that runs failed on for now, as their plans have them, in today's content."""
    events = streaming.afresh(lambda: _failing_for_now(storage, [run.run_id for run in records]))
    found = [_PLANNED.empty_table()]
    for run in sorted(set(events["run_id"].to_pylist())):
        asked = Ids(pairs_of(events.filter(pc.equal(events["run_id"], run))["recording_id"]))
        for group in plans.groups(storage, run):
            mine = group.filter(pa.array(asked.holds(group["recording_id"])))
            # Plans of older versions do not say what opens them.
            if mine.num_rows and "signed" in mine.column_names:
                found.append(mine.select(_PLANNED.names).cast(_PLANNED))
    rows = pa.concat_tables(found)
    opens = [not signed and roots.hold(uri) for signed, uri in zip(*_lists(rows, "signed", "uri"), strict=True)]
    return _in_todays_content(rows.filter(pa.array(opens, pa.bool_())).drop_columns("signed"))


def _failing_for_now(storage: Storage, records: Sequence[str]) -> pa.Table:
    """What some runs logged that may pass and that no run has mended: recording and run of each.

    What failed for good since is settled, and so is left out by the plan.
    """
    log = [schemas.QUARANTINE.empty_table()]
    for run in records:
        for rows in streaming.joined(storage, storage.list(f"quarantine/{run}-"), schemas.QUARANTINE):
            log.append(rows.filter(pc.and_(rows["transient"], pc.not_equal(rows["stage"], "manifest"))))
    events = pa.concat_tables(log)
    if not events.num_rows:
        return events
    # What has been labelled in another content since is asked for its content in any case.
    none = schemas.RECORDINGS.empty_table()
    return failing.failing(storage, events, ledger.of(storage, events["recording_id"]), none)


def _left(run: runs.Run) -> bool:
    """Whether a run may have left something that is to be tried again."""
    return run.state != "finished" or bool(run.result.get("unsettled", run.result.get("recordings", 1)))


def _alike(run: runs.Run, cut: Cut, models: Collection[str]) -> bool:
    same = (run.asked.get("segmentation"), run.asked.get("channels")) == (cut.segmentation, cut.channels)
    return same and set(run.models) <= set(models)


def _in_todays_content(recordings: pa.Table) -> pa.Table:
    """Recordings as a manifest would name them today: a file that was replaced is another recording."""
    rows = recordings.to_pylist()
    for row, now in zip(rows, _today([row["uri"] for row in rows]), strict=True):
        like = "etag" if row["etag"] and now["etag"] else None if row["etag"] or now["etag"] else "mtime_ns"
        if like and None not in (row[like], now[like]) and _version(row) != _version(now):
            row |= now
            row["recording_id"] = ids.recording_id(row["uri"], _version(row))
    once = {row["recording_id"]: row for row in rows}
    return pa.Table.from_pylist(list(once.values()), schema=RECORDINGS)


def _today(uris: list[str]) -> list[dict[str, Any]]:
    """Size, etag and time of change of files, as far as they can be told."""
    nothing = {"row": 0, "source": "", "meta": []}
    asked = pa.Table.from_pylist([nothing | {"uri": uri} for uri in uris], schema=ROWS)
    try:
        asked = Listings().stat(asked)
    except (OSError, SerpipeError):
        # What cannot be reached tonight either must not keep tonight's recordings from being labelled.
        pass
    found: list[dict[str, Any]] = asked.select(["size", "etag", "mtime_ns"]).to_pylist()
    return found


def _version(row: dict[str, Any]) -> str:
    return ids.content_version(row["etag"], row["size"], row["mtime_ns"])


def _lists(rows: pa.Table, *names: str) -> list[list[Any]]:
    return [rows[name].to_pylist() for name in names]


_PLANNED = pa.schema(
    [*(plans.PLAN.field(field.name) for field in RECORDINGS if field.name != "query"), plans.PLAN.field("signed")]
)
