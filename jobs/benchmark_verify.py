"""How long `serpipe verify` takes on a store of some thousand files, and what a rewrite of a recording costs there.

    python jobs/benchmark_verify.py --commits 170

Prints files, bytes, seconds and peak memory. The rows are synthetic; the files are written by the store's own commits.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe.pack import ID, TIMESTAMP
from serpipe.store import commit, ledger, rewrite, runs, schemas, version
from serpipe.store.storage import Storage
from serpipe.store.verify import verify

RUN = runs.new_run_id()
MODELS = ("one", "two")
SEGMENTS, UNITS, WIDTH = 60, 12, 768
"""Of a unit; of a recording; values of an embedding. An hour of podcast in segments of five seconds."""


def main() -> None:
    """Make a store, verify it, and take rows out of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=170, help="each has six or seven files")
    parser.add_argument("--recordings", type=int, default=1, help="of a commit, an hour each")
    asked = parser.parse_args()
    root = tempfile.mkdtemp(prefix="benchmark-verify-")
    try:
        measure(Storage(root), asked.commits, asked.recordings)
    finally:
        shutil.rmtree(root)


def measure(storage: Storage, commits: int, recordings: int) -> None:
    """Print what it takes."""
    version.check(storage)
    noise = np.random.default_rng(0)
    began = time.monotonic()
    for number in range(commits):
        commit.write(storage, one(f"{RUN}-{number:016x}", recordings, noise))
    print(f"{commits} commits written in {time.monotonic() - began:.1f} s")
    began, cpu = time.monotonic(), time.process_time()
    found = verify(storage)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"verify: {found.files} files, {found.size / 1e6:.0f} MB, {found.predictions:,} predictions, "
        f"{found.entries:,} ledger entries, {len(found.findings)} findings in {time.monotonic() - began:.1f} s "
        f"({time.process_time() - cpu:.1f} s of CPU, peak memory of the process {peak:.0f} MB, {os.cpu_count()} cores)"
    )
    entries = ledger.load(storage)
    units = entries.filter(pc.equal(entries["recording_id"], entries["recording_id"][0]))
    began = time.monotonic()
    done = rewrite.forget(storage, units)
    print(f"forget: {done.units} units of one recording in {time.monotonic() - began:.2f} s")
    began = time.monotonic()
    done = rewrite.forget(storage, entries.filter(pc.equal(entries["model"], "one")))
    print(f"forget: {done.units:,} units, a model's whole partition, in {time.monotonic() - began:.1f} s")


def one(name: str, recordings: int, noise: np.random.Generator) -> commit.Commit:
    """A commit of whole recordings and two models."""
    ids = [noise.bytes(16) for _ in range(recordings)]
    unit = np.tile(np.repeat(np.arange(UNITS, dtype=np.int32), SEGMENTS), recordings)
    count = len(unit)
    start = (unit * 300 + np.tile(np.arange(SEGMENTS) * 5, UNITS * recordings)).astype(float)
    common = {
        "segment_id": pa.array([noise.bytes(16) for _ in range(count)], ID),
        "recording_id": pa.array([ids[i // (UNITS * SEGMENTS)] for i in range(count)], ID),
        "unit": unit,
        "channel": np.zeros(count, np.int32),
        "start_s": start,
        "end_s": start + 5,
        "run_id": [RUN] * count,
    }
    return commit.Commit(
        name=name,
        audio="a1",
        recordings=filled(
            schemas.RECORDINGS, recordings, {"recording_id": pa.array(ids, ID), "run_id": [RUN] * recordings}
        ),
        segments=filled(schemas.SEGMENTS, count, common),
        quarantine=schemas.QUARANTINE.empty_table(),
        models=[labels(model, name, ids, common, count, noise) for model in MODELS],
    )


def labels(
    model: str, name: str, ids: list[bytes], common: dict[str, object], count: int, noise: np.random.Generator
) -> commit.ModelRows:
    """One model's part of it."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(noise.normal(size=count * WIDTH).astype(np.float16)), WIDTH)
    scores = pa.array(list(noise.random((count, 4), np.float32)), pa.list_(pa.float32()))
    units = len(ids) * UNITS
    settled = {
        "recording_id": pa.array([name for name in ids for _ in range(UNITS)], ID),
        "unit": np.tile(np.arange(UNITS, dtype=np.int32), len(ids)),
        "final": np.tile(np.arange(UNITS) == UNITS - 1, len(ids)),
        "model": [model] * units,
        "fp": ["f1"] * units,
        "audio": ["a1"] * units,
        "status": ["labelled"] * units,
        "segments": np.full(units, SEGMENTS, np.int32),
        "rows": np.full(units, SEGMENTS, np.int32),
        "commit": [name] * units,
    }
    answers = {"labels": pa.array([["a", "b", "c", "d"]] * count), "scores": scores, "logits": scores}
    return commit.ModelRows(
        model=model,
        fp="f1",
        predictions=filled(schemas.PREDICTIONS, count, common | answers),
        embeddings=filled(schemas.embeddings(WIDTH), count, common | {"embedding": vectors}),
        frames=None,
        width=WIDTH,
        passport="",
        quarantine=schemas.QUARANTINE.empty_table(),
        settled=pa.table(settled).cast(schemas.LEDGER),
    )


def filled(schema: pa.Schema, count: int, values: dict[str, object]) -> pa.Table:
    """Rows of a schema; what is not given is null, or nought where it must not be."""
    columns = []
    for field in schema:
        if field.name in values:
            given = values[field.name]
            columns.append(
                pa.array(given).cast(field.type) if not isinstance(given, pa.Array) else given.cast(field.type)
            )
        elif field.nullable:
            columns.append(pa.nulls(count, field.type))
        elif pa.types.is_string(field.type):
            columns.append(pa.array(["x"] * count))
        elif field.type == TIMESTAMP:
            columns.append(pa.array(np.zeros(count, "datetime64[us]")).cast(TIMESTAMP))
        else:
            columns.append(pa.array(np.zeros(count)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


if __name__ == "__main__":
    main()
