"""Building a report: gather, count, choose what to hear, draw, write."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterable
from typing import Any

import pyarrow.compute as pc
from markupsafe import Markup

from serpipe.audio.decode import Channels
from serpipe.errors import UsageError
from serpipe.redact import redact
from serpipe.report import charts, clips, embedding_map, episode, figures, page, palette, picks, rounds
from serpipe.report.rows import DATES, Rows, opened
from serpipe.report.spent import spent
from serpipe.store import runs
from serpipe.store.reading import open as open_store
from serpipe.store.runs import compared
from serpipe.store.storage import Storage

PER_CLASS, PER_OTHER = 2, 1
"""Clips of each kind."""

GROUPS = figures.FEEDS
"""Classes, feeds and stretches of time with clips: as many as the table of feeds has rows."""

OFTEN = 0.02
"""Share of the segments from which on a class is drawn on the arousal-valence plane."""

RUNS = 12
"""Last runs with a row of their own."""


def build(
    store: str,
    out: str | None = None,
    *,
    run: str | None = None,
    generation: int | None = None,
    price: float | None = None,
) -> str:
    """Write a store's report: one HTML file that opens without a network.

    Args:
        store: directory or fsspec URL.
        out: where to, a path or fsspec URL; beside the record of the run, or of the store's last run, where left out.
        run: limits the report to what one run committed; everything current where left out.
        generation: whose funnel and gates are shown; the newest where left out.
        price: of the machines for an hour, in any currency, from which the cost is told.

    Returns:
        Where it was written.

    Raises:
        UsageError: `STORE_NOT_FOUND`, `RUN_UNKNOWN`, `GENERATION_UNKNOWN`, `REPORT_FOLDER`, `REPORT_PRICE`.
        StoreError: `STORE_OTHER_VERSION`, `STORE_DAMAGED`; transient: `STORE_CHANGING`.

    Examples:
        >>> import os, tempfile
        >>> from serpipe.testing.labelled import MadeUpModel, write_labelled_store
        >>> root = tempfile.mkdtemp()
        >>> _ = write_labelled_store(root, [MadeUpModel(name="a")], recordings=2, segments=3)
        >>> path = build(root, f"{root}/report.html")
        >>> open(path).read(15)
        '<!doctype html>'
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise UsageError("REPORT_PRICE", f"a price of {price} an hour tells no cost; give an amount, such as 2.5")
    target = None if out is None else _target(out)
    found = open_store(store)
    with opened(found, run) as rows:
        text = page.render(_content(rows, generation, price))
        last = run or max((known.run_id for known in found.runs()), default="")
    if target is None:
        target = found.storage, f"runs/{last}/report.html" if last else "report.html"
    storage, name = target
    storage.put(name, text.encode())
    return posixpath.join(storage.shown, name)


def _target(out: str) -> tuple[Storage, str]:
    """The folder of a file, and its name there."""
    folder, _, name = out.rpartition("/")
    storage = Storage(folder or ("/" if out.startswith("/") else "."))
    if not name or (storage.local and os.path.isdir(storage.path(name))):
        example = posixpath.join(storage.shown, name, "report.html")
        raise UsageError("REPORT_FOLDER", f"{redact(out)} is a folder; name the file to write, such as {example}")
    return storage, name


def _content(rows: Rows, generation: int | None, price: float | None) -> dict[str, Any]:
    """Everything the page says."""
    known = figures.models(rows)
    named = [model for model in known if model.names]
    dimensional = [model for model in known if model.plane]
    primary = named[0] if named else None
    made = rounds.read(rows.store.storage, generation)
    classes = [*(said for model in named for said in model.names), *(made["classes"] if made else [])]
    colours = palette.colours(classes)
    content: dict[str, Any] = {
        "colours": colours,
        "store": rows.store.storage.shown,
        "made": runs.now(),
        "run": rows.run,
        "models": known,
        "primary": primary,
        "rounds": made,
        "kinds": {kind: name for kind, (name, _) in picks.KINDS.items()},
        **_done(rows, price),
    }
    disagreement = figures.disagreement(rows, named)
    content["disagreement"] = disagreement
    content["undisputed"] = None if disagreement else _undisputed(named)
    if disagreement:
        content["disagreement_chart"] = charts.histogram(
            "apart", disagreement["histogram"], "disagreement between models"
        )
    plane_of = dimensional[0] if dimensional else None
    if plane_of:
        plane = figures.plane(rows, plane_of.name, primary.name if primary else None)
        content["plane"] = plane | {"model": plane_of.name}
        content["plane_chart"] = _plane_chart(plane, colours)
    if primary:
        content |= _named(rows, primary, plane_of, colours)
    return content


def _named(
    rows: Rows, primary: figures.Model, plane_of: figures.Model | None, every_colour: palette.Colours
) -> dict[str, Any]:
    """What a model that names emotions has to say."""
    name, order = primary.name, list(primary.names)
    colours = {said: every_colour[said] for said in order}
    time = figures.along(rows)
    shares = figures.over_time(rows, name, time)
    confidence = figures.confidences(rows, name)
    drawn = embedding_map.draw(rows, name)
    chosen = episode.choose(rows, name, plane_of.name if plane_of else None)
    feeds = figures.feeds(rows, name)
    moments = list(dict.fromkeys(row["moment"] for row in shares))
    groups = {
        "class": picks.of_classes(rows, name, count=PER_CLASS),
        "feed": picks.of_feeds(rows, name, [row["feed"] for row in feeds if "feed" in row], count=PER_OTHER),
        "time": picks.of_times(rows, name, time.moment, _some(moments), count=PER_OTHER),
    }
    groups["class"] = {said: groups["class"][said] for said in order[:GROUPS] if said in groups["class"]}
    every = [pick for group in groups.values() for kinds in group.values() for some in kinds.values() for pick in some]
    heard = clips.cut(_spans(rows, every, chosen))
    return {
        "classes": figures.classes(rows),
        "feeds": feeds,
        "time": {"by": time.by, "step": time.step, "rows": shares, "moments": len(moments)},
        "dates": figures.dates(rows) | {"columns": DATES},
        "time_table": _pivoted(shares, order),
        "time_chart": charts.over_time("time", shares, colours, _TIME[time.by].format(step=time.step)),
        "confidence": confidence,
        "confidence_chart": charts.histogram("sure", confidence, f"confidence of {redact(name)}"),
        "map": drawn,
        "map_chart": charts.scatter("map", drawn, colours) if drawn else None,
        "episode": chosen,
        "groups": groups,
        "clips": heard,
    }


def _some(moments: list[str]) -> list[str]:
    """Those with clips, evenly spread, the first and the last among them.

    Examples:
        >>> _some([f"{day:02}" for day in range(1, 31)])
        ['01', '04', '06', '09', '12', '14', '17', '19', '22', '25', '27', '30']
    """
    if len(moments) <= GROUPS:
        return moments
    return [moments[round(place * (len(moments) - 1) / (GROUPS - 1))] for place in range(GROUPS)]


def _undisputed(named: list[figures.Model]) -> str:
    """Why nothing is said of disagreement: `alone`, `words` that do not compare, or other `segments`."""
    if len(named) < 2:
        return "alone"
    return "segments" if figures.comparable(named)[0] else "words"


def _plane_chart(plane: dict[str, Any], colours: palette.Colours) -> Markup:
    """Rare classes are in the table alone: their middles lie in the crowd."""
    total = sum(row["n"] for row in plane["classes"])
    often = [row for row in plane["classes"] if row["n"] >= OFTEN * total]
    return charts.plane("plane", plane["cells"], often, 1 / figures.PLANE, colours)


def _pivoted(rows: list[dict[str, Any]], classes: list[str]) -> list[list[str]]:
    """A row a moment, a column a class."""
    moments: dict[str, dict[str, float]] = {}
    for row in rows:
        moments.setdefault(row["moment"], {})[row["said"]] = row["share"]
    return [[moment, *(page.share(shares.get(said, 0.0)) for said in classes)] for moment, shares in moments.items()]


_TIME = {
    "dated": "{step} of the recording",
    "seen": "{step} in which recordings were first labelled",
    "place": "place in the recording",
}


def _done(rows: Rows, price: float | None) -> dict[str, Any]:
    """What was done, what it took, what failed."""
    (about,) = rows.all("SELECT count(*) AS recordings, coalesce(sum(duration_s), 0) / 3600 AS hours FROM about")
    (said,) = rows.all(
        "SELECT count(*) AS predictions, count(DISTINCT segment_id) AS segments, max(channel) > 0 AS voices FROM said"
    )
    records = [known for known in rows.store.runs() if rows.run in (None, known.run_id)]
    ended = [known.result for known in records if known.state == "finished" and known.result.get("elapsed_s")]
    used = spent(rows.store.storage, records)
    failing = rows.store.failing()
    if rows.run is not None:
        failing = failing.filter(pc.equal(failing["run_id"], rows.run))
    codes: dict[tuple[str, str], dict[str, Any]] = {}
    for row in failing.select(["code", "stage", "recording_id", "transient", "message", "uri"]).to_pylist():
        held = codes.setdefault((row["code"], row["stage"]), {"recordings": set(), "events": 0, **row})
        held["recordings"].add(row["recording_id"])
        held["events"] += 1
    return {
        **about,
        **said,
        "runs": records[-RUNS:][::-1],
        "all_runs": len(records),
        "forecasts": [(known, lines) for known in records[::-1] if (lines := compared(known))][:RUNS],
        "audio_s": sum(result.get("audio_s") or 0.0 for result in ended),
        "elapsed_s": sum(result["elapsed_s"] for result in ended),
        "spent": used,
        "cost": None if price is None or not used.total_s else price * used.total_s / 3600,
        "price": price,
        "failing": sorted(codes.values(), key=lambda held: (-len(held["recordings"]), held["code"])),
        "failing_recordings": len(failing["recording_id"].unique()),
    }


def _spans(rows: Rows, every: Iterable[picks.Pick], chosen: episode.Episode | None) -> list[clips.Span]:
    runs = rows.store.runs()
    # A run that relabels from embeddings hears nothing; its segments are those of the run that cut them.
    cut: dict[str, Channels] = {run.audio: run.asked["channels"] for run in runs if "channels" in run.asked}
    asked: dict[str, Channels] = {run.run_id: run.asked.get("channels") or cut.get(run.audio, "mix") for run in runs}
    spans = {
        pick.segment_id.hex(): clips.Span(
            key=pick.segment_id.hex(),
            recording_id=pick.recording_id,
            uri=pick.uri,
            size=pick.size,
            etag=pick.etag,
            channels=asked.get(pick.run_id, "mix"),
            channel=pick.channel,
            start_s=pick.start_s,
            end_s=min(pick.end_s, pick.start_s + clips.LONGEST_S),
        )
        for pick in every
        if pick.uri is not None
    }
    whole = (
        [
            clips.Span(
                key="episode",
                recording_id=chosen.about["recording_id"],
                uri=chosen.about["uri"],
                size=chosen.about["size"],
                etag=chosen.about["etag"],
                channels=asked.get(chosen.run_id, "mix"),
                channel=chosen.channel,
                start_s=0.0,
                end_s=chosen.end_s,
            )
        ]
        if chosen
        else []
    )
    return [*whole, *spans.values()]
