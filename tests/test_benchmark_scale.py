"""The scale benchmark's own arithmetic, and its manifests, which must be what they claim to be."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import serpipe
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "jobs" / "benchmark_scale.py"))


def test_the_pace_of_each_tenth(job: dict[str, Any]) -> None:
    """A run that waits, labels ten seconds a second for ten, and then five for twenty."""
    pace = job["Pace"]()
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
def test_a_manifest_names_as_many_recordings_as_asked(job: dict[str, Any], tmp_path: Path, ending: str) -> None:
    place = str(tmp_path / f"list{ending}")
    job["write_manifest"](700, place)
    recordings = serpipe.read_manifest(place)
    assert recordings.num_rows == 700
    assert recordings["claimed_s"].null_count == recordings["etag"].null_count == 0
