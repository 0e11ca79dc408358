"""What a report says of labels: how many of what, by feed and time, how sure, and where models disagree."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from serpipe.labels import CANONICAL
from serpipe.report.rows import Rows

FEEDS = 12
"""Feeds that have a row of their own."""

MOMENTS = 60
"""Columns that a chart over time may have."""

BINS = 20
"""Of a histogram from 0 to 1."""

PLANE = 24
"""Steps of each side of the arousal-valence plane."""

_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Model:
    """One model's labels.

    Attributes:
        name: its name.
        segments: its predictions.
        confidence: their mean; None for a model that names no emotion.
        names: what it says, most often first.
        emotions: canonical emotions that it can say.
        plane: whether it gives arousal and valence.
    """

    name: str
    segments: int
    confidence: float | None
    names: tuple[str, ...]
    emotions: tuple[str, ...]
    plane: bool


def models(rows: Rows) -> list[Model]:
    """Every model, the one with most labels first: those that name emotions, those with other names, all others."""
    known = ", ".join(f"count({emotion}) AS {emotion}" for emotion in CANONICAL)
    most = f"greatest({', '.join(f'count({emotion})' for emotion in CANONICAL)})"
    found = rows.all(
        f"SELECT model, count(*) AS segments, avg(confidence) AS confidence, count(said) AS named, {known}, "
        "count(arousal) AS arousal, count(valence) AS valence FROM said GROUP BY model "
        f"ORDER BY {most} = 0, named = 0, segments DESC, model"
    )
    names = defaultdict(list)
    for row in rows.all(
        "SELECT model, said, count(*) AS n FROM said WHERE said IS NOT NULL GROUP BY ALL ORDER BY n DESC, said"
    ):
        names[row["model"]].append(row["said"])
    return [
        Model(
            name=row["model"],
            segments=row["segments"],
            confidence=row["confidence"],
            names=tuple(names[row["model"]]),
            emotions=tuple(emotion for emotion in CANONICAL if row[emotion]),
            plane=bool(row["arousal"] and row["valence"]),
        )
        for row in found
    ]


def classes(rows: Rows) -> list[dict[str, Any]]:
    """Of each model and class: `model`, `said`, `n`, `share` of the model's labels, mean `confidence`."""
    return rows.all(
        "SELECT model, said, count(*) AS n, count(*) / sum(count(*)) OVER (PARTITION BY model) AS share, "
        "avg(confidence) AS confidence FROM said WHERE said IS NOT NULL GROUP BY model, said ORDER BY n DESC, said"
    )


def feeds(rows: Rows, model: str) -> list[dict[str, Any]]:
    """The largest feeds: `feed`, `n`, `hours` of its recordings, and `shares` by class."""
    counts = rows.all(
        "SELECT feed, said, count(*) AS n FROM said JOIN about USING (recording_id) "
        "WHERE model = ? AND said IS NOT NULL AND feed IS NOT NULL GROUP BY ALL",
        model,
    )
    hours = {
        row["feed"]: row["hours"]
        for row in rows.all("SELECT feed, sum(duration_s) / 3600 AS hours FROM about GROUP BY feed")
    }
    by_feed: dict[str, dict[str, int]] = defaultdict(dict)
    for row in counts:
        by_feed[row["feed"]][row["said"]] = row["n"]
    largest = sorted(by_feed, key=lambda feed: (-sum(by_feed[feed].values()), feed))
    return [
        {
            "feed": feed,
            "n": sum(by_feed[feed].values()),
            "hours": hours[feed],
            "shares": {name: n / sum(by_feed[feed].values()) for name, n in by_feed[feed].items()},
        }
        for feed in largest[:FEEDS]
    ] + ([{"others": len(largest) - FEEDS}] if len(largest) > FEEDS else [])


@dataclass(frozen=True, slots=True)
class Time:
    """What labels are set out along.

    Attributes:
        by: `dated`, the owner's dates; `seen`, when recordings were first seen; `place`, the place in them.
        step: `day`, `week`, `month`, `year`; of places `tenth`.
        moment: SQL that names a label's step, so that names sort by time; null where it has none.
    """

    by: str
    step: str
    moment: str


def along(rows: Rows) -> Time:
    """The best that is known: the owner's dates, else when recordings were first seen, else the place in them."""
    for column in ("dated", "seen"):
        (span,) = rows.all(f"SELECT date_diff('day', min({column}), max({column})) AS days FROM about")
        if span["days"]:
            step = next((name for name, days in (("day", 1), ("week", 7)) if span["days"] / days < MOMENTS), "month")
            step = step if span["days"] / 30 < MOMENTS else "year"
            return Time(column, step, f"strftime(date_trunc('{step}', {column}), '%Y-%m-%d')")
    tenth = "least(9, floor(10 * start_s / greatest(duration_s, 0.1)))"
    return Time("place", "tenth", f"format('{{:02d}}–{{:02d}} %', (10 * {tenth})::INT, (10 * {tenth} + 10)::INT)")


def over_time(rows: Rows, model: str, time: Time) -> list[dict[str, Any]]:
    """Shares by class over time: rows of `moment`, `said`, `n`, `share`, sorted by `moment`."""
    return rows.all(
        f"WITH placed AS (SELECT {time.moment} AS moment, said FROM said JOIN about USING (recording_id) "
        "WHERE model = ? AND said IS NOT NULL) "
        "SELECT moment, said, count(*) AS n, count(*) / sum(count(*)) OVER (PARTITION BY moment) AS share "
        "FROM placed WHERE moment IS NOT NULL GROUP BY moment, said ORDER BY moment, n DESC, said",
        model,
    )


def dates(rows: Rows) -> dict[str, Any]:
    """Where the owner's dates come from.

    Returns:
        `by` of column `name` and `n` recordings that it dates, `without`, the recordings that no column dates,
        `unread`, those of them with a text where a date should be, and one of these, `name` and `text`, as `example`.
    """
    (counts,) = rows.all(
        "SELECT count(*) FILTER (dated IS NULL) AS without, count(undated) AS unread, "
        "min(undated) AS example FROM about"
    )
    by = rows.all(
        "SELECT dated_by AS name, count(*) AS n FROM about WHERE dated IS NOT NULL GROUP BY ALL ORDER BY n DESC, name"
    )
    return {"by": by, **counts}


def confidences(rows: Rows, model: str) -> list[dict[str, Any]]:
    """A histogram of one model's confidence: `low`, `high`, `n`, `share`."""
    return _histogram(
        rows.all(
            f"SELECT least({BINS - 1}, floor({BINS} * confidence))::INT AS bin, count(*) AS n FROM said "
            "WHERE model = ? AND confidence IS NOT NULL AND NOT isnan(confidence) GROUP BY bin",
            model,
        )
    )


def _histogram(counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = {row["bin"]: row["n"] for row in counted}
    total = sum(counts.values())
    return [
        {"low": bin / BINS, "high": (bin + 1) / BINS, "n": counts.get(bin, 0), "share": counts.get(bin, 0) / total}
        for bin in range(BINS)
        if total
    ]


def comparable(several: list[Model]) -> tuple[list[Model], list[str]]:
    """The most models that can say the same two emotions, or more, and the emotions that all of them can say.

    Of sets of one size the one with most labels counts. Without such a set, nothing.
    """
    sets = [
        [model for model in several if one in model.emotions and other in model.emotions]
        for one, other in itertools.combinations(CANONICAL, 2)
    ]
    largest = max(sets, key=lambda some: (len(some), sum(model.segments for model in some)))
    if len(largest) < 2:
        return [], []
    return largest, [emotion for emotion in CANONICAL if all(emotion in model.emotions for model in largest)]


def disagreement(rows: Rows, several: list[Model]) -> dict[str, Any] | None:
    """How far models are apart on the same segments, of what all that are comparable can say.

    Makes the table `disputed`: `segment_id` and `jsd`, the Jensen-Shannon divergence of the models' canonical scores
    (Lin 1991, equal weights) as a share of its largest value, log of the number of models or of the emotions.

    Args:
        rows: the labels.
        several: models, of which the comparable ones are compared.

    Returns:
        Names of the `models` and the `emotions` compared, `histogram`, `mean`, and `pairs` of models with the share of
        segments that both name alike; None where no segment has comparable labels of two models.
    """
    several, shared = comparable(several)
    if not several:
        rows.db.execute("CREATE TABLE disputed (segment_id BLOB, jsd DOUBLE)")
        return None
    total = " + ".join(shared)
    parts = ", ".join(f"{emotion} / greatest({total}, {_LEAST}) AS {emotion}" for emotion in shared)
    own = " + ".join(f"{emotion} * ln(greatest({emotion}, {_LEAST}))" for emotion in shared)
    mean = " + ".join(f"avg({emotion}) * ln(greatest(avg({emotion}), {_LEAST}))" for emotion in shared)
    named = ", ".join("?" for _ in several)
    rows.db.execute(
        f"CREATE TABLE disputed AS WITH shares AS (SELECT segment_id, {parts} FROM said WHERE model IN ({named})) "
        f"SELECT segment_id, greatest(0, least(1, (avg({own}) - ({mean})) / ln(least(count(*), {len(shared)})))) AS jsd"
        " FROM shares GROUP BY segment_id HAVING count(*) > 1",
        [model.name for model in several],
    )
    counted = rows.all(
        f"SELECT least({BINS - 1}, floor({BINS} * jsd))::INT AS bin, count(*) AS n FROM disputed GROUP BY bin"
    )
    if not counted:
        return None
    (about,) = rows.all("SELECT avg(jsd) AS mean, count(*) AS n FROM disputed")
    pairs = rows.all(
        "SELECT a.model AS one, b.model AS other, count(*) AS n, avg((a.said = b.said)::INT) AS alike "
        f"FROM said a JOIN said b USING (segment_id) WHERE a.model < b.model AND a.model IN ({named}) "
        f"AND b.model IN ({named}) GROUP BY ALL ORDER BY one, other",
        *(model.name for model in several),
        *(model.name for model in several),
    )
    compared = [model.name for model in several]
    return {"models": compared, "emotions": shared, "histogram": _histogram(counted), **about, "pairs": pairs}


def plane(rows: Rows, model: str, primary: str | None) -> dict[str, Any]:
    """Where one model's segments lie between calm and excited, unpleasant and pleasant.

    Returns:
        `cells` of `valence` and `arousal` (their middles), `n`; `classes` of `said`, mean `valence` and `arousal`, and
        `n`, where `primary` names the emotion of the same segments.
    """
    step = f"least({PLANE - 1}, greatest(0, floor({PLANE} * {{0}})))"
    cells = rows.all(
        f"SELECT ({step.format('valence')} + 0.5) / {PLANE} AS valence, ({step.format('arousal')} + 0.5) / {PLANE} AS "
        "arousal, count(*) AS n FROM said WHERE model = ? AND arousal IS NOT NULL AND valence IS NOT NULL GROUP BY ALL",
        model,
    )
    named = rows.all(
        "SELECT e.said, avg(d.valence) AS valence, avg(d.arousal) AS arousal, count(*) AS n FROM said d JOIN said e "
        "USING (segment_id) WHERE d.model = ? AND e.model = ? AND e.said IS NOT NULL "
        "GROUP BY ALL ORDER BY n DESC, said",
        model,
        primary or "",
    )
    return {"cells": cells, "classes": named}
