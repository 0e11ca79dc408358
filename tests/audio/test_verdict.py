"""Verdicts: the gravest thing that is true of a recording, and nothing that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from serpipe.audio.decode import Decoding, Outcome
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
    ],
)
def test_verdicts(
    outcome: Outcome, header_s: float | None, claimed_s: float | None, peak: float, expected: str
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
