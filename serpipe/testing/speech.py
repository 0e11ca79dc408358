"""Speech-like audio: a glottal pulse train through moving formants, in syllables and phrases with pauses."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WIDTHS_HZ = (80.0, 110.0, 160.0)
"""Of the formants, from the lowest."""


def speech_like(
    seconds: float, *, sample_rate: int = 16_000, seed: int = 0, pitch_hz: float = 140.0
) -> NDArray[np.float32]:
    """Synthesise something a voice detector and a codec treat as a voice.

    Args:
        seconds: length.
        sample_rate: Hz.
        seed: the same seed gives the same samples.
        pitch_hz: mean fundamental frequency.

    Returns:
        Mono float32 samples, peak 0.5.

    Examples:
        >>> speech_like(1.0, sample_rate=8_000).shape
        (8000,)
    """
    rng = np.random.default_rng(seed)
    n = round(seconds * sample_rate)
    if n == 0:
        return np.zeros(0, np.float32)
    envelope = np.zeros(n)
    pitch = np.full(n, pitch_hz)
    voice = np.zeros(n)
    position = 0
    while position < n:
        syllables = int(rng.integers(4, 9))
        for _ in range(syllables):
            length = int(rng.uniform(0.12, 0.28) * sample_rate)
            span = slice(position, min(position + length, n))
            size = span.stop - span.start
            if size <= 0:
                break
            envelope[span] = np.sin(np.linspace(0, np.pi, size)) ** 0.5
            pitch[span] = pitch_hz * rng.uniform(0.85, 1.25)
            position = span.stop
        position += int(rng.uniform(0.15, 0.7) * sample_rate)
    phase = np.cumsum(pitch / sample_rate)
    pulses = np.diff(np.floor(phase), prepend=0.0) + 0.02 * rng.standard_normal(n)
    block = max(1, int(0.2 * sample_rate))
    for start in range(0, n, block):
        piece = pulses[start : start + block]
        formants = (rng.uniform(300, 800), rng.uniform(900, 2200), rng.uniform(2300, 3000))
        voice[start : start + len(piece)] = _resonated(piece, formants, sample_rate)
    voice *= envelope
    voice += 1e-4 * rng.standard_normal(n)
    spoken: NDArray[np.float32] = (0.5 * voice / max(np.max(np.abs(voice)), 1e-9)).astype(np.float32)
    return spoken


def _resonated(pulses: NDArray[np.float64], formants: Sequence[float], sample_rate: int) -> NDArray[np.float64]:
    """What resonators side by side make of pulses, from rest: y[n] = (1 - r) x[n] + 2 r cos(w) y[n-1] - r^2 y[n-2]."""
    places = np.arange(len(pulses))
    response = np.zeros(len(pulses))
    for formant, width in zip(formants, _WIDTHS_HZ, strict=True):
        if formant < 0.45 * sample_rate:
            radius = np.exp(-np.pi * width / sample_rate)
            angle = 2 * np.pi * formant / sample_rate
            response += (1 - radius) * radius**places * np.sin((places + 1) * angle) / np.sin(angle)
    size = 2 * len(pulses)
    heard: NDArray[np.float64] = np.fft.irfft(np.fft.rfft(pulses, size) * np.fft.rfft(response, size), size)
    return heard[: len(pulses)]


def write_speech(
    path: str | Path | None = None,
    *,
    seconds: float = 3.0,
    sample_rate: int = 16_000,
    channels: int = 1,
    seed: int = 0,
    subtype: str = "PCM_16",
) -> str:
    """Write speech-like audio to a file libsndfile can write.

    Args:
        path: where to; a new temporary WAV when None.
        seconds: length.
        sample_rate: Hz.
        channels: each channel says something else.
        seed: the same seed gives the same file.
        subtype: libsndfile's name of the sample format.

    Returns:
        The path.
    """
    import soundfile

    if path is None:
        path = Path(tempfile.mkdtemp(prefix="serpipe-speech-")) / f"speech-{seed}.wav"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    voices = [speech_like(seconds, sample_rate=sample_rate, seed=seed + 1000 * channel) for channel in range(channels)]
    subtypes = {".ogg": "VORBIS", ".opus": "OPUS", ".mp3": "MPEG_LAYER_III"}
    soundfile.write(
        str(path),
        np.stack(voices, axis=1),
        sample_rate,
        subtype=subtypes.get(Path(path).suffix, subtype),
        format="OGG" if Path(path).suffix == ".opus" else None,
    )
    return str(path)
