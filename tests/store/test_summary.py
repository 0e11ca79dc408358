"""A store in words."""

from __future__ import annotations

from pathlib import Path

import serpipe
from serpipe.store import runs, summary, version
from serpipe.store.storage import Storage
from tests.bench import Bench


def test_status(calm: tuple[str, list[str]], bench: Bench) -> None:
    lines = list(summary.status(serpipe.open(calm[0])))
    hours = (9.0 + 5.5 + 1.5 + 7.0 + 0.01) / 3600
    assert lines[0] == f"5 recordings, {hours:.2f} h of audio"
    assert f"model embedded fp {bench.models['embedded']}: 11 predictions in 10 units" in lines
    assert f"model level fp {bench.models['level']}: 11 predictions in 10 units" in lines
    assert "failing AUDIO_UNDECODABLE: 1" in lines
    assert "failing SEGMENT_SILENT: 2" in lines
    assert lines[-1].startswith("run 20")
    assert ": finished, started 20" in lines[-1]


def test_status_of_a_run_that_did_not_end(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    version.check(storage)
    runs.save(storage, runs.Run(run_id="R1", started="then", manifest="/list.csv"))
    assert list(summary.status(serpipe.open(str(tmp_path)))) == [
        "0 recordings, 0.00 h of audio",
        "run R1: running, started then, not ended, /list.csv",
    ]


def test_failures_by_code_with_examples(calm: tuple[str, list[str]]) -> None:
    lines = list(summary.failures(serpipe.open(calm[0])))
    assert lines[:3] == ["SEGMENT_SILENT: 2", "SEGMENT_TOO_SHORT: 2", "AUDIO_UNDECODABLE: 1"]
    silent = [line for line in lines if line.startswith("  SEGMENT_SILENT")]
    assert [line.split(" at ")[1].split(":")[0] for line in sorted(silent)] == ["4.00 s", "6.00 s"]
    assert any(line.startswith("  SEGMENT_TOO_SHORT [level] ") and "tiny.wav at 0.00 s" in line for line in lines)


def test_failures_of_one_code_and_no_more_than_asked(calm: tuple[str, list[str]]) -> None:
    store = serpipe.open(calm[0])
    lines = list(summary.failures(store, code="SEGMENT_SILENT", limit=1))
    assert lines[0] == "SEGMENT_SILENT: 2"
    assert len(lines) == 3
    assert lines[2] == "  … and 1 more (--limit)"
    assert list(summary.failures(store, code="NO_SUCH")) == ["nothing fails with NO_SUCH"]


def test_nothing_fails_in_an_empty_store(tmp_path: Path) -> None:
    version.check(Storage(str(tmp_path)))
    assert list(summary.failures(serpipe.open(str(tmp_path)))) == ["nothing fails"]
