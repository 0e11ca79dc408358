"""One recording from its first block to its last: channels, segments and their measures, in units of five minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.quality import Quality, measure
from serpipe.audio.segment import GivenSegment, NoSegments, Segment, Segmentation
from serpipe.audio.speech import FRAME, SpeechDetector
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE

UNIT_S = 300
"""Seconds. A unit holds the segments that start within one such stretch of one channel."""

LONGEST_SEGMENT_S = 900
"""Seconds. A segment is held in memory whole, so it must end somewhere."""

_UNIT = UNIT_S * SAMPLE_RATE
_LONGEST = LONGEST_SEGMENT_S * SAMPLE_RATE


LeftOut = Literal["outside", "channel", "twice"]
"""Why a given segment is none of the recording's: that has no sample of it, or no such channel, or another given
segment holds the very same samples."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment with its measures and where its samples lie in its unit's audio.

    Attributes:
        segment: start and end in samples of the recording.
        quality: levels, speech share, noise.
        offset: first sample within the unit's audio.
    """

    segment: Segment
    quality: Quality
    offset: int

    @property
    def length(self) -> int:
        """Samples."""
        return self.segment.end - self.segment.start


@dataclass(slots=True)
class Unit:
    """What is done or not done as one: the segments of one channel that start within one stretch.

    Attributes:
        number: stretch x channels + channel.
        channel: the channel, from 0.
        final: whether it is the recording's last unit.
        clips: its segments in order of their start.
        audio: their samples, overlapping stretches once, as pieces to be joined.
        samples: length of the joined audio.
    """

    number: int
    channel: int
    final: bool = False
    clips: list[Clip] = field(default_factory=list)
    audio: list[NDArray[np.float32]] = field(default_factory=list)
    samples: int = 0
    _from: int = 0
    _to: int = 0

    def add(self, segment: Segment, samples: NDArray[np.float32], quality: Quality) -> None:
        """Append a segment; segments must come in order of their start."""
        if self.samples and self._from <= segment.start <= self._to:
            known = min(self._to, segment.end) - segment.start
        else:
            known = 0
            self._from = segment.start
            self._to = segment.start
        offset = self.samples - (self._to - segment.start if known else 0)
        self.clips.append(Clip(segment, quality, offset))
        if segment.end > self._to:
            fresh = samples[known:]
            self.audio.append(fresh.copy() if known else fresh)
            self.samples += len(fresh)
            self._to = segment.end


class _Channel:
    """One channel's samples and speech, kept only as far back as a segment can still reach."""

    def __init__(
        self, segmentation: Segmentation, given: Sequence[GivenSegment] | None, mine: list[int], *, speech: bool
    ) -> None:
        self._given = mine
        self._cut: set[tuple[int, int]] = set()
        self.twice: list[int] = []
        # Without segments of its own a recording is one whole; a channel that the manifest passes over is not.
        self.segmenter = (
            segmentation.segmenter([given[i] for i in mine] if given else ())
            if mine or given is None or segmentation.kind != "given"
            else NoSegments()
        )
        self._detector = SpeechDetector() if speech else None
        self._blocks: deque[NDArray[np.float32]] = deque()
        self._base = 0
        self._frontier = 0
        self._speech = np.zeros(0, np.float32)
        self._speech_base = 0
        self._waiting: deque[Segment] = deque()

    @property
    def settled_to(self) -> int:
        """No later segment starts before this sample."""
        first = self._waiting[0].start if self._waiting else self.segmenter.keep_from
        return min(first, self.segmenter.keep_from, self._frontier)

    def push(self, samples: NDArray[np.float32]) -> list[tuple[Segment, NDArray[np.float32], Quality]]:
        self._blocks.append(samples)
        self._frontier += len(samples)
        new = self._detector.push(samples) if self._detector else np.zeros(0, np.float32)
        self._speech = np.concatenate([self._speech, new])
        self._waiting.extend(self._once(self.segmenter.advance(self._frontier, new)))
        ready = self._ready(last=False)
        self._forget()
        if self._frontier - self.segmenter.keep_from > _LONGEST + _UNIT:
            raise AudioError(
                "SEGMENT_TOO_LONG",
                f"a segment is longer than {LONGEST_SEGMENT_S // 60} minutes; cut it with --segment vad or window:6/3",
            )
        return ready

    def finish(self) -> list[tuple[Segment, NDArray[np.float32], Quality]]:
        new = self._detector.finish() if self._detector else np.zeros(0, np.float32)
        self._speech = np.concatenate([self._speech, new])
        self._waiting.extend(self._once(self.segmenter.finish(self._frontier, new)))
        return self._ready(last=True)

    @property
    def outside(self) -> list[int]:
        """Indices of given segments that lie beyond the end; known once finished."""
        return [self._given[i] for i in self.segmenter.outside]

    def _once(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Segments without those that hold the same samples as one before: rounded or clipped, times become alike."""
        for segment in segments:
            if segment.given is None:
                yield segment
            elif (segment.start, segment.end) in self._cut:
                self.twice.append(self._given[segment.given])
            else:
                self._cut.add((segment.start, segment.end))
                yield replace(segment, given=self._given[segment.given])

    def _ready(self, *, last: bool) -> list[tuple[Segment, NDArray[np.float32], Quality]]:
        heard = (self._speech_base + len(self._speech)) * FRAME
        ready = []
        while self._waiting and (last or self._detector is None or self._waiting[0].end <= heard):
            segment = self._waiting.popleft()
            samples = self._extract(segment.start, segment.end)
            ready.append((segment, samples, measure(samples, self._speech_of(segment))))
        return ready

    def _speech_of(self, segment: Segment) -> NDArray[np.float32] | None:
        if self._detector is None:
            return None
        first = segment.start // FRAME - self._speech_base
        last = -(-segment.end // FRAME) - self._speech_base
        return self._speech[first:last]

    def _extract(self, start: int, end: int) -> NDArray[np.float32]:
        pieces = []
        base = self._base
        for block in self._blocks:
            if base >= end:
                break
            if base + len(block) > start:
                pieces.append(block[max(start - base, 0) : end - base])
            base += len(block)
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0].copy()

    def _forget(self) -> None:
        keep = self.settled_to
        while self._blocks and self._base + len(self._blocks[0]) <= keep:
            self._base += len(self._blocks.popleft())
        old = min(keep // FRAME - self._speech_base, len(self._speech))
        if old > 0:
            self._speech = self._speech[old:]
            self._speech_base += old


def units_of(
    blocks: Iterable[NDArray[np.float32]],
    *,
    channels: int,
    segmentation: Segmentation,
    given: Sequence[GivenSegment] | None = None,
    speech: bool = True,
    left_out: dict[int, LeftOut] | None = None,
) -> Iterator[Unit]:
    """Cut a decoded recording into segments and units, holding only what a segment can still reach.

    Args:
        blocks: float32 (channels, n) at 16 kHz, in order.
        channels: number of channels in the blocks.
        segmentation: how to cut.
        given: the manifest's segments, for `given`; None where it has none of this recording, which then is one whole.
        speech: whether to run voice detection, for the speech share of each segment; `vad` always runs it.
        left_out: receives the places of given segments that no unit holds, and why.

    Yields:
        Units in order of their number, stretches without a segment included. The last one is final. A recording
        without a sample yields nothing.

    Raises:
        AudioError: `SEGMENT_TOO_LONG`, and whatever `blocks` raises; the units before it are complete.

    Examples:
        >>> from serpipe.audio.segment import parse_segmentation
        >>> from serpipe.testing import speech_like
        >>> blocks = [speech_like(8.0)[None]]
        >>> (unit,) = units_of(blocks, channels=1, segmentation=parse_segmentation("window:3/3"), speech=False)
        >>> [(clip.segment.start / 16_000, clip.segment.end / 16_000) for clip in unit.clips], unit.final
        ([(0.0, 3.0), (3.0, 6.0), (6.0, 8.0)], True)
    """
    speech = speech or segmentation.kind == "vad"
    streams = [
        _Channel(
            segmentation,
            given,
            [i for i, g in enumerate(given or ()) if g.channel in (None, channel)],
            speech=speech,
        )
        for channel in range(channels)
    ]
    found: dict[int, LeftOut] = {} if left_out is None else left_out
    found |= {i: "channel" for i, g in enumerate(given or ()) if g.channel is not None and g.channel >= channels}
    open_units: dict[int, Unit] = {}
    placed: set[int | None] = set()
    stretch = 0
    total = 0

    def place(channel: int, segment: Segment, samples: NDArray[np.float32], quality: Quality) -> None:
        placed.add(segment.given)
        number = segment.start // _UNIT * channels + channel
        unit = open_units.setdefault(number, Unit(number, channel))
        unit.add(segment, samples, quality)

    def close(number: int) -> Unit:
        return open_units.pop(number, Unit(number, number % channels))

    for block in blocks:
        total += block.shape[1]
        for channel, stream in enumerate(streams):
            for ready in stream.push(block[channel]):
                place(channel, *ready)
        # Only once audio lies beyond a stretch is it known not to be the last one.
        while total > (stretch + 1) * _UNIT and all(s.settled_to >= (stretch + 1) * _UNIT for s in streams):
            for channel in range(channels):
                yield close(stretch * channels + channel)
            stretch += 1
    if total == 0:
        return
    for channel, stream in enumerate(streams):
        for ready in stream.finish():
            place(channel, *ready)
        found.update(dict.fromkeys(stream.twice, "twice"))
        found.update(dict.fromkeys(stream.outside, "outside"))
    for number in [number for number in found if number in placed]:
        # Alike on one channel, and not on another.
        del found[number]
    last = (total - 1) // _UNIT * channels + channels - 1
    for number in range(stretch * channels, last + 1):
        unit = close(number)
        unit.final = number == last
        yield unit
