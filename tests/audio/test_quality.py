"""The measures of a segment against sounds whose measures are known by construction."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from serpipe.audio.quality import MIN_FRAMES, measure
from serpipe.audio.speech import FRAME


def bursts_in_noise(snr_db: float, seed: int, *, seconds: float = 8.0) -> NDArray[np.float32]:
    """Noise throughout, and 0.4 s in every 0.65 s a burst whose power is `snr_db` above the noise."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * 16_000)
    speaking = (np.arange(samples) / 16_000) % 0.65 < 0.4
    burst = rng.standard_normal(samples) * speaking * 10 ** (snr_db / 20)
    mixed = burst + rng.standard_normal(samples)
    return (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)


def snr(samples: NDArray[np.float32]) -> float:
    estimate = measure(samples, None).snr_db
    assert estimate is not None
    return estimate


@pytest.mark.parametrize("seed", range(5))
def test_snr_is_near_the_truth_and_rises_with_it(seed: int) -> None:
    truths = list(range(0, 55, 5))
    estimates = [snr(bursts_in_noise(truth, seed)) for truth in truths]
    assert np.abs(np.subtract(estimates, truths)).max() < 2.5
    assert (np.diff(estimates) > 0).all()


def test_snr_of_steady_noise_is_below_zero() -> None:
    assert -20 <= snr(bursts_in_noise(-100, 0)) < 0


def test_snr_knows_neither_level_nor_offset() -> None:
    samples = bursts_in_noise(20, 1)
    assert snr(samples * np.float32(0.01)) == pytest.approx(snr(samples), abs=0.01)
    assert snr(samples * np.float32(0.5) + np.float32(0.4)) == pytest.approx(snr(samples), abs=0.01)


def test_snr_is_bounded_where_the_pauses_are_digital_silence() -> None:
    samples = bursts_in_noise(200, 2) * ((np.arange(128_000) / 16_000) % 0.65 < 0.4)
    assert 80 < snr(samples.astype(np.float32)) <= 100


def test_snr_is_not_invented() -> None:
    assert measure(np.zeros(160_000, np.float32), None).snr_db is None
    noise = bursts_in_noise(20, 0)
    assert measure(noise[: MIN_FRAMES * FRAME - 1], None).snr_db is None
    assert measure(noise[: MIN_FRAMES * FRAME], None).snr_db is not None


def test_levels_of_a_sine() -> None:
    sine = (0.25 * np.sin(2 * np.pi * 100 * np.arange(16_000) / 16_000)).astype(np.float32)
    quality = measure(sine, None)
    assert quality.rms == pytest.approx(0.25 / math.sqrt(2), rel=1e-6)
    assert quality.peak == pytest.approx(0.25, rel=1e-6)
    assert quality.clipping == 0


def test_clipping_is_the_share_at_full_scale_on_both_sides() -> None:
    samples = np.zeros(1000, np.float32)
    samples[:30] = 1.0
    samples[30:50] = -1.0
    samples[50:60] = 32767 / 32768
    samples[60:70] = 0.99
    assert measure(samples, None).clipping == 0.06


def test_speech_is_the_share_of_frames_at_the_threshold() -> None:
    samples = np.zeros(4 * FRAME, np.float32)
    assert measure(samples, np.float32([0.2, 0.5, 0.49, 0.9])).speech == 0.5
    assert measure(samples, None).speech is None


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="never empty"):
        measure(np.empty(0, np.float32), None)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 20_000), elements=st.floats(-8, 8, width=32)),
    st.none() | hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)),
)
def test_measures_are_finite_plain_and_in_their_ranges(
    samples: NDArray[np.float32], speech: NDArray[np.float32] | None
) -> None:
    quality = measure(samples, speech)
    assert all(type(value) is float and math.isfinite(value) for value in astuple(quality) if value is not None)
    assert 0 <= quality.rms <= quality.peak * (1 + 1e-6) <= 9
    assert quality.peak == np.abs(samples).max()
    assert 0 <= quality.clipping <= 1
    assert (quality.speech is None) == (speech is None)
    assert quality.snr_db is None or -20 <= quality.snr_db <= 100
