"""The most telling of the faults again, before a real S3 store: storms, broken answers, replaced objects, damage."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import fsspec
import pytest
from botocore.retries.standard import ExponentialBackoff

from serpipe import remote
from serpipe.audio.source import local_copy
from serpipe.errors import AudioError
from serpipe.store import lease, mend
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.faults.contents import on_disk
from tests.faults.world import World
from tests.storage_faults.proxy import (
    Fault,
    Proxy,
    Request,
    cut,
    denied,
    first,
    internal_error,
    lost,
    reset,
    slow_down,
)
from tests.storage_faults.test_store import CALM, LARGE, OPERATIONS
from tests.store.worlds import contents, memory, small

pytestmark = pytest.mark.s3

CONTENT, OTHER = os.urandom(300_003), os.urandom(300_003)


@pytest.fixture
def real(object_store: dict[str, str], real_s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the real store, the environment that leads through it, and a fresh bucket."""
    s3 = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.05)
    # Nobody else is there to be waited for.
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    with Proxy(object_store["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.clear_instance_cache()
        yield proxy, real_s3
        proxy.calm()
    s3.clear_instance_cache()


def body(request: Request) -> bool:
    return request.command == "GET"


@pytest.mark.parametrize(
    ("count", "fault"),
    [(4, slow_down), (2, internal_error), (2, reset), (2, lost), (2, cut)],
    ids=["throttled", "internal errors", "reset", "answers lost", "cut in the middle"],
)
def test_what_passes_does_not_show(real: tuple[Proxy, str], count: int, fault: Fault) -> None:
    proxy, bucket = real
    for operation, act in OPERATIONS.items():
        storage = Storage(f"{bucket}/{operation}")
        storage.put("a/there", LARGE)
        storage.put("a/other", b"")
        proxy.storm(first(count, fault))
        assert act(storage) == (False if operation == "exclusive" else CALM[operation]), operation
        assert proxy.spoiled
        proxy.calm()


def test_a_night_in_a_storm_makes_the_tables_of_a_calm_one(real: tuple[Proxy, str]) -> None:
    """Every fourth request is spoiled, each time in another way."""
    proxy, bucket = real
    asked, faults = itertools.count(), itertools.cycle([slow_down, reset, lost, cut, internal_error])
    world, calm, storage = small(), memory(), Storage(f"{bucket}/night")
    world.label(calm)
    proxy.storm(lambda _: next(faults) if next(asked) % 4 == 3 else None)
    world.label(storage)
    world.models = {"m1": "f1", "m2": "g1"}
    world.label(storage)
    assert proxy.spoiled > 40
    proxy.calm()
    world.label(calm)
    assert on_disk(storage) == on_disk(calm)
    assert verify(storage).findings == ()


def test_planted_damage_is_found_and_mended(real: tuple[Proxy, str]) -> None:
    """A file of each table cut short, and one more of each gone or swapped."""
    _, bucket = real
    world, storage = World(frames=True), Storage(f"{bucket}/damaged")
    world.add(*small().recordings.values()).label(storage)
    calm = contents(storage)
    harmed = set()
    for table in ("recordings/", "segments/", "predictions/", "embeddings/", "frames/", "quarantine/", "ledger/"):
        names = storage.list(table)
        storage.put(names[0], storage.get(names[0])[:-3])
        harmed.add(names[0])
        if len(names) > 1 and table in ("predictions/", "segments/"):
            storage.put(names[1], storage.get(names[0]))
            harmed.add(names[1])
        elif len(names) > 1:
            storage.delete(names[1])
    found = verify(storage)
    assert harmed <= {finding.file for finding in found.findings}
    with Lease(storage, "R"):
        assert mend.mend(storage)
    world.label(storage)
    assert contents(storage) == calm
    assert verify(storage).findings == ()


def test_a_recording_that_is_broken_off_replaced_refused_or_deleted(real: tuple[Proxy, str]) -> None:
    proxy, bucket = real
    files, uri = fsspec.filesystem("s3"), f"{bucket}/in/a.wav"
    files.pipe_file(uri, CONTENT)
    etag = files.info(uri)["ETag"].strip('"')

    def read() -> bytes:
        with local_copy(uri, size=len(CONTENT), etag=etag) as path, open(path, "rb") as file:
            return file.read()

    def refused() -> tuple[str, bool]:
        with pytest.raises(AudioError) as refusal:
            read()
        return refusal.value.code, refusal.value.transient

    for fault in (slow_down, reset, cut):
        proxy.storm(first(2, fault, body))
        assert read() == CONTENT
        assert proxy.spoiled == 2
    proxy.storm(lambda request: denied if body(request) else None)
    assert refused() == ("RECORDING_FORBIDDEN", False)
    proxy.calm()

    def replaced(request: Request) -> None:
        cut(request)
        files.pipe_file(uri, OTHER)

    proxy.storm(first(1, replaced, body))
    assert refused() == ("RECORDING_CHANGED", True)
    proxy.calm()
    files.rm_file(uri)
    assert refused() == ("RECORDING_NOT_FOUND", False)
