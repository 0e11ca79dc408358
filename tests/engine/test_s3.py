"""Manifest, recordings and store in a bucket, over the real S3 protocol."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

import serpipe
from serpipe.errors import StoreError
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("archive")
        yield "s3://archive"
    server.stop()


def test_storage_keeps_its_promises_on_s3(bucket: str) -> None:
    storage = Storage(f"{bucket}/storage")
    assert storage.create("lease.json", b"1")
    assert not storage.create("lease.json", b"2")
    assert storage.get("lease.json") == b"1"
    storage.put("a/R1-x.parquet", b"x")
    storage.put("a/R2-y.parquet", b"y")
    assert storage.list("a/R1-") == ["a/R1-x.parquet"]
    storage.delete("a/R1-x.parquet")
    storage.delete("a/R1-x.parquet")
    assert storage.list("a/") == ["a/R2-y.parquet"]
    with (
        Lease(Storage(f"{bucket}/held"), "first"),
        pytest.raises(StoreError, match="first"),
        Lease(Storage(f"{bucket}/held"), "second"),
    ):
        pass


PROGRAM = """
import sys, ray, serpipe
ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
result = serpipe.label(sys.argv[1], sys.argv[2], segmentation="window:6/3")
assert (result.recordings, result.failed) == (3, 0), result
"""


def test_label_from_and_to_a_bucket(bucket: str, archive: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3")
    shutil.copytree(archive / "a", tmp_path / "in")
    for path in sorted((tmp_path / "in").iterdir()):
        fs.put_file(str(path), f"archive/in/{path.name}")
    store = f"{bucket}/store"
    # A Ray of its own: its workers must see the server's address.
    subprocess.run([sys.executable, "-c", PROGRAM, f"{bucket}/in", store], check=True, timeout=240)
    again = serpipe.label(f"{bucket}/in", store, segmentation="window:6/3")
    assert (again.run_id, again.done_before) == (None, 3)
    opened = serpipe.open(store)
    names = {row["recording_id"]: row["uri"] for row in opened.recordings().to_pylist()}
    assert sorted(names.values()) == [f"s3://archive/in/{name}" for name in ("one.wav", "three.flac", "two.wav")]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "in"), str(tmp_path / "store")],
        check=True,
        timeout=240,
    )
    assert _labels(serpipe.open(str(tmp_path / "store"))) == _labels(opened)


def _labels(store: serpipe.Store) -> list[tuple[object, ...]]:
    names = {row["recording_id"]: row["uri"].rsplit("/", 1)[1] for row in store.recordings().to_pylist()}
    return sorted(
        (names[row["recording_id"]], row["start_s"], row["end_s"], row["label"], round(row["confidence"], 3))
        for row in store.predictions().to_pylist()
    )
