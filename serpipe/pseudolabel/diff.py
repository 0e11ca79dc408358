"""What changed between two generations: labels that flipped, rows that came and went, why, and clips to hear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from serpipe.pseudolabel import generation
from serpipe.pseudolabel.balance import MEMORY
from serpipe.store.storage import Storage

_COLUMNS = ["segment_id", "label", "kept", "reason", "confidence", "feed", "uri", "start_s", "end_s"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment worth hearing.

    Attributes:
        uri: its recording.
        start_s: where it begins.
        end_s: where it ends.
        before: its label in the first generation.
        after: and in the second.
        confidence: the lower one of the two labels' confidences.
    """

    uri: str
    start_s: float
    end_s: float
    before: str
    after: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Two generations compared, segment by segment.

    Attributes:
        shared: segments in both.
        only_first: segments that the second lacks.
        only_second: and the first.
        flips: (label before, label after, segments, of those kept in both).
        entered: (label, why the first dropped it, segments) of what only the second keeps.
        left: (label in the first, why the second dropped it, segments) of what only the first keeps.
        feeds: (feed, segments in both, flipped, entered, left), the most changed first.
        clips: flipped labels that both generations are sure of.
    """

    shared: int
    only_first: int
    only_second: int
    flips: list[tuple[str, str, int, int]]
    entered: list[tuple[str, str, int]]
    left: list[tuple[str, str, int]]
    feeds: list[tuple[str, int, int, int, int]]
    clips: list[Clip]


def diff(storage: Storage, first: int, second: int, *, clips: int = 10, feeds: int = 10) -> Difference:
    """Compare two generations of a store, in bounded memory.

    Args:
        storage: the store.
        first: number of the earlier one.
        second: number of the later one.
        clips: flipped segments to name.
        feeds: feeds to name.

    Raises:
        UsageError: `GENERATION_UNKNOWN`.
    """
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{MEMORY}'")
        for name, number in (("a", first), ("b", second)):
            db.register(name, generation.dataset(storage, number).scanner(columns=_COLUMNS).to_reader())
            # The reader is streamed once; what is compared several times becomes a table that can spill.
            db.execute(f"CREATE TABLE {name}_rows AS SELECT * FROM {name}")
        db.execute(
            "CREATE TABLE pairs AS SELECT a.label AS before, b.label AS after, a.kept AS had, b.kept AS has, "
            "a.reason AS why_not_before, b.reason AS why_not_after, coalesce(b.feed, a.feed, '') AS feed, "
            "coalesce(b.uri, a.uri, '') AS uri, b.start_s AS start_s, b.end_s AS end_s, b.segment_id AS id, "
            "least(a.confidence, b.confidence) AS confidence, coalesce(a.label <> b.label, false) AS flipped "
            "FROM a_rows a JOIN b_rows b USING (segment_id)"
        )
        ((shared,),) = db.execute("SELECT count(*) FROM pairs").fetchall()
        ((only_first,),) = db.execute("SELECT count(*) FROM a_rows ANTI JOIN b_rows USING (segment_id)").fetchall()
        ((only_second,),) = db.execute("SELECT count(*) FROM b_rows ANTI JOIN a_rows USING (segment_id)").fetchall()
        return Difference(
            shared=shared,
            only_first=only_first,
            only_second=only_second,
            flips=_rows(
                db,
                "SELECT before, after, count(*), count(*) FILTER (had AND has) FROM pairs WHERE flipped "
                "GROUP BY before, after ORDER BY 3 DESC, 1, 2",
            ),
            entered=_rows(
                db,
                "SELECT after, why_not_before, count(*) FROM pairs WHERE has AND NOT had GROUP BY 1, 2 "
                "ORDER BY 3 DESC, 1, 2",
            ),
            left=_rows(
                db,
                "SELECT before, why_not_after, count(*) FROM pairs WHERE had AND NOT has GROUP BY 1, 2 "
                "ORDER BY 3 DESC, 1, 2",
            ),
            feeds=_rows(
                db,
                "SELECT feed, count(*), count(*) FILTER (flipped), count(*) FILTER (has AND NOT had), "
                "count(*) FILTER (had AND NOT has) FROM pairs GROUP BY feed "
                f"ORDER BY (count(*) FILTER (flipped OR had <> has)) / count(*) DESC, feed LIMIT {int(feeds)}",
            ),
            clips=[
                Clip(*row)
                for row in _rows(
                    db,
                    "SELECT uri, start_s, end_s, before, after, confidence FROM pairs WHERE flipped "
                    f"ORDER BY confidence DESC, id LIMIT {int(clips)}",
                )
            ],
        )


def lines(first: int, second: int, found: Difference) -> Iterator[str]:
    """A difference in words."""
    yield f"{found.shared} segments in both; {found.only_first} only in {first}, {found.only_second} only in {second}"
    yield f"{sum(count for *_, count, _ in found.flips)} labels flipped"
    for before, after, count, kept in found.flips:
        yield f"  {before} -> {after}: {count}, {kept} of them kept in both"
    for title, table, why in (
        (f"kept only in {second}", found.entered, f"dropped in {first} by"),
        (f"kept only in {first}", found.left, f"dropped in {second} by"),
    ):
        yield f"{sum(count for *_, count in table)} {title}"
        for label, reason, count in table:
            yield f"  {label or 'no label'}, {why} {reason}: {count}"
    changed = [row for row in found.feeds if any(row[2:])]
    if changed:
        yield "feeds that changed most"
        for feed, count, flipped, entered, left in changed:
            yield f"  {feed or 'unknown'}: of {count} segments {flipped} flipped, {entered} came, {left} went"
    if found.clips:
        yield "clips to hear"
        for clip in found.clips:
            yield (
                f"  {clip.uri or 'unknown recording'} {clip.start_s:.2f}-{clip.end_s:.2f} s: "
                f"{clip.before} -> {clip.after}, both sure by {clip.confidence:.2f}"
            )


def funnel_lines(record: dict[str, Any]) -> Iterator[str]:
    """The funnel of a generation in words: what every stage dropped, in hours and segments."""
    considered, kept = record["considered"], record["kept"]
    teachers = ", ".join(f"{teacher['model']} ({teacher['lineage']})" for teacher in record["teachers"])
    yield f"generation {record['number']}: {', '.join(record['classes'])}; teachers {teachers}"
    yield f"considered: {considered['hours']:.2f} h, {considered['segments']} segments"
    for step in record["funnel"]:
        if step["dropped"]:
            yield f"  {step['stage']}: dropped {step['dropped_hours']:.2f} h, {step['dropped']} segments"
    share = kept["hours"] / considered["hours"] if considered["hours"] else 0.0
    yield f"kept: {kept['hours']:.2f} h, {kept['segments']} segments, {share:.1%} of the hours"
    for name, counts in record["per_class"].items():
        yield f"  {name}: {counts['kept_hours']:.2f} h, {counts['kept']} of {counts['considered']} segments"
    for note in record["notes"]:
        yield f"note: {note}"


def _rows(db: Any, query: str) -> list[Any]:
    return list(db.execute(query).fetchall())
