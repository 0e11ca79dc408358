"""Two hundred recordings while a worker is killed every few seconds and one read in twenty breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serpipe.testing import write_speech
from tests.engine import hazards
from tests.tables import assert_same, read

RECORDINGS, VOICES = 200, 20

PROGRAM = """
import glob, os, sys, ray, serpipe
from serpipe.engine import spread
from tests.engine.killing import killing
spread.bundle_bytes = lambda *_: 1 << 16  # dozens of commits
archive, *stores = sys.argv[1:]
for store, share, most in zip(stores, ("0", "0.05"), (0, 1000)):
    os.environ["HAZARD_FAIL"] = share
    ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    commits = lambda: len(glob.glob(store + "/predictions/*/*/*.parquet"))
    with killing(commits, every_s=3.0, most=most) as killed:
        result = serpipe.label(archive, store, segmentation="window:4/2")
    print(f"{len(killed)} killed, {result.recordings} recordings, {result.failed} failed, "
          f"{result.unsettled} unsettled, {result.elapsed_s:.0f} s")
    ray.shutdown()
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_chaos_leaves_the_tables_of_a_calm_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site, archive = tmp_path / "site", tmp_path / "archive"
    site.mkdir()
    hazards.install(site)
    for voice in range(VOICES):
        first = Path(write_speech(archive / f"0-{voice:02}.wav", seconds=10.0 + voice, seed=voice))
        for copy in range(1, RECORDINGS // VOICES):
            os.link(first, archive / f"{copy}-{voice:02}.wav")
    calm, shaken = str(tmp_path / "calm"), str(tmp_path / "shaken")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"hazard://{archive}", calm, shaken],
        env=hazards.environment(site),
        check=True,
        timeout=600,
        stdout=subprocess.PIPE,
        text=True,
    )
    events = hazards.log(site)
    first, second = (line for line in done.stdout.splitlines() if " killed, " in line)
    with capsys.disabled():
        print(f"\ncalm:  {first}\nchaos: {second}")
        print(f"reads: {events.count('read')}, of which {events.count('fail')} broke")
    assert f"{RECORDINGS} recordings, 0 failed, 0 unsettled" in second
    assert int(second.split()[0]) >= 3, "the run ended before it was shaken; make it longer"
    assert events.count("fail") > 0
    assert read(shaken, "recordings").num_rows == RECORDINGS
    assert_same(calm, shaken)
