"""A day of audio: how many files it leaves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import serpipe
from serpipe.testing import speech_like


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "claims",
    [
        pytest.param(False, id="sizes-only"),
        pytest.param(True, id="claimed-durations", marks=pytest.mark.long),
    ],
)
def test_a_day_of_windows_leaves_few_files(tmp_path: Path, claims: bool) -> None:
    """24 recordings of an hour in windows of six seconds, on two CPUs: at most 60 files, all but one of 100 rows."""
    minute = speech_like(60.0)
    hour = tmp_path / "hour.flac"
    soundfile.write(hour, np.tile(minute, 60), 16_000)
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(24):
        os.link(hour, archive / f"{number:02}.flac")
    manifest = archive
    if claims:
        manifest = tmp_path / "list.csv"
        lines = [f"{archive}/{number:02}.flac,3600" for number in range(24)]
        manifest.write_text("\n".join(["path,duration", *lines]))
    result = serpipe.label(str(manifest), str(tmp_path / "store"), segmentation="window:6/6", speech=False, decoders=1)
    assert (result.predictions, result.failed) == (14_400, 0)
    for table in ("predictions", "embeddings", "segments"):
        files = list((tmp_path / "store" / table).rglob("*.parquet"))
        rows = sorted(pq.read_metadata(file).num_rows for file in files)
        assert sum(rows) == 14_400
        assert len(files) <= 60
        assert all(count >= 100 for count in rows[1:])
