"""Headers of files near and far: what they state is what the whole file states, and little of it travels."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import soundfile

from serpipe.audio import headers
from serpipe.audio.headers import stated_seconds
from serpipe.audio.ranges import HEAD_BYTES, Remote, write_header
from tests.audio.web import served

RATE, SECONDS = 16_000, 100.0


def samples(seconds: float = SECONDS) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32)


def write_aac(path: Path, *, first: bool) -> None:
    """AAC in MP4, its index at the beginning or at the end."""
    options = {"movflags": "faststart"} if first else {}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples()[np.newaxis], "fltp", "mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def with_picture(mp3: bytes, size: int) -> bytes:
    """An MP3 behind a tag with a picture of so many bytes."""
    body = b"\0image/jpeg\0\3\0" + os.urandom(size)
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    length = len(frame)
    return b"ID3\3\0\0" + bytes((length >> shift) & 0x7F for shift in (21, 14, 7, 0)) + frame + mp3


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for name in ("a.wav", "a.flac", "a.mp3", "a.ogg"):
        with soundfile.SoundFile(folder / name, "w", RATE, 1) as file:
            # libsndfile overflows its stack where Vorbis comes at once.
            for block in np.array_split(samples(), 100):
                file.write(block)
    write_aac(folder / "first.m4a", first=True)
    write_aac(folder / "last.m4a", first=False)
    (folder / "picture.mp3").write_bytes(with_picture((folder / "a.mp3").read_bytes(), 3 * HEAD_BYTES))
    (folder / "page.mp3").write_bytes(b"<html>not found</html>" * 20_000)
    return folder


def rows(where: object, names: list[str]) -> list[dict[str, object]]:
    return [{"uri": f"{where}/{name}"} for name in names]


def test_headers_of_remote_files_are_read_in_part(archive: Path) -> None:
    names = sorted(path.name for path in archive.iterdir())
    here = stated_seconds(rows(archive, names), seconds=60.0)
    with served(archive) as site:
        there = stated_seconds(rows(site.url, names), seconds=60.0)
    # A page is no audio, here or there.
    assert here.pop(names.index("page.mp3")) is there.pop(names.index("page.mp3")) is None
    assert there == pytest.approx(here, rel=0.001)
    assert [*here.values()] == pytest.approx([SECONDS] * len(here), rel=0.01)
    sizes = [(archive / name).stat().st_size for name in names]
    assert site.sent <= sum(min(size, HEAD_BYTES + 300_000) for size in sizes)
    assert site.sent < 0.4 * sum(sizes)


def test_a_server_without_ranges_is_not_read_to_the_end(archive: Path) -> None:
    with served(archive, ranges=False, bytes_per_s=4e6) as site:
        there = stated_seconds(rows(site.url, ["a.wav", "gone.wav", "last.m4a"]), seconds=60.0)
    assert there == {0: pytest.approx(SECONDS), 1: None, 2: None}
    assert site.sent < 2 * HEAD_BYTES + (4 << 20)


def test_what_was_read_in_time_counts(archive: Path, tmp_path: Path) -> None:
    """Forty files over a slow line: some of them are better than none."""
    for number in range(40):
        os.link(archive / "a.wav", tmp_path / f"{number}.wav")
    with served(tmp_path, bytes_per_s=5e5) as site:
        began = time.monotonic()
        there = stated_seconds(rows(site.url, [f"{number}.wav" for number in range(40)]), seconds=1.5)
        assert time.monotonic() - began < headers.HANGS_S + 1.5
    assert 0 < len(there) < 40
    assert set(there.values()) == {SECONDS}
    assert not list(tmp_path.glob("serpipe-*"))


def test_a_header_that_hangs_costs_itself(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    monkeypatch.setattr(headers, "HANGS_S", 1.0)
    found = stated_seconds(rows(archive, ["a.wav", f"{tmp_path}/pipe.wav", "a.flac"]), seconds=30.0)
    assert found == {0: SECONDS, 1: None, 2: SECONDS}


def test_any_file_system_is_read_in_part(archive: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put_file(str(archive / "last.m4a"), "/headers/last.m4a")
    remote = Remote("memory://headers/last.m4a")
    write_header(remote, str(tmp_path / "last.m4a"))
    assert (tmp_path / "last.m4a").stat().st_size == remote.size == (archive / "last.m4a").stat().st_size
    assert stated_seconds(rows(tmp_path, ["last.m4a"]), seconds=30.0) == {0: pytest.approx(SECONDS, rel=0.01)}
    assert remote.bytes_read < HEAD_BYTES + 50_000
