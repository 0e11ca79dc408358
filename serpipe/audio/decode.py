"""One recording, read once, straight through: 16 kHz float32, in blocks, and a verdict at the end.

Runs in the child process of `serpipe.audio.child`; works as well in process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from serpipe.audio.backends import (
    Frames,
    Header,
    NoAudioTrack,
    Track,
    Undecodable,
    as_float,
    backends_for,
    open_track,
)
from serpipe.audio.localfile import LocalFile, ReadingFailed
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE

Channels = Literal["mix", "first", "split"]
"""Average of all channels, the first one alone, or each for itself."""

DECODER_EPOCH = 2
"""Raised by hand when a change of the decoder changes results; part of every audio fingerprint."""

RATES = (4_000, 384_000)
"""Hz. Outside, a header is damaged: no codec carries speech there."""

MOST_CHANNELS = 64

FULL_SCALE_LIMIT = 128.0
"""Samples beyond 42 dB over full scale are not audio but misread numbers."""

UNDECODABLE = {
    "AUDIO_UNDECODABLE": "no codec knows what the file is; it is no audio, or its beginning is damaged",
    "AUDIO_NO_TRACK": "there is no audio in the file",
    "AUDIO_NO_SAMPLES": "the header can be read, but not one sample behind it",
}
"""Why a file gives nothing, by code."""

WORTH_A_LOOK_S = 0.1
"""Seconds short of what a header claims from which on it is looked whether the file could be read to its end."""

MOST_LOOKED_THROUGH = 64 << 20
"""Bytes, of a file in which nothing decodes: it may be anything, and of any size."""

LONGEST_S = 7 * 86_400
"""Seconds. No recording is longer than a week; what claims to be is a decompression bomb."""


@dataclass(slots=True)
class Outcome:
    """How decoding ended.

    Attributes:
        samples: samples per channel delivered, at 16 kHz.
        undecoded_s: seconds inside the recording that no codec could read and silence stands for.
        error: why decoding stopped before the file did; None where it ran to the end.
        beyond_s: seconds that lie behind the recording's end as its header claims it; they are not decoded.
    """

    samples: int = 0
    undecoded_s: float = 0.0
    error: str | None = None
    beyond_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds that truly decoded."""
        return self.samples / SAMPLE_RATE


class Decoding:
    """An opened recording; iterate it once.

    Args:
        path: a local file.
        channels: which channels are wanted.

    Attributes:
        header: what the file claims.
        channels: number of channels delivered.
        outcome: how it ended; final once the iteration is over.

    Raises:
        AudioError: nothing in it can be decoded (`AUDIO_EMPTY`, `AUDIO_UNDECODABLE`, `AUDIO_NO_TRACK`,
            `AUDIO_NO_SAMPLES`), or the header is absurd (`AUDIO_ABSURD_RATE`, `AUDIO_ABSURD_CHANNELS`). While it
            is iterated: `AUDIO_NOT_FINITE`, `AUDIO_OUT_OF_RANGE`, `AUDIO_TOO_LONG`. Transient, at any time:
            `RECORDING_UNREACHABLE`, its bytes cannot be had.

    Yields:
        float32 (channels, n) at 16 kHz; values beyond 1.0 are kept.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> path = write_speech(seconds=2.0, sample_rate=44_100)
        >>> decoding = Decoding(path, "mix")
        >>> sum(block.shape[1] for block in decoding), decoding.outcome.error
        (32000, None)
    """

    def __init__(self, path: str, channels: Channels = "mix") -> None:
        self.outcome = Outcome()
        self._wanted = channels
        with _reading():
            track, first = _first_that_decodes(path)
        self.header: Header = track.header
        self.channels = len(first[1]) if channels == "split" else 1
        self._track: Track = track
        self._first = first

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return map(as_float, self.blocks())

    def blocks(self) -> Iterator[Frames]:
        """The same in as few bytes as lose nothing: int16 where the file holds that at 16 kHz, and nothing is mixed."""
        with _reading():
            yield from self._blocks()

    def _blocks(self) -> Iterator[Frames]:
        resampler: soxr.ResampleStream | None = None
        rate = 0
        for now, frames in self._frames():
            if now != rate:
                yield from self._finish(resampler)
                check_rate(now)
                rate = now
                resampler = None if rate == SAMPLE_RATE else _resampler(rate, self.channels)
            chosen = self._choose(frames)
            if chosen is None:
                break
            if resampler is not None:
                chosen = _resampled(resampler, as_float(chosen), last=False)
            if chosen.shape[1]:
                yield self._counted(chosen)
        self.outcome.undecoded_s = self._track.undecoded_s
        self.outcome.beyond_s = self._track.beyond_s
        self.outcome.error = self.outcome.error or self._track.error
        # Before the last samples: with them the recording's last unit would be complete.
        self._look()
        yield from self._finish(resampler)

    def _look(self) -> None:
        """Make sure that the file itself ended where its track did, wherever that is earlier than it should."""
        expected = self._track.expected_s
        missing = not self._track.file.at_end if expected is None else self._lacks(expected)
        if missing or self.outcome.error or self.outcome.undecoded_s:
            self._track.file.look_through()

    def _lacks(self, expected_s: float) -> bool:
        return self.outcome.duration_s < expected_s - WORTH_A_LOOK_S

    def _frames(self) -> Iterator[tuple[int, Frames]]:
        yield self._first
        yield from self._track.frames

    def _choose(self, frames: Frames) -> Frames | None:
        if frames.dtype == np.float32:
            self._check_values(frames)
        if self._wanted == "split":
            if len(frames) != self.channels:
                self.outcome.error = f"{self.channels} channels became {len(frames)}"
                return None
            return frames
        if len(frames) == 1 or self._wanted == "first":
            return frames[:1]
        return mixed(frames)

    def _check_values(self, frames: Frames) -> None:
        if not frames.size:
            return
        # Both pass NaN on, so that these two find NaN, infinity and misread numbers alike.
        lowest, highest = float(frames.min()), float(frames.max())
        if lowest >= -FULL_SCALE_LIMIT and highest <= FULL_SCALE_LIMIT:
            return
        at = f"{self.outcome.duration_s:.1f} s"
        peak = max(-lowest, highest)
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise AudioError("AUDIO_NOT_FINITE", f"samples after {at} are NaN or infinite; export the file again")
        raise AudioError(
            "AUDIO_OUT_OF_RANGE",
            f"samples after {at} reach {peak:.3g} times full scale; the file is not scaled to 1.0",
        )

    def _finish(self, resampler: soxr.ResampleStream | None) -> Iterator[Frames]:
        if resampler is not None:
            tail = _resampled(resampler, np.zeros((self.channels, 0), np.float32), last=True)
            if tail.shape[1]:
                yield self._counted(tail)

    def _counted(self, block: Frames) -> Frames:
        self.outcome.samples += block.shape[1]
        if self.outcome.samples > LONGEST_S * SAMPLE_RATE:
            raise AudioError(
                "AUDIO_TOO_LONG", "the file decodes to more than a week of audio; it is damaged or hostile"
            )
        return block


def mixed(frames: Frames) -> NDArray[np.float32]:
    """The average of all channels, (1, n); of two without a copy of either.

    Examples:
        >>> mixed(np.float32([[0.5, 0.0], [0.25, 1.0]])).tolist()
        [[0.375, 0.5]]
    """
    if len(frames) != 2:
        average: NDArray[np.float32] = np.ascontiguousarray(as_float(frames)).mean(
            axis=0, keepdims=True, dtype=np.float32
        )
        return average
    # Halving is exact, and so is the sum of 16-bit samples in float32: the order of the steps changes no result.
    both: NDArray[np.float32] = frames[0].astype(np.float32)
    both += frames[1]
    both *= np.float32(0.5 if frames.dtype == np.float32 else 0.5 / 32_768)
    return both.reshape(1, -1)


def _first_that_decodes(path: str) -> tuple[Track, tuple[int, Frames]]:
    """The first library that gets a sample out of the file, and its first block."""
    file = LocalFile(path)
    if not (magic := file.start(4)):
        raise AudioError("AUDIO_EMPTY", "the file holds no byte; it was never written to its end")
    code, reasons = "AUDIO_UNDECODABLE", []
    for backend in backends_for(magic):
        try:
            track = open_track(path, backend)
            check_header(track.header)
            return track, next(track.frames)
        except NoAudioTrack as error:
            code = "AUDIO_NO_TRACK"
            reasons.append(f"{backend}: {error}")
        except Undecodable as error:
            reasons.append(f"{backend}: {error}")
        except StopIteration:
            code = "AUDIO_NO_SAMPLES"
            reasons.append(f"{backend}: {track.error or 'no samples'}")
    file.look_through(MOST_LOOKED_THROUGH)
    raise AudioError(code, f"{UNDECODABLE[code]} ({'; '.join(reasons)})")


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except ReadingFailed as error:
        raise unreachable(error) from error


def unreachable(error: OSError) -> AudioError:
    """What to say of a local file whose bytes could not be had: never that it is damaged."""
    why = error.strerror or type(error).__name__
    return AudioError(
        "RECORDING_UNREACHABLE",
        f"reading broke off ({why}); look at the disk or network file system it lies on",
        transient=True,
    )


def check_header(header: Header) -> None:
    """Refuse a header that no recording of speech can have.

    Raises:
        AudioError: `AUDIO_ABSURD_RATE` or `AUDIO_ABSURD_CHANNELS`.
    """
    if header.sample_rate:
        check_rate(header.sample_rate)
    if header.channels > MOST_CHANNELS:
        raise AudioError(
            "AUDIO_ABSURD_CHANNELS",
            f"the header claims {header.channels} channels, more than {MOST_CHANNELS}; it is damaged",
        )


def check_rate(rate: int) -> None:
    """Refuse a sampling rate outside `RATES`.

    Raises:
        AudioError: `AUDIO_ABSURD_RATE`.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            "AUDIO_ABSURD_RATE",
            f"the header claims {rate} Hz, outside {RATES[0]}-{RATES[1]} Hz; it is damaged",
        )


def _resampler(rate: int, channels: int) -> soxr.ResampleStream:
    return soxr.ResampleStream(rate, SAMPLE_RATE, channels, dtype="float32", quality="HQ")


def _resampled(resampler: soxr.ResampleStream, block: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
    if len(block) == 1:
        one: NDArray[np.float32] = resampler.resample_chunk(np.ascontiguousarray(block[0]), last=last)
        return one[np.newaxis]
    several: NDArray[np.float32] = resampler.resample_chunk(np.ascontiguousarray(block.T), last=last)
    return np.ascontiguousarray(several.T)
