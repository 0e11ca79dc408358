"""Two hundred recordings while a worker is killed every few seconds, one read in twenty breaks and a folder is down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import serpipe
from serpipe.testing import write_speech
from tests.engine import hazards
from tests.tables import assert_same, read

RECORDINGS, VOICES = 200, 20

DOWN = "/3-0"
"""Of ten names; no try reads these recordings while it lasts."""

PROGRAM = """
import glob, os, sys, ray, serpipe
from serpipe.engine import spread
from tests.engine.killing import killing
spread.bundle_bytes = lambda *_: 1 << 14  # dozens of commits
archive, calm, shaken, down = sys.argv[1:]
for store, share, broken, most in ((calm, "0", "", 0), (shaken, "0.05", down, 1000), (shaken, "0", "", 0)):
    os.environ["HAZARD_FAIL"], os.environ["HAZARD_DOWN"] = share, broken
    ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    commits = lambda: len(glob.glob(store + "/predictions/*/*/*.parquet"))
    with killing(commits, every_s=3.0, most=most) as killed:
        result = serpipe.label(archive, store, segmentation="window:4/2")
    print(f"{len(killed)} killed, {result.recordings} recordings, {result.failed} failed, "
          f"{result.unsettled} unsettled {result.codes}, {result.elapsed_s:.0f} s")
    ray.shutdown()
"""


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_chaos_and_the_run_that_mends_it_leave_the_tables_of_a_calm_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, archive = tmp_path / "site", tmp_path / "archive"
    site.mkdir()
    hazards.install(site)
    for voice in range(VOICES):
        first = Path(write_speech(archive / f"0-{voice:02}.wav", seconds=15.0 + 2 * voice, seed=voice))
        for copy in range(1, RECORDINGS // VOICES):
            os.link(first, archive / f"{copy}-{voice:02}.wav")
    calm, shaken = str(tmp_path / "calm"), str(tmp_path / "shaken")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"hazard://{archive}", calm, shaken, DOWN],
        env=hazards.environment(site),
        check=True,
        timeout=800,
        stdout=subprocess.PIPE,
        text=True,
    )
    events = hazards.log(site)
    first, second, third = (line for line in done.stdout.splitlines() if " killed, " in line)
    with capsys.disabled():
        print(f"\ncalm:  {first}\nchaos: {second}\nafter: {third}")
        print(f"reads: {events.count('read')}, of which {events.count('fail')} broke and {events.count('down')} had to")
    down = sum(DOWN in f"/{path.name}" for path in archive.iterdir())
    assert down == 10
    # What no try could read is all that is missing, and says so; nothing else that was shaken is.
    said = f"{RECORDINGS} recordings, {down} failed, {down} unsettled {{'RECORDING_UNREACHABLE': {down}}}"
    assert said in second
    assert int(second.split()[0]) >= 3, "the run ended before it was shaken; make it longer"
    assert events.count("fail") > 0
    assert f"{down} recordings, 0 failed, 0 unsettled" in third
    assert read(shaken, "recordings").num_rows == RECORDINGS
    assert read(shaken, "quarantine").num_rows == down, "the log stays"
    assert serpipe.open(shaken).failing().num_rows == 0
    assert_same(calm, shaken, but_for=("quarantine",))
