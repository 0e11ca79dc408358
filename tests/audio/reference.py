"""Whole files decoded in one piece and resampled in one call: what every stream is measured against.

Decoding and resampling share no code with serpipe. Which library reads a file is serpipe's documented rule: libsndfile
for PCM containers and Ogg, FFmpeg for the rest.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from serpipe.audio.segment import GivenSegment, NoSegments, Segment, Segmentation
from serpipe.audio.speech import SpeechDetector

DATA = Path(os.environ.get("SERPIPE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

Samples = NDArray[np.float32]

NO_SPEECH = {
    "derived/mp4_video_only_no_audio.mp4",
    "derived/raw_s16le_16k_mono.raw",
    "pocketsphinx/goforward.raw",
}
"""Files of `formats` that hold no audio track, or numbers without a header that nobody can tell from noise."""

_SNDFILE = {"wav", "w64", "aiff", "au", "caf", "nistsphere", "ogg"}


def index(folder: str) -> list[dict[str, str]]:
    """The rows of a folder's index; none where the data is absent."""
    path = DATA / folder / "index.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def paths(folder: str, without: Collection[str] = (), *, under: str = "") -> list[Any]:
    """Test parameters: every path of an index, or one that is skipped with a reason."""
    found = [row["path"] for row in index(folder) if row["path"] not in without and row["path"].startswith(under)]
    return found or [pytest.param("", marks=pytest.mark.skip(f"no real audio in {DATA}; set SERPIPE_TEST_DATA"))]


def whole(path: Path, container: str) -> Samples:
    """A file's channels averaged and brought to 16 kHz: float32 (n,).

    Where the rate changes on the way, each stretch of one rate is resampled for itself: no filter runs across.
    """
    runs = []
    for rate, pieces in groupby(decoded(path, container), lambda piece: piece[0]):
        mono = np.concatenate([frames.mean(axis=0, dtype=np.float64) for _, frames in pieces]).astype(np.float32)
        runs.append(mono if rate == 16_000 else soxr.resample(mono, rate, 16_000, quality="HQ"))
    return np.concatenate(runs)


def split(path: Path, container: str) -> list[Samples]:
    """A file's channels, each brought to 16 kHz for itself."""
    pieces = decoded(path, container)
    (rate,) = {rate for rate, _ in pieces}
    channels = np.concatenate([frames for _, frames in pieces], axis=1).astype(np.float32)
    return [one if rate == 16_000 else soxr.resample(one, rate, 16_000, quality="HQ") for one in channels]


def decoded(path: Path, container: str) -> list[tuple[int, NDArray[np.floating[Any]]]]:
    """A file as its library gives it: (rate, (channels, n)), in pieces."""
    if container in _SNDFILE:
        try:
            frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
            return [(rate, frames.T)]
        except soundfile.LibsndfileError:
            pass  # Speex in Ogg
    pieces = []
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        decoder = stream.codec_context
        if decoder.name == "amrnb":
            # FFmpeg's own decoder refuses the frames of pauses; the reference library's takes them.
            decoder = av.CodecContext.create("libopencore_amrnb", "r")
            decoder.sample_rate, decoder.layout = 8_000, "mono"
        if decoder.name == "opus":
            # FFmpeg's own decoder is not the reference one.
            decoder = av.CodecContext.create("libopus", "r")
            decoder.sample_rate, decoder.layout = 48_000, stream.codec_context.layout
            decoder.extradata, decoder.options = stream.codec_context.extradata, {"request_sample_fmt": "flt"}
        for packet in file.demux(stream):
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                continue
            pieces += [(frame.sample_rate, _floats(frame)) for frame in frames]
    return pieces


def segments_of(
    segmentation: Segmentation, given: Sequence[GivenSegment] | None, samples: Samples
) -> tuple[list[list[Segment]], dict[int, str], list[Samples]]:
    """What a recording held in memory is cut into, in one call.

    Args:
        segmentation: how to cut.
        given: the manifest's segments; None where it has none.
        samples: float32 (channels, n).

    Returns:
        Each channel's segments by start, end and place; places of given segments that are none of them, and why; each
        channel's speech probabilities, where the segmentation needs them.
    """
    channels, speech = [], []
    left_out = {i: "channel" for i, one in enumerate(given or ()) if (one.channel or 0) >= len(samples)}
    for channel, whole_channel in enumerate(samples):
        mine = [i for i, one in enumerate(given or ()) if one.channel in (None, channel)]
        heard = np.zeros(0, np.float32)
        if segmentation.needs_speech:
            detector = SpeechDetector()
            heard = np.concatenate([detector.push(whole_channel), detector.finish()])
        speech.append(heard)
        passed_over = segmentation.kind == "given" and given is not None and not mine
        segmenter = NoSegments() if passed_over else segmentation.segmenter([given[i] for i in mine] if given else [])
        found: dict[tuple[int, int], Segment] = {}
        for one in segmenter.finish(samples.shape[1], heard):
            number = None if one.given is None else mine[one.given]
            # Of those that are alike in samples the one that ended first in the manifest, then the first of it, stays.
            if number is not None and (one.start, one.end) in found:
                left_out[number] = "twice"
            else:
                found[one.start, one.end] = Segment(one.start, one.end, one.short, number)
        channels.append(sorted(found.values(), key=place))
        left_out |= {mine[i]: "outside" for i in segmenter.outside}
    labelled = {one.given for segments in channels for one in segments}
    return channels, {number: why for number, why in left_out.items() if number not in labelled}, speech


def place(segment: Segment) -> tuple[int, int, int]:
    """What segments of one channel are sorted by."""
    return segment.start, segment.end, segment.given or 0


def _floats(frame: av.AudioFrame) -> NDArray[np.floating[Any]]:
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    match frame.format.name.removesuffix("p"):
        case "flt" | "dbl":
            return values
        case "u8":
            return (values.astype(np.float64) - 128) / 128
        case "s16":
            return values / 2.0**15
        case "s32":
            return values / 2.0**31
    raise AssertionError(frame.format.name)
