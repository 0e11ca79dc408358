"""Verdicts: the gravest thing that is true of a recording, and nothing that is not."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from serpipe.audio.decode import Decoding, Outcome
from serpipe.audio.localfile import LocalFile
from serpipe.audio.verdict import VERDICTS, agree, verdict
from serpipe.testing import write_speech

SECOND = 16_000


def verdict_of(path: str | Path, claimed_s: float | None = None) -> str:
    decoding = Decoding(str(path))
    peak = max(float(np.abs(block).max()) for block in decoding)
    return verdict(decoding.outcome, header_s=decoding.header.claimed_s, claimed_s=claimed_s, peak=peak)


@pytest.mark.parametrize(
    ("outcome", "header_s", "claimed_s", "peak", "expected"),
    [
        (Outcome(14 * SECOND), 14.0, 14.0, 0.5, "ok"),
        (Outcome(14 * SECOND), None, None, 0.5, "ok"),
        (Outcome(14 * SECOND), 14.4, 13.6, 0.5, "ok"),
        (Outcome(14 * SECOND), 14.6, None, 0.5, "shorter_than_header"),
        (Outcome(14 * SECOND), 13.4, None, 0.5, "longer_than_header"),
        (Outcome(3600 * SECOND), 3650.0, None, 0.5, "ok"),
        (Outcome(3600 * SECOND), 3700.0, None, 0.5, "shorter_than_header"),
        (Outcome(14 * SECOND), 14.0, 20.0, 0.5, "differs_from_manifest"),
        (Outcome(14 * SECOND), 14.0, 14.0, 0.0, "silent"),
        (Outcome(14 * SECOND), 14.0, 20.0, 0.0, "silent"),
        (Outcome(14 * SECOND), 28.0, 20.0, 0.0, "shorter_than_header"),
        (Outcome(14 * SECOND, error="lost sync"), 28.0, 20.0, 0.0, "damaged"),
        (Outcome(14 * SECOND, undecoded_s=0.1), 14.0, 14.0, 0.5, "damaged"),
        (Outcome(1), 1 / SECOND, None, 0.5, "ok"),
        (Outcome(14 * SECOND, beyond_s=20.0), 14.0, None, 0.5, "longer_than_header"),
        (Outcome(14 * SECOND, beyond_s=0.4), 14.0, 14.0, 0.5, "ok"),
        (Outcome(14 * SECOND, beyond_s=20.0), 14.0, None, None, "in_part"),
    ],
)
def test_verdicts(
    outcome: Outcome, header_s: float | None, claimed_s: float | None, peak: float | None, expected: str
) -> None:
    assert verdict(outcome, header_s=header_s, claimed_s=claimed_s, peak=peak) == expected
    assert expected in VERDICTS


seconds_ = st.none() | st.floats(0, 10**6)


@given(st.integers(1, 10**10), st.floats(0, 100), st.none() | st.just("x"), seconds_, seconds_, st.floats(0, 2))
def test_ok_means_that_nothing_is_wrong(
    samples: int, undecoded_s: float, error: str | None, header_s: float | None, claimed_s: float | None, peak: float
) -> None:
    outcome = Outcome(samples, undecoded_s, error)
    found = verdict(outcome, header_s=header_s, claimed_s=claimed_s, peak=peak)
    assert found in VERDICTS
    fine = not undecoded_s and error is None and peak > 0
    fine &= all(agree(samples / SECOND, claim) for claim in (header_s, claimed_s) if claim is not None)
    assert (found == "ok") == fine


BROKEN = {
    "made/mp3_xing_truncated.mp3": "shorter_than_header",
    "made/webm_truncated.webm": "shorter_than_header",
    "made/mp3_garbage_middle.mp3": "damaged",
    "made/flac_truncated.flac": "damaged",
    "made/m4b_mdat_truncated.m4b": "damaged",
    "made/mp3_zero_filled_tail.mp3": "damaged",
    "made/ogg_bad_crc.ogg": "shorter_than_header",
    "flac-testbench/05 - wrong total number of samples.flac": "longer_than_header",
    "made/silence_all_zero.wav": "silent",
    "made/white_noise.wav": "ok",
    "made/truncated_mid_data.wav": "shorter_than_header",
    "made/data_size_too_big.wav": "shorter_than_header",
    "made/data_size_ffffffff.wav": "ok",
    "made/data_size_zero_but_data.wav": "ok",
    "made/trailing_garbage.wav": "ok",
}


@pytest.mark.parametrize(("name", "expected"), BROKEN.items())
def test_files_that_are_broken_are_named(real_audio: Path, name: str, expected: str) -> None:
    assert verdict_of(real_audio / "bad" / name) == expected


def test_claims_of_the_manifest(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.wav", seconds=5.0)
    assert verdict_of(path, claimed_s=5.2) == "ok"
    assert verdict_of(path, claimed_s=50.0) == "differs_from_manifest"
    soundfile.write(tmp_path / "silent.flac", np.zeros(SECOND), SECOND)
    assert verdict_of(tmp_path / "silent.flac") == "silent"


# --- what a WAV claims


def write_wav(path: Path, format: str = "WAV", subtype: str = "PCM_16", endian: str = "FILE") -> Path:
    noise = 0.1 * np.random.default_rng(0).standard_normal(20 * SECOND)
    soundfile.write(path, noise, SECOND, format=format, subtype=subtype, endian=endian)
    return path


def claim(path: Path, length: int) -> int:
    """Let a header claim so many bytes of samples; says how many it did."""
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    before = int.from_bytes(content[at : at + 4], "little")
    content[at : at + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    return before


@pytest.mark.parametrize(
    ("format", "subtype", "endian"),
    [
        ("WAV", "PCM_16", "FILE"),
        ("WAV", "PCM_24", "FILE"),
        ("WAV", "PCM_U8", "FILE"),
        ("WAV", "FLOAT", "FILE"),
        ("WAV", "ULAW", "FILE"),
        ("WAV", "IMA_ADPCM", "FILE"),
        ("WAV", "MS_ADPCM", "FILE"),
        ("WAV", "GSM610", "FILE"),
        ("WAV", "PCM_16", "BIG"),
        ("WAVEX", "PCM_16", "FILE"),
        ("RF64", "PCM_16", "FILE"),
    ],
)
def test_a_wav_that_was_cut_off_is_told(tmp_path: Path, format: str, subtype: str, endian: str) -> None:
    path = write_wav(tmp_path / "a.wav", format, subtype, endian)
    assert verdict_of(path) == "ok"
    os.truncate(path, path.stat().st_size // 3)
    assert verdict_of(path) == "shorter_than_header"
    decoding = Decoding(str(path))
    assert sum(block.shape[1] for block in decoding) / SECOND == pytest.approx(20 / 3, abs=0.1)
    assert decoding.header.claimed_s == pytest.approx(20.0, abs=0.1)


@pytest.mark.parametrize("length", [0, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF - 36, 0xFFFF_FFFF])
def test_a_wav_out_of_a_pipe_claims_no_length(tmp_path: Path, length: int) -> None:
    path = write_wav(tmp_path / "a.wav")
    claim(path, length)
    assert verdict_of(path) == "ok"
    assert Decoding(str(path)).header.claimed_s == pytest.approx(20.0, abs=0.1)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "IMA_ADPCM"])
def test_samples_behind_the_end_of_a_wav_are_told(tmp_path: Path, subtype: str) -> None:
    """As beyond 4 GiB, where a size wraps, or where a recorder lost its power."""
    path = write_wav(tmp_path / "a.wav", subtype=subtype)
    claim(path, claim(path, 0) // 4)
    assert verdict_of(path) == "longer_than_header"
    decoding = Decoding(str(path))
    assert sum(block.shape[1] for block in decoding) / SECOND == pytest.approx(5.0, abs=0.1)
    assert decoding.outcome.beyond_s == pytest.approx(15.0, abs=0.1)


def test_a_wav_behind_a_wav_is_told(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav")
    path.write_bytes(2 * path.read_bytes())
    assert verdict_of(path) == "longer_than_header"


@pytest.mark.parametrize(
    "trailer",
    [
        2 * (b"LIST" + struct.pack("<I", 200_001) + bytes(200_002)),
        b"id3 " + struct.pack("<I", 400_000) + bytes(200_000),
        b"TAG" + bytes(20_000),
    ],
)
def test_what_may_follow_samples_is_not_taken_for_some(tmp_path: Path, trailer: bytes) -> None:
    path = write_wav(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes() + trailer)
    assert verdict_of(path) == "ok"
    assert sum(block.shape[1] for block in Decoding(str(path))) == 20 * SECOND


def test_a_chunk_behind_an_odd_number_of_bytes_may_follow_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(20 * SECOND + 1) / 9), SECOND, subtype="PCM_U8")
    content = path.read_bytes()
    end = 44 + 20 * SECOND + 1
    path.write_bytes(content[:end] + b"id3 " + struct.pack("<I", 100_000) + bytes(100_000))
    assert verdict_of(path) == "ok"


def test_a_wav_that_was_cut_off_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its header claims beyond its end is no reason to look whether all of it could be read."""
    path = write_wav(tmp_path / "a.wav")
    os.truncate(path, 400_000)
    looked: list[object] = []
    monkeypatch.setattr(LocalFile, "look_through", lambda *_: looked.append(_))
    assert verdict_of(path) == "shorter_than_header"
    assert not looked
