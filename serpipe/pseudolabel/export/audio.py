"""Cutting kept segments out of their recordings: the samples that were labelled, by the decoder that labelled them."""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from serpipe.audio.child import ChildDecoder
from serpipe.audio.decode import Channels
from serpipe.audio.source import local_copy
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE
from serpipe.pseudolabel.export.clips import Clip

Samples = NDArray[np.float32]


class Stretch(Protocol):
    """Where audio lies in a recording."""

    @property
    def channel(self) -> int:
        """Counted from 0; of no use in a mix."""

    @property
    def first(self) -> int:
        """First sample at 16 kHz."""

    @property
    def last(self) -> int:
        """The sample after the last."""


S = TypeVar("S", bound=Stretch)


def cut(
    clips: Iterable[tuple[int, Clip]], channels: Channels, lost: Counter[str]
) -> Iterator[tuple[int, Clip, Samples]]:
    """Read each recording once, straight through, and give its clips.

    Args:
        clips: places and clips; those of a recording follow one another in the order of their start.
        channels: how the channels of a recording are treated.
        lost: receives how many clips could not be had, by code.

    Yields:
        Place, clip and its float32 samples (n,) at 16 kHz.

    Raises:
        AudioError: what may pass: the recordings cannot be reached now. What will not is counted in `lost`, a recording
            that has become shorter as `RECORDING_CHANGED`.
    """
    with ChildDecoder() as decoder:
        for _, group in groupby(clips, key=lambda one: (one[1].split, one[1].recording)):
            mine = deque(group)
            first = mine[0][1]
            try:
                with local_copy(first.uri, size=first.size, etag=first.etag) as path:
                    yield from pieces(decoder.decode(path, channels), mine)
                if mine:
                    # It was labelled to a later second than it has today.
                    raise AudioError("RECORDING_CHANGED", "the recording has become shorter", transient=True)
            except AudioError as error:
                if error.transient and error.code != "RECORDING_CHANGED":
                    raise
                lost[error.code] += len(mine)


def pieces(blocks: Iterable[Samples], waiting: deque[tuple[int, S]]) -> Iterator[tuple[int, S, Samples]]:
    """The stretches of one recording; only audio that one of them can still reach is held.

    Args:
        blocks: float32 (channels, n), the recording from its start.
        waiting: places and stretches in the order of their start; what the recording is too short for stays in it.
    """
    held: deque[Samples] = deque()
    begin = end = 0
    for block in blocks:
        held.append(block)
        end += block.shape[1]
        while waiting and waiting[0][1].last <= end:
            place, clip = waiting.popleft()
            row = clip.channel if len(block) > 1 else 0
            yield place, clip, _piece(held, row, clip.first - begin, clip.last - begin)
        keep = waiting[0][1].first if waiting else end
        while held and begin + held[0].shape[1] <= keep:
            begin += held.popleft().shape[1]


def _piece(held: Iterable[Samples], row: int, start: int, stop: int) -> Samples:
    pieces, at = [], 0
    for block in held:
        width = block.shape[1]
        if at < stop and at + width > start:
            pieces.append(block[row, max(start - at, 0) : stop - at])
        at += width
    return np.concatenate(pieces)


def flac(samples: Samples) -> bytes:
    """A FLAC file of 16 kHz: with 16 bits where these hold the samples exactly, else with 24.

    Args:
        samples: float32 (n,); what lies beyond full scale is clipped, which is all that FLAC can hold.

    Examples:
        >>> wave = np.array([0.5, -1.0, 0.25], np.float32)
        >>> back, rate = soundfile.read(io.BytesIO(flac(wave)), dtype="float32")
        >>> rate, back.tolist()
        (16000, [0.5, -1.0, 0.25])
    """
    scaled = samples.astype(np.float64) * 2.0**15
    whole = np.rint(scaled)
    if np.array_equal(whole, scaled) and (not len(whole) or (whole.min() >= -(2**15) and whole.max() < 2**15)):
        return _written(whole.astype(np.int16), "PCM_16")
    fine = np.clip(np.rint(scaled * 2.0**8), -(2**23), 2**23 - 1).astype(np.int32)
    return _written(fine << 8, "PCM_24")


def _written(samples: NDArray[np.int16] | NDArray[np.int32], subtype: str) -> bytes:
    # As integers: libsndfile scales floats by 32767, which no decoder undoes.
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype=subtype)
    return file.getvalue()
