"""From a stream of speech probabilities to pieces of speech that a model can take.

Three steps, each of which looks ahead a bounded time, so that a stream gives what the whole array gives:

1. *regions*: Silero's `get_speech_timestamps` with its own thresholds and padding;
2. *stretches*: regions with at most half a second between them;
3. *pieces*: a stretch of more than 11 s is cut from left to right where there is least speech.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.speech import FRAME
from serpipe.models.contract import SAMPLE_RATE

THRESHOLD = 0.5
"""Probability at which a region begins (Silero's `threshold`)."""

NEG_THRESHOLD = 0.35
"""Probability below which silence begins (Silero's `neg_threshold`, 0.15 less)."""

MIN_SPEECH = SAMPLE_RATE // 4
"""Samples that a region has to exceed (Silero's `min_speech_duration_ms`, 250)."""

MIN_SILENCE = SAMPLE_RATE // 10
"""Samples of silence that end a region (Silero's `min_silence_duration_ms`, 100)."""

PAD = SAMPLE_RATE * 30 // 1000
"""Samples added on either side (Silero's `speech_pad_ms`). Twice this is less than `MIN_SILENCE`, so padded
regions never meet, and Silero's rule for sharing a gap that is too small never applies."""

MAX_GAP = SAMPLE_RATE // 2
"""Largest gap, in samples between padded regions, that is closed."""

MAX_PIECE = SAMPLE_RATE * 11
"""Samples of the longest piece."""

MIN_PIECE = SAMPLE_RATE * 11 // 4
"""Samples (2.75 s) that a cut leaves on either side. A stretch that was shorter from the start stays so."""

SMOOTH = 8
"""Frames (256 ms) whose mean says how much speech is around a cut: longer than a stop consonant's closure."""


class SpeechCutter:
    """Pieces of speech of one channel, as soon as nothing that follows can change them.

    A region is known at the latest when 8 more frames of speech or 4 of silence have been heard, a stretch
    half a second after its end, a cut 13.75 s after the start of its piece.

    Attributes:
        frames: how many probabilities have been taken.

    Examples:
        >>> cutter = SpeechCutter()
        >>> cutter.push(np.float32([0.0] * 20 + [0.9] * 60 + [0.0] * 25))
        [(9760, 41440)]
        >>> cutter.finish(105 * FRAME), cutter.keep_from
        ([], 53280)
    """

    def __init__(self) -> None:
        self.frames = 0
        self._speech = np.empty(0, np.float32)
        self._oldest = 0  # frame of the first probability that is kept
        self._region: int | None = None  # first frame of the region that is open
        self._silence: int | None = None  # first frame of the silence that may end it
        self._begin: int | None = None  # first sample of the stretch that is not in a piece yet
        self._end = 0  # the stretch's last sample so far, plus one

    @property
    def keep_from(self) -> int:
        """First sample that a later piece may hold."""
        return self._next_region if self._begin is None else self._begin

    def push(self, speech: NDArray[np.float32]) -> list[tuple[int, int]]:
        """Takes the next probabilities.

        Args:
            speech: float32 (frames,), as `serpipe.audio.speech.SpeechDetector` gives them.

        Returns:
            the pieces that are now certain, in order: first sample, last sample plus one.
        """
        self._speech = np.concatenate([self._speech, speech])
        pieces = []
        for probability in speech.tolist():
            ended = self._hear(probability)
            if ended is not None:
                first, end = ended
                pieces += self._join(first, end * FRAME + PAD)
            self.frames += 1
        if self._region is not None:
            # However this region goes on, it lasts to here at least; unpadded, as the recording may end here.
            so_far = (self.frames - 1 if self._silence is None else self._silence) * FRAME
            if so_far - self._region * FRAME > MIN_SPEECH:
                pieces += self._join(self._region, so_far)
        if self._begin is not None and self._next_region - self._end > MAX_GAP:
            pieces += self._close()
        elif self._begin is not None:
            # Within a piece and a rest of the end the cut depends on the end; beyond, it no longer does.
            pieces += self._cut(MAX_PIECE + MIN_PIECE)
        needed = self.keep_from // FRAME
        self._speech = self._speech[needed - self._oldest :].copy()
        self._oldest = needed
        return pieces

    def finish(self, total: int) -> list[tuple[int, int]]:
        """Ends the channel.

        Args:
            total: samples of the channel, of which the last frame may hold only a part.

        Returns:
            the remaining pieces.
        """
        pieces = []
        if self._region is not None and total - self._region * FRAME > MIN_SPEECH:
            pieces += self._join(self._region, total)
        return pieces + self._close()

    @property
    def _next_region(self) -> int:
        """First sample, padding included, of the first region that has not ended."""
        return max(0, (self.frames if self._region is None else self._region) * FRAME - PAD)

    def _hear(self, probability: float) -> tuple[int, int] | None:
        """One step of Silero's rule; gives first and last (plus one) frame of the region that ended."""
        if probability >= THRESHOLD:
            self._silence = None
            if self._region is None:
                self._region = self.frames
        elif probability < NEG_THRESHOLD and self._region is not None:
            if self._silence is None:
                self._silence = self.frames
            if (self.frames - self._silence) * FRAME >= MIN_SILENCE:
                region = self._region, self._silence
                self._region = self._silence = None
                if (region[1] - region[0]) * FRAME > MIN_SPEECH:
                    return region
        return None

    def _join(self, first: int, end: int) -> list[tuple[int, int]]:
        """Adds the region from frame `first` to sample `end`, or lengthens it; may close a stretch."""
        begin = max(0, first * FRAME - PAD)
        pieces = []
        if self._begin is None or begin - self._end > MAX_GAP:
            pieces = self._close()
            self._begin = begin
        self._end = end
        return pieces

    def _close(self) -> list[tuple[int, int]]:
        if self._begin is None:
            return []
        pieces = self._cut(MAX_PIECE)
        pieces.append((self._begin, self._end))
        self._begin = None
        return pieces

    def _cut(self, longest: int) -> list[tuple[int, int]]:
        """Cuts pieces off the stretch while more than `longest` samples of it are left."""
        pieces = []
        while self._begin is not None and self._end - self._begin > longest:
            cut = self._least_speech(self._begin + MIN_PIECE, min(self._begin + MAX_PIECE, self._end - MIN_PIECE))
            pieces.append((self._begin, cut))
            self._begin = cut
        return pieces

    def _least_speech(self, low: int, high: int) -> int:
        """The latest frame boundary in [low, high] with the lowest mean probability around it."""
        first, last = -(-low // FRAME), high // FRAME
        begin, end = first - SMOOTH // 2 - self._oldest, last + SMOOTH // 2 - self._oldest
        around = self._speech[begin:end].astype(np.float64)
        # Shifted sums, always in the same order: a running sum would round differently from another start.
        sums = np.zeros(last - first + 1)
        for shift in range(SMOOTH):
            sums += around[shift : shift + len(sums)]
        return (last - int(np.argmin(sums[::-1]))) * FRAME
