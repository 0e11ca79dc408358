"""How long planning a night takes, and how much memory, when the ledger holds millions of entries.

Makes a store whose ledger and catalogue are as large as asked and whose tables are empty, then plans in a fresh process
a night on which a thousand recordings are new: once with a ledger of one small object a commit, once compacted.

Example:
    python jobs/benchmark_ledger.py --entries 12000000 --files 10000 --s3
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np
import pyarrow as pa

from serpipe import plan
from serpipe.manifest.schemas import RECORDINGS as CATALOGUE
from serpipe.pack import ID
from serpipe.store import layout, ledger, parquet, schemas
from serpipe.store.storage import Storage

AUDIO, MODEL, FP = "0123456789abcdef", "embedded", "fedcba9876543210"

UNITS = 12
"""Of a recording: an hour."""

PART_ROWS = 100_000
"""Recordings of a part of the catalogue."""

QUARANTINED = 20
"""One commit in so many put something in quarantine."""

STORED = pa.schema([field for field in CATALOGUE if field.name != "query"])


@click.command()
@click.option("--entries", default=12_000_000, show_default=True, help="Entries of the ledger.")
@click.option("--files", default=10_000, show_default=True, help="Commits they are spread over.")
@click.option("--new", default=1_000, show_default=True, help="Recordings that are new.")
@click.option("--root", help="An empty directory or URL to make the store in; a temporary one by default.")
@click.option("--s3", is_flag=True, help="Make it on a moto server on this machine.")
@click.option("--plan", "planned", help="Only plan a night of a store made before, and print the figures as JSON.")
def main(entries: int, files: int, new: int, root: str | None, s3: bool, planned: str | None) -> None:
    """Time the planning of a night against a ledger of millions of entries."""
    if planned:
        print(json.dumps(measure(planned)))
        return
    with tempfile.TemporaryDirectory() as folder, _moto() if s3 else contextlib.nullcontext(folder) as place:
        root = root or place
        print(f"{platform.platform()}, {os.cpu_count()} cores, pyarrow {pa.__version__}, {root}")
        began = time.monotonic()
        make_store(Storage(root), entries=entries, files=files, new=new)
        print(f"made: {entries:,} entries in {files:,} files, in {time.monotonic() - began:.0f} s")
        _show("as committed", root)
        began = time.monotonic()
        ledger.compact(Storage(root))
        print(f"compacted in {time.monotonic() - began:.1f} s to {len(Storage(root).list('ledger/'))} files")
        _show("compacted", root)


def make_store(storage: Storage, *, entries: int, files: int, new: int) -> pa.Array:
    """A ledger, a catalogue and a quarantine log; the ids of the recordings that the ledger does not know.

    Args:
        storage: empty.
        entries: of the ledger.
        files: commits they are spread over.
        new: recordings of the catalogue beyond those in the ledger.
    """
    random = np.random.default_rng(1)
    known = entries // UNITS
    ids = _ids(random, known + new)
    each = entries // files

    def commit(number: int) -> None:
        run = f"20{26 + number // 5000}0101T{number // 100:06d}000000Z-0000abcd"
        name = layout.commit_name(run, [str(number)])
        # Commits end in the middle of recordings.
        at = np.arange(number * each, (number + 1) * each)
        rows = _entries(ids.take(pa.array(at // UNITS % known)), at % UNITS, name)
        parquet.write(storage, layout.ledger(name), rows, schemas.LEDGER, {"commit": name})
        if number % QUARANTINED == 0:
            failed = _failures(ids.take(pa.array(at[:: each // 3] // UNITS % known)), run)
            parquet.write(storage, layout.quarantine(name), failed, schemas.QUARANTINE, {"commit": name})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(commit, range(files)))
    order = random.permutation(len(ids))
    for start in range(0, len(ids), PART_ROWS):
        rows = _catalogue(ids, np.sort(order[start : start + PART_ROWS]))
        parquet.write(storage, f"runs/R0/catalogue/{start:09d}.parquet", rows, STORED, {})
    return ids[known:]


def parts(storage: Storage) -> list[Callable[[], pa.Table]]:
    """The catalogue of `make_store`, as a run reads it."""

    def reader(name: str) -> Callable[[], pa.Table]:
        def read() -> pa.Table:
            rows = parquet.read(storage, [name], STORED)
            return rows.append_column("query", pa.nulls(rows.num_rows, pa.string())).select(CATALOGUE.names)

        return read

    return [reader(name) for name in storage.list("runs/R0/catalogue/")]


def measure(root: str) -> dict[str, float]:
    """Plan a night in this process: seconds by the clock and of processors, and the most memory it ever had."""
    storage = Storage(root)
    began, worked = time.monotonic(), time.process_time()
    todo = plan.make_plan(
        storage,
        "R1",
        parts(storage),
        audio=AUDIO,
        models={MODEL: FP},
        by_length=False,
    )
    return {
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - worked,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "left": todo.left,
        "done": todo.done,
    }


def _show(what: str, root: str) -> None:
    said = subprocess.run([sys.executable, __file__, "--plan", root], check=True, capture_output=True, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    print(
        f"{what}: planned {found['left']:,} new among {found['done']:,} known in {found['seconds']:.1f} s "
        f"({found['cpu_s']:.1f} s of processor), peak {found['peak_mb']:.0f} MB"
    )


def _ids(random: np.random.Generator, count: int) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(ID, count, [None, pa.py_buffer(random.bytes(16 * count))])


def _entries(ids: pa.Array, unit: np.ndarray, commit: str) -> pa.Table:
    count = len(ids)
    same = {"model": MODEL, "fp": FP, "audio": AUDIO, "commit": commit}
    columns = {
        "recording_id": ids,
        "unit": pa.array(unit, pa.int32()),
        "final": pa.array(unit == UNITS - 1),
        **{name: pa.repeat(value, count) for name, value in same.items()},
        "status": pa.array(np.where(unit % 7 == 3, "empty", "labelled")),
        "segments": pa.array(np.full(count, 40), pa.int32()),
        "rows": pa.array(np.full(count, 40), pa.int32()),
    }
    return pa.table(columns)


def _failures(ids: pa.Array, run: str) -> pa.Table:
    said = {"stage": "read", "code": "RECORDING_UNREACHABLE", "message": "no answer", "transient": True}
    rows = [
        {"recording_id": i, "uri": "s3://archive/x.mp3", "attempt": 1, "run_id": run, "time": 0, **said}
        for i in ids.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=schemas.QUARANTINE)


def _catalogue(ids: pa.Array, numbers: np.ndarray) -> pa.Table:
    count = len(numbers)
    nothing = pa.array(np.zeros(count + 1, np.int32))
    columns = {
        "recording_id": ids.take(pa.array(numbers)),
        "uri": pa.array([f"s3://archive/feeds/{i % 4096:04d}/episodes/{i:010d}.mp3" for i in numbers.tolist()]),
        "size": pa.array(np.full(count, 57_600_000), pa.int64()),
        "etag": pa.array([f"{i:032x}" for i in numbers.tolist()]),
        "mtime_ns": pa.nulls(count, pa.int64()),
        "claimed_s": pa.array(np.full(count, 3600.0)),
        "meta": pa.array(
            [[("language", "en"), ("show", f"show {i % 4096}")] for i in numbers.tolist()], STORED.field("meta").type
        ),
        "given": pa.ListArray.from_arrays(nothing, pa.array([], STORED.field("given").type.value_type)),
    }
    return pa.table(columns)


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        _wait(port)
        Storage("s3://ledger").fs.mkdir("ledger")
        yield "s3://ledger/store"
    finally:
        server.terminate()
        server.wait()


def _wait(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError("the moto server did not start")


if __name__ == "__main__":
    main()
