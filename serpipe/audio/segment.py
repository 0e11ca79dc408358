"""Where a recording is cut: by the manifest, not at all, by the clock, or by speech.

A segmenter follows one channel of a recording as it is decoded. It gives a segment once nothing that is
still to come can change it, and says which audio it no longer needs; it never holds audio. What it gives
does not depend on how the decoder cuts its blocks. All positions are samples at 16 kHz.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.speech import FRAME
from serpipe.audio.speech_segments import MIN_PIECE, SpeechCutter
from serpipe.errors import UsageError
from serpipe.models.contract import SAMPLE_RATE

MIN_TAIL = SAMPLE_RATE // 2
"""Samples under which what the last full window leaves over joins that window."""

CERTAIN = SAMPLE_RATE * 30
"""Samples by which the speech probabilities must have passed a segment's end before it is given."""

_WINDOW = re.compile(r"window:(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Segment:
    """What a model labels: samples [start, end) of one channel.

    Attributes:
        start: first sample.
        end: last sample plus one.
        short: a piece of speech of less than 2.75 s; never set by another segmentation than `vad`.
        given: place in the list of given segments that the segmenter was made from; None where there is none.
    """

    start: int
    end: int
    short: bool = False
    given: int | None = None


@dataclass(frozen=True, slots=True)
class GivenSegment:
    """A segment of the manifest, as it stands there.

    Attributes:
        start_s: seconds from the start of the recording.
        end_s: seconds; None for the end of the recording.
        channel: from 0; None for every channel that is labelled.
    """

    start_s: float
    end_s: float | None
    channel: int | None


class Segmenter(Protocol):
    """Follows one channel of one recording; segments come in the order of their start.

    Attributes:
        outside: places in the list of the given segments of which the recording holds no sample; complete
            after `finish`.
    """

    outside: list[int]

    @property
    def keep_from(self) -> int:
        """First sample that a later segment may hold; never past the samples decoded so far."""
        ...

    def advance(self, frontier: int, speech: NDArray[np.float32]) -> list[Segment]:
        """The segments that became certain.

        Args:
            frontier: samples decoded so far; never more than the recording turns out to hold.
            speech: float32 (frames,): the probabilities that are new since the last call; empty where
                `Segmentation.needs_speech` is false.
        """
        ...

    def finish(self, total: int, speech: NDArray[np.float32]) -> list[Segment]:
        """The remaining segments.

        Args:
            total: samples of the recording.
            speech: float32 (frames,): the last probabilities, of the frame that is only in part there too.
        """
        ...


@dataclass(frozen=True, slots=True)
class Segmentation:
    """How recordings are cut; part of the audio fingerprint by its `str`.

    Attributes:
        kind: which of the four.
        length: samples of a window; 0 for the other kinds.
        hop: samples from one window's start to the next one's; 0 for the other kinds.

    Examples:
        >>> str(parse_segmentation("window:6.0/3.50"))
        'window:6/3.5'
        >>> segmenter = parse_segmentation("window:6/3").segmenter([])
        >>> silent = np.empty(0, np.float32)
        >>> segmenter.advance(110_000, silent), segmenter.keep_from
        ([Segment(start=0, end=96000, short=False, given=None)], 48000)
        >>> segmenter.finish(150_000, silent)
        [Segment(start=48000, end=150000, short=False, given=None)]
    """

    kind: Literal["given", "whole", "window", "vad"]
    length: int = 0
    hop: int = 0

    @property
    def needs_speech(self) -> bool:
        """Whether its segmenters must be fed speech probabilities."""
        return self.kind == "vad"

    def segmenter(self, given: Sequence[GivenSegment]) -> Segmenter:
        """Starts one channel of one recording.

        Args:
            given: the given segments of that channel, in any order, overlapping or not; read only where the
                segmentation is `given`. Without any the recording is one segment; a channel that the manifest
                passes over takes `NoSegments` instead.
        """
        if self.kind == "window":
            return _Windows(self.length, self.hop)
        if self.kind == "vad":
            return _Speech()
        if self.kind == "given" and given:
            return _Given(given)
        return _Whole()

    def __str__(self) -> str:
        if self.kind != "window":
            return self.kind
        return f"window:{_seconds(self.length)}/{_seconds(self.hop)}"


def parse_segmentation(text: str) -> Segmentation:
    """Reads `given`, `whole`, `window:LENGTH/HOP` (seconds, rounded to whole samples) or `vad`.

    Raises:
        UsageError: SEGMENTATION_INVALID, with what is accepted.

    Examples:
        >>> parse_segmentation("vad").needs_speech
        True
        >>> parse_segmentation("window:3/6")
        Traceback (most recent call last):
        serpipe.errors.UsageError: SEGMENTATION_INVALID: segmentation 'window:3/6': the hop is longer than ...
    """
    match text:
        case "given" | "whole" | "vad":
            return Segmentation(text)
    window = _WINDOW.fullmatch(text)
    if window is None:
        raise _invalid(text, "not a known form")
    length, hop = (int((Decimal(seconds) * SAMPLE_RATE).to_integral_value()) for seconds in window.groups())
    if length == 0 or hop == 0:
        raise _invalid(text, "length and hop must be more than nothing")
    if hop > length:
        raise _invalid(text, "the hop is longer than the window, which would leave audio out")
    return Segmentation("window", length, hop)


def _invalid(text: str, why: str) -> UsageError:
    accepted = "use given, whole, window:LENGTH/HOP in seconds (such as window:6/3), or vad"
    return UsageError("SEGMENTATION_INVALID", f"segmentation {text!r}: {why}; {accepted}")


def _seconds(samples: int) -> str:
    """The shortest decimal: 16000 = 2^7 * 5^3 divides a power of ten, so it is exact."""
    text = f"{Decimal(samples) / SAMPLE_RATE:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class NoSegments:
    """The segmenter of a channel of which nothing is wanted.

    Examples:
        >>> nothing, silent = NoSegments(), np.empty(0, np.float32)
        >>> nothing.advance(16_000, silent), nothing.keep_from, nothing.finish(16_000, silent)
        ([], 16000, [])
    """

    def __init__(self) -> None:
        self.outside: list[int] = []
        self.keep_from = 0

    def advance(self, frontier: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        """Gives nothing, and needs nothing that was decoded."""
        self.keep_from = frontier
        return []

    def finish(self, total: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        """Gives nothing."""
        return []


class _Whole:
    def __init__(self) -> None:
        self.outside: list[int] = []

    @property
    def keep_from(self) -> int:
        return 0

    def advance(self, frontier: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        return []

    def finish(self, total: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        return [Segment(0, total)] if total else []


class _Given:
    def __init__(self, given: Sequence[GivenSegment]) -> None:
        self.outside: list[int] = []
        self._frontier = 0
        placed = []
        for index, segment in enumerate(given):
            # In floats until they are clipped: a manifest may hold inf, nan and nonsense.
            start = float(np.rint(segment.start_s * SAMPLE_RATE))
            end = float("inf") if segment.end_s is None else float(np.rint(segment.end_s * SAMPLE_RATE))
            if 0 <= start < end:
                placed.append((start, end, index))
            else:
                self.outside.append(index)
        self._placed = deque(sorted(placed))

    @property
    def keep_from(self) -> int:
        return int(min(self._placed[0][0], self._frontier)) if self._placed else self._frontier

    def advance(self, frontier: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        self._frontier = frontier
        segments = []
        while self._placed and self._placed[0][1] <= frontier:
            start, end, index = self._placed.popleft()
            segments.append(Segment(int(start), int(end), given=index))
        return segments

    def finish(self, total: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        self.outside = sorted([*self.outside, *(index for start, _, index in self._placed if start >= total)])
        placed, self._placed = self._placed, deque()
        return [Segment(int(start), int(min(end, total)), given=index) for start, end, index in placed if start < total]


class _Windows:
    def __init__(self, length: int, hop: int) -> None:
        self.outside: list[int] = []
        self._length = length
        self._hop = hop
        self.keep_from = 0

    def advance(self, frontier: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        # With this much more audio either another full window follows, or a tail that stands alone.
        beyond = min(self._hop, MIN_TAIL)
        segments = []
        while self.keep_from + self._length + beyond <= frontier:
            segments.append(Segment(self.keep_from, self.keep_from + self._length))
            self.keep_from += self._hop
        return segments

    def finish(self, total: int, speech: NDArray[np.float32]) -> list[Segment]:
        # One is always left: full to the end, full and lengthened by its tail, or what the hop left over.
        segments = self.advance(total, speech)
        return [*segments, Segment(self.keep_from, total)] if total else []


class _Speech:
    def __init__(self) -> None:
        self.outside: list[int] = []
        self._cutter = SpeechCutter()
        self._pieces: deque[tuple[int, int]] = deque()

    @property
    def keep_from(self) -> int:
        return self._pieces[0][0] if self._pieces else self._cutter.keep_from

    def advance(self, frontier: int, speech: NDArray[np.float32]) -> list[Segment]:  # noqa: ARG002
        self._pieces.extend(self._cutter.push(speech))
        segments = []
        while self._pieces and self._pieces[0][1] + CERTAIN <= self._cutter.frames * FRAME:
            segments.append(_piece(*self._pieces.popleft()))
        return segments

    def finish(self, total: int, speech: NDArray[np.float32]) -> list[Segment]:
        pieces = [*self._pieces, *self._cutter.push(speech), *self._cutter.finish(total)]
        self._pieces.clear()
        if self._cutter.frames != -(-total // FRAME):
            raise ValueError(f"{self._cutter.frames} speech probabilities for {total} samples")
        return [_piece(start, end) for start, end in pieces]


def _piece(start: int, end: int) -> Segment:
    return Segment(start, end, short=end - start < MIN_PIECE)
