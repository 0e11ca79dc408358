"""What one would use instead, on the same audio: Transformers' pipeline and FunASR's generate.

Each loads the same checkpoint from the same folder and labels the same utterances in the order they come, in float32,
as their documentation shows it, in a process of its own that no setting of serpipe reaches; the pipeline with the batch
size that suits it best. serpipe runs in float32 and in what `--dtype auto` stands for after a certificate.

The weights are random, and random heads are scaled up until they tell clips apart. That magnifies what rounding does:
rounding the weights alone to bfloat16 moves all logits of HuBERT large together by an eighth of their spread. The
certificates here allow `DRIFT` therefore, not the 0.02 that stands for trained weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import voice
from benchmarks.figures import Figure, figure, take_turns
from benchmarks.material import Size, checkpoint, kept, lengths
from benchmarks.models import MAIN, begin, labelling, timed
from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.registry import ModelRef, resolve

EMOTION2VEC = "emotion2vec-plus-base"

DRIFT = 0.25
"""Change of a score that the certificates of random weights allow."""


SECONDS = {"cpu": (20.0, 120.0), "cuda": (1200.0, 2400.0)}
"""Of utterances, quick or not: on a GPU some batches of the largest size."""

BATCH_SIZES = {"cpu": ((1, 4), (1, 2, 4, 8)), "cuda": ((1, 16, 64), (1, 8, 16, 32, 64))}
"""That the pipeline is tried with, quick or not; the fastest counts."""


def measure(*, quick: bool) -> list[Figure]:
    """Hold serpipe against each peer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [row for peer in PEERS for row in figures_of(peer, device, quick=quick)]


def figures_of(peer: str, device: str, *, quick: bool, size: Size = "full") -> list[Figure]:
    """Hold serpipe against a peer, at `--dtype auto` and, as `:float32`, in the format of the peer.

    Args:
        peer: of `PEERS`.
        device: `cpu` or `cuda`, for both.
        quick: three rounds of less audio, the pipeline in fewer batch sizes.
        size: of the network; a tiny one tries the benchmark, not the models.

    Raises:
        ModelError: `MODEL_BACKEND_UNUSABLE`, the peer is not installed.
    """
    begin(device)
    clips = spoken(SECONDS[device][not quick])
    name, make = PEERS[peer]
    arms = {"auto": auto(name, device, size), "float32": resolve(checkpoint(name, size))}
    running = {dtype: labelling(model.load(device), clips, device) for dtype, model in arms.items()}
    with apart(make, checkpoint(name, size).partition("=")[2], clips, device, BATCH_SIZES[device][not quick]) as other:
        speeds = take_turns({**running, "peer": other}, rounds=3 if quick else 5)
    return [
        figure(f"peer/{peer}", speeds["auto"], speeds["peer"]),
        figure(f"peer/{peer}:float32", speeds["float32"], speeds["peer"]),
    ]


def spoken(seconds: float, by: voice.Voice | None = None) -> list[NDArray[np.float32]]:
    """Utterances."""
    who = by or voice.heard
    return [who.speech(length, rate=SAMPLE_RATE, seed=number) for number, length in enumerate(lengths(seconds))]


def auto(name: str, device: str, size: Size = "full") -> ModelRef:
    """A model in the format that `--dtype auto` takes; its certificate is made where none stands."""
    from serpipe.models.certificate import best_dtype, certify

    os.environ["SERPIPE_CACHE"] = str(kept() / "cache")
    model = resolve(checkpoint(name, size))
    if "models certify" in best_dtype(model, device)[1]:
        # Of made speech whatever else is heard: what random weights do to a few clips says nothing of anybody's own.
        certify(model, spoken(12.0, voice.Voice()), device=device, drift=DRIFT, per_bucket=1)
    return resolve(checkpoint(name, size), dtype=best_dtype(model, device)[0])


@contextmanager
def apart(make: Callable[..., Callable[[], float]], *arguments: object) -> Iterator[Callable[[], float]]:
    """What a peer measures, measured in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_settle, initargs=(make, arguments)) as pool:
        yield lambda: pool.submit(_measured).result()


_arms: list[Callable[[], float]] = []
"""Of the peer whose process this is."""


def _settle(make: Callable[..., Callable[[], float]], arguments: Sequence[object]) -> None:
    _arms.append(make(*arguments))


def _measured() -> float:
    (arm,) = _arms
    return arm()


def pipeline(
    directory: str, clips: Sequence[NDArray[np.float32]], device: str, batch_sizes: Sequence[int]
) -> Callable[[], float]:
    """`transformers.pipeline` at the best of some batch sizes; gives seconds of audio a second."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    classify: Any = transformers.pipeline(
        "audio-classification", model=directory, feature_extractor=directory, dtype=torch.float32, device=device
    )

    def labels(those: Sequence[NDArray[np.float32]], size: int) -> Callable[[], float]:
        # Made anew each time, for the pipeline empties the dictionaries that it is given.
        return timed(
            lambda: classify([{"raw": clip, "sampling_rate": SAMPLE_RATE} for clip in those], batch_size=size), those
        )

    classify({"raw": clips[0], "sampling_rate": SAMPLE_RATE})
    some = clips[: max(batch_sizes[-1], len(clips) // 2)]
    speeds = {size: labels(some, size)() for size in batch_sizes}
    return labels(clips, max(speeds, key=lambda size: speeds[size]))


def generate(
    directory: str, clips: Sequence[NDArray[np.float32]], device: str, _batch_sizes: Sequence[int]
) -> Callable[[], float]:
    """`generate` of FunASR, one utterance at a time whatever its batch size; gives seconds of audio a second."""
    from funasr import AutoModel

    # It tells of every tensor, whatever its own level of logging.
    logging.disable()
    # FunASR sets the number of threads at every call.
    threads = len(os.sched_getaffinity(0))
    model = AutoModel(
        model=directory,
        device=device,
        ncpu=threads,
        disable_update=True,
        disable_pbar=True,
        disable_log=True,
        log_level="ERROR",
    )
    run = timed(lambda: model.generate(list(clips), granularity="utterance"), clips)
    run()
    return run


PEERS = {"transformers": (MAIN, pipeline), "funasr": (EMOTION2VEC, generate)}
"""The model that both run, and what makes the peer ready."""
