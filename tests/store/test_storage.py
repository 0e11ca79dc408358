"""Whole puts, exclusive creates, listings by prefix: on a disk, in memory and in a bucket."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serpipe.errors import StoreError, UsageError
from serpipe.store.steady import stamps
from serpipe.store.storage import Storage


@pytest.fixture(params=["disk", "bucket", pytest.param("real_s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(str(tmp_path / "store"))
    return Storage(f"{request.getfixturevalue(request.param)}/storage-{uuid4().hex}")


def test_put_get_replace_delete(storage: Storage) -> None:
    storage.put("a/b/c.bin", b"one")
    storage.put("a/b/c.bin", b"two")
    assert storage.get("a/b/c.bin") == b"two"
    assert storage.exists("a/b/c.bin")
    storage.delete("a/b/c.bin")
    storage.delete("a/b/c.bin")
    assert not storage.exists("a/b/c.bin")
    with pytest.raises(FileNotFoundError):
        storage.get("a/b/c.bin")


def test_create_is_exclusive(storage: Storage) -> None:
    assert storage.create("lease.json", b"first")
    assert not storage.create("lease.json", b"second")
    assert storage.get("lease.json") == b"first"


def test_one_of_many_creates_wins_where_that_is_promised(storage: Storage) -> None:
    start = threading.Barrier(8)
    won: list[int] = []

    def race(number: int) -> None:
        start.wait()
        if storage.create("race.json", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 or not storage.exclusive
    assert int(storage.get("race.json")) in won
    assert storage.list("") == ["race.json"]


def test_listings_see_what_another_process_wrote(storage: Storage) -> None:
    assert storage.list("ledger/") == []
    Storage(storage.root).put("ledger/R1-a.parquet", b"")
    assert storage.list("ledger/") == ["ledger/R1-a.parquet"]
    Storage(storage.root).delete("ledger/R1-a.parquet")
    assert storage.list("ledger/") == []


NAMES = ["a/R1-x.parquet", "a/R1-y.l.parquet", "a/R10-x.parquet", "a/m=1/f=2/R1-x.parquet", "ab/R1-x.parquet", "top"]


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/R1", "a/R1-", "a/R1-y.", "a/m=1/f=2/R1-", "b", "a/m=9/", "to"])
def test_list_is_every_name_with_the_prefix(storage: Storage, prefix: str) -> None:
    for name in NAMES:
        storage.put(name, b"")
    assert storage.list(prefix) == sorted(name for name in NAMES if name.startswith(prefix))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    names=st.sets(st.from_regex(r"[ab]{1,2}(/[ab]=?[ab]?){0,2}/R[12]-[ab]{1,2}", fullmatch=True), max_size=8),
    prefix=st.from_regex(r"([ab]{1,2}(/[ab]=?){0,1}/)?(R[12]?-?)?", fullmatch=True),
)
def test_list_on_disk_is_a_filter(tmp_path: Path, names: set[str], prefix: str) -> None:
    storage = Storage(str(tmp_path / uuid4().hex))
    for name in names:
        storage.put(name, b"")
    assert storage.list(prefix) == sorted(name for name in names if name.startswith(prefix))


def test_what_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale mount, or a process without file descriptors, must not make labels vanish: they would be made again."""
    storage = Storage(str(tmp_path))
    storage.put("ledger/deep/a", b"1")
    listed, stat = os.scandir, os.stat

    def refusing(path: str, *more: object, **named: object) -> object:
        if os.fspath(path).endswith(("deep", "deep/a")):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return (listed if not named else stat)(path, *more, **named)  # type: ignore[arg-type, call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        for ask in (lambda: storage.list("ledger/"), lambda: stamps(storage, "ledger")):
            with pytest.raises(StoreError, match=r"STORE_UNREACHABLE: .*ledger") as caught:
                ask()
            assert caught.value.transient
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refusing)
        with pytest.raises(StoreError, match="STORE_UNREACHABLE"):
            storage.exists("ledger/deep/a")
        assert not storage.exists("ledger/none")
    assert storage.list("ledger/") == ["ledger/deep/a"]
    assert storage.exists("ledger/deep/a")


def test_a_folder_that_goes_while_it_is_listed_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a/1", "b/2"):
        storage.put(name, b"")
    listed = storage.fs.ls

    def going(path: str, **named: object) -> object:
        found = listed(path, **named)
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        return found

    monkeypatch.setattr(storage.fs, "ls", going)
    assert storage.list("") == ["a/1"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    versions = [bytes([version]) * 300_000 for version in range(40)]
    storage.put("object", versions[0])
    ended = threading.Event()
    torn: list[bytes] = []

    def watch() -> None:
        while not ended.is_set():
            if (seen := storage.get("object")) not in versions:
                torn.append(seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for data in versions:
        storage.put("object", data)
    ended.set()
    watcher.join()
    assert not torn


def test_what_a_dead_writer_left_is_not_listed_and_not_in_the_way(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage._beside(storage.path("a/R1-x.parquet"), b"half")
    assert list((tmp_path / "a").iterdir()) != []
    assert storage.list("a/") == []
    assert not storage.exists("a/R1-x.parquet")
    storage.put("a/R1-x.parquet", b"whole")
    assert storage.get("a/R1-x.parquet") == b"whole"


@pytest.mark.parametrize("write", ["{0}", "{0}/", "file://{0}"])
def test_ways_to_write_the_same_root(tmp_path: Path, write: str) -> None:
    Storage(write.format(tmp_path / "s")).put("x/y", b"1")
    assert (tmp_path / "s" / "x" / "y").read_bytes() == b"1"
    assert Storage(str(tmp_path / "s")).list("x/") == ["x/y"]


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("store")
    monkeypatch.chdir("/")
    storage.put("x", b"1")
    assert (tmp_path / "store" / "x").read_bytes() == b"1"


def test_unknown_kinds_of_url_are_refused() -> None:
    with pytest.raises(UsageError, match="STORE_UNSUPPORTED: gopher://a/b"):
        Storage("gopher://a/b")


def test_create_in_another_kind_of_store() -> None:
    storage = Storage(f"memory://{uuid4().hex}")
    assert storage.create("lease.json", b"1")
    assert not storage.create("lease.json", b"2")
    assert storage.get("lease.json") == b"1"


class OldFileSystem(MemoryFileSystem):
    """A filesystem from before fsspec knew exclusive puts."""

    def pipe_file(self, path: str, value: bytes) -> None:  # type: ignore[override]
        super().pipe_file(path, value)


def test_a_store_without_exclusive_create_says_so() -> None:
    storage = Storage(f"memory://{uuid4().hex}")
    storage.fs = OldFileSystem()
    with pytest.raises(StoreError, match="STORE_NO_EXCLUSIVE_CREATE: memory://"):
        storage.create("lease.json", b"1")


def test_whether_create_lets_one_of_several_win(storage: Storage, request: pytest.FixtureRequest) -> None:
    assert storage.exclusive == ("real_s3" not in request.node.callspec.id)
    assert storage.list("") == []


@pytest.mark.parametrize(("root", "exclusive"), [("memory://x", True), ("sftp://host/x", False)])
def test_kinds_of_store_that_cannot_be_asked(root: str, exclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("memory://x")
    monkeypatch.setattr(type(storage.fs), "protocol", root.partition(":")[0])
    assert storage.exclusive == exclusive


def test_an_answer_that_was_lost_is_no_other_writer(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    if storage.local:
        pytest.skip("a disk's answer is not lost")
    pipe_file, lost = storage.fs.pipe_file, [True]

    def stutter(*args: object, **kwargs: object) -> None:
        pipe_file(*args, **kwargs)
        if lost.pop() if lost else False:
            raise ConnectionResetError

    monkeypatch.setattr(storage.fs, "pipe_file", stutter)
    assert storage.create("lease.json", b"mine")
    assert not storage.create("lease.json", b"another's")


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(StoreError, match=f"STORE_FULL: {tmp_path}/a/b: the disk is full") as refusal:
        storage.put("a/b", b"1")
    assert refusal.value.transient
    monkeypatch.undo()
    assert storage.list("") == []


@pytest.mark.parametrize(("number", "code"), [(errno.EDQUOT, "STORE_FULL"), (errno.EACCES, "STORE_FORBIDDEN")])
def test_a_file_that_cannot_be_begun_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """A quota, or a folder of somebody else: nothing lies there that could be taken away."""
    storage = Storage(str(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("serpipe.store.storage.open", refuse, raising=False)
    for write in (storage.put, storage.create):
        with pytest.raises(StoreError, match=f"{code}: {tmp_path}/a/b: "):
            write("a/b", b"1")
    assert storage.listing("", hidden=True) == {}


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    storage = Storage("s3://no-such-bucket-here/x")
    assert storage.list("") == []
    with pytest.raises(UsageError, match="STORE_NO_BUCKET: s3://no-such-bucket-here/x"):
        storage.put("a", b"1")
