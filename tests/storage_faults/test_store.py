"""Every operation of a store, while the object store throttles, breaks off, stalls or refuses."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pyarrow as pa
import pytest

from serpipe.errors import StoreError
from serpipe.store import parquet
from serpipe.store.storage import Storage
from tests.storage_faults.proxy import (
    Fault,
    Proxy,
    always,
    cut,
    denied,
    first,
    internal_error,
    lost,
    reset,
    slow_down,
    stall,
)

LARGE = bytes(range(256)) * 1_000

OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "put": lambda storage: storage.put("a/put", LARGE) or storage.fs.cat_file(storage.path("a/put")),
    "get": lambda storage: storage.get("a/there"),
    "list": lambda storage: storage.list("a/"),
    "exists": lambda storage: (storage.exists("a/there"), storage.exists("a/absent")),
    "delete": lambda storage: storage.delete("a/there") or storage.fs.exists(storage.path("a/there")),
    "create": lambda storage: (storage.create("a/new", b"1"), storage.create("a/there", b"1")),
    "exclusive": lambda storage: storage.exclusive,
    "modified": lambda storage: storage.modified("a/other") > 0,
}

PASSING: dict[str, tuple[int, Fault]] = {
    "throttled": (4, slow_down),
    "internal errors": (2, internal_error),
    "reset": (2, reset),
    "answers lost": (2, lost),
    "cut in the middle": (2, cut),
    "read timeout": (1, stall),
}


@pytest.fixture
def storage(proxy: Proxy) -> Storage:
    storage = Storage(f"s3://calls/store-{uuid4().hex}")
    storage.put("a/there", LARGE)
    storage.put("a/other", b"")
    proxy.calm()
    return storage


CALM = {
    "put": LARGE,
    "get": LARGE,
    "list": ["a/other", "a/there"],
    "exists": (True, False),
    "delete": False,
    "create": (True, False),
    "exclusive": True,
    "modified": True,
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_passes_does_not_show(proxy: Proxy, storage: Storage, operation: str, fault: str) -> None:
    count, how = PASSING[fault]
    proxy.storm(first(count, how))
    assert OPERATIONS[operation](storage) == CALM[operation]
    # A broken answer without a body is a whole one.
    assert proxy.spoiled == count or (how is cut and proxy.spoiled == len(proxy.asked))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(slow_down, id="throttled"),
        pytest.param(internal_error, id="internal errors", marks=pytest.mark.long),
        pytest.param(reset, id="reset", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_does_not_pass_is_one_sentence(proxy: Proxy, impatient: None, operation: str, fault: Fault) -> None:
    storage = Storage(f"s3://calls/store-{uuid4().hex}")
    storage.put("a/there", LARGE)
    proxy.storm(always(fault))
    with pytest.raises(StoreError) as refusal:
        OPERATIONS[operation](storage)
    assert (refusal.value.code, refusal.value.transient) == ("STORE_UNREACHABLE", True)
    assert storage.root in refusal.value.message
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_forbidden_is_asked_once(proxy: Proxy, storage: Storage, operation: str) -> None:
    proxy.storm(always(denied))
    with pytest.raises(StoreError) as refusal:
        OPERATIONS[operation](storage)
    assert (refusal.value.code, refusal.value.transient) == ("STORE_FORBIDDEN", False)
    assert storage.root in refusal.value.message
    assert len(proxy.asked) <= 2


def test_a_listing_of_many_pages_is_whole_or_none(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"many/{number}" for number in range(7)]
    for name in names:
        storage.put(name, b"")
    monkeypatch.setattr("tests.storage_faults.proxy.Request.query", "&max-keys=2")

    def later_page(request: object) -> bool:
        return "continuation-token" in request.path  # type: ignore[attr-defined]

    for fault in (slow_down, internal_error, reset, cut):
        proxy.storm(first(2, fault, later_page))
        assert storage.list("many/") == names
        assert proxy.spoiled == 2
    proxy.storm(always(denied, later_page))
    with pytest.raises(StoreError, match="STORE_FORBIDDEN"):
        storage.list("many/")


def test_a_create_whose_answer_was_lost_is_known_again(proxy: Proxy, storage: Storage) -> None:
    proxy.storm(first(1, lost, lambda request: request.command == "PUT"))
    assert storage.create("lease", b"mine")
    assert proxy.spoiled == 1
    proxy.storm(first(1, lost, lambda request: request.command == "PUT"))
    assert not storage.create("lease", b"another's")
    assert storage.get("lease") == b"mine"


def test_tables_are_read_in_a_storm(proxy: Proxy, storage: Storage, impatient: None) -> None:
    table = pa.table({"recording_id": [bytes(16)], "code": ["X"]})
    schema = pa.schema([("recording_id", pa.binary()), ("code", pa.string())])
    parquet.write(storage, "quarantine/R-1.parquet", table, schema, {"commit": "R-1"})
    for fault in (slow_down, reset, cut):
        proxy.storm(first(2, fault))
        assert parquet.read(storage, ["quarantine/R-1.parquet"], schema).num_rows == 1
        assert parquet.facts(storage, "quarantine/R-1.parquet")["commit"] == "R-1"
    proxy.storm(always(slow_down))
    with pytest.raises(StoreError, match="STORE_UNREACHABLE"):
        parquet.read(storage, ["quarantine/R-1.parquet"], schema)
    proxy.storm(always(denied))
    with pytest.raises(StoreError, match="STORE_FORBIDDEN"):
        parquet.facts(storage, "quarantine/R-1.parquet")
