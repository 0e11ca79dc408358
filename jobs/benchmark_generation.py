"""How long a generation takes and how much memory it needs: `python jobs/benchmark_generation.py --segments 1000000`.

Writes a store of made-up predictions of three teachers (or takes the one that is there), makes a generation of it on a
Ray of its own, and prints seconds, processor time, and the peak memory of the driver, of all processes together, and
of Ray's shared memory. Each teacher has a run of its own that bundles recordings differently, so that their files do
not line up.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
from pathlib import Path

import psutil
import ray.data

from serpipe.pseudolabel import generation
from serpipe.pseudolabel.diff import funnel_lines
from serpipe.testing.labelled import MadeUpModel, write_labelled_store

PER_RECORDING = 1000
"""Segments of a recording: a bit over an hour."""

TEACHERS = (
    MadeUpModel(name="teacher-a"),
    MadeUpModel(name="teacher-b", skill=2.5, heat=0.5),
    MadeUpModel(name="teacher-c", taxonomy="emotion2vec9"),
)


class Peak(threading.Thread):
    """Watches this process and its descendants."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver = self.all = self.shared = 0
        self._cpu: dict[int, float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        """Look five times a second."""
        me = psutil.Process()
        while not self._over.wait(0.2):
            private, shared = 0, 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    info, times = process.memory_info(), process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                self._cpu[process.pid] = times.user + times.system
                private += info.rss - info.shared
                shared = max(shared, info.shared)
            self.driver = max(self.driver, me.memory_info().rss)
            self.all = max(self.all, private + shared)
            self.shared = max(self.shared, shared)

    @property
    def cpu(self) -> float:
        """Seconds of processor time of all processes together, those that have ended included."""
        return sum(self._cpu.values())

    def stop(self) -> None:
        """End the watch."""
        self._over.set()
        self.join()


def main() -> None:
    """Write the store if it is not there, make a generation, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--store", default="benchmark-generation", help="Made where it is not there, and kept.")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--object-store-mb", type=int, default=256)
    options = parser.parse_args()
    recordings = max(1, options.segments // PER_RECORDING)
    if not Path(options.store, "ledger").exists():
        began = time.perf_counter()
        write_labelled_store(
            options.store, TEACHERS, recordings=recordings, segments=PER_RECORDING, feeds=200, per_commit=25, keep=False
        )
        print(f"store of {recordings * PER_RECORDING} segments written in {time.perf_counter() - began:.0f} s")
    size = sum(path.stat().st_size for path in Path(options.store).rglob("*.parquet"))
    print(f"{size / 2**30:.2f} GiB of Parquet, {os.cpu_count()} cores, {options.cpus} used")
    peak = Peak()
    peak.start()
    ray.init(
        "local",
        num_cpus=options.cpus,
        object_store_memory=options.object_store_mb << 20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    # Ray's own libraries tell their plans at every run.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    began = time.perf_counter()
    record = generation.make(options.store, say=print)
    seconds = time.perf_counter() - began
    peak.stop()
    ray.shutdown()
    for line in funnel_lines(record):
        print(line)
    print(
        f"{record['considered']['segments']} segments in {seconds:.1f} s, {peak.cpu:.0f} s of processor time; "
        f"peak memory: driver {peak.driver / 2**30:.2f} GiB, all processes {peak.all / 2**30:.2f} GiB, "
        f"of which shared {peak.shared / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
