"""An S3 server behind a proxy that spoils requests, and clients that do not wait as long as people do."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import fsspec
import pytest
from botocore.retries.standard import ExponentialBackoff
from moto.server import ThreadedMotoServer

from serpipe import remote
from tests.storage_faults.proxy import Proxy


@pytest.fixture(scope="package")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAcanary")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="calls")
        yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="package")
def direct(server: str) -> object:
    """A client that does not pass the proxy."""
    return boto3.client("s3", endpoint_url=server)


@pytest.fixture(scope="package")
def proxied(server: str) -> Iterator[Proxy]:
    """The proxy, and the environment that leads through it."""
    s3 = fsspec.get_filesystem_class("s3")
    with Proxy(server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setattr(s3, "read_timeout", 0.5)
        patch.setattr(s3, "connect_timeout", 2)
        s3.clear_instance_cache()
        yield proxy
    s3.clear_instance_cache()


@pytest.fixture
def proxy(proxied: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.05)
    proxied.calm()
    yield proxied
    proxied.calm()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never passes: fewer tries."""
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 2)
