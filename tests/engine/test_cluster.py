"""The same job on other clusters: two model pools on pretended GPUs, three nodes, one CPU; the tables are equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import serpipe
from serpipe.engine import cluster
from tests.tables import assert_same, read

pytestmark = pytest.mark.slow

LOUDNESS = '''
"""A third party's model: how loud a segment is."""
import pathlib
import numpy as np
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import ModelSpec, Outputs

SPEC = ModelSpec(name="loudness", hub_id=None, revision=None, licence="Apache-2.0", labels=("neutral", "anger"),
    taxonomy="ekman", parameters=0, min_seconds=0.1, max_seconds=30.0, embedding_width=2, frame_rate=None,
    adapter_epoch=1)

SPECS, FILES, SHIPPED = (SPEC,), ("loudness.py",), str(pathlib.Path(__file__).parent)

class Loudness:
    spec, weights_sha256 = SPEC, content_sha256(SHIPPED, FILES)
    def forward(self, waveforms, *, frames):
        level = np.array([[0.0, np.sqrt(np.mean(w**2)) * 10 - 1] for w in waveforms], np.float32)
        scores = np.exp(level) / np.exp(level).sum(axis=1, keepdims=True)
        return Outputs(level, scores.astype(np.float32), level, None)

def load(spec, directory, *, device, dtype):
    return Loudness()
'''

PROGRAM = """
import sys, ray, serpipe
from ray.cluster_utils import Cluster
archive, store, shape = sys.argv[1:]
if shape == "nodes":
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, object_store_memory=400 << 20))
    for _ in range(2):
        cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=400 << 20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    assert len(ray.nodes()) == 3
elif shape == "single":
    ray.init("local", num_cpus=1, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
else:
    ray.init("local", num_cpus=2, num_gpus=2, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
pools = ["embedded:1", "loudness:1"] if shape == "pools" else []
serpipe.label(archive, store, models=["embedded", "loudness"], segmentation="window:6/3", pools=pools)
ray.shutdown()
if shape == "nodes":
    cluster.shutdown()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A machine on which somebody has installed a model of their own."""
    site = tmp_path_factory.mktemp("site")
    (site / "loudness.py").write_text(LOUDNESS)
    info = site / "loudness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loudness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[serpipe.models]\nloudness = loudness\n")
    return os.environ | {"PYTHONPATH": str(site), "RAY_BACKEND_LOG_LEVEL": "error"}


@pytest.fixture(scope="module")
def one_pool(archive: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return _run(archive, environment, tmp_path_factory.mktemp("one"), "one")


def _run(archive: Path, environment: dict[str, str], folder: Path, shape: str) -> str:
    store = str(folder / "store")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(archive), store, shape], env=environment, check=True, timeout=240
    )
    return store


@pytest.mark.parametrize("shape", ["pools", "nodes", pytest.param("single", marks=pytest.mark.long)])
def test_tables_do_not_depend_on_the_cluster(
    archive: Path, environment: dict[str, str], one_pool: str, tmp_path: Path, shape: str
) -> None:
    store = _run(archive, environment, tmp_path, shape)
    assert set(read(store, "predictions")["model"].to_pylist()) == {"embedded", "loudness"}
    assert_same(one_pool, store)


@pytest.mark.usefixtures("ray_session")
def test_a_model_added_later_leaves_the_rest_alone(
    archive: Path, environment: dict[str, str], one_pool: str, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    serpipe.label(str(archive), store, segmentation="window:6/3")
    before = {path: path.stat().st_mtime_ns for path in Path(store).rglob("*.parquet")}
    _run(archive, environment, tmp_path, "one")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    # A recording that cannot be decoded is tried once more for the new model, and logged once more.
    assert_same(one_pool, store, but_for=("quarantine",))


def test_what_labelled_nodes_have_counts_for_their_stage() -> None:
    nodes = [{"Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Resources": {"CPU": 8.0}}]
    assert cluster._of("GPU", nodes, {"GPU": 3.0}) == 1.0
    assert cluster._of("CPU", [], {"CPU": 24.0}) == 24.0
    assert cluster._of("GPU", nodes[1:], {"GPU": 3.0}) == 0.0, "the GPUs of other nodes are none of theirs"
