"""What a store's labels cost: every run counts, however it ended."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

import serpipe
from serpipe.cli import main
from serpipe.errors import UsageError
from serpipe.report import build
from serpipe.report.spent import spent
from serpipe.store import runs
from serpipe.store.storage import Storage
from serpipe.testing.labelled import MadeUpModel, write_labelled_store
from tests.conftest import ROOT


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """A store whose labels took a whole run, one stopped, one that died, one that died at once, and an empty night."""
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="one")], recordings=2, segments=2)
    storage = Storage(root)
    at = {"started": "2026-01-15T00:00:00+00:00", "ended": "2026-01-15T01:30:00+00:00"}
    for name, state, result in (
        ("R1", "finished", {"elapsed_s": 3600.0, "audio_s": 72_000.0}),
        ("R2", "interrupted", {"stopped": "RunStopped"}),
        ("R3", "interrupted", {}),
        ("R4", "running", {}),
        ("R5", "finished", {"recordings": 0}),
    ):
        runs.save(storage, runs.Run(run_id=name, state=state, result=result, **at))  # type: ignore[arg-type]
    told = runs.Progress(at="", elapsed_s=1800.0, audio_s=100.0, total_s=200.0, segments=9, quarantined=0)
    runs.save_progress(storage, "R3", told)
    return storage


def test_what_was_stopped_or_died_is_counted(store: Storage) -> None:
    found = spent(store, serpipe.open(store.root).runs())
    assert found.seconds == {"R1": 3600.0, "R2": 5400.0, "R3": 1800.0, "R5": 0.0}
    assert (found.total_s, found.unfinished, found.unfinished_s, found.unknown) == (10_800.0, 3, 7200.0, 1)


def test_the_page_says_what_it_cost(store: Storage, tmp_path: Path) -> None:
    text = Path(build(store.root, str(tmp_path / "r.html"), price=2.0)).read_text()
    text = " ".join(re.sub("<[^>]+>", " ", text).split())
    assert "Cost 6.00 at 2.00 an hour" in text
    assert "Machine time 3.0 h 2.0 h of it in 3 runs without an end" in text
    assert "Of 1 runs nothing is known, so it is more than is said here" in text
    assert "20 × real time" in text


def test_the_night_says_what_it_cost(store: Storage) -> None:
    report = runpy.run_path(str(ROOT / "jobs" / "nightly.py"))["report"]
    assert report(store.root, price=2.0) == 0
    assert "at 2.00 an hour" in store.get("runs/R5/report.html").decode()


@pytest.mark.parametrize("price", ["nan", "inf", "-1"])
def test_a_price_that_is_none_is_refused(store: Storage, tmp_path: Path, price: str) -> None:
    done = CliRunner().invoke(main, ["report", store.root, f"--price={price}", "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 2
    assert "REPORT_PRICE" in done.output
    assert not (tmp_path / "r.html").exists()


def test_a_folder_is_no_file_to_write(store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for out in (str(tmp_path / "there"), "there", f"{tmp_path}/new/", "."):
        with pytest.raises(UsageError, match=r"REPORT_FOLDER: .* is a folder; name the file .*report\.html"):
            build(store.root, out)
    assert Path(build(store.root, "there/r.html")) == tmp_path / "there" / "r.html"
