"""The synthetic voice: what its resonators make is what a filter makes, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from serpipe.testing import speech_like
from serpipe.testing.speech import _resonated


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_resonators_are_recursive_filters(rate: int) -> None:
    """At 8 kHz the highest formant is beyond the band."""
    pulses, formants = np.random.default_rng(0).standard_normal(rate // 5), (400.0, 1300.0, 3700.0)
    expected = np.zeros(len(pulses))
    for formant, width in zip(formants, (80.0, 110.0, 160.0), strict=True):
        if formant < 0.45 * rate:
            radius, angle = np.exp(-np.pi * width / rate), 2 * np.pi * formant / rate
            expected += lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], pulses)
    np.testing.assert_allclose(_resonated(pulses, formants, rate), expected, atol=1e-12)


def test_a_seed_is_a_voice() -> None:
    assert np.array_equal(speech_like(2.0, seed=3), speech_like(2.0, seed=3))
    assert not np.array_equal(speech_like(2.0, seed=3), speech_like(2.0, seed=4))
    assert len(speech_like(0.0)) == 0
