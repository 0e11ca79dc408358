"""Which segments are worth hearing: the most certain, doubtful and disputed of each class, feed and stretch of time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from serpipe.report.rows import Rows

SHORTEST_S = 1.0
"""Seconds. Less of a voice says nothing."""

_EXTREME = 100
"""The extreme of a group is one in so many: of those, segments early in a recording are taken, which decode fast."""

_CANDIDATES = 32

KINDS = {
    "certain": ("the most certain", "confidence DESC"),
    "doubtful": ("the most doubtful", "margin"),
    "disputed": ("the most disputed", "jsd DESC"),
}
"""What each kind is called, and its order: `margin` lies between the two likeliest labels, `jsd` between models."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A segment to be heard.

    Attributes:
        segment_id: 16 bytes.
        recording_id: 16 bytes.
        uri: of its recording; None where that did not decode to its end.
        size: bytes of the recording when it was labelled.
        etag: its entity tag then.
        run_id: the run that labelled it.
        channel: of the recording.
        start_s: seconds.
        end_s: seconds.
        said: its label.
        confidence: of that label.
        others: what other models say, by name.
    """

    segment_id: bytes
    recording_id: bytes
    uri: str | None
    size: int | None
    etag: str | None
    run_id: str
    channel: int
    start_s: float
    end_s: float
    said: str
    confidence: float
    others: tuple[tuple[str, str], ...] = ()


def of_classes(rows: Rows, model: str, *, count: int) -> dict[str, dict[str, list[Pick]]]:
    """By class, then kind."""
    return _picked(rows, model, "said", count)


def of_feeds(rows: Rows, model: str, feeds: list[str], *, count: int) -> dict[str, dict[str, list[Pick]]]:
    """By feed, then kind."""
    return _of(rows, model, "feed", feeds, count)


def of_times(
    rows: Rows, model: str, moment: str, moments: list[str], *, count: int
) -> dict[str, dict[str, list[Pick]]]:
    """By moment, as `serpipe.report.figures.Time` names it in SQL, then kind."""
    return _of(rows, model, moment, moments, count)


def _of(rows: Rows, model: str, group: str, names: list[str], count: int) -> dict[str, dict[str, list[Pick]]]:
    """Of groups by name that recordings belong to."""
    if not names:
        return {}
    found = _picked(rows, model, group, count, names)
    return {name: found[name] for name in names if name in found}


def _picked(
    rows: Rows, model: str, group: str, count: int, only: list[str] | None = None
) -> dict[str, dict[str, list[Pick]]]:
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for kind, (_, order) in KINDS.items():
        # What is sorted is narrow; the rest is joined to the few that are left.
        chosen = rows.all(
            f"WITH mine AS (SELECT segment_id, {group} AS grouped, confidence, margin"
            f"{', jsd' if kind == 'disputed' else ''} FROM said "
            f"{'JOIN about USING (recording_id) ' if only else ''}"
            f"{'JOIN disputed USING (segment_id) ' if kind == 'disputed' else ''}"
            f"WHERE model = ? AND said IS NOT NULL AND end_s - start_s >= ? "
            f"{f'AND list_contains(?, {group})' if only else ''}), "
            f"ranked AS (SELECT *, row_number() OVER (PARTITION BY grouped ORDER BY {order}, segment_id) AS place, "
            f"count(*) OVER (PARTITION BY grouped) AS many FROM mine), "
            f"few AS (SELECT grouped, segment_id FROM ranked "
            f"WHERE place <= greatest({count}, least({_CANDIDATES}, many // {_EXTREME}))) "
            "SELECT grouped, segment_id, recording_id, uri, size, etag, run_id, channel, start_s, end_s, said, "
            "confidence FROM few JOIN said USING (segment_id) LEFT JOIN about USING (recording_id) WHERE model = ? "
            "ORDER BY end_s, segment_id",
            model,
            SHORTEST_S,
            *([only] if only else []),
            model,
        )
        for row in chosen:
            found[row.pop("grouped")][kind].append(row)
    wanted = {
        name: {kind: _spread(candidates, count) for kind, candidates in kinds.items()} for name, kinds in found.items()
    }
    others = _others(
        rows, model, [row["segment_id"] for kinds in wanted.values() for some in kinds.values() for row in some]
    )
    return {
        name: {
            kind: [Pick(**row, others=others.get(row["segment_id"], ())) for row in some]
            for kind, some in kinds.items()
        }
        for name, kinds in wanted.items()
    }


def _spread(candidates: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first ones, of different recordings where there are enough."""
    seen: set[bytes] = set()
    first: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for row in candidates:
        (again if row["recording_id"] in seen else first).append(row)
        seen.add(row["recording_id"])
    return (first + again)[:count]


def _others(rows: Rows, model: str, segments: list[bytes]) -> dict[bytes, tuple[tuple[str, str], ...]]:
    if not segments:
        return {}
    rows.db.execute("CREATE OR REPLACE TEMP TABLE wanted (segment_id BLOB)")
    rows.db.executemany("INSERT INTO wanted VALUES (?)", [[name] for name in dict.fromkeys(segments)])
    found = defaultdict(list)
    for row in rows.all(
        "SELECT segment_id, model, said FROM said SEMI JOIN wanted USING (segment_id) "
        "WHERE model <> ? AND said IS NOT NULL ORDER BY model",
        model,
    ):
        found[row["segment_id"]].append((row["model"], row["said"]))
    return {name: tuple(said) for name, said in found.items()}
