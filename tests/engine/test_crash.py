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
import os, signal, sys, threading, time, ray, serpipe
from serpipe.engine import catalogue, settle, spread
from tests.engine.killing import workers
archive, store, *moment = sys.argv[1:]
spread.bundle_bytes = lambda *_: 1  # a commit a pack, so that there is a middle to be killed in

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(what):
    def watch():
        while not what():
            time.sleep(0.01)
        die()
    threading.Thread(target=watch, daemon=True).start()

def decoding():
    return any("serpipe.audio.child" in word for worker in workers() for child in worker.children()
        for word in child.cmdline())

if moment == ["catalogue"]:
    catalogue.IN_PROCESS_BYTES = 0
    die_once(lambda: os.path.isdir(store + "/runs"))
if moment == ["decode"]:
    die_once(decoding)
if moment == ["write"]:
    die_once(lambda: os.path.isdir(store + "/segments"))
if moment == ["end"]:
    settle.settle = die
ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
serpipe.label(archive, store, segmentation="window:2/1")
"""


@pytest.fixture(scope="module")
def long_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serpipe.testing import write_speech

    folder = tmp_path_factory.mktemp("long")
    for seed in range(6):
        write_speech(folder / f"{seed}.wav", seconds=320.0, seed=seed)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def calm(long_archive: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    store = str(tmp_path_factory.mktemp("calm"))
    serpipe.label(str(long_archive), store, segmentation="window:2/1")
    return store


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(long_archive: Path, calm: str, tmp_path: Path) -> None:
    shaken = str(tmp_path / "shaken")
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


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("moment", ["catalogue", "decode", "write", "end"])
def test_killed_at_a_moment_and_run_again(long_archive: Path, calm: str, tmp_path: Path, moment: str) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in sorted(long_archive.iterdir())))
    store = str(tmp_path / "store")
    killed = subprocess.run([sys.executable, "-c", PROGRAM, str(manifest), store, moment], timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert (_commits(store) > 0) == (moment == "end") or moment == "write"
    result = serpipe.label(str(manifest), store, segmentation="window:2/1")
    assert result.run_id is None if moment == "end" else result.unsettled == 0
    assert_same(calm, store)


def _commits(store: str) -> int:
    return len(list(Path(store).glob("predictions/*/*/*.parquet")))
