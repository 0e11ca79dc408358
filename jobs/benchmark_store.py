"""How much of a run goes to its store: planning, lease, commits, ledger, closing, settling, with nothing failing.

The stages of a run one after the other in this process, without Ray, on synthetic voices; every phase is timed. The
embedded model is the worst case: any other takes longer to label the same rows. With `--ray` the same archive is
labelled by `serpipe.label` on this machine's cores: what its write tasks took, and all that came before and after the
pipeline, when every core waits.

Example:
    python jobs/benchmark_store.py --hours 2 --model embedded
    python jobs/benchmark_store.py --hours 4 --ray
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

import serpipe
from serpipe import plan
from serpipe.audio.recording import UNIT_S
from serpipe.audio.stage import audio_fingerprint
from serpipe.engine import settle, spread
from serpipe.models.registry import resolve
from serpipe.store import closing, commit, lease, ledger, plans, runs, version
from serpipe.store.rows import RunFacts, commit_of
from serpipe.store.storage import Storage
from serpipe.testing import write_speech

FILE_S = 600.0
"""Seconds of one synthetic recording."""

LABELLING = ("decode", "models", "pipeline")
"""Phases that are the work itself; the others are what its guarantees cost."""

WRITE = "task::Write"
"""What Ray's timeline calls the write tasks of Ray Data."""

FLUSHED_S = 3.0
"""Seconds after which Ray has told of every task."""


class Clock:
    """Seconds by phase; time in an inner phase does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the length of a `with` block."""
        began, inner = time.perf_counter(), sum(self.seconds.values())
        yield
        self.seconds[name] += time.perf_counter() - began - (sum(self.seconds.values()) - inner)


def run(archive: str, storage: Storage, models: list[str], segmentation: str, embeddings: str) -> Clock:
    """Label an archive into a store."""
    clock = Clock()
    references = [resolve(model) for model in models]
    wanted = {model.name: model.fp for model in references}
    facts = RunFacts(run_id=runs.new_run_id(), audio=audio_fingerprint(segmentation, "mix"), models=wanted)
    decode = serpipe.Decode(segmentation=segmentation, pack_seconds=float(UNIT_S), models=wanted)
    predict = serpipe.Predict(references, embeddings=embeddings, threads=1)
    recordings = serpipe.read_manifest(archive)
    version.check(storage)
    with lease.Lease(storage, facts.run_id):
        with clock.phase("closing"):
            closing.close_interrupted(storage)
        with clock.phase("plan"):
            todo = plan.make_plan(
                storage,
                facts.run_id,
                [lambda: recordings],
                audio=facts.audio,
                models=wanted,
                by_length=False,
            )
        record = runs.Run(run_id=facts.run_id, started=runs.now(), audio=facts.audio, models=wanted)
        with clock.phase("record"):
            runs.save(storage, record)
        most = spread.bundle_bytes(references, todo, segmentation, embeddings)
        bundle: list[pa.Table] = []
        for task in todo.tasks(decoders=1):
            with clock.phase("plan"):
                rows = plans.read(storage, facts.run_id, task)
            packs = decode(rows)
            while True:
                with clock.phase("decode"):
                    pack = next(packs, None)
                if pack is None:
                    break
                with clock.phase("models"):
                    bundle.append(predict(pack))
                if sum(held.nbytes for held in bundle) >= most:
                    _commit(storage, facts, bundle, clock)
        if bundle:
            _commit(storage, facts, bundle, clock)
        with clock.phase("settle"):
            ended = settle.settle(storage, facts)
        with clock.phase("record"):
            runs.finish(storage, record)
        with clock.phase("compact"):
            ledger.compact(storage)
    assert not ended.unsettled, "nothing fails here"
    commits = len({name.rpartition("/")[2] for name in storage.list("predictions/")})
    print(f"{ended.audio_s / 3600:.2f} h of audio, {ended.segments} segments, {commits} commits")
    return clock


def _commit(storage: Storage, facts: RunFacts, bundle: list[pa.Table], clock: Clock) -> None:
    def guard() -> None:
        with clock.phase("lease"):
            lease.check(storage, facts.run_id)

    with clock.phase("commit"):
        commit.write(storage, commit_of(bundle, facts), guard=guard)
    bundle.clear()


def run_on_ray(archive: str, store: str, models: list[str], segmentation: str, embeddings: str) -> Clock:
    """Label an archive with Ray; seconds of cores by phase, all together the run's cores times its length."""
    import ray

    from serpipe.engine import pipeline

    cores = os.cpu_count() or 1
    execute, clock = pipeline.execute, Clock()

    def timed(*stages: Any) -> None:
        with clock.phase("pipeline"):
            execute(*stages)

    ray.init("local", num_cpus=cores, num_gpus=0, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    pipeline.execute = timed
    try:
        with clock.phase("before and after"):
            serpipe.label(archive, store, models=models, segmentation=segmentation, embeddings=embeddings)
        time.sleep(FLUSHED_S)
        writes = [event["dur"] for event in ray.timeline() if event["cat"] == WRITE]
    finally:
        pipeline.execute = execute
        ray.shutdown()
    assert writes, "Ray tells of no write task"
    clock.seconds = defaultdict(float, {name: seconds * cores for name, seconds in clock.seconds.items()})
    clock.seconds["commit"] = sum(writes) / 1e6
    clock.seconds["pipeline"] -= clock.seconds["commit"]
    return clock


def main() -> None:
    """Make an archive, label it, print where the time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--model", action="append", dest="models")
    parser.add_argument("--segment", default="window:6/3")
    parser.add_argument("--embeddings", default="utterance")
    parser.add_argument("--ray", action="store_true", help="the whole run, on Ray")
    parser.add_argument("--store", help="directory or URL, empty  [default: a temporary directory]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(max(1, round(asked.hours * 3600 / FILE_S))):
            write_speech(Path(folder, "archive", f"{seed:04d}.wav"), seconds=FILE_S, seed=seed)
        store = asked.store or f"{folder}/store"
        models = asked.models or ["embedded"]
        if asked.ray:
            clock = run_on_ray(f"{folder}/archive", store, models, asked.segment, asked.embeddings)
        else:
            clock = run(f"{folder}/archive", Storage(store), models, asked.segment, asked.embeddings)
    whole = sum(clock.seconds.values())
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{name:8} {seconds:8.2f} s {seconds / whole:7.2%}")
    store = whole - sum(clock.seconds[name] for name in LABELLING)
    print(f"store and checks: {store:.2f} of {whole:.2f} s, {store / whole:.2%}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
