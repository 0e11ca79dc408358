from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests import thirdparty
from tests.bench import NEVER, Bench, Mortal, short_units, write_archive


@pytest.fixture(scope="package")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    archive, site = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("site")
    write_archive(archive)
    with pytest.MonkeyPatch.context() as patch:
        short_units(patch)
        patch.syspath_prepend(str(site))
        thirdparty.install(site, "level")
        yield Bench(archive, ("embedded", "level"), embeddings="frame")


@pytest.fixture(scope="package")
def calm(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A store of an undisturbed run, and the changes it took."""
    storage = Mortal(str(tmp_path_factory.mktemp("calm")), NEVER)
    assert bench.run(storage) == 6
    assert bench.run(storage) == 0
    return storage.root, storage.changes


@pytest.fixture(scope="package")
def bucket() -> Iterator[str]:
    """A bucket behind the real S3 protocol."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        # Servers of one process hold the same buckets.
        name = f"serpipe-store-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()
