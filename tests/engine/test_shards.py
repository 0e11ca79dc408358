"""Shards on real Ray: two programs label one store at the same time, one of them is killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import serpipe
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from serpipe.testing import write_speech
from tests.tables import assert_same

CUT = "window:2/1"

PROGRAM = """
import sys, ray, serpipe
from serpipe.engine import spread
archive, store, shard = sys.argv[1:]
spread.bundle_bytes = lambda *_: 1  # a commit a pack, so that there is a middle to be killed in
ray.init("local", num_cpus=2, object_store_memory=300 << 20, include_dashboard=False, log_to_driver=False)
result = serpipe.label(archive, store, segmentation="window:2/1", shard=shard)
print(result.recordings, result.unsettled)
"""


def _start(archive: Path, store: str, shard: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(archive), store, shard]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _commits(store: str) -> int:
    return len(list(Path(store).glob("predictions/*/*/*.parquet")))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_session")
def test_two_shards_at_once_make_the_tables_of_one_run(tmp_path: Path) -> None:
    archive, calm, store = tmp_path / "archive", str(tmp_path / "calm"), str(tmp_path / "store")
    for seed in range(8):
        write_speech(archive / f"{seed}.wav", seconds=70.0, seed=seed)
    (archive / "broken.wav").write_bytes(b"RIFF")
    serpipe.label(str(archive), calm, segmentation=CUT)
    victim, other = (_start(archive, store, shard) for shard in ("0/2", "1/2"))
    deadline = time.monotonic() + 120
    while not _commits(store) and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    again = _start(archive, store, "0/2")
    counts = [process.communicate(timeout=240)[0].split() for process in (again, other)]
    assert [process.returncode for process in (again, other)] == [0, 0]
    assert all(unsettled == "0" for _, unsettled in counts)
    assert not verify(Storage(store)).findings
    whole = serpipe.label(str(archive), store, segmentation=CUT)
    assert (whole.run_id, whole.done_before) == (None, 9)
    assert_same(calm, store)
    # By chance one of them may have had nothing to do.
    assert {run.shard for run in serpipe.open(store).runs()} <= {"0/2", "1/2"}
