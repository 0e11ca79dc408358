"""Ogg by FFmpeg: Opus is what libsndfile makes of it, sample by sample, and no stream of several is lost."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.audio import backends, ogg
from serpipe.audio.decode import Decoding, Outcome
from serpipe.audio.ogg import joined_streams
from serpipe.errors import AudioError
from serpipe.testing import speech_like, write_speech

SECOND = 16_000

ENCODINGS: dict[str, dict[str, str]] = {
    "plain": {},
    "speech": {"application": "voip", "b": "12000"},
    "speech and music": {"application": "audio", "b": "24000"},
    "six kbit": {"b": "6000"},
    "low delay": {"application": "lowdelay"},
    "sixty ms": {"frame_duration": "60"},
    "two ms and a half": {"frame_duration": "2.5"},
    "pauses left out": {"application": "voip", "dtx": "1"},
    "with its own repair": {"application": "voip", "fec": "1", "packet_loss": "20"},
}
"""Modes, lengths of packets and bit rates, by the options of FFmpeg's encoder."""

SECONDS = 4


@cache
def encoded(encoding: str, folder: Path, *, channels: int = 1, container: str = "ogg") -> bytes:
    """Speech with a pause, as Opus at 48 kHz."""
    voices = np.stack([speech_like(SECONDS, sample_rate=48_000, seed=one) for one in range(channels)], axis=1)
    voices[int(len(voices) * 0.4) : int(len(voices) * 0.6)] = 0
    path, layout = folder / f"{encoding}-{channels}.{container}", "mono" if channels == 1 else "stereo"
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libopus", rate=48_000, layout=layout, options=ENCODINGS[encoding])
        for start in range(0, len(voices), 48_000):
            frame = av.AudioFrame.from_ndarray(voices[start : start + 48_000].reshape(1, -1), "flt", layout)
            frame.sample_rate, frame.pts = 48_000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoded")


def pages_of(content: bytes) -> list[bytearray]:
    pages, at = [], 0
    while at < len(content):
        entries = content[at + 26]
        size = 27 + entries + sum(content[at + 27 : at + 27 + entries])
        pages.append(bytearray(content[at : at + size]))
        at += size
    return pages


def mended(page: bytearray) -> bytearray:
    """With the checksum of what is in it: RFC 3533, bit by bit."""
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum & 0x80000000 else 0)
    page[22:26] = struct.pack("<I", checksum)
    return page


def decoded(path: Path) -> tuple[NDArray[np.float32], Outcome]:
    decoding = Decoding(str(path))
    samples = np.concatenate(list(decoding), axis=1)[0]
    return samples, decoding.outcome


def decoded_by_libsndfile(path: Path) -> tuple[NDArray[np.float32], Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_FULL_OPUS_HZ", None)
        return decoded(path)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ffmpeg_gives_what_libsndfile_gives(
    encoding: str, channels: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.opus"
    path.write_bytes(encoded(encoding, folder, channels=channels))
    whole, rate = soundfile.read(path, dtype="float32", always_2d=True)
    monkeypatch.setattr(backends, "_sndfile_frames", None)
    samples, outcome = decoded(path)
    expected = soxr.resample(whole.mean(axis=1), rate, SECOND)
    assert outcome == Outcome(samples=SECONDS * SECOND)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("gain", "left_out"), [(-2000, None), (700, None), (0, 0), (0, 100), (0, 5000)])
def test_gain_and_what_is_left_out_at_the_start(
    encoding: str, gain: int, left_out: int | None, folder: Path, tmp_path: Path
) -> None:
    pages = pages_of(encoded(encoding, folder))
    head = pages[0].index(b"OpusHead")
    struct.pack_into("<h", pages[0], head + 16, gain)
    if left_out is not None:
        struct.pack_into("<H", pages[0], head + 10, left_out)
    mended(pages[0])
    path = tmp_path / "a.opus"
    path.write_bytes(b"".join(pages))
    samples, outcome = decoded(path)
    expected, its_outcome = decoded_by_libsndfile(path)
    assert outcome == its_outcome
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_label_does_not_depend_on_the_container(encoding: str, folder: Path, tmp_path: Path) -> None:
    found = []
    for container in ("ogg", "webm"):
        path = tmp_path / f"a.{container}"
        path.write_bytes(encoded(encoding, folder, container=container))
        found.append(decoded(path)[0])
    # WebM does not say where the last packet's audio ends.
    shorter = min(map(len, found))
    assert shorter >= SECONDS * SECOND
    np.testing.assert_allclose(found[0][:shorter], found[1][:shorter], rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".ogg", ".opus"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_streams_one_after_the_other_are_all_heard(suffix: str, rate: int, tmp_path: Path) -> None:
    paths = [
        Path(write_speech(tmp_path / f"{seed}{suffix}", seconds=2.0 + seed, sample_rate=rate, seed=seed))
        for seed in range(3)
    ]
    path = tmp_path / f"all{suffix}"
    path.write_bytes(b"".join(one.read_bytes() for one in paths))
    samples, outcome = decoded(path)
    assert outcome.error is None
    assert len(samples) == 9 * SECOND
    began = 0
    for one in paths:
        alone = decoded(one)[0]
        assert_like(samples[began : began + len(alone)], alone)
        began += len(alone)


def assert_like(heard: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
    """The same but for where streams meet, which a resampler hears both of, and the rate that libopus decodes to."""
    assert len(heard) == len(alone)
    near = 50
    off = (heard - alone)[near:-near]
    assert np.linalg.norm(off) < 0.2 * np.linalg.norm(alone)


OTHERS = {
    "rate": ("2.ogg", {"sample_rate": 44_100}),
    "channels": ("2.ogg", {"channels": 2}),
    "codec": ("2.opus", {}),
    "all three": ("2.opus", {"sample_rate": 16_000, "channels": 2}),
}


@pytest.mark.parametrize("first", ["1.ogg", "1.opus"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_stream_may_differ_from_the_one_before(first: str, other: str, tmp_path: Path) -> None:
    name, what = OTHERS[other]
    paths = [
        Path(write_speech(tmp_path / first, seconds=2.0, sample_rate=48_000)),
        Path(write_speech(tmp_path / name, **({"seconds": 3.0, "sample_rate": 48_000, "seed": 1} | what))),
    ]
    path = tmp_path / "both.ogg"
    path.write_bytes(b"".join(one.read_bytes() for one in paths))
    samples, outcome = decoded(path)
    alone = [decoded(one)[0] for one in paths]
    assert outcome == Outcome(samples=5 * SECOND)
    assert_like(samples[: 2 * SECOND], alone[0])
    assert_like(samples[2 * SECOND :], alone[1])


def test_damage_costs_a_stream_its_page_and_no_other_stream(tmp_path: Path) -> None:
    contents = [
        bytearray(Path(write_speech(tmp_path / f"{seed}.ogg", seconds=4.0, seed=seed)).read_bytes())
        for seed in range(3)
    ]
    broken = pages_of(bytes(contents[1]))
    broken[len(broken) // 2][:4] = b"????"
    path = tmp_path / "all.ogg"
    path.write_bytes(contents[0] + b"".join(broken) + contents[2])
    with path.open("rb") as file:
        starts = [start for start, _ in joined_streams(file.fileno())]
    assert starts == [0, len(contents[0]), len(contents[0]) + len(contents[1])]
    samples, _ = decoded(path)
    whole = decoded(tmp_path / "2.ogg")[0]
    assert 9 * SECOND < len(samples) < 12 * SECOND
    np.testing.assert_allclose(samples[-4 * SECOND :], whole, rtol=0, atol=1e-6)


def test_what_is_no_stream_between_others_is_told(tmp_path: Path) -> None:
    contents = [Path(write_speech(tmp_path / f"{seed}.ogg", seconds=2.0, seed=seed)).read_bytes() for seed in range(3)]
    foreign = pages_of(contents[1])
    foreign[0][28:35] = b"unknown"
    path = tmp_path / "all.ogg"
    path.write_bytes(contents[0] + b"".join([mended(foreign[0]), *foreign[1:]]) + contents[2])
    samples, outcome = decoded(path)
    assert len(samples) == 4 * SECOND
    assert outcome.error


def test_a_recording_that_was_never_closed_is_heard_to_its_end(folder: Path, tmp_path: Path) -> None:
    pages = pages_of(encoded("plain", folder))
    pages[-1][5] &= ~4
    path = tmp_path / "a.opus"
    path.write_bytes(b"".join([*pages[:-1], mended(pages[-1])]))
    samples, outcome = decoded(path)
    assert len(samples) >= SECONDS * SECOND
    assert outcome.error is None


def half_moved(pages: list[bytearray], samples: int) -> list[bytearray]:
    for page in pages[len(pages) // 2 + 1 :]:
        (position,) = struct.unpack_from("<q", page, 6)
        struct.pack_into("<q", page, 6, position + samples)
        mended(page)
    return pages


DAMAGED: dict[str, Callable[[list[bytearray]], list[bytearray]]] = {
    "a page lost": lambda pages: [*pages[:3], *pages[4:]],
    "the last page lost": lambda pages: pages[:-1],
    "a bit turned": lambda pages: [*pages[:3], pages[3][:-30] + b"?" + pages[3][-29:], *pages[4:]],
    "more behind its end": lambda pages: [*pages, bytearray(b"garbage" * 20)],
    "a file that breaks off": lambda pages: [*pages[:-1], pages[-1][:-40]],
    "positions that jump": lambda pages: half_moved(pages, 30_000),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_of_a_damaged_file_nothing_else_is_lost(what: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.opus"
    path.write_bytes(b"".join(DAMAGED[what](pages_of(encoded("plain", folder)))))
    samples, outcome = decoded(path)
    expected, its_outcome = decoded_by_libsndfile(path)
    assert outcome == its_outcome
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


def test_other_files_are_not_joined(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.opus"
    one.write_bytes(encoded("plain", folder))
    broken = tmp_path / "broken.opus"
    broken.write_bytes(encoded("plain", folder)[:-40])
    (tmp_path / "empty").touch()
    for path in (one, broken, tmp_path / "empty", Path(__file__), Path("/dev/null")):
        with path.open("rb") as file:
            assert not joined_streams(file.fileno()), path


def test_an_end_that_cannot_be_read_is_not_taken_for_the_only_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = write_speech(tmp_path / "a.ogg", seconds=2.0)
    monkeypatch.setattr(ogg.os, "pread", broken)
    with pytest.raises(AudioError) as refusal:
        Decoding(path)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_UNREACHABLE", True)


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(sorted(ENCODINGS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    lost=st.sets(st.integers(2, 8), max_size=2),
)
def test_whatever_is_done_to_a_file_no_less_is_heard_than_by_libsndfile(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    encoding: str,
    flips: list[tuple[float, int]],
    lost: set[int],
) -> None:
    pages = pages_of(encoded(encoding, folder))
    for where, turned in flips:
        page = pages[int(where * len(pages))]
        page[int(where * 7919) % len(page)] ^= turned
    path = tmp_path_factory.mktemp("opus") / "a.opus"
    path.write_bytes(b"".join(page for number, page in enumerate(pages) if number not in lost))
    heard = []
    for decode in (decoded, decoded_by_libsndfile):
        try:
            heard.append(len(decode(path)[0]))
        except AudioError:
            heard.append(0)
    # Where pages are missing, each has its own view of what the first packet behind them is good for.
    assert heard[0] >= heard[1] - 0.12 * SECOND
