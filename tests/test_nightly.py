"""The night's exit code where a job is tried again: that of the run which labelled it, and of its own shard."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from serpipe.ids import canonical_uri
from serpipe.store import runs
from serpipe.store.storage import Storage
from tests.conftest import ROOT

NIGHTLY = runpy.run_path(str(ROOT / "jobs" / "nightly.py"))


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Two shards and an earlier run of all of one manifest; each failed in its own share of the recordings."""
    storage = Storage(str(tmp_path / "store"))
    location, _ = canonical_uri("s3://bucket/night.csv")
    for run, shard, failed in (("R0", "", 1), ("R1", "0/2", 5), ("R2", "1/2", 0)):
        record = runs.Run(run_id=run, started=runs.now(), shard=shard, manifest=location)
        runs.finish(storage, record, result={"elapsed_s": 1.0, "recordings": 10, "failed": failed})
    return storage.root


@pytest.mark.parametrize(("shard", "share"), [(None, 0.1), ("0/2", 0.5), ("00/2", 0.5), ("1/2", 0.0), ("0/3", 0.0)])
def test_the_share_is_of_the_shard_asked_for(store: str, shard: str | None, share: float) -> None:
    assert NIGHTLY["share_in_quarantine"](store, "s3://bucket/night.csv", shard) == share


def test_a_shard_that_is_none_is_refused_by_label(tmp_path: Path) -> None:
    night = [str(tmp_path / "archive"), str(tmp_path / "store"), "--shard=2/2"]
    assert CliRunner().invoke(NIGHTLY["nightly"], night).exit_code == 2
