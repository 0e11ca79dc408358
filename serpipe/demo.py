"""The first run: a small archive of synthetic voices, labelled with the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from serpipe.engine.label import label
from serpipe.report import build
from serpipe.testing import write_speech

_ARCHIVE = (
    ("show-a/monday.wav", 75.0, 16_000, 1),
    ("show-a/tuesday.mp3", 60.0, 44_100, 1),
    ("show-b/monday.flac", 45.0, 48_000, 2),
    ("show-b/tuesday.opus", 90.0, 48_000, 1),
)


def run(directory: str, *, say: Callable[[str], object]) -> None:
    """Make an archive below a directory, label it, and tell what is in the tables.

    Args:
        directory: gets `archive/` and `store/`; what is there already is kept and not labelled again.
        say: receives a line at a time.
    """
    archive, store = Path(directory, "archive").resolve(), Path(directory, "store").resolve()
    for seed, (name, seconds, rate, channels) in enumerate(_ARCHIVE):
        if not (archive / name).exists():
            write_speech(archive / name, seconds=seconds, sample_rate=rate, channels=channels, seed=seed)
    say(f"{len(_ARCHIVE)} recordings of synthetic voices in {archive}")
    result = label(str(archive), str(store), segmentation="window:6/3")
    if result.run_id is None:
        say("they were labelled by an earlier run")
    else:
        say(f"{result.predictions} segments labelled in {result.elapsed_s:.0f} s, Ray's start included")
    say(f"tables: {store}")
    query = (
        "SELECT r.uri, count(*) AS segments, mode(p.emotion) AS mostly, round(avg(p.confidence), 2) AS confidence "
        f"FROM '{store}/predictions/**/*.parquet' p JOIN '{store}/recordings/*.parquet' r USING (recording_id) "
        "GROUP BY r.uri ORDER BY r.uri"
    )
    for uri, segments, mostly, confidence in duckdb.execute(query).fetchall()[:3]:
        say(f"  {Path(uri).relative_to(archive)}: {segments} segments, mostly {mostly}, mean confidence {confidence}")
    say(f"report: {build(str(store), f'{archive.parent}/report.html')}")
    say("the voices are synthetic, so these labels mean nothing; label your own with `serpipe label FOLDER STORE`")
    say("ask more:")
    say(f'  python -c "import duckdb; print(duckdb.sql(\\"{query}\\"))"')
