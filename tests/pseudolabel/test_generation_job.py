"""One command from a labelled corpus to a promoted or refused student, with its report and its exit code."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner, Result

from serpipe.pseudolabel import generation, gold, schemas
from serpipe.store.storage import Storage
from serpipe.testing.speech import speech_like
from tests.conftest import ROOT

JOB = runpy.run_path(str(ROOT / "jobs" / "generation.py"))
PITCH = {"anger": 260.0, "sadness": 110.0}
SPEAKERS = {"ann": "dev", "bob": "dev", "cid": "test", "dan": "test"}


@pytest.fixture
def labels(tmp_path: Path) -> str:
    """A corpus of four voices, two emotions and four clips of each."""
    rows, seed = ["path,emotion,speaker,split"], 0
    for speaker, split in SPEAKERS.items():
        for emotion, pitch in PITCH.items():
            for _ in range(4):
                seed += 1
                soundfile.write(tmp_path / f"{seed}.wav", speech_like(1.5, seed=seed, pitch_hz=pitch), 16_000)
                rows.append(f"{seed}.wav,{emotion},{speaker},{split}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(rows))
    return str(path)


def run(labels: str, store: str, *more: str) -> Result:
    asked = [labels, store, "--gold", labels, "--column", "uri=path", "--gold-clips", "3", "--rounds", "1", *more]
    return CliRunner().invoke(JOB["main"], asked, catch_exceptions=False)


@pytest.mark.usefixtures("ray_session")
def test_one_command_ends_with_a_verdict_a_report_and_its_exit_code(labels: str, tmp_path: Path) -> None:
    """The only teacher is the student of the gold alone, so nothing is gained."""
    store, page = str(tmp_path / "store"), tmp_path / "page.html"
    result = run(labels, store, "--report", str(page))
    assert result.exit_code == 4, result.output
    assert "probe-1 is refused" in result.output
    assert "probe-1 was refused by its gates; no student passed its gates\n" in result.output
    assert f"report: {page}\n" in result.output
    assert "refused" in page.read_text()
    assert page.read_text().startswith("<!doctype html>")
    # The same command finds everything done, and judges again.
    again = run(labels, store)
    assert again.exit_code == 4, again.output
    assert generation.numbers(Storage(store)) == [1]
    assert f"report: {store}/{schemas.folder(1)}report.html\n" in again.output
    assert Path(store, schemas.folder(1), "report.html").exists()
    assert generation.rows(Storage(store), 1).num_rows == 32


def test_a_wrong_request_is_one_sentence_and_exit_code_two(labels: str, tmp_path: Path) -> None:
    result = run(labels, str(tmp_path / "store"), "--column", "uri")
    assert result.exit_code == 2
    assert result.stderr.startswith("serpipe: COLUMN_INVALID")


def test_few_clips_are_gold_and_what_judges_stays_whole(labels: str, tmp_path: Path) -> None:
    place = JOB["few_gold"](labels, 3, 0, str(tmp_path / "store"))
    assert gold.read(place).counts() == {
        "test": {"anger": 8, "sadness": 8},
        "train": {"anger": 3, "sadness": 3},
    }
