"""What an operator is told of a store."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

import serpipe
from serpipe.store import failures, plans, runs, summary, version
from serpipe.store.lease import Holder, Lease
from serpipe.store.storage import Storage
from tests.bench import Bench


def words(store: str) -> list[str]:
    return list(summary.lines(summary.status(serpipe.open(store))))


def test_what_is_done_and_failed_by_model(calm: tuple[str, list[str]], bench: Bench) -> None:
    found = summary.status(serpipe.open(calm[0]))
    hours = (9.0 + 5.5 + 1.5 + 7.0 + 0.01) / 3600
    assert (found.recordings, round(found.hours, 9)) == (5, round(hours, 9))
    assert [(model.model, model.fp) for model in found.models] == sorted(bench.models.items())
    for model in found.models:
        assert (model.recordings, round(model.hours, 9), model.segments) == (5, round(hours, 9), 11)
        # One undecodable file, and tiny.wav is too short for either model.
        assert (model.failed_recordings, model.failed_segments) == (1, 1)
        assert (model.left_recordings, model.left_hours) == (0, 0.0)
    assert found.failing == {"SEGMENT_SILENT": 2, "SEGMENT_TOO_SHORT": 2, "AUDIO_UNDECODABLE": 1}
    assert [run.state for run in found.runs] == ["finished"]
    assert found.running == ()


def test_the_same_in_words(calm: tuple[str, list[str]], bench: Bench) -> None:
    lines = words(calm[0])
    assert lines[0] == "5 recordings, 0.01 h of audio"
    assert (
        f"model level fp {bench.models['level']}: 11 segments of 5 recordings (0.01 h) labelled, "
        "0 recordings (0.00 h) left, 1 recordings and 1 segments failed" in lines
    )
    assert "failing SEGMENT_SILENT: 2" in lines
    assert lines[-1].startswith("run 20")
    assert ": finished, started 20" in lines[-1]


def test_what_is_left_of_the_last_plan(tmp_path: Path) -> None:
    """Three recordings planned and none settled; one of them keeps the model's old labels."""
    storage = Storage(str(tmp_path))
    version.check(storage)
    runs.save(storage, runs.Run(run_id="R1", audio="a", models={"embedded": "f"}))
    rows = [
        {"recording_id": name * 16, "uri": "a.wav", "kept": kept, "known": False, "attempts": 0, "work_s": seconds}
        for name, kept, seconds in ((b"a", [], 3600.0), (b"b", [], 1800.0), (b"c", ["embedded"], 60.0))
    ]
    plan = plans.Writer(storage, "R1")
    plan.add(pa.Table.from_pylist(rows, schema=plans.WORK), [2, 1])
    plan.end()
    (model,) = summary.status(serpipe.open(str(tmp_path))).models
    assert (model.left_recordings, model.left_hours, model.recordings) == (2, 1.5, 0)


def test_a_run_that_died_is_interrupted_and_one_that_lives_is_told_of(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    version.check(storage)
    runs.save(storage, runs.Run(run_id="R1", started="then", manifest="/list.csv"))
    empty = "0 recordings, 0.00 h of audio"
    assert words(str(tmp_path)) == [empty, "run R1: interrupted, started then, /list.csv"]
    with Lease(storage, "R1"):
        lines = words(str(tmp_path))
        assert lines[:2] == [empty, "run R1: running, started then, /list.csv"]
        assert lines[2].startswith("running: R1 on ")
        assert lines[2].endswith("it has not begun to label")
        far = runs.Progress(at="now", elapsed_s=60.0, audio_s=3600.0, total_s=7200.0, segments=9, quarantined=2)
        runs.save_progress(storage, "R1", far)
        assert words(str(tmp_path))[2].endswith("; 1.00 of 2.00 h, 60 x real time, 60 s left, 2 quarantined, as of now")
        # The last plan may be another run's than the one that holds the store.
        runs.save(storage, runs.Run(run_id="R0", started="before", manifest="/old.csv"))
        assert "run R0: interrupted, started before, /old.csv" in words(str(tmp_path))


def test_a_machine_that_went_without_a_word_is_shown_as_interrupted(tmp_path: Path) -> None:
    """Its claim stands and its process cannot be asked about from here; only its signs of life have ended."""
    storage = Storage(str(tmp_path))
    version.check(storage)
    runs.save(storage, runs.Run(run_id="R1", started="then", manifest="/list.csv"))
    spot = Holder(token="t", run_id="R1", host="spot-17", pid=9, place="elsewhere", since="then", state="held")
    storage.put("lease/0000000001.json", json.dumps(asdict(spot)).encode())
    far = runs.Progress(at="now", elapsed_s=100.0, audio_s=360.0, total_s=3600.0, segments=1, quarantined=0)
    runs.save_progress(storage, "R1", far)
    fresh = words(str(tmp_path))
    assert "run R1: running, started then, /list.csv" in fresh
    assert fresh[-1].startswith("running: R1 on spot-17 (process 9) since then, last sign ")
    for age_s, state in ((100, "running"), (3600, "interrupted")):
        os.utime(storage.path("lease/0000000001.json"), (time.time() - age_s,) * 2)
        assert f"run R1: {state}, started then, /list.csv" in words(str(tmp_path))
    last = words(str(tmp_path))[-1]
    assert last.startswith("interrupted: R1 on spot-17 (process 9) since then; no sign of life for 3,60")
    assert last.endswith(" s, at 0.10 of 1.00 h; the same command goes on from there")
    (told,) = summary.status(serpipe.open(str(tmp_path))).running
    assert not told.alive
    assert storage.list("lease/") == ["lease/0000000001.json"], "looking writes nothing"


def test_failures_by_code_and_feed_with_examples(calm: tuple[str, list[str]], bench: Bench) -> None:
    found = failures.failures(serpipe.open(calm[0]))
    assert [(group.code, group.stage, group.rows, group.recordings) for group in found.groups] == [
        ("SEGMENT_SILENT", "segment", 2, 1),
        ("SEGMENT_TOO_SHORT", "model", 2, 1),
        ("AUDIO_UNDECODABLE", "decode", 1, 1),
    ]
    assert list(found.feeds.values()) == [3]
    lines = list(failures.lines(found))
    assert lines[2] == (
        f"AUDIO_UNDECODABLE (decode): 1 of 1 recordings; `serpipe retry {calm[0]} --code AUDIO_UNDECODABLE` makes "
        "them work for the next run"
    )
    silent = [line for line in lines if line.startswith("  SEGMENT_SILENT")]
    assert [line.split(" at ")[1].split(":")[0] for line in silent] == ["4.00 s", "6.00 s"]
    assert any(line.startswith("  SEGMENT_TOO_SHORT [level] ") and "tiny.wav at 0.00 s" in line for line in lines)


def test_failures_that_are_asked_for_and_no_more(calm: tuple[str, list[str]]) -> None:
    store = serpipe.open(calm[0])
    found = failures.failures(store, code="SEGMENT_SILENT", limit=1)
    assert [group.code for group in found.groups] == ["SEGMENT_SILENT"]
    assert (len(found.examples), found.more) == (1, 1)
    assert list(failures.lines(found))[-1] == "  … and 1 more (--limit)"
    assert [group.code for group in failures.failures(store, stage="decode").groups] == ["AUDIO_UNDECODABLE"]
    (feed,) = failures.failures(store).feeds
    assert failures.failures(store, feed=feed) == failures.failures(store)
    for nowhere in (feed[:-1], f"{feed}/long.wav"):
        assert list(failures.lines(failures.failures(store, feed=nowhere))) == ["nothing fails"]
    assert list(failures.lines(failures.failures(store, code="NO_SUCH"))) == ["nothing fails"]


def test_nothing_fails_in_an_empty_store(tmp_path: Path) -> None:
    version.check(Storage(str(tmp_path)))
    assert list(failures.lines(failures.failures(serpipe.open(str(tmp_path))))) == ["nothing fails"]
