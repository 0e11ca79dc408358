"""A run that is killed, and started again, leaves the tables of a calm run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import serpipe
from tests.tables import assert_same

PROGRAM = """
import sys, ray, serpipe
from serpipe.engine import spread
spread.bundle_bytes = lambda *_: 1  # a commit a pack, so that there is a middle to be killed in
ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
serpipe.label(sys.argv[1], sys.argv[2], segmentation="window:2/1")
"""


@pytest.fixture(scope="module")
def long_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serpipe.testing import write_speech

    folder = tmp_path_factory.mktemp("long")
    for seed in range(6):
        write_speech(folder / f"{seed}.wav", seconds=320.0, seed=seed)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.mark.usefixtures("ray_session")
def test_killed_in_the_middle_and_run_again(long_archive: Path, tmp_path: Path) -> None:
    calm, shaken = str(tmp_path / "calm"), str(tmp_path / "shaken")
    serpipe.label(str(long_archive), calm, segmentation="window:2/1")
    died_with: list[int] = []
    for commits in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(long_archive), shaken])
        deadline = time.monotonic() + 120
        while _commits(shaken) < commits and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        died_with.append(_commits(shaken))
    assert 0 < died_with[0] < 13, "the run ended before it could be killed; make it longer"
    result = serpipe.label(str(long_archive), shaken, segmentation="window:2/1")
    assert result.done_before or result.recordings == 7
    states = [run.state for run in serpipe.open(shaken).runs()]
    assert states == ["interrupted", "interrupted", "finished"]
    assert_same(calm, shaken)


def _commits(store: str) -> int:
    return len(list(Path(store).glob("predictions/*/*/*.parquet")))
