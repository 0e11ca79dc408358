"""Faults on real Ray; whatever happens, the tables are those of a calm run."""

from __future__ import annotations

import ast
import ctypes
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray.data
from ray.data.grouped_data import GroupedData

import serpipe
from serpipe.engine import spread
from serpipe.engine.pipeline import TASK_RETRIES
from serpipe.engine.sink import StoreSink
from serpipe.testing import write_speech
from tests.conftest import ROOT
from tests.engine import hazards
from tests.engine.killing import killing
from tests.tables import assert_same

CUT = "window:4/2"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings of a unit each, and one that is broken."""
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(8):
        write_speech(folder / f"{seed}.wav", seconds=100.0, seed=seed)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def calm(archive: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    store = str(tmp_path_factory.mktemp("calm"))
    serpipe.label(str(archive), store, segmentation=CUT)
    return store


@pytest.fixture(autouse=True)
def _a_commit_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run has a middle."""
    monkeypatch.setattr(spread, "bundle_bytes", lambda *_: 1)


class Twice(StoreSink):
    """Every write is carried out twice at the same time, as by a node that was taken for dead, and once more."""

    def write(self, blocks: Iterable[Any], ctx: Any) -> dict[str, int]:
        kept = list(blocks)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: super(Twice, self).write(kept, ctx), range(2)))
        return super().write(kept, ctx)


@pytest.mark.slow
def test_a_write_that_runs_twice_commits_once(
    archive: Path, calm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serpipe.engine.sink.StoreSink", Twice)
    serpipe.label(str(archive), str(tmp_path), segmentation=CUT)
    assert_same(calm, str(tmp_path))


@pytest.mark.slow
def test_workers_killed_on_the_way(archive: Path, calm: str, tmp_path: Path) -> None:
    with killing(lambda: len(list(tmp_path.glob("predictions/*/*/*.parquet"))), every_s=1.0, most=3) as killed:
        result = serpipe.label(str(archive), str(tmp_path), segmentation=CUT)
    assert killed, "the run ended before anybody was killed; make it longer"
    assert result.unsettled == 0
    assert_same(calm, str(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=8m"):
        pytest.skip(f"no small disk can be made here ({os.strerror(ctypes.get_errno())})")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_next_one_completes_it(archive: Path, calm: str, small_disk: Path) -> None:
    size = sum(path.stat().st_size for path in Path(calm).rglob("*") if path.is_file())
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((8 << 20) - size // 2))
    store = str(small_disk / "store")
    # In a process of its own, for it cannot give its lease back on a full disk.
    command = [
        sys.executable,
        "-c",
        "from serpipe.cli import main; main()",
        "label",
        str(archive),
        store,
        "--segment",
        CUT,
    ]
    ended = subprocess.run(command, timeout=600, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "STORE_FULL" in ended.stderr
    assert store in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [path for path in Path(store).rglob("*") if path.name.startswith(".")]
    opened = serpipe.open(store)
    assert len(set(opened.predictions()["segment_id"].to_pylist())) == opened.predictions().num_rows
    ballast.unlink()
    assert serpipe.label(str(archive), store, segmentation=CUT).unsettled == 0
    assert_same(calm, store)


def test_ray_still_takes_the_bounds_of_retries() -> None:
    """Ray means to drop these arguments in 2.64; `pipeline._bounded` then needs another way to say how often."""
    takers = (ray.data.Dataset.map_batches, GroupedData.map_groups, ray.data.read_datasource)
    for function in (*takers, ray.data.Dataset.write_datasink):
        assert "ray_remote_args" in inspect.signature(function).parameters, f"{function} has no ray_remote_args"


def test_no_task_of_ours_is_tried_for_ever() -> None:
    """Ray Data's own default is to try a task whose worker died again and again."""
    bounded = 0
    for path in sorted((ROOT / "serpipe" / "engine").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr in ("map_batches", "map_groups", "read_datasource", "write_datasink"):
                said = " ".join(f"{word.arg}={ast.unparse(word.value)}" for word in call.keywords)
                assert "max_retries" in said or "_bounded()" in said, f"{path.name}:{call.lineno} names no bound"
                bounded += 1
    assert bounded >= 6


PROGRAM = """
import os, sys, ray
os.environ["HAZARD_DRIVER"] = str(os.getpid())
import serpipe
archive, store = sys.argv[1:]
ray.init("local", num_cpus=2, object_store_memory=400 << 20, include_dashboard=False, log_to_driver=False)
result = serpipe.label(archive, store, models=["embedded"], segmentation="window:4/4", speech=False)
print(result.failed, result.unsettled, result.predictions)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fatal", "alone", "counts"),
    [
        ("open:plan.parquet", 0, "0 0 4"),
        ("get:deadly", 2, "1 0 2"),
        ("put:predictions/", 0, "0 0 4"),
    ],
)
def test_what_kills_its_worker_is_tried_so_often_and_no_more(
    fatal: str, alone: int, counts: str, tmp_path: Path
) -> None:
    """A read, a decoder and a write; what they were at is done by the careful pass, or settled by it."""
    site, folder = tmp_path / "site", tmp_path / "audio"
    site.mkdir()
    hazards.install(site)
    for number, name in enumerate(("deadly", "calm")):
        write_speech(folder / f"{name}.wav", seconds=8.0, seed=number)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"hazard://{folder}", f"hazard://{tmp_path}/store"],
        env=hazards.environment(site, HAZARD_KILL=fatal),
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    # Ray writes there too.
    assert counts in done.stdout.splitlines(), done.stdout
    assert hazards.log(site).count(fatal) == TASK_RETRIES + 1 + alone


CLUSTER = """
import sys, threading, time, glob, ray, serpipe
from ray.cluster_utils import Cluster
from serpipe.engine import spread
spread.bundle_bytes = lambda *_: 1
archive, store = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, object_store_memory=300 << 20))
nodes = [cluster.add_node(num_cpus=2, object_store_memory=300 << 20) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
lost = []
def lose():
    while len(glob.glob(store + "/predictions/*/*/*.parquet")) < 2:
        time.sleep(0.02)
    cluster.remove_node(nodes[0], allow_graceful=False)
    lost.append(time.monotonic())
threading.Thread(target=lose, daemon=True).start()
result = serpipe.label(archive, store, segmentation="window:4/2")
print(len(lost), result.unsettled)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_node_that_goes_on_the_way(archive: Path, calm: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(archive), str(tmp_path / "store")],
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert "1 0" in done.stdout.splitlines(), done.stdout
    assert_same(calm, str(tmp_path / "store"))
