"""Where models compute, and calls of one actor that overlap there: that they do, and that nothing is counted twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

import serpipe
from serpipe.engine.pipeline import Pool, _Predict, actors
from serpipe.models.lanes import CUDA_CALLS, Lanes
from serpipe.models.registry import resolve
from serpipe.pack import rows_of, samples_of
from serpipe.testing import write_speech


class Sums:
    """A board that adds up here."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **counts: float) -> None:
        with self._lock:
            self.totals.update(counts)


@pytest.mark.parametrize("count", [1, 2])
def test_calls_that_overlap_are_counted_once(tmp_path: Path, count: int) -> None:
    for seed in range(6):
        write_speech(tmp_path / f"{seed}.wav", seconds=7.3 + seed, seed=seed)
    decode = serpipe.Decode(segmentation="window:1/1", speech=False, pack_seconds=5.0)
    packs = list(decode(serpipe.read_manifest(str(tmp_path)))) * 4
    assert len(packs) >= 8
    board = Sums()
    stage = _Predict([resolve("embedded")], board=board)  # type: ignore[arg-type]
    stage._lanes = Lanes(count)
    alone = [rows_of(stage(pack), "results:embedded") for pack in packs]
    in_turn, board.totals = board.totals, Counter()
    with ThreadPoolExecutor(4) as callers:
        together = [rows_of(labelled, "results:embedded") for labelled in callers.map(stage, packs)]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.select(["segment", "label"]).equals(theirs.select(["segment", "label"]))
    heard = sum(len(samples_of(pack)) for pack in packs) / 16_000
    assert board.totals["given_s"] == pytest.approx(in_turn["given_s"]) == pytest.approx(heard, rel=0.1)
    assert board.totals["audio_s"] == pytest.approx(in_turn["audio_s"]) == pytest.approx(heard)
    assert board.totals["segments"] == in_turn["segments"] == sum(rows_of(p, "segments").num_rows for p in packs)
    assert board.totals["padded_s"] >= board.totals["given_s"]


class Watch:
    """Tells how many calls of it run at once."""

    def __init__(self) -> None:
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, rows: pa.Table) -> pa.Table:
        with self._lock:
            self._running += 1
        most = self._running
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            most = max(most, self._running)
            time.sleep(0.005)
        with self._lock:
            self._running -= 1
        return rows.append_column("most", pa.array([most] * rows.num_rows))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("gpus", "most"), [(1.0, CUDA_CALLS), (0.0, 1)])
def test_an_actor_beside_a_gpu_takes_two_packs_at_once(gpus: float, most: int) -> None:
    pool = Pool(models=(), actors=1, cores=0, cpus=0.0, gpus=gpus)
    rows = ray.data.range(8, override_num_blocks=8).map_batches(
        Watch, batch_size=1, batch_format="pyarrow", num_cpus=0.1, compute=actors(pool)
    )
    assert max(row["most"] for row in rows.take_all()) == most


def test_without_a_cluster_a_run_labels_here_and_ray_is_not_started() -> None:
    code = (
        "import sys\nfrom serpipe.engine import request\n"
        "with request.device(gpus=1.0) as where: print(where)\n"
        "with request.device() as where: print(where, 'ray' in sys.modules and sys.modules['ray'].is_initialized())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["cuda", "cpu", "False"]
