"""What the tests share: one Ray session, real audio where it is at hand, an S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def real_audio() -> Path:
    """The folder of real recordings, which is not part of the project."""
    folder = Path(os.environ.get("SERPIPE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "formats" / "index.csv").exists():
        pytest.skip(f"no real audio in {folder}; set SERPIPE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of four CPUs and two pretended GPUs on this machine, for the whole test run."""
    import ray

    ray.init(
        "local",
        num_cpus=4,
        num_gpus=2,
        object_store_memory=1 << 30,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
