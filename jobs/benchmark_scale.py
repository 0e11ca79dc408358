"""How large a run may be: memory and time of planning, of the scheduler, and over the length of a run.

Each part can be run alone; without an option all are, in a size that takes some minutes on two cores.

Example:
    python jobs/benchmark_scale.py --rows 10000000
    python jobs/benchmark_scale.py --files 100000 --long 10
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from benchmarks import options, voice

ROWS_AT_ONCE = 500_000
DISTINCT = 64
"""Different recordings behind the names of an archive."""

BLOCKS = 600
"""Of a plan of many tasks, how many are passed through the scheduler to learn its pace."""


@click.command()
@click.option("--rows", type=int, help="Rows of a manifest that is catalogued and planned, as Parquet and as CSV.")
@click.option("--tasks", type=int, help="Read tasks that are handed to the scheduler.")
@click.option("--files", type=int, help="Files of about a second that are labelled.")
@click.option("--nodes", type=int, help="Largest local cluster that labels the same files, a CPU a node.")
@click.option(
    "--long", "thousands", type=float, help="Thousands of recordings of 20 s, labelled in a run held against itself."
)
@options.audio
@click.option("--json", "file", type=click.Path(dir_okay=False), help="Write the figures there too.")
@click.option("--alone", hidden=True, help="One part, in this process; its figures as JSON.")
def main(
    rows: int | None,
    tasks: int | None,
    files: int | None,
    nodes: int | None,
    thousands: float | None,
    audio: Path | None,
    file: str | None,
    alone: str | None,
) -> None:
    """Measure how memory and time grow with manifests, read tasks, files, nodes and the length of a run."""
    if audio is not None:
        voice.listen_to(audio)
    if alone:
        part, _, value = alone.partition("=")
        with tempfile.TemporaryDirectory(prefix="serpipe-scale-") as folder:
            print(json.dumps(PARTS[part](float(value), Path(folder))))
        return
    asked = {"rows-parquet": rows, "rows-csv": rows, "tasks": tasks, "files": files, "nodes": nodes, "long": thousands}
    if not any(asked.values()):
        asked = {"rows-parquet": 1_000_000, "tasks": 20_000, "files": 5_000, "nodes": 2, "long": 3.0}
    print(f"{platform.platform()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB", flush=True)
    found: dict[str, Any] = {}
    for part, value in asked.items():
        if value:
            # A process of its own, so that its memory is its own.
            command = [sys.executable, __file__, "--alone", f"{part}={value}"]
            command += ["--audio", str(audio)] if audio else []
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[part] = json.loads(said.splitlines()[-1])
            print(f"{part} {value:g}", flush=True)
            for name, figure in found[part].items():
                print(
                    f"    {name}: {figure:,.2f}" if isinstance(figure, float) else f"    {name}: {figure}", flush=True
                )
    if file:
        Path(file).write_text(json.dumps(found, indent=1) + "\n")


class Memory:
    """What this process holds beyond what it held at first, in MB, seen twenty times a second."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.before = self.peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def lap(self) -> float:
        """The most since the last lap."""
        peak, self.peak = max(self.peak, self._now()), self._now()
        return peak - self.before

    def _now(self) -> float:
        return float(self._process.memory_info().rss) / 1e6

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, self._now())


def planned(count: int, folder: Path, *, ending: str) -> dict[str, Any]:
    """Catalogue and plan a manifest whose audio need not exist, as `label` does."""
    from serpipe import plan
    from serpipe.engine import catalogue
    from serpipe.manifest import open_manifest
    from serpipe.store.storage import Storage

    # Made by another process, which takes its memory with it.
    place = str(folder / f"manifest{ending}")
    subprocess.run([sys.executable, __file__, "--alone", f"manifest={count}"], env=os.environ | {"MANIFEST": place})
    import ray.data  # noqa: F401 - what it takes is not the manifest's

    memory, figures = Memory(), {}
    with _cluster(cpus=2):
        figures["driver_ray_mb"] = memory.lap()
        began = time.monotonic()
        storage = Storage(str(folder / "store"))
        manifest = open_manifest(place)
        figures["manifest_mb"] = sum(part.size or 0 for part in manifest.parts) / 1e6
        small = catalogue.is_small(manifest)
        read = catalogue.read_here(manifest) if small else catalogue.read_with_ray(manifest, storage, "R1")
        catalogue.check(read, skip_bad_rows=False)
        figures |= {"catalogue_s": time.monotonic() - began, "catalogue_driver_mb": memory.lap()}
    began = time.monotonic()
    todo = plan.make_plan(storage, "R1", read.parts, audio="a", models={"embedded": "f"}, by_length=False)
    assert todo.left == count
    figures |= {"plan_s": time.monotonic() - began, "plan_driver_mb": memory.lap(), "read_tasks": len(todo.tasks(2))}
    figures["rows_per_s"] = count / (figures["catalogue_s"] + figures["plan_s"])
    return figures


def write_manifest(count: int, place: str) -> None:
    """Recordings of some seconds to an hour, in feeds; Parquet or CSV by the ending."""
    noise = np.random.default_rng(0)
    writer: Any = None
    for start in range(0, count, ROWS_AT_ONCE):
        numbers = range(start, min(start + ROWS_AT_ONCE, count))
        seconds = np.round(np.exp(noise.normal(3.0, 1.5, len(numbers))), 2)
        rows = pa.table(
            {
                "uri": [f"s3://archive/feeds/{i % 4096:04d}/episodes/{i:010d}.opus" for i in numbers],
                "duration": seconds,
                "size": (seconds * 6000).astype(np.int64),
                "etag": [f"{i:032x}" for i in numbers],
                "language": pa.array(["en", "de"]).take(pa.array(np.arange(len(numbers)) % 2)),
            }
        )
        if writer is None:
            kind = pq.ParquetWriter if place.endswith(".parquet") else pa.csv.CSVWriter
            writer = kind(place, rows.schema)
        writer.write_table(rows)
    writer.close()


def scheduled(count: int, folder: Path) -> dict[str, Any]:
    """Hand a plan of many read tasks to the scheduler, and pass some of them through one actor that does nothing."""
    import ray.data

    from serpipe.engine.preflight import LIGHT_CPUS
    from serpipe.engine.source import PlanSource
    from serpipe.plan import LONGEST_TASK_S, Plan
    from serpipe.store import plans
    from serpipe.store.storage import Storage

    storage = Storage(str(folder / "store"))
    writer = plans.Writer(storage, "R1")
    rows = [
        {"recording_id": i.to_bytes(16), "uri": f"s3://archive/{i:010d}.opus", "size": 1, "meta": [], "given": [],
         "settled": [], "kept": [], "known": False, "attempts": 0, "work_s": 1.0}
        for i in range(count)
    ]  # fmt: skip
    writer.add(pa.Table.from_pylist(rows, schema=plans.WORK), [1] * count)
    writer.end()
    del rows
    figures: dict[str, Any] = {}
    with _cluster(cpus=2):
        memory = Memory()
        for name, tasks in (("few", BLOCKS), ("all", count)):
            # Each worth as much as a read task may be, or several would be read in one.
            todo = Plan(groups=[1] * tasks, work_s=[LONGEST_TASK_S] * tasks, queries={}, left=tasks, done=0)
            source = PlanSource(storage.root, "R1", todo, decoders=2)
            began, worked = time.monotonic(), time.process_time()
            # As many reads at a time as a run on two cores has decoders. Handed all of them at once, Ray's scheduler
            # slows down with what waits: to 17 blocks a second with 20,000 tasks.
            dataset = ray.data.read_datasource(
                source, num_cpus=LIGHT_CPUS, override_num_blocks=len(source), concurrency=2
            )
            dataset = dataset.map_batches(
                _Nothing,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1.8,  # leaves room for reads, as in a run
                compute=ray.data.ActorPoolStrategy(size=1),
            )
            blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            next(blocks)
            first = time.monotonic()
            figures[f"{name}_first_block_s"] = first - began
            for _ in range(BLOCKS - 1):
                next(blocks)
            figures[f"{name}_blocks_per_s"] = (BLOCKS - 1) / (time.monotonic() - first)
            figures[f"{name}_driver_cpu_s"] = time.process_time() - worked
            figures[f"{name}_driver_mb"] = memory.lap()
            if tasks <= BLOCKS:
                # To its end, or its actor would stand in the next one's way.
                assert next(blocks, None) is None
            # The thread that schedules the rest ends with its iterator, and must not outlive Ray.
            del blocks, dataset
            gc.collect()
    return figures | {"tasks_cost_s": figures["all_first_block_s"] - figures["few_first_block_s"]}


class _Nothing:
    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def labelled(count: int, folder: Path) -> dict[str, Any]:
    """Label many short files with the embedded model."""
    manifest = _archive(folder, count, seconds=1.2)
    with _cluster(cpus=2):
        pace = _run(manifest, folder / "store", segmentation="whole")
    return pace.figures() | {"files_per_s": pace.between(0.2, 0.9) / 1.2, "files": count}


def over_nodes(most: int, folder: Path) -> dict[str, Any]:
    """Label the same files on local clusters of one node, two, and so on.

    The nodes share this machine's cores, and a CPU is but a number to Ray: where the processes of one node fill them,
    a second one adds nothing.
    """
    import ray
    from ray.cluster_utils import Cluster

    manifest = _archive(folder, 120, seconds=60.0)
    figures: dict[str, Any] = {}
    for nodes in range(1, most + 1):
        options = {"num_cpus": 1, "object_store_memory": 300 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        for _ in range(nodes - 1):
            cluster.add_node(**options)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            pace = _run(manifest, folder / f"store-{nodes}", segmentation="window:6/3", decoders=nodes)
        finally:
            ray.shutdown()
            cluster.shutdown()
        figures[f"{nodes}_audio_s_per_s"] = pace.between(0.2, 0.9)
    return figures | {"last_over_first": figures[f"{most}_audio_s_per_s"] / figures["1_audio_s_per_s"]}


def paced(thousands: float, folder: Path) -> dict[str, Any]:
    """One long run: the pace of its last tenth over that of its second, and the driver's memory at both."""
    manifest = _archive(folder, int(thousands * 1000), seconds=20.0)
    with _cluster(cpus=2):
        pace = _run(manifest, folder / "store", segmentation="window:4/4")
    return pace.figures()


PACE_EVERY_S = 0.5
"""Seconds between two looks at how far a run is."""


class Pace:
    """How far a run was, what its driver held and what all of it had worked, second by second."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float, float]] = []
        self._process, self._began = psutil.Process(), time.monotonic()
        self._worked: dict[int, float] = {}

    def note(self, audio_s: float) -> None:
        """Remember this moment."""
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                # Of one that has ended the last word stays.
                self._worked[process.pid] = sum(process.cpu_times()[:2])
        memory = self._process.memory_info().rss / 1e6
        self.seen.append((time.monotonic() - self._began, audio_s, memory, sum(self._worked.values())))

    def cost(self, start: float, end: float) -> float:
        """Processor seconds of an audio second while the share done went from `start` to `end`; what else the machine
        does counts for little.
        """
        worked = [self._at(self._when(share), 3) for share in (start, end)]
        return (worked[1] - worked[0]) / ((end - start) * self._total())

    def between(self, start: float, end: float) -> float:
        """Audio seconds a second while the share done went from `start` to `end`."""
        at = self._when(start), self._when(end)
        return (end - start) * self._total() / (at[1] - at[0])

    def figures(self) -> dict[str, Any]:
        """What a run's length does to it."""
        second, last = self.between(0.1, 0.2), self.between(0.9, 1.0)
        first_s, last_s = self._when(0.1), self._when(1.0)
        return {
            "audio_s": self._total(),
            "run_s": self.seen[-1][0],
            "audio_s_per_s": self.between(0.1, 1.0),
            "last_tenth_over_second": last / second,
            "last_tenth_over_second_by_cpu": self.cost(0.1, 0.2) / self.cost(0.9, 1.0),
            "last_third_over_first_by_cpu": self.cost(0.1, 0.4) / self.cost(0.7, 1.0),
            "tenths": " ".join(f"{self.between(t / 10, (t + 1) / 10):.0f}" for t in range(10)),
            "driver_mb_at_tenth": self._at(first_s, 2),
            "driver_mb_at_end": self._at(last_s, 2),
            "driver_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def _total(self) -> float:
        return self.seen[-1][1]

    def _when(self, share: float) -> float:
        times, done, *_ = (np.array(column) for column in zip(*self.seen, strict=True))
        keep = np.append(True, done[1:] > done[:-1])
        return float(np.interp(share * self._total(), done[keep], times[keep]))

    def _at(self, when: float, column: int) -> float:
        columns = [np.array(values) for values in zip(*self.seen, strict=True)]
        return float(np.interp(when, columns[0], columns[column]))


def _run(manifest: str, store: Path, **options: Any) -> Pace:
    import serpipe
    from serpipe.engine import progress

    pace = Pace()

    class Paced(progress.Progress):
        def __enter__(self) -> Self:
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()
            return super().__enter__()

        def __exit__(self, *why: object) -> None:
            super().__exit__(*why)
            self._looking.join()

        def _look(self) -> None:
            while not self._ended.wait(PACE_EVERY_S):
                pace.note(self._board.totals().get("audio_s", 0.0))
            pace.note(self._board.totals().get("audio_s", 0.0))

    usual, progress.Progress = progress.Progress, Paced  # type: ignore[misc]
    try:
        result = serpipe.label(manifest, str(store), **options)
    finally:
        progress.Progress = usual  # type: ignore[misc]
    assert not result.failed, result.codes
    return pace


def _archive(folder: Path, count: int, *, seconds: float) -> str:
    """Many names for few recordings, and their list with what a manifest of an archive says."""
    from serpipe.models.contract import SAMPLE_RATE

    place = folder / "archive"
    place.mkdir()
    masters = [folder / f"{seed}.wav" for seed in range(DISTINCT)]
    for seed, master in enumerate(masters):
        voice.write(master, seconds, rate=SAMPLE_RATE, seed=seed)
    names = [str(place / f"{number:07d}.wav") for number in range(count)]
    for number, name in enumerate(names):
        os.link(masters[number % DISTINCT], name)
    table = pa.table({"uri": names, "duration": [seconds] * count})
    pq.write_table(table, folder / "list.parquet")
    return str(folder / "list.parquet")


@contextmanager
def _cluster(*, cpus: int) -> Iterator[None]:
    import logging

    import ray

    from serpipe.engine.cluster import ENVIRONMENT

    os.environ |= ENVIRONMENT
    ray.init(
        "local",
        num_cpus=cpus,
        object_store_memory=600 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


PARTS: dict[str, Callable[[float, Path], Any]] = {
    "manifest": lambda count, _: write_manifest(int(count), os.environ["MANIFEST"]),
    "rows-parquet": lambda count, folder: planned(int(count), folder, ending=".parquet"),
    "rows-csv": lambda count, folder: planned(int(count), folder, ending=".csv"),
    "tasks": lambda count, folder: scheduled(int(count), folder),
    "files": lambda count, folder: labelled(int(count), folder),
    "nodes": lambda most, folder: over_nodes(int(most), folder),
    "long": paced,
}


if __name__ == "__main__":
    main()
