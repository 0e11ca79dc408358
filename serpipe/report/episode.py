"""One recording from its beginning: what is felt when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serpipe.report.rows import Rows

LONGEST_S = 300.0
"""Seconds of it that are shown and heard; five minutes are 1.2 MB."""

_ENOUGH = 12
"""Segments from which on a recording tells a story."""


@dataclass(frozen=True, slots=True)
class Episode:
    """The first minutes of a recording.

    Attributes:
        about: its row of the table `about`.
        run_id: the run that labelled it.
        channel: whose labels these are, of the recording's channels as that run treated them.
        channels: channels that have labels.
        end_s: seconds shown.
        labels: rows of `start_s`, `end_s`, `said`, `confidence`, by start.
        curves: `arousal` and `valence` as (seconds, value) where a model gives them.
    """

    about: dict[str, Any]
    run_id: str
    channel: int
    channels: int
    end_s: float
    labels: list[dict[str, Any]]
    curves: dict[str, list[tuple[float, float]]]


def choose(rows: Rows, model: str, dimensional: str | None) -> Episode | None:
    """The recording, or channel of one, with the most even mixture of emotions in its first minutes."""
    best = rows.all(
        "SELECT recording_id, channel, min(run_id) AS run_id FROM said SEMI JOIN about USING (recording_id) "
        "WHERE model = ? AND said IS NOT NULL AND start_s < ? GROUP BY recording_id, channel "
        f"ORDER BY entropy(said) * least(1, count(*) / {_ENOUGH}) DESC, recording_id, channel LIMIT 1",
        model,
        LONGEST_S,
    )
    if not best:
        return None
    which, channel = best[0]["recording_id"], best[0]["channel"]
    (about,) = rows.all("SELECT * FROM about WHERE recording_id = ?", which)
    end = min(about["duration_s"], LONGEST_S)
    (voices,) = rows.all(
        "SELECT count(DISTINCT channel) AS channels FROM said WHERE model = ? AND recording_id = ?", model, which
    )
    labels = rows.all(
        "SELECT start_s, least(end_s, ?) AS end_s, said, confidence FROM said "
        "WHERE model = ? AND recording_id = ? AND channel = ? AND said IS NOT NULL AND start_s < ? ORDER BY start_s",
        end,
        model,
        which,
        channel,
        end,
    )
    points = rows.all(
        "SELECT (start_s + least(end_s, ?)) / 2 AS middle, arousal, valence FROM said "
        "WHERE model = ? AND recording_id = ? AND channel = ? AND start_s < ? ORDER BY start_s",
        end,
        dimensional or "",
        which,
        channel,
        end,
    )
    curves = {
        name: [(point["middle"], point[name]) for point in points if point[name] is not None]
        for name in ("arousal", "valence")
    }
    return Episode(
        about=about,
        run_id=best[0]["run_id"],
        channel=channel,
        channels=voices["channels"],
        end_s=end,
        labels=labels,
        curves={name: some for name, some in curves.items() if len(some) > 1},
    )
