"""From a uri to a local file: what is fetched, what is refused and how, what is left behind."""

from __future__ import annotations

import ctypes
import errno
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs
from fsspec.asyn import sync

from serpipe import remote
from serpipe.audio.source import is_remote, local_copy
from serpipe.audio.stage import Decode
from serpipe.errors import AudioError
from serpipe.remote import Trouble
from serpipe.testing import write_speech
from tests.audio.test_stage import gather, row, table
from tests.audio.web import served

CONTENT = os.urandom(9_000_001)


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
        s3fs.S3FileSystem.clear_instance_cache()
        files = fsspec.filesystem("s3")
        files.mkdir("audio")
        for key in ("a/one.wav", "a/with space & 音声?#%20.wav"):
            files.pipe_file(f"audio/{key}", CONTENT)
        yield "s3://audio"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


class Pages(http.server.BaseHTTPRequestHandler):
    """A signed-url server: the right signature gets the content, others get what the path says."""

    asked: list[str]
    broken = 0

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        status = 200 if self.path.endswith("signature=right") else 403
        if "gone" in self.path:
            status = 404
        if "busy" in self.path and type(self).broken:
            type(self).broken -= 1
            status = 503
        self.send_response(status)
        self.send_header("Content-Length", str(len(CONTENT) if status == 200 else 0))
        self.end_headers()
        if status == 200:
            # An "aborted" download ends before the length it announced.
            self.wfile.write(CONTENT[: 1_000 if "aborted" in self.path else None])

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Pages.asked, Pages.broken = [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)


def refusal_of(uri: str, folder: Path | None = None, **facts: object) -> AudioError:
    with (
        pytest.raises(AudioError) as refusal,
        local_copy(uri, folder=None if folder is None else str(folder), **facts),  # type: ignore[arg-type]
    ):
        pass
    assert uri not in refusal.value.message
    return refusal.value


# --- local


def test_a_local_file_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(CONTENT)
    with local_copy(str(tmp_path / "a.wav"), size=len(CONTENT)) as path:
        assert path == str(tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == CONTENT


def test_what_is_wrong_with_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(CONTENT)
    for absent in ("absent.wav", "a.wav/inside.wav", ""):
        refusal = refusal_of(str(tmp_path / absent))
        assert (refusal.code, refusal.transient) == ("RECORDING_NOT_FOUND", False)
    refusal = refusal_of(str(tmp_path / "a.wav"), size=5)
    assert (refusal.code, refusal.transient) == ("RECORDING_CHANGED", True)
    assert "knew 5" in refusal.message
    assert str(len(CONTENT)) in refusal.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch(mode=0o000)
    assert refusal_of(str(tmp_path / "a.wav")).code == "RECORDING_FORBIDDEN"


def test_a_pipe_does_not_hang_here(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with local_copy(str(tmp_path / "pipe.wav")) as path:
        assert path == str(tmp_path / "pipe.wav")


@pytest.mark.parametrize(
    ("uri", "remote"),
    [("/a/b.wav", False), ("/a/http:/b.wav", False), ("s3://a/b.wav", True), ("https://a/b", True), ("gs://a/b", True)],
)
def test_what_is_remote(uri: str, remote: bool) -> None:
    assert is_remote(uri) == remote


# --- S3


@pytest.mark.parametrize("key", ["a/one.wav", "a/with space & 音声?#%20.wav"])
def test_objects_are_copied_whole_and_the_copy_goes(bucket: str, tmp_path: Path, key: str) -> None:
    with local_copy(f"{bucket}/{key}", size=len(CONTENT), folder=str(tmp_path)) as path:
        assert tmp_path in Path(path).parents
        assert Path(path).read_bytes() == CONTENT
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), local_copy(f"{bucket}/{key}", folder=str(tmp_path)):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=4m"):
        pytest.skip(f"no small disk can be made here ({os.strerror(ctypes.get_errno())})")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def test_a_full_disk_is_the_workers_and_not_the_recordings(bucket: str, small_disk: Path) -> None:
    refusal = refusal_of(f"{bucket}/a/one.wav", small_disk)
    assert (refusal.code, refusal.transient) == ("RECORDING_NO_ROOM", True)
    assert "No space left on device" in refusal.message
    assert not list(small_disk.iterdir())


def test_a_worker_without_a_temporary_folder_settles_nothing(bucket: str, tmp_path: Path) -> None:
    refusal = refusal_of(f"{bucket}/a/one.wav", tmp_path / "nowhere")
    assert (refusal.code, refusal.transient) == ("RECORDING_NO_ROOM", True)


def test_what_is_wrong_with_objects(bucket: str, tmp_path: Path) -> None:
    for absent in ("a/absent.wav", "a"):
        refusal = refusal_of(f"{bucket}/{absent}", tmp_path)
        assert (refusal.code, refusal.transient) == ("RECORDING_NOT_FOUND", False)
    assert refusal_of("s3://no-such-bucket/a.wav", tmp_path).code == "RECORDING_NOT_FOUND"
    refusal = refusal_of(f"{bucket}/a/one.wav", tmp_path, size=len(CONTENT) + 1)
    assert (refusal.code, refusal.transient) == ("RECORDING_CHANGED", True)
    assert not list(tmp_path.iterdir())


def test_an_object_that_was_replaced_is_read_anew(bucket: str) -> None:
    files = fsspec.filesystem("s3")
    for content in (b"first", b"second, longer"):
        files.pipe_file("audio/b/changing.wav", content)
        with local_copy(f"{bucket}/b/changing.wav", size=len(content)) as path:
            assert Path(path).read_bytes() == content


def test_recordings_of_a_bucket_decode_as_local_ones(bucket: str, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "spoken.mp3", seconds=8.0)
    fsspec.filesystem("s3").put_file(path, "audio/c/spoken.mp3")
    found = gather(
        Decode(segmentation="window:3/3", speech=False)(
            table([row(path), row(f"{bucket}/c/spoken.mp3"), row(f"{bucket}/c/absent.mp3")])
        )
    )
    local, remote = found[path], found[f"{bucket}/c/spoken.mp3"]
    assert [audio.tolist() for audio in local.audio] == [audio.tolist() for audio in remote.audio]
    assert local.recordings[0]["codec"] == remote.recordings[0]["codec"]
    assert found[f"{bucket}/c/absent.mp3"].codes == ["RECORDING_NOT_FOUND"]


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    for uri in (f"http://127.0.0.1:{port}/a.wav", "s3://audio/a/one.wav"):
        refusal = refusal_of(uri, tmp_path, query="X-Amz-Signature=secret")
        assert (refusal.code, refusal.transient) == ("RECORDING_UNREACHABLE", True)
        assert "secret" not in str(refusal)
    assert not list(tmp_path.iterdir())
    s3fs.S3FileSystem.clear_instance_cache()


# --- the web


def test_a_signed_query_opens_and_is_never_told(site: str, tmp_path: Path, impatient: None) -> None:
    with local_copy(f"{site}/a.wav", query="signature=right", size=len(CONTENT), folder=str(tmp_path)) as path:
        assert Path(path).read_bytes() == CONTENT
    for name, query, code, transient in (
        ("a.wav", "signature=wrong-secret", "RECORDING_FORBIDDEN", False),
        ("a.wav", None, "RECORDING_FORBIDDEN", False),
        ("gone.wav", "signature=right", "RECORDING_NOT_FOUND", False),
        ("aborted.wav", "signature=right", "RECORDING_UNREACHABLE", True),
    ):
        refusal = refusal_of(f"{site}/{name}", tmp_path, query=query)
        assert (refusal.code, refusal.transient) == (code, transient)
        assert "signature" not in str(refusal)
        assert "secret" not in str(refusal)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_busy_is_asked_again(site: str) -> None:
    Pages.broken = 2
    with local_copy(f"{site}/busy.wav", query="signature=right") as path:
        assert Path(path).read_bytes() == CONTENT
    Pages.broken, Pages.asked = 1000, []
    assert refusal_of(f"{site}/busy.wav", query="signature=right").code == "RECORDING_UNREACHABLE"
    assert len(Pages.asked) == remote.ATTEMPTS


def test_a_long_download_ends_and_a_silent_one_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """A slow server sends an episode for longer than aiohttp gives a request: its five minutes are not ours."""
    content = bytes(400_000)
    (tmp_path / "long.wav").write_bytes(content)
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    with served(tmp_path, bytes_per_s=300_000.0) as slow:
        with local_copy(f"{slow.url}/long.wav") as path:
            assert Path(path).read_bytes() == content
        files, _ = remote.connect(f"{slow.url}/long.wav")
        timeout = sync(files.loop, files.set_session).timeout
        assert (timeout.total, timeout.sock_read, timeout.sock_connect) == (None, 0.5, 0.5)
    (tmp_path / "copies").mkdir()
    with served(tmp_path, bytes_per_s=65_536 / 1.5) as silent:
        refusal = refusal_of(f"{silent.url}/long.wav", tmp_path / "copies")
    assert (refusal.code, refusal.transient) == ("RECORDING_UNREACHABLE", True)


def test_what_will_not_change_is_asked_once(site: str) -> None:
    assert refusal_of(f"{site}/gone.wav").code == "RECORDING_NOT_FOUND"
    assert len(Pages.asked) == 1


class HttpError(Exception):
    """As gcsfs raises it, whose 403 is an OSError without a number."""

    def __init__(self, code: int | str | None) -> None:
        super().__init__(f"said Google, {code}")
        self.code = code


class HttpResponseError(Exception):
    """As Azure raises it."""

    def __init__(self, status_code: int | None) -> None:
        super().__init__("said Azure")
        self.response, self.status_code = object(), status_code


GOOGLE = "Forbidden: https://storage.googleapis.com/b/o/limits.wav\n"


@pytest.mark.parametrize(
    ("error", "expected", "credentials"),
    [
        (OSError(GOOGLE + "m@x does not have storage.objects.get access"), Trouble.FORBIDDEN, None),
        (OSError(GOOGLE + "User Rate Limit Exceeded"), Trouble.PASSING, None),
        (OSError(GOOGLE + "The project has exceeded its bandwidth quota"), Trouble.PASSING, None),
        (HttpError(401), Trouble.FORBIDDEN, "401"),
        (HttpError(404), Trouble.ABSENT, None),
        (HttpError(503), Trouble.PASSING, None),
        (HttpError("403"), Trouble.PASSING, None),
        (HttpError(errno.EACCES), Trouble.PASSING, None),
        (HttpError(None), Trouble.PASSING, None),
        (HttpResponseError(403), Trouble.FORBIDDEN, None),
        (HttpResponseError(404), Trouble.ABSENT, None),
        (HttpResponseError(500), Trouble.PASSING, None),
        (HttpResponseError(None), Trouble.PASSING, None),
    ],
)
def test_what_google_and_azure_refuse_is_not_asked_for_again(
    error: Exception, expected: Trouble, credentials: str | None
) -> None:
    assert remote.trouble(error) is expected
    assert remote.bad_credentials(error) == credentials
    tries = 0

    def ask() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(type(error)):
        remote.patiently().copy(sleep=lambda _: None)(ask)
    assert tries == (remote.ATTEMPTS if expected is Trouble.PASSING else 1)


def test_a_kind_of_uri_that_nothing_reads() -> None:
    refusal = refusal_of("gopher://old/a.wav")
    assert (refusal.code, refusal.transient) == ("RECORDING_UNSUPPORTED", False)
