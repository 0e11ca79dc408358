"""What is listened to: speech made here, or pieces of a recording that one names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serpipe.testing import speech_like

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""Hz that a podcast in Opus may have."""

STEP_S = 37.0
"""Seconds from where one piece of a recording starts to where the next one does; past its end they start over."""


class Voice:
    """Speech made here.

    Attributes:
        name: of its files.
        rate: Hz of its podcasts.

    Examples:
        >>> Voice().speech(2.0, rate=8_000, seed=1).shape
        (16000,)
    """

    name = "made"
    rate = OPUS_RATES[-1]

    def speech(self, seconds: float, *, rate: int, seed: int) -> NDArray[np.float32]:
        """Float32 (n,), full scale at 1.0; the same seed gives the same speech."""
        return speech_like(seconds, sample_rate=rate, seed=seed)


class Recorded(Voice):
    """Pieces of a recording, its first channel.

    Args:
        recording: what libsndfile can read.

    Raises:
        soundfile.LibsndfileError: it cannot.
    """

    def __init__(self, recording: Path) -> None:
        import soundfile  # Not at the top: a machine that measures models alone has no codec.

        info = soundfile.info(recording)
        self._recording, self._frames, self._rate = recording, info.frames, info.samplerate
        status = recording.stat()
        self.name = f"{recording.stem}-{status.st_size}-{status.st_mtime_ns}"
        self.rate = min((rate for rate in OPUS_RATES if rate >= info.samplerate), default=OPUS_RATES[-1])

    def speech(self, seconds: float, *, rate: int, seed: int) -> NDArray[np.float32]:
        """The piece of that number; where the recording is shorter, it is heard again."""
        import soundfile
        import soxr

        wanted = round(seconds * self._rate)
        start = round(seed * STEP_S * self._rate) % max(self._frames - wanted, 1)
        samples, _ = soundfile.read(self._recording, wanted, start, dtype="float32", always_2d=True)
        piece = soxr.resample(np.ascontiguousarray(samples[:, 0]), self._rate, rate)
        return np.resize(piece, round(seconds * rate))


heard = Voice()
"""What all parts listen to."""


def listen_to(recording: Path) -> None:
    """From here on, to a recording."""
    global heard
    heard = Recorded(recording)


def write(path: Path, seconds: float, *, rate: int, seed: int) -> None:
    """Write speech as a WAV file of 16 bits, or as Opus where the path says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_samples(path, heard.speech(seconds, rate=rate, seed=seed), rate)


def write_samples(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    """Write samples, (n,) or (n, channels), in the format of the path's name."""
    import soundfile

    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, samples, rate, **opus)
