"""The figures of a report against plain Arrow and SciPy over the same store."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from scipy.spatial.distance import jensenshannon

import serpipe
from serpipe.audio.decode import Decoding
from serpipe.errors import UsageError
from serpipe.labels import CANONICAL
from serpipe.pack import META
from serpipe.report import build, clips, embedding_map, episode, figures, picks
from serpipe.report.rows import Rows, opened
from serpipe.store import parquet, schemas
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from serpipe.testing.labelled import MadeUpModel, write_labelled_store


@pytest.fixture(scope="module")
def rows(store: str) -> Iterator[Rows]:
    with opened(serpipe.open(store)) as found:
        figures.disagreement(found, [model for model in figures.models(found) if model.names])
        yield found


@pytest.fixture(scope="module")
def plain(store: str) -> Store:
    return serpipe.open(store)


def test_classes_are_counted_as_arrow_counts_them(rows: Rows, plain: Store) -> None:
    for model in ("embedded", "second"):
        expected = Counter(plain.predictions(model)["emotion"].to_pylist())
        assert {row["said"]: row["n"] for row in figures.classes(rows) if row["model"] == model} == expected
    assert [model.name for model in figures.models(rows)] == ["embedded", "second", "dimensions"]


def test_feeds_are_the_owners_word_or_the_folder(rows: Rows, plain: Store) -> None:
    owners = {
        row["recording_id"]: dict(row["meta"]).get("feed", row["uri"].rpartition("/")[0])
        for row in plain.recordings().to_pylist()
    }
    expected = Counter(owners[owner] for owner in plain.predictions("embedded")["recording_id"].to_pylist())
    assert {row["feed"]: row["n"] for row in figures.feeds(rows, "embedded")} == expected


def test_time_is_the_owners_date(rows: Rows, plain: Store) -> None:
    dates = {row["recording_id"]: dict(row["meta"])["date"] for row in plain.recordings().to_pylist()}
    expected = Counter(dates[owner] for owner in plain.predictions("embedded")["recording_id"].to_pylist())
    time = figures.along(rows)
    found = figures.over_time(rows, "embedded", time)
    counts: Counter[str] = Counter()
    for row in found:
        counts[row["moment"]] += row["n"]
    assert (time.by, time.step, counts) == ("dated", "day", expected)
    assert sum(row["share"] for row in found) == pytest.approx(len(expected))


def test_disagreement_is_the_jensen_shannon_divergence(rows: Rows, plain: Store) -> None:
    scores = {}
    for model in ("embedded", "second"):
        table = plain.predictions(model).to_pylist()
        scores[model] = {
            row["segment_id"]: [
                row["emotion_scores"][name] for name in CANONICAL if row["emotion_scores"][name] is not None
            ]
            for row in table
        }
    found = {row["segment_id"]: row["jsd"] for row in rows.all("SELECT segment_id, jsd FROM disputed")}
    assert found.keys() == scores["embedded"].keys()
    for name, value in found.items():
        expected = jensenshannon(scores["embedded"][name], scores["second"][name], base=2) ** 2
        assert value == pytest.approx(expected, abs=1e-5)


def test_histogram_and_plane_leave_nobody_out(rows: Rows, plain: Store) -> None:
    count = plain.predictions("embedded").num_rows
    assert sum(row["n"] for row in figures.confidences(rows, "embedded")) == count
    plane = figures.plane(rows, "dimensions", "embedded")
    assert sum(row["n"] for row in plane["cells"]) == sum(row["n"] for row in plane["classes"]) == count


def test_picks_are_the_extremes_of_their_class(rows: Rows, plain: Store) -> None:
    said = plain.predictions("embedded").to_pylist()
    for name, kinds in picks.of_classes(rows, "embedded", count=2).items():
        mine = sorted((row for row in said if row["emotion"] == name), key=lambda row: -row["confidence"])
        assert {pick.confidence for pick in kinds["certain"]} == {row["confidence"] for row in mine[:2]}
        narrow = sorted(mine, key=lambda row: row["confidence"] - sorted(row["scores"])[-2])
        assert {pick.segment_id for pick in kinds["doubtful"]} == {row["segment_id"] for row in narrow[:2]}
        assert all(dict(pick.others).keys() == {"second"} for some in kinds.values() for pick in some)


def test_a_clip_is_the_segments_audio(rows: Rows, plain: Store) -> None:
    (pick,) = picks.of_classes(rows, "embedded", count=1)[figures.models(rows)[0].names[0]]["certain"]
    made = clips.cut([_span(pick)])
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(made.audio["clip"])), dtype="float32")
    whole = np.concatenate([block[0] for block in Decoding(pick.uri or "", "mix")])
    wanted = whole[round(pick.start_s * 16_000) : round(pick.end_s * 16_000)]
    # An encoder delays by some hundred samples; the best alignment must be nearly the same sound.
    sizes = np.linalg.norm(samples) * np.linalg.norm(wanted)
    assert rate == 16_000
    assert np.correlate(samples, wanted, "full").max() / sizes > 0.9


def test_what_cannot_be_opened_is_said(rows: Rows) -> None:
    (pick,) = picks.of_classes(rows, "embedded", count=1)[figures.models(rows)[0].names[0]]["certain"]
    gone = clips.cut([_span(pick, uri="/nowhere/a.wav")])
    assert not gone.audio
    assert "nothing is there" in gone.missing["clip"]
    changed = clips.cut([_span(pick, size=3)])
    assert "size" in changed.missing["clip"]


def _span(pick: picks.Pick, **other: object) -> clips.Span:
    values = {
        "key": "clip",
        "recording_id": pick.recording_id,
        "uri": pick.uri,
        "size": pick.size,
        "etag": pick.etag,
        "channels": "mix",
        "channel": pick.channel,
        "start_s": pick.start_s,
        "end_s": pick.end_s,
    }
    return clips.Span(**(values | other))  # type: ignore[arg-type]


def test_the_episode_and_the_map(rows: Rows, plain: Store) -> None:
    chosen = episode.choose(rows, "embedded", "dimensions")
    assert chosen is not None
    mine = [
        row for row in plain.predictions("embedded").to_pylist() if row["recording_id"] == chosen.about["recording_id"]
    ]
    assert [row["said"] for row in chosen.labels] == [
        row["emotion"] for row in sorted(mine, key=lambda row: row["start_s"])
    ]
    drawn = embedding_map.draw(rows, "embedded")
    assert drawn is not None
    assert Counter(point["said"] for point in drawn.points) == Counter(
        plain.predictions("embedded")["emotion"].to_pylist()
    )
    assert 0 < drawn.explained <= 1


def test_a_run_shows_only_what_it_committed(store: str, plain: Store) -> None:
    (run,) = plain.runs()
    with opened(plain, run.run_id) as found:
        assert {model.name for model in figures.models(found)} == {"embedded"}
    with pytest.raises(UsageError, match="RUN_UNKNOWN"), opened(plain, "nothing"):
        pass


def test_replaced_labels_are_not_counted(tmp_path: Path) -> None:
    both = [MadeUpModel(name="one", fp="1" * 16), MadeUpModel(name="one", fp="2" * 16)]
    write_labelled_store(str(tmp_path / "s"), both, recordings=2, segments=3)
    store = serpipe.open(str(tmp_path / "s"))
    assert len(store.entries) == 4
    with opened(store) as found:
        assert [model.segments for model in figures.models(found)] == [6]


DAY = datetime(2026, 1, 15)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Thu, 15 Jan 2026 08:00:00 +0000", DAY.replace(hour=8)),
        ("Mon, 15 Jan 2026 08:00:00 GMT", DAY.replace(hour=8)),
        ("15 Jan 2026 23:30:00 -0500", datetime(2026, 1, 16, 4, 30)),
        ("20260115", DAY),
        ("1768464000", DAY.replace(hour=8)),
        ("1768464000.5", DAY.replace(hour=8, microsecond=500_000)),
        ("1768464000500", DAY.replace(hour=8, microsecond=500_000)),
        ("15.01.2026", DAY),
        (" 15.01.2026 08:00 ", DAY.replace(hour=8)),
        ("15 January 2026", DAY),
        ("2026-01-15", DAY),
        ("2026-01-15T08:00:00Z", DAY.replace(hour=8)),
        ("2026-01", DAY.replace(day=1)),
        ("03/04/2026", None),
        ("99999999999999999999", None),
        ("episode 7", None),
        ("", None),
    ],
)
def test_dates_are_read_as_owners_write_them(
    text: str, moment: datetime | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    root = str(tmp_path / "s")
    _dated(root, [("pubdate", text)])
    with opened(serpipe.open(root)) as found:
        (row,) = found.all("SELECT dated, dated_by, seen FROM about")
    assert (row["dated"], row["dated_by"]) == (moment, moment and "pubdate")
    assert row["seen"] == datetime(2030, 1, 1)


def test_it_is_said_which_dates_count(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    _dated(
        root,
        [("date", "2026-01-15"), ("pubdate", "garbage")],
        [("date", "soon"), ("pubdate", "Fri, 16 Jan 2026 08:00:00 GMT")],
        [("date", "soon")],
        [("speaker", "x")],
    )
    with opened(serpipe.open(root)) as found:
        assert figures.dates(found) == {
            "by": [{"name": "date", "n": 1}, {"name": "pubdate", "n": 1}],
            "without": 2,
            "unread": 1,
            "example": {"name": "date", "text": "soon"},
        }
    text = " ".join(re.sub("<[^>]+>", "", Path(build(root, str(tmp_path / "r.html"))).read_text()).split())
    assert "column date of 1 recordings, column pubdate of 1 recordings. 2 have none and are not in this chart." in text
    assert "1 have one that is no date this page can read, such as date “soon”" in text


def test_a_store_without_dates_says_so(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    _dated(root, [("speaker", "x")])
    text = Path(build(root, str(tmp_path / "r.html"))).read_text()
    assert "No recording has a date of its owner's, as a column date, published" in text.replace("&#39;", "'")


def _dated(root: str, *metas: list[tuple[str, str]]) -> None:
    """A made-up store whose recordings have the owner's columns."""
    write_labelled_store(root, [MadeUpModel(name="one")], recordings=len(metas), segments=2, per_commit=99)
    _told(root, metas)


def _told(root: str, metas: Sequence[list[tuple[str, str]]]) -> None:
    storage = Storage(root)
    (name,) = storage.list("recordings/")
    table = parquet.read(storage, [name], schemas.RECORDINGS)
    table = table.set_column(table.schema.get_field_index("meta"), "meta", pa.array(list(metas), META))
    parquet.write(storage, name, table, schemas.RECORDINGS, {})


@pytest.mark.parametrize("by", ["dated", "place"])
def test_every_group_has_clips(by: str, tmp_path: Path) -> None:
    """More feeds, days and classes than have rows; and one day, where the place in a recording stands for time."""
    root, names = str(tmp_path / "s"), ("anger", "happiness", "sadness", "neutral")
    days = [f"2026-01-{1 + number:02d}" for number in range(28)]
    write_labelled_store(root, [MadeUpModel(name="one")], recordings=28, segments=20, feeds=14, per_commit=99)
    if by == "dated":
        _told(root, [[("date", day)] for day in days])
    text = Path(build(root, str(tmp_path / "r.html"))).read_text()
    listed = re.findall(r'<details class="group"[^>]*>\s*<summary>(.*?)</summary>', text, re.DOTALL)
    groups = [re.sub("<[^>]+>", "", name).strip() for name in listed]
    assert set(names) <= set(groups[:7])
    feeds = re.search(r'<table class="heat">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    assert feeds is not None
    rows = re.findall(r'<th scope="row"[^>]*>(.*?)</th>', feeds[1])
    assert len(rows) == figures.FEEDS
    assert [name for name in groups if name in rows] == rows
    moments = [name for name in groups if name.startswith("2026-") or name.endswith("%")]
    if by == "dated":
        assert len(moments) == 12
        assert (moments[0], moments[-1]) == (days[0], days[-1])
        assert "12 of 28, evenly spread" in text
    else:
        assert moments == [f"{start:02d}–{start + 10:02d} %" for start in range(0, 100, 10)]


def test_one_feed_can_be_heard(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="one")], recordings=2, segments=4, feeds=1)
    assert "Listen by feed" in Path(build(root, str(tmp_path / "r.html"))).read_text()
