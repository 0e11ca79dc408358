"""The parts of the pipeline without the pipeline: a loop that decodes, a loop that labels, one process a core.

    python jobs/benchmarks/bare.py MODEL DTYPE PACK_S CODEC FILE...

Loads the model, says `ready`, waits for a line, decodes every file with the codec and soxr, runs the network over all
of it cut into equal pieces, and prints the seconds of audio.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000

PIECE_S = 5.0
"""Seconds of one row of a batch; every row is as long, so that nothing is padding."""


Codec = Literal["soundfile", "libopus"]
"""What decodes; `libopus` is PyAV's, and takes Opus of one channel alone."""


def decoded(path: str, codec: Codec) -> NDArray[np.float32]:
    """A file as mono at 16 kHz, read at once."""
    import soxr

    samples, rate = _by_libopus(path) if codec == "libopus" else _by_soundfile(path)
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)


def _by_soundfile(path: str) -> tuple[NDArray[np.float32], int]:
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0], rate


def _by_libopus(path: str) -> tuple[NDArray[np.float32], int]:
    import av

    with av.open(path) as container:
        stream = container.streams.audio[0]
        decoder: Any = av.CodecContext.create("libopus", "r")
        decoder.layout, decoder.extradata = stream.layout, stream.codec_context.extradata
        decoder.options = {"request_sample_fmt": "flt"}
        frames = [frame.to_ndarray()[0] for packet in container.demux(stream) for frame in decoder.decode(packet)]
        return np.concatenate(frames), decoder.sample_rate


def network(model: str, dtype: str) -> Callable[[NDArray[np.float32]], object]:
    """The network by itself, serpipe's own that is faster than the stock one, on (rows, samples) of equal length.

    It runs as the model stage has it run: freed memory is kept, and nothing is rounded to TF32.
    """
    import torch

    from serpipe.allocator import keep_freed_memory
    from serpipe.models.exact import without_tf32
    from serpipe.models.registry import resolve

    torch.set_num_threads(1)
    without_tf32()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = resolve(model, dtype=dtype).load(device)
    if device == "cpu":
        keep_freed_memory()

    def run(rows: NDArray[np.float32]) -> object:
        return adapter.forward(list(rows), frames=False)

    return run


def label(run: Callable[[NDArray[np.float32]], object], files: Sequence[str], pack_s: float, codec: Codec) -> float:
    """Decode and label files; the seconds of audio that they hold."""
    held: list[NDArray[np.float32]] = []
    piece, rows = round(PIECE_S * SAMPLE_RATE), max(1, round(pack_s / PIECE_S))
    samples, waiting = 0, 0
    for path in files:
        held.append(decoded(path, codec))
        samples, waiting = samples + len(held[-1]), waiting + len(held[-1])
        if waiting >= rows * piece:
            every = np.concatenate(held)
            full = len(every) // (rows * piece) * rows * piece
            for batch in every[:full].reshape(-1, rows, piece):
                run(batch)
            held, waiting = [every[full:]], len(every) - full
    rest = np.concatenate(held)
    if len(rest) >= piece:
        run(rest[: len(rest) // piece * piece].reshape(-1, piece))
    if len(rest) % piece >= 400:
        run(rest[-(len(rest) % piece) :][None])
    return samples / SAMPLE_RATE


def dealt(files: Sequence[str], processes: int) -> list[list[str]]:
    """Files for each process, so that all have about as much audio: none waits for the others at the end."""
    import soundfile

    shares: list[list[str]] = [[] for _ in range(processes)]
    given = [0.0] * processes
    for length, path in sorted(((soundfile.info(path).duration, path) for path in files), reverse=True):
        least = given.index(min(given))
        shares[least].append(path)
        given[least] += length
    return shares


def label_with_every_core(
    model: str, dtype: str, files: Sequence[str], *, pack_s: float, processes: int, codec: Codec = "soundfile"
) -> float:
    """Label files in so many processes; the seconds of audio that they do in a second, loading left out."""
    command = [sys.executable, __file__, model, dtype, str(pack_s), codec]
    workers = [
        subprocess.Popen([*command, *share], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for share in dealt(files, processes)
    ]
    try:
        for worker in workers:
            _line(worker)
        began = time.monotonic()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        seconds = sum(float(_line(worker)) for worker in workers)
        return seconds / (time.monotonic() - began)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a bare loop ended before its work did; its error is above")
    return line


def _main(model: str, dtype: str, pack_s: str, codec: Codec, *files: str) -> None:
    # As nice as Ray's workers: on a machine that is busy an arm that is not would win by that alone.
    os.nice(15)
    run = network(model, dtype)
    run(np.zeros((1, round(PIECE_S * SAMPLE_RATE)), np.float32))
    print("ready", flush=True)
    sys.stdin.readline()
    print(label(run, files, float(pack_s), codec), flush=True)


if __name__ == "__main__":
    model, dtype, pack_s, codec, *files = sys.argv[1:]
    _main(model, dtype, pack_s, cast(Codec, codec), *files)
