"""The scale benchmark's own arithmetic, and what it and that of forecasts label, which must be what they claim."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import serpipe
from serpipe.testing import write_speech
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "jobs"))

import benchmark_plan
import benchmark_scale
from benchmarks import voice


def test_the_pace_of_each_tenth() -> None:
    """A run that waits, labels ten seconds a second for ten, and then five for twenty."""
    pace = benchmark_scale.Pace()
    pace.seen = [
        (float(t), float(min(max(t - 5, 0), 10) * 10 + min(max(t - 15, 0), 20) * 5), 100.0 + t, float(t))
        for t in range(36)
    ]
    assert pace.between(0.1, 0.5) == pytest.approx(10.0)
    assert pace.between(0.5, 1.0) == pytest.approx(5.0)
    figures = pace.figures()
    assert figures["last_tenth_over_second"] == pytest.approx(0.5)
    assert figures["last_tenth_over_second_by_cpu"] == pytest.approx(0.5)
    assert (figures["driver_mb_at_tenth"], figures["driver_mb_at_end"]) == pytest.approx((107.0, 135.0))


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_manifest_names_as_many_recordings_as_asked(tmp_path: Path, ending: str) -> None:
    place = str(tmp_path / f"list{ending}")
    benchmark_scale.write_manifest(700, place)
    recordings = serpipe.read_manifest(place)
    assert recordings.num_rows == 700
    assert recordings["claimed_s"].null_count == recordings["etag"].null_count == 0


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording of 90 s that is listened to."""
    monkeypatch.setattr(voice, "heard", None)
    recording = Path(write_speech(tmp_path / "episode.wav", seconds=90.0))
    voice.listen_to(recording)
    return recording


def test_an_archive_is_of_the_recording_that_is_named(recorded: Path, tmp_path: Path) -> None:
    listed = pq.read_table(benchmark_scale._archive(tmp_path, 66, seconds=1.0))
    whole, _ = soundfile.read(recorded, dtype="float32")
    for number in (1, 65):
        samples, _ = soundfile.read(listed["uri"][number].as_py(), dtype="float32")
        np.testing.assert_array_equal(samples, whole[37 * 16_000 : 38 * 16_000])


def test_forecasts_are_of_the_recording_that_is_named(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_plan, "EPISODE_S", 5.0)
    benchmark_plan.podcasts(tmp_path / "podcasts", 7 / 45)
    podcasts = sorted((tmp_path / "podcasts").iterdir())
    assert {soundfile.info(podcast).duration for podcast in podcasts} == {5.0}
    assert len({podcast.read_bytes() for podcast in podcasts}) == benchmark_plan.EPISODES < len(podcasts) == 7
    whole, _ = soundfile.read(recorded, dtype="float32")
    heard, _ = soundfile.read(podcasts[0], dtype="float32")
    assert np.corrcoef(heard, whole[: len(heard)])[0, 1] > 0.9
