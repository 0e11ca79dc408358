"""How long the report of a large store takes, what it weighs, and how soon a browser can use it.

    python jobs/benchmark_report.py --segments 1000000

Prints seconds, peak memory, megabytes, and, where Chromium and Playwright are there, seconds until the page is ready.
The labels are made up; the recordings are an hour of synthetic voices each, so that clips are truly cut and encoded.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe.models.results import vectors
from serpipe.report import build
from serpipe.report.clips import mp3
from serpipe.store import layout, ledger, parquet, schemas
from serpipe.store.storage import Storage
from serpipe.testing import speech_like
from serpipe.testing.labelled import MadeUpModel, write_labelled_store

MODELS = (
    MadeUpModel(name="one", skill=2.5),
    MadeUpModel(name="two", taxonomy="emotion2vec9", skill=2.0),
    MadeUpModel(name="dimensions", taxonomy="dimensions"),
)
SEGMENTS, SECONDS = 900, 4.0
"""Of a recording; of a segment."""

WIDTH = 256
"""Values of an embedding."""

CHROMIUM = "/usr/bin/chromium"


def main() -> None:
    """Make a store, report on it, open the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--out", help="keep the report here")
    asked = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="benchmark-report-")
    try:
        began = time.monotonic()
        made = make(folder, asked.segments)
        print(f"{made:,} segments by {len(MODELS)} models made in {time.monotonic() - began:.1f} s")
        out = os.path.abspath(asked.out) if asked.out else f"{folder}/report.html"
        measure(f"{folder}/store", out)
    finally:
        shutil.rmtree(folder)


def make(folder: str, segments: int) -> int:
    """A store with embeddings whose recordings are there to be heard; its segments."""
    recordings = max(1, -(-segments // SEGMENTS))
    write_labelled_store(
        f"{folder}/store", MODELS, recordings=recordings, segments=SEGMENTS, feeds=40, per_commit=10, keep=False
    )
    storage = Storage(f"{folder}/store")
    _voices(f"{folder}/voices.mp3")
    for name in storage.list("recordings/"):
        table = parquet.read(storage, [name], schemas.RECORDINGS)
        paths = [f"{folder}{uri.removesuffix('.wav')}.mp3" for uri in table["uri"].to_pylist()]
        for path in paths:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            os.link(f"{folder}/voices.mp3", path)
        place = table.schema.get_field_index("uri")
        parquet.write(storage, name, table.set_column(place, "uri", pa.array(paths)), schemas.RECORDINGS, {})
    random, entries = np.random.default_rng(0), ledger.load(storage)
    mine = entries.filter(pc.equal(entries["model"], MODELS[0].name))
    for row in mine.group_by(["model", "fp", "commit"]).aggregate([]).to_pylist():
        said = parquet.read(
            storage,
            [layout.predictions(row["model"], row["fp"], row["commit"])],
            schemas.PREDICTIONS,
            ["segment_id", "recording_id", "run_id"],
        )
        values = vectors(random.normal(size=(said.num_rows, WIDTH)).astype(np.float32))
        name, schema = layout.embeddings(row["model"], row["fp"], row["commit"]), schemas.embeddings(WIDTH)
        parquet.write(storage, name, said.append_column("embedding", values), schema, {})
    return recordings * SEGMENTS


def _voices(path: str) -> None:
    # Frames of a constant rate may follow each other, so a minute is encoded once.
    Path(path).write_bytes(mp3(speech_like(60.0, seed=1)) * round(SEGMENTS * SECONDS / 60))


def measure(store: str, out: str) -> None:
    """Print what the report takes."""
    began, cpu = time.monotonic(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    build(store, out)
    print(
        f"report: {time.monotonic() - began:.1f} s ({time.process_time() - cpu:.1f} s of CPU), "
        f"{os.path.getsize(out) / 1e6:.1f} MB, peak memory of the process {_peak():.0f} MB ({before:.0f} MB before), "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}"
    )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("browser: Playwright is not installed")
        return
    if not os.path.exists(CHROMIUM):
        print(f"browser: there is no {CHROMIUM}")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(f"file://{out}")
        page.wait_for_selector("html[data-ready]")
        usable = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
        print(f"browser: ready after {usable / 1000:.2f} s, first painted after {(painted or 0) / 1000:.2f} s")
        browser.close()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
