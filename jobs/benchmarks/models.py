"""The model side alone: a network packed perfectly, and its adapter on utterances as long as they come.

The bare network is the adapter's own, on the device and in the format it runs in, fed with rows of equal length that
are on the device already: no padding, no masks, no sorting, nothing to normalise or to hand out. On a CPU that is no
easy measure: the same network is a fifth to a third faster there than Transformers' own class, which `peers` holds
serpipe against.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.figures import Figure, figure, take_turns
from benchmarks.material import Size, checkpoint, lengths
from serpipe.allocator import keep_freed_memory
from serpipe.errors import ModelError
from serpipe.models import batching, budget, lanes
from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.exact import without_tf32
from serpipe.models.registry import resolve

MAIN = "hubert-large-superb-er"
"""The model whose ratio has no name of its own."""

MODELS = (
    MAIN,
    "wav2vec2-large-superb-er",
    "hubert-base-superb-er",
    "emotion2vec-plus-base",
    "emotion2vec-plus-large",
    "odyssey-categorical",
    "audeering-dim",
    "ehcalabres",
    "exhubert",
    "embedded",
)
"""A model of each family and size; others of a family have the same network."""

ROW_S = 6.0
"""Seconds of a row of the bare network: two of ExHuBERT's windows, about what an utterance has."""

ROWS = {"cpu": (1, 4), "cuda": (8, 32, 64)}
"""Rows of a batch that are tried; the fastest counts."""

SMALL_ROWS = (8, 32)
"""The same for a model so small that a call costs about as much as its work."""

MEASURE_S = {"full": 1.0, "tiny": 0.05}
"""How long the bare network runs for one measurement."""

QUICK_S, LONG_S = {"full": 30.0, "tiny": 6.0}, {"full": 120.0, "tiny": 6.0}
"""Seconds of utterances that the adapter labels for one; a GPU and a small model get more."""

PACK_S = 300.0
"""Seconds of audio in a pack for a GPU: `serpipe.audio.recording.UNIT_S`, whose module wants a codec."""

ROUNDS = 5

WARM_S, WARM_AUDIO_S = {"cpu": 0.0, "cuda": 30.0}, 4.0
"""How long the size of a micro-batch is sought, at most, and the audio that is labelled first, at least. On a CPU sizes
are about as good as each other, and the one that a run begins with is measured."""


def measure(*, quick: bool) -> list[Figure]:
    """The adapter over its bare network: one model in the format that is fastest here, or every model in every one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if quick:
        return figures_of(MAIN, device, fast_dtype(device), quick=True)
    return [row for name in MODELS for dtype in dtypes(device) for row in figures_of(name, device, dtype, quick=False)]


def dtypes(device: str) -> tuple[str, ...]:
    """Number formats that are worth measuring on a device."""
    return ("float32", "bfloat16", "float16") if device == "cuda" else ("float32", "bfloat16")


def fast_dtype(device: str) -> str:
    """The format that a certificate finds fastest here, should it pass."""
    fast = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast else "float32"


def figures_of(
    name: str, device: str, dtype: str, *, quick: bool, named: bool = False, size: Size = "full"
) -> list[Figure]:
    """`adapter/model` of one model; on a GPU also the share of the peak that its bare network reaches.

    Args:
        name: the model.
        device: `cpu` or `cuda`.
        dtype: number format; one that the model refuses gives no figures.
        quick: rounds of half a minute of audio instead of two.
        named: whether the figure of the main model says its name too.
        size: of the network; a tiny one tries the benchmark, not the model.

    Raises:
        ModelError: `MODEL_BACKEND_UNUSABLE`, what the model is built on is not installed.
    """
    begin(device)
    try:
        adapter = resolve(name if name == "embedded" else checkpoint(name, size), dtype=dtype).load(device)
    except ModelError as error:
        if error.code != "MODEL_DTYPE_UNSUPPORTED":
            raise
        return []
    clips = utterances(
        (QUICK_S if quick else LONG_S)[size] * (20 if device == "cuda" else 4 if name == "embedded" else 1)
    )
    bare = fastest_batch(adapter, device, dtype, measure_s=MEASURE_S[size])
    speeds = take_turns({"adapter": labelling(adapter, clips, device), "model": bare}, rounds=ROUNDS)
    main = (name, dtype) == (MAIN, fast_dtype(device)) and not named
    own = "" if main else f":{name}:{dtype}"
    found = [figure(f"adapter/model{own}", speeds["adapter"], speeds["model"])]
    if device == "cuda":
        per_second = flops(adapter, device, dtype) / ROW_S
        rates = [per_second * speed for speed in speeds["model"]]
        found.append(figure(f"model/peak:{name}:{dtype}", rates, [peak(dtype)] * ROUNDS, unit="FLOP/s"))
    return found


def begin(device: str) -> None:
    """Settings that the model stage makes too; what else runs in this process profits from them as well."""
    without_tf32()
    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        keep_freed_memory()


def utterances(seconds: float) -> list[NDArray[np.float32]]:
    """Noise as long as utterances are; what a network hears does not change how long it takes."""
    noise = np.random.default_rng(0)
    return [0.1 * noise.standard_normal(round(length * SAMPLE_RATE), np.float32) for length in lengths(seconds)]


def labelling(adapter: Any, clips: Sequence[NDArray[np.float32]], device: str) -> Callable[[], float]:
    """What labels clips, all in one call of what the model stage calls for a pack, and gives audio seconds a second."""
    sizes, side_by_side = budget.for_model(adapter.spec.parameters, device), lanes.for_device(device)

    def label(those: Sequence[NDArray[np.float32]]) -> float:
        meter = lanes.Meter()
        batching.run(adapter, those, budget_s=sizes.seconds, lanes=side_by_side, meter=meter)
        return meter.busy_s

    label(beginning(clips, WARM_AUDIO_S))
    began = time.perf_counter()
    while not sizes.settled and time.perf_counter() - began < WARM_S[device]:
        # As much as an actor gets at a time: it bounds a micro-batch there, too.
        some = beginning(clips, PACK_S)
        sizes.record(sizes.seconds, audio_s=sum(map(len, some)) / SAMPLE_RATE, busy_s=label(some))
    return timed(lambda: label(clips), clips)


def beginning(clips: Sequence[NDArray[np.float32]], seconds: float) -> list[NDArray[np.float32]]:
    """As many of the first clips as are together so long, or all."""
    ends = np.cumsum([len(clip) / SAMPLE_RATE for clip in clips])
    return list(clips[: int(np.searchsorted(ends, seconds)) + 1])


def timed(run: Callable[[], object], clips: Sequence[NDArray[np.float32]]) -> Callable[[], float]:
    """What runs, and gives seconds of audio a second."""
    seconds = sum(map(len, clips)) / SAMPLE_RATE

    def arm() -> float:
        began = time.perf_counter()
        run()
        return seconds / (time.perf_counter() - began)

    return arm


def fastest_batch(adapter: Any, device: str, dtype: str, *, measure_s: float) -> Callable[[], float]:
    """The bare network in the batch that suits it best; gives seconds of audio a second.

    Raises:
        torch.OutOfMemoryError: not even the smallest batch fits.
    """
    sizes = SMALL_ROWS if adapter.spec.parameters < budget.SMALL_PARAMETERS else ROWS[device]
    arms: dict[float, Callable[[], float]] = {}
    for rows in sizes:
        arm = repeated(packed(adapter, rows, device, dtype), rows, device, measure_s=measure_s)
        try:
            arms[max(arm(), arm())] = arm
        except torch.OutOfMemoryError:
            if not arms:
                raise
    return arms[max(arms)]


def packed(adapter: Any, rows: int, device: str, dtype: str) -> Callable[[], object]:
    """One batch of equal rows through the network of an adapter."""
    length = round(ROW_S * SAMPLE_RATE)
    waveforms = (0.1 * torch.randn(rows, length)).to(device)
    sizes = torch.full((rows,), length, device=device)
    network, kind = adapter._network, getattr(torch, dtype)
    if adapter.spec.name == "embedded":
        front = adapter._front
        return lambda: network(*(part.to(kind) for part in front(waveforms, sizes)))
    if adapter.spec.name == "exhubert":
        windows = waveforms.view(2 * rows, -1).to(kind)
        return lambda: network(windows)
    inputs: Tensor = waveforms.to(kind)
    return lambda: network(inputs, sizes, even=True)


def repeated(run: Callable[[], object], rows: int, device: str, *, measure_s: float) -> Callable[[], float]:
    """What runs a batch about so long, or once, and gives seconds of audio a second.

    The first measurement finds out how many batches that are, and waits for each; the others wait for the last alone.
    """
    found: list[int] = []

    def done() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def arm() -> float:
        began, batches = time.perf_counter(), 0
        while batches < found[0] if found else time.perf_counter() - began < measure_s:
            run()
            batches += 1
            if not found:
                done()
        done()
        found[:] = [batches]
        return batches * rows * ROW_S / (time.perf_counter() - began)

    return arm


def flops(adapter: Any, device: str, dtype: str) -> int:
    """Multiplications and additions of one row of the bare network."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        packed(adapter, 1, device, dtype)()
    return int(counter.get_total_flops())


def peak(dtype: str, *, size: int = 8192) -> float:
    """FLOP a second of a large matrix product on the GPU."""
    left, right = (torch.randn(size, size, device="cuda", dtype=getattr(torch, dtype)) for _ in range(2))
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            left @ right
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - began))
    return best
