"""How near decoding comes to the bare codecs, and how fast voices are found: per core, on speech made here.

The bare loop of a format is what a script would do, block by block, and nothing kept: a codec, the channels averaged,
soxr to 16 kHz. The codec is soundfile; PyAV where soundfile cannot, and for FLAC, MP3 and Opus whichever is faster.
Opus is libopus's in both; FFmpeg's own decoder, which gives other samples, is an arm besides. All arms run on one and
the same core, the child process included, so no second core hides what a child costs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import soundfile
import soxr
from numpy.typing import NDArray

import serpipe
from benchmarks import voice
from benchmarks.figures import Figure, figure, spread_of, take_turns
from serpipe.audio.child import ChildDecoder
from serpipe.audio.decode import Decoding
from serpipe.audio.speech import SpeechDetector

RATE = 16_000

FORMATS = {
    "wav": ("speech.wav", 16_000, 1),
    "wav-44k-stereo": ("call.wav", 44_100, 2),
    "flac": ("speech.flac", 16_000, 1),
    "mp3": ("speech.mp3", 44_100, 2),
    "opus": ("speech.opus", 48_000, 1),
    "m4a": ("speech.m4a", 44_100, 2),
}
"""Name to file, Hz and channels: the files that archives of speech are made of."""

BLOCK = 65_536
VOICE_S = 20.0
LEAST_S = 0.15
"""Seconds of one measurement: what is done sooner is done again."""

Samples = NDArray[np.float32]
Arm = Callable[[], int]
"""Does some work; the samples at 16 kHz it came to."""


def measure(*, quick: bool) -> list[Figure]:
    """Figures of each format and of all together, of the whole decode stage, and of voice detection."""
    return measured(seconds=120.0 if quick else 600.0, rounds=3 if quick else 15)


def measured(*, seconds: float, rounds: int) -> list[Figure]:
    """The same of recordings of so many seconds, in so many rounds."""
    with tempfile.TemporaryDirectory(prefix="benchmark-decode-") as place, ChildDecoder() as child, _one_core():
        speeds = {
            name: take_turns(_timed(_arms(name, path, child)), rounds=rounds)
            for name, path in make_files(Path(place), seconds).items()
        }
        heard = take_turns(_timed({"vad": _hearing(min(seconds, 120.0))}), rounds=rounds)["vad"]
    bare = {name: one["bare"] for name, one in speeds.items()}
    rows = []
    for title, arm in (("decode/bare", "decode"), ("decode-isolated/bare", "isolated"), ("decode-stage/bare", "stage")):
        mine = {name: one[arm] for name, one in speeds.items()}
        rows.append(figure(title, _together(mine), _together(bare)))
        rows += [figure(f"{title}:{name}", mine[name], bare[name]) for name in FORMATS]
    rows.append(figure("decode/bare-pyav:opus", speeds["opus"]["decode"], speeds["opus"]["own"]))
    middle = statistics.median(heard)
    return [
        *rows,
        Figure(name="vad-x-realtime", ratio=middle, median=middle, spread=spread_of(heard), unit="x real time"),
    ]


def _together(speeds: dict[str, list[float]]) -> list[float]:
    """Round by round the speed through as much audio of each format."""
    return [statistics.harmonic_mean(of_a_round) for of_a_round in zip(*speeds.values(), strict=True)]


def _timed(arms: dict[str, Arm]) -> dict[str, Callable[[], float]]:
    def timed(arm: Arm) -> Callable[[], float]:
        arm()

        def speed() -> float:
            samples, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < LEAST_S:
                samples += arm()
            return samples / RATE / took

        return speed

    return {name: timed(arm) for name, arm in arms.items()}


def _arms(name: str, path: Path, child: ChildDecoder) -> dict[str, Arm]:
    recording = serpipe.read_manifest(str(path))
    bare = _bare(name, path)
    stage = serpipe.Decode(segmentation="vad", pack_seconds=60.0)
    return {
        "bare": lambda: bare(path),
        "decode": lambda: sum(block.shape[1] for block in Decoding(str(path))),
        "isolated": lambda: sum(block.shape[1] for block in child.decode(str(path), "mix")),
        "stage": lambda: _packed(stage, recording),
        **({"own": lambda: bare_pyav(path, reference=False)} if name == "opus" else {}),
    }


def _bare(name: str, path: Path) -> Callable[[Path], int]:
    """The bare loop that a format is held against."""
    if name not in ("flac", "mp3", "opus"):
        return bare_pyav if name == "m4a" else bare_soundfile
    speeds = _timed({"soundfile": lambda: bare_soundfile(path), "pyav": lambda: bare_pyav(path)})
    return bare_soundfile if speeds["soundfile"]() > speeds["pyav"]() else bare_pyav


def _packed(stage: serpipe.Decode, recording: pa.Table) -> int:
    packs = list(stage(recording))
    return round(sum(one["duration_s"] for pack in packs for one in pack["recordings"][0].as_py()) * RATE)


def _hearing(seconds: float) -> Arm:
    samples = _spoken(seconds, RATE, 0)

    def hear() -> int:
        detector = SpeechDetector()
        detector.push(samples)
        detector.finish()
        return len(samples)

    return hear


@contextmanager
def _one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def make_files(folder: Path, seconds: float) -> dict[str, Path]:
    """One recording of each format, of so many seconds."""
    paths = {}
    for name, (file, rate, channels) in FORMATS.items():
        paths[name] = folder / file
        samples = np.stack([_spoken(seconds, rate, channel) for channel in range(channels)], axis=1)
        _write(paths[name], samples, rate)
    return paths


def _spoken(seconds: float, rate: int, seed: int) -> Samples:
    return np.resize(voice.heard.speech(VOICE_S, rate=rate, seed=seed), round(seconds * rate))


def _write(path: Path, samples: Samples, rate: int) -> None:
    if path.suffix != ".m4a":
        voice.write_samples(path, samples, rate)
        return
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", "stereo")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def bare_soundfile(path: Path) -> int:
    """Samples at 16 kHz, by soundfile and soxr."""
    done = 0
    with soundfile.SoundFile(path) as file:
        resampler = None if file.samplerate == RATE else soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
        buffer = np.empty((BLOCK, file.channels), np.float32)
        while len(block := file.read(out=buffer)):
            mono = block[:, 0] if file.channels == 1 else (block[:, 0] + block[:, 1]) / 2
            done += len(mono if resampler is None else resampler.resample_chunk(mono))
    return done


def bare_pyav(path: Path, *, reference: bool = True) -> int:
    """Samples at 16 kHz, by PyAV and soxr; of Opus by the reference decoder, or by FFmpeg's own."""
    done = 0
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = None if stream.rate == RATE else soxr.ResampleStream(stream.rate, RATE, 1, dtype="float32")
        for block in _blocks(_frames(container, stream, reference=reference)):
            mono = block[0] if len(block) == 1 else (block[0] + block[1]) / 2
            done += len(mono if resampler is None else resampler.resample_chunk(mono))
    return done


def _frames(container: Any, stream: Any, *, reference: bool) -> Iterator[av.AudioFrame]:
    decoder = stream.codec_context
    if reference and decoder.name == "opus":
        decoder = av.CodecContext.create("libopus", "r")
        decoder.layout, decoder.extradata = stream.layout, stream.codec_context.extradata
        decoder.options = {"request_sample_fmt": "flt"}
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _blocks(frames: Iterator[av.AudioFrame]) -> Iterator[Samples]:
    waiting: list[Samples] = []
    samples = 0
    for frame in frames:
        array = frame.to_ndarray()
        if array.dtype == np.int16:
            array = array.astype(np.float32) / 32_768
        waiting.append(array)
        samples += array.shape[1]
        if samples >= BLOCK:
            yield np.concatenate(waiting, axis=1)
            waiting, samples = [], 0
    if waiting:
        yield np.concatenate(waiting, axis=1)
