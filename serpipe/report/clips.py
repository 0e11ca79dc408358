"""Clips to be heard: cut out of the recordings by serpipe's own decoder, encoded small, never an error."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.decode import Channels, Decoding
from serpipe.audio.source import local_copy
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE

LONGEST_S = 8.0
"""Seconds of a clip; longer segments are heard from their start."""

DECODED_S = 6 * 3600.0
"""Seconds of audio that are decoded for one report, ten seconds of work: recordings are read from their start."""

MOST_BYTES = 7_000_000
"""Encoded bytes of one report; a third more in its page."""

BIT_RATE = 32_000

GIVE_UP = 5
"""Recordings in a row that are out of reach for now, after which no other is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a recording.

    Attributes:
        key: name of the clip in the page.
        recording_id: 16 bytes.
        uri: where the recording lies.
        size: bytes it had when it was labelled; None where that is not known.
        etag: entity tag it had.
        channels: how its channels were treated.
        channel: the one meant.
        start_s: seconds.
        end_s: seconds.
    """

    key: str
    recording_id: bytes
    uri: str
    size: int | None
    etag: str | None
    channels: Channels
    channel: int
    start_s: float
    end_s: float


@dataclass(slots=True)
class Clips:
    """What was cut.

    Attributes:
        audio: MP3 by the span's key, base64.
        missing: why there is none, by the span's key.
    """

    audio: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def cut(spans: Iterable[Span]) -> Clips:
    """Cut spans out of their recordings, each recording opened once and read no further than needed.

    Args:
        spans: what is wanted. Where not all fit the budgets, those near the start of a recording come first.
    """
    by_recording: Mapping[tuple[bytes, Channels], list[Span]] = _grouped(spans)
    made = Clips()
    decoded = size = 0.0
    unreachable = 0
    for mine in sorted(by_recording.values(), key=lambda some: max(span.end_s for span in some)):
        end = max(span.end_s for span in mine)
        if decoded + end > DECODED_S or size > MOST_BYTES or unreachable >= GIVE_UP:
            why = "its storage is out of reach" if unreachable >= GIVE_UP else "left out to keep the report small"
            made.missing |= {span.key: why for span in mine}
            continue
        decoded += end
        try:
            found = _cut(mine)
            unreachable = 0
        except AudioError as error:
            made.missing |= {span.key: f"cannot be opened any more: {error.message}" for span in mine}
            unreachable += error.transient
            continue
        for key, samples in found.items():
            if len(samples):
                encoded = mp3(samples)
                size += len(encoded)
                made.audio[key] = base64.b64encode(encoded).decode()
            else:
                made.missing[key] = "the recording is shorter than it was"
    return made


def _grouped(spans: Iterable[Span]) -> dict[tuple[bytes, Channels], list[Span]]:
    found = defaultdict(list)
    for span in spans:
        found[span.recording_id, span.channels].append(span)
    return found


def _cut(spans: list[Span]) -> dict[str, NDArray[np.float32]]:
    """Samples by key; of one recording."""
    first = spans[0]
    pieces: dict[str, list[NDArray[np.float32]]] = {span.key: [] for span in spans}
    last = max(round(span.end_s * SAMPLE_RATE) for span in spans)
    with local_copy(first.uri, size=first.size, etag=first.etag) as path:
        at = 0
        # In this process: bytes that a child has decoded to their end are neither a bomb nor a trap, and a child that
        # is left half-way has to be started again.
        for block in Decoding(path, first.channels):
            for span in spans:
                begin = max(round(span.start_s * SAMPLE_RATE) - at, 0)
                end = min(round(span.end_s * SAMPLE_RATE) - at, block.shape[1])
                if begin < end and span.channel < len(block):
                    pieces[span.key].append(block[span.channel, begin:end].copy())
            at += block.shape[1]
            if at >= last:
                break
    return {key: np.concatenate([*some, np.zeros(0, np.float32)]) for key, some in pieces.items()}


def mp3(samples: NDArray[np.float32]) -> bytes:
    """Encode as MP3, which every browser plays: 16 kHz, 32 kbit/s.

    Args:
        samples: float32 (n,) at 16 kHz.

    Examples:
        >>> 3_900 < len(mp3(np.zeros(16_000, np.float32))) < 5_000
        True
    """
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp3") as file:
        stream = file.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        # Half the work of the default, and no ear hears it at this rate.
        stream.options = {"compression_level": "7"}
        whole = (np.clip(samples, -1.0, 1.0) * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole[np.newaxis], format="s16p", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return sink.getvalue()
