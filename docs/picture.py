"""Makes the README's picture of the report, from a made-up store: `python docs/picture.py`. Wants Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.report import build
from serpipe.testing import write_speech
from serpipe.testing.labelled import MadeUpModel, write_labelled_store

PICTURE = Path(__file__).parent / "report.png"
SIZE = (1200, 1150)
"""Pixels: the first screens of the page."""

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync")


def _give_voices(store: Path, folder: Path) -> None:
    """Put synthetic voices where the made-up recordings are said to be, so that there are clips to hear."""
    voices = [write_speech(folder / f"{seed}.wav", seconds=240.0, seed=seed) for seed in range(3)]
    for file in (store / "recordings").iterdir():
        rows = pq.read_table(file)
        uris = [f"{folder}{uri}" for uri in rows["uri"].to_pylist()]
        for place, uri in enumerate(uris):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            Path(uri).symlink_to(voices[place % len(voices)])
        pq.write_table(rows.set_column(rows.schema.get_field_index("uri"), "uri", pa.array(uris)), file)


def draw(picture: Path) -> None:
    """Build the report of a made-up store and take its picture."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium on the path; on Debian `apt-get install chromium` has one")
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/made-up/podcasts"
        models = [
            MadeUpModel(name="model-a", taxonomy="ekman"),
            MadeUpModel(name="model-b", taxonomy="msp8", fp="00000000000000fe"),
            MadeUpModel(name="model-c", taxonomy="dimensions", fp="00000000000000fd"),
        ]
        write_labelled_store(store, models, recordings=120, segments=60, feeds=6)
        _give_voices(Path(store), Path(folder))
        page = build(store, f"{folder}/report.html")
        subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={SIZE[0]},{SIZE[1]}",
                "--virtual-time-budget=5000",
                f"--screenshot={picture}",
                f"file://{page}",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


if __name__ == "__main__":
    draw(PICTURE)
