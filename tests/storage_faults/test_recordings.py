"""Recordings and listings, while the object store throttles, breaks off, stalls, refuses or changes meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from serpipe.audio.source import local_copy
from serpipe.errors import AudioError, SerpipeError
from serpipe.manifest import read_manifest
from tests.storage_faults.proxy import (
    Fault,
    Proxy,
    Request,
    always,
    cut,
    denied,
    first,
    internal_error,
    lost,
    refuse,
    reset,
    slow_down,
    stall,
)

CONTENT = os.urandom(1_000_003)
OTHER = os.urandom(1_000_003)


def put(direct: Any, key: str, content: bytes = CONTENT) -> tuple[str, str]:
    etag = direct.put_object(Bucket="calls", Key=key, Body=content)["ETag"]
    return f"s3://calls/{key}", etag.strip('"')


def read(uri: str, etag: str | None = None) -> bytes:
    with local_copy(uri, size=len(CONTENT), etag=etag) as path:
        return Path(path).read_bytes()


def body(request: Request) -> bool:
    return request.command == "GET"


@pytest.mark.parametrize(
    "known", [pytest.param(True, id="etag known"), pytest.param(False, id="etag asked for", marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    ("count", "fault"),
    [(4, slow_down), (2, internal_error), (2, reset), (2, lost), (3, cut), (1, stall)],
    ids=["throttled", "internal errors", "reset", "answers lost", "cut in the middle", "read timeout"],
)
def test_what_passes_does_not_show(proxy: Proxy, direct: Any, count: int, fault: Fault, known: bool) -> None:
    uri, etag = put(direct, "passing/a.wav")
    proxy.storm(first(count, fault, body))
    assert read(uri, etag if known else None) == CONTENT
    assert proxy.spoiled == count


@pytest.mark.parametrize("fault", [slow_down, internal_error, reset, cut])
def test_what_does_not_pass_is_transient(proxy: Proxy, direct: Any, impatient: None, fault: Fault) -> None:
    uri, etag = put(direct, "passing/a.wav")
    proxy.storm(always(fault, body))
    with pytest.raises(AudioError) as refusal:
        read(uri, etag)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_UNREACHABLE", True)


def test_what_is_forbidden_or_gone_is_asked_once(proxy: Proxy, direct: Any) -> None:
    uri, etag = put(direct, "closed/a.wav")
    proxy.storm(always(denied, lambda request: "/closed/" in request.path))
    with pytest.raises(AudioError) as refusal:
        read(uri, etag)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_FORBIDDEN", False)
    assert len(proxy.asked) == 1
    proxy.calm()
    direct.delete_object(Bucket="calls", Key="closed/a.wav")
    with pytest.raises(AudioError) as refusal:
        read(uri, etag)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_NOT_FOUND", False)
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("known", [True, False], ids=["etag known", "etag asked for"])
@pytest.mark.parametrize(
    ("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (403, "RequestTimeTooSkewed")]
)
def test_refused_credentials_say_nothing_of_the_recording(
    proxy: Proxy, direct: Any, impatient: None, status: int, code: str, known: bool
) -> None:
    """An answer to HEAD has no body: what S3 means by 403 it says to who asks for content."""
    uri, etag = put(direct, "closed/b.wav")
    proxy.storm(always(refuse(status, code)))
    with pytest.raises(AudioError) as refusal:
        read(uri, etag if known else None)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_CREDENTIALS", True)
    assert code in refusal.value.message
    proxy.storm(always(denied))
    with pytest.raises(AudioError) as refusal:
        read(uri, etag if known else None)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_FORBIDDEN", False)


def test_a_machine_without_its_role_settles_nothing(
    proxy: Proxy, direct: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri, etag = put(direct, "closed/c.wav")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(AudioError) as refusal:
        read(uri, etag)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_CREDENTIALS", True)
    assert not proxy.asked


def test_an_object_that_was_replaced_since_it_was_listed(proxy: Proxy, direct: Any) -> None:
    uri, etag = put(direct, "changing/a.wav")
    put(direct, "changing/a.wav", OTHER)
    with pytest.raises(AudioError) as refusal:
        read(uri, etag)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_CHANGED", True)
    before = read_manifest("s3://calls/changing")["recording_id"].to_pylist()
    put(direct, "changing/a.wav")
    assert read_manifest("s3://calls/changing")["recording_id"].to_pylist() != before


@pytest.mark.parametrize("known", [True, False], ids=["etag known", "etag asked for"])
def test_an_object_that_is_replaced_while_it_is_read(proxy: Proxy, direct: Any, known: bool) -> None:
    """The connection breaks in the middle; what s3fs goes on with is another object of the same length."""
    uri, etag = put(direct, "changing/b.wav")

    def replaced(request: Request) -> None:
        cut(request)
        put(direct, "changing/b.wav", OTHER)

    proxy.storm(first(1, replaced, body))
    with pytest.raises(AudioError) as refusal:
        read(uri, etag if known else None)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_CHANGED", True)
    assert [method for method, _ in proxy.asked].count("GET") == 2


def test_a_long_object_is_read_in_parts_of_one_version(
    proxy: Proxy, direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "default_block_size", 300_000)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    uri, etag = put(direct, "changing/c.wav")
    assert read(uri, etag) == CONTENT
    parts = sum(method == "GET" for method, _ in proxy.asked)
    assert parts > 3

    def replaced(request: Request) -> None:
        put(direct, "changing/c.wav", OTHER)
        request.answer(*request.forward())

    seen: list[int] = []

    def third(request: Request) -> Fault | None:
        seen.extend([1] * body(request))
        return replaced if body(request) and len(seen) == 3 else None

    proxy.storm(third)
    with pytest.raises(AudioError, match="RECORDING_CHANGED"):
        read(uri, etag)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


# --- listings


@pytest.fixture
def folder(direct: Any) -> str:
    for key in ("a.wav", "b/c.wav", "b/d.wav"):
        put(direct, f"listed/{key}", key.encode())
    return "s3://calls/listed"


@pytest.mark.parametrize("fault", [slow_down, internal_error, reset, cut])
def test_a_listing_bears_with_a_storm(proxy: Proxy, folder: str, fault: Fault) -> None:
    calm = read_manifest(folder)
    proxy.storm(first(3, fault))
    assert read_manifest(folder).equals(calm)
    assert proxy.spoiled == 3


@pytest.mark.parametrize(("fault", "transient"), [(slow_down, True), (reset, True), (denied, False)])
def test_a_listing_is_whole_or_refused(
    proxy: Proxy, folder: str, impatient: None, fault: Fault, transient: bool
) -> None:
    proxy.storm(always(fault, lambda request: "prefix=listed%2Fb" in request.path))
    with pytest.raises(SerpipeError) as refusal:
        read_manifest(folder)
    assert (refusal.value.code, refusal.value.transient) == ("MANIFEST_OUT_OF_REACH", transient)
    assert "s3://calls/listed/b" in str(refusal.value)
