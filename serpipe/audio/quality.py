"""What a segment sounds like in five numbers: level, peak, clipping, speech share, an estimate of its SNR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.speech import FRAME

CLIPPED = 0.999
"""Absolute value from which a sample counts as clipped: full scale of 16-bit audio, give or take dither."""

SPEECH = 0.5
"""Probability from which a frame counts as speech: Silero's threshold."""

NOISE_PERCENTILE = 10
"""Speakers pause: the tenth percentile of the frame powers is what is left when nobody speaks."""

MIN_FRAMES = 16
"""Frames (about half a second) without which a tenth percentile means nothing."""

FRAMES_AT_ONCE = 64
"""Frames that are measured together: in double precision they still fit a core's own cache."""

SNR_BOUNDS_DB = (-20.0, 100.0)
"""16-bit audio spans 96 dB; below -20 dB the estimate is the spread of the noise itself."""


@dataclass(frozen=True, slots=True)
class Quality:
    """The measures of one segment.

    Attributes:
        rms: root mean square of the samples, full scale = 1.
        peak: largest absolute sample.
        clipping: share of the samples at or above 0.999 of full scale, in [0, 1].
        speech: share of the frames that are speech, in [0, 1]; None where no detector ran.
        snr_db: estimated signal-to-noise ratio; None for digital silence and under half a second.
    """

    rms: float
    peak: float
    clipping: float
    speech: float | None
    snr_db: float | None


def measure(samples: NDArray[np.float32], speech: NDArray[np.float32] | None) -> Quality:
    """Measures one segment.

    Args:
        samples: float32 (n,), n > 0, mono, 16 kHz, finite.
        speech: float32 (frames,): the probabilities of the segment's frames; None where no detector ran.

    Raises:
        ValueError: there are no samples.

    Examples:
        >>> square = np.tile(np.float32([0.5] * 8 + [-0.5] * 8), 1000)
        >>> quality = measure(square, None)
        >>> quality.rms, quality.peak, quality.clipping, quality.speech
        (0.5, 0.5, 0.0, None)
    """
    if not len(samples):
        raise ValueError("a segment without samples has no quality; segments are never empty")
    peak = max(abs(float(samples.min())), abs(float(samples.max())))
    means, powers = _by_frame(samples)
    rest = samples[len(powers) * FRAME :].astype(np.float64)
    energy = (powers + means**2).sum() * FRAME + np.vecdot(rest, rest)
    return Quality(
        rms=float(np.sqrt(energy / len(samples))),
        peak=peak,
        clipping=_clipped(samples) / len(samples) if np.float32(peak) >= CLIPPED else 0.0,
        speech=None if speech is None or not len(speech) else float(np.mean(speech >= SPEECH)),
        snr_db=estimate_snr(powers),
    )


def _clipped(samples: NDArray[np.float32]) -> int:
    return int(np.count_nonzero(samples >= CLIPPED) + np.count_nonzero(samples <= -CLIPPED))


def _by_frame(samples: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and power (variance) of each whole frame, float64 (frames,) each."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    means, powers = np.empty(len(frames)), np.empty(len(frames))
    held = np.empty((FRAMES_AT_ONCE, FRAME))
    for first in range(0, len(frames), FRAMES_AT_ONCE):
        part = slice(first, first + FRAMES_AT_ONCE)
        centred = held[: len(frames[part])]
        centred[:] = frames[part]
        np.mean(centred, axis=1, out=means[part])
        centred -= means[part, np.newaxis]
        np.vecdot(centred, centred, out=powers[part])
    powers /= FRAME
    return means, powers


def estimate_snr(powers: NDArray[np.float64]) -> float | None:
    """Estimates the signal-to-noise ratio of a segment from the powers of its 32 ms frames.

    Noise is the tenth percentile of the powers. Loud frames are those at or above the geometric mean of the
    noise and the loudest frame; what they have on average above the noise is the signal:
    `10 log10((mean(loud) - noise) / noise)`. Frames are freed of their mean first, so an offset is not power.
    It is a ranking, not a measurement: where nobody pauses, quiet speech is taken for noise and the estimate
    is too low.

    Returns:
        dB within `SNR_BOUNDS_DB`; None for digital silence and for fewer than `MIN_FRAMES` frames.
    """
    if len(powers) < MIN_FRAMES:
        return None
    loudest = powers.max()
    if loudest == 0:
        return None
    low, high = SNR_BOUNDS_DB
    # Digital silence between words is no noise at all: a floor keeps the quotient finite.
    noise = max(float(np.percentile(powers, NOISE_PERCENTILE)), loudest * 10 ** (-high / 10))
    signal = powers[powers >= np.sqrt(noise * loudest)].mean() - noise
    return float(np.clip(10 * np.log10(max(signal, noise * 10 ** (low / 10)) / noise), low, high))
