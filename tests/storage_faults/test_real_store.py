"""On a real S3 store that does not create exclusively: who holds it, and a run from and to it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest

import serpipe
from serpipe.errors import StoreError
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.tables import assert_same, read

pytestmark = pytest.mark.s3

RACERS = 8


def race(storage: Storage, name: str) -> list[int]:
    start = threading.Barrier(RACERS)
    won: list[int] = []

    def run(number: int) -> None:
        start.wait()
        if storage.create(name, b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_several_racing_creates_win_here_and_the_store_is_known_for_it(real_s3: str) -> None:
    storage = Storage(f"{real_s3}/races")
    assert not storage.exclusive
    assert (storage.create("taken", b"1"), storage.create("taken", b"2")) == (True, False)
    assert max(len(race(storage, f"race-{number}")) for number in range(20)) > 1


def test_one_of_several_runs_started_together_holds_the_store(real_s3: str) -> None:
    start = threading.Barrier(4)
    ended = threading.Barrier(4)
    held: list[str] = []
    refused: list[str] = []

    def run(name: str) -> None:
        start.wait()
        try:
            with Lease(Storage(f"{real_s3}/store"), name):
                held.append(name)
                ended.wait(60)
        except StoreError as error:
            refused.append(error.code)
            ended.wait(60)

    threads = [threading.Thread(target=run, args=(f"R{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert refused == ["STORE_HELD"] * 3
    with Lease(Storage(f"{real_s3}/store"), "later"):
        pass


PROGRAM = """
import sys, ray, serpipe
ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
result = serpipe.label(sys.argv[1], sys.argv[2], segmentation="window:3/3")
print(result.recordings, result.failed)
"""


def label(archive: str, store: str) -> str:
    # A Ray of its own: its workers must see the store's address.
    command = [sys.executable, "-c", PROGRAM, archive, store]
    return subprocess.run(command, check=True, timeout=280, capture_output=True, text=True).stdout.split("\n")[-2]


@pytest.mark.timeout(900)
def test_label_from_and_to_a_bucket(real_s3: str, tmp_path: Path) -> None:
    files, bucket = fsspec.filesystem("s3"), real_s3.removeprefix("s3://")
    for number in range(3):
        path = write_speech(tmp_path / "in" / f"{number} é.wav", seconds=4.0 + number, seed=number)
        files.put_file(path, f"{bucket}/in/{number} é.wav")
    assert label(f"{real_s3}/in", f"{real_s3}/store") == "3 0"
    again = serpipe.label(f"{real_s3}/in", f"{real_s3}/store", segmentation="window:3/3")
    assert (again.run_id, again.done_before) == (None, 3)
    path = write_speech(tmp_path / "in" / "new.wav", seconds=3.0, seed=9)
    files.put_file(path, f"{bucket}/in/new.wav")
    assert label(f"{real_s3}/in", f"{real_s3}/store") == "1 0"
    assert label(f"{real_s3}/in", str(tmp_path / "store")) == "4 0"
    assert_same(str(tmp_path / "store"), f"{real_s3}/store")
    assert read(f"{real_s3}/store", "recordings").num_rows == 4
