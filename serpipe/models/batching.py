"""Any number of segments through an adapter: sorted by length, in micro-batches, halved when memory runs out.

The order of the results is the order of the segments. Which segments share a micro-batch changes no number, because
an adapter promises that; so nothing here has to be deterministic about sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from serpipe.models.contract import SAMPLE_RATE, Adapter, OnEmbeddings, Outputs
from serpipe.models.lanes import Lanes, Meter


def micro_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut segments into micro-batches, longest first.

    Args:
        lengths: samples of each segment.
        budget: most samples of one micro-batch after padding; a longer segment goes alone.

    Yields:
        Positions, together every one once.

    Examples:
        >>> list(micro_batches([10, 40, 20, 15], budget=60))
        [[1], [2, 3, 0]]
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def run(
    adapter: Adapter,
    waveforms: Sequence[NDArray[np.float32]],
    *,
    budget_s: float,
    frames: bool = False,
    lanes: Lanes | None = None,
    meter: Meter | None = None,
) -> Outputs:
    """Label segments.

    Args:
        adapter: a loaded model.
        waveforms: float32 mono at 16 kHz; a segment longer than the spec's `max_seconds` is windowed, and its
            windows' logits, scores, embeddings and frames pooled by their length; an adapter `OnEmbeddings` answers the
            pooled embeddings.
        budget_s: most seconds of one micro-batch after padding.
        frames: whether frame embeddings are wanted.
        lanes: what works on micro-batches; the caller alone by default.
        meter: is told how long they took.

    Returns:
        One row per segment, in the order given.
    """
    spec = adapter.spec
    pieces: list[NDArray[np.float32]] = []
    owners: list[int] = []
    for owner, waveform in enumerate(waveforms):
        for piece in windows(waveform, round(spec.max_seconds * SAMPLE_RATE), round(spec.min_seconds * SAMPLE_RATE)):
            pieces.append(piece)
            owners.append(owner)
    outputs = _run_pieces(adapter, pieces, round(budget_s * SAMPLE_RATE), frames, lanes or Lanes(), meter)
    if len(pieces) == len(waveforms):
        return outputs
    pooled = _pool(outputs, pieces, owners, len(waveforms))
    if isinstance(adapter, OnEmbeddings):
        # As of the embedding that is stored; the mean of the answers of windows is another one.
        logits, scores = adapter.answer(pooled.embeddings)
        return replace(pooled, logits=logits, scores=scores)
    return pooled


def join(outputs: Sequence[Outputs]) -> Outputs:
    """Results of several calls as those of one."""
    frames = None if outputs[0].frames is None else [rows for one in outputs for rows in one.frames or ()]
    return Outputs(
        np.concatenate([one.logits for one in outputs]),
        np.concatenate([one.scores for one in outputs]),
        np.concatenate([one.embeddings for one in outputs]),
        frames,
    )


def windows(waveform: NDArray[np.float32], longest: int, shortest: int) -> list[NDArray[np.float32]]:
    """Cut a segment into equal windows no longer than a model takes.

    Examples:
        >>> [len(window) for window in windows(np.zeros(70, np.float32), longest=30, shortest=5)]
        [24, 23, 23]
    """
    count = max(1, -(-len(waveform) // max(longest, shortest)))
    return np.array_split(waveform, count) if count > 1 else [waveform]


def _run_pieces(
    adapter: Adapter,
    pieces: Sequence[NDArray[np.float32]],
    budget: int,
    frames: bool,
    lanes: Lanes,
    meter: Meter | None,
) -> Outputs:
    spec = adapter.spec
    count = len(pieces)
    logits = np.zeros((count, len(spec.labels)), np.float32)
    scores = np.zeros_like(logits)
    embeddings = np.zeros((count, spec.embedding_width), np.float32)
    by_frame: list[NDArray[np.float32]] = [np.zeros((0, spec.embedding_width), np.float32)] * count
    batches = micro_batches([len(piece) for piece in pieces], budget)
    for made in lanes.map(partial(_forward, adapter, pieces, frames), batches, meter=meter):
        for part, out in made:
            logits[part], scores[part], embeddings[part] = out.logits, out.scores, out.embeddings
            for position, value in zip(part, out.frames or (), strict=False):
                by_frame[position] = value
    return Outputs(logits, scores, embeddings, by_frame if frames else None)


def _forward(
    adapter: Adapter, pieces: Sequence[NDArray[np.float32]], frames: bool, batch: list[int]
) -> list[tuple[list[int], Outputs]]:
    """One micro-batch, or its halves where memory runs out: positions and their results."""
    try:
        return [(batch, adapter.forward([pieces[i] for i in batch], frames=frames))]
    except RuntimeError as error:
        # torch.OutOfMemoryError is a RuntimeError; naming it would import torch here.
        if type(error).__name__ != "OutOfMemoryError" or len(batch) == 1:
            raise
    # Out here, where the error and the tensors that its traceback holds are gone.
    half = len(batch) // 2
    return _forward(adapter, pieces, frames, batch[:half]) + _forward(adapter, pieces, frames, batch[half:])


def _pool(outputs: Outputs, pieces: Sequence[NDArray[np.float32]], owners: Sequence[int], count: int) -> Outputs:
    weights = np.array([len(piece) for piece in pieces], np.float64)
    totals = np.bincount(owners, weights, count)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        pooled = np.zeros((count, values.shape[1]))
        np.add.at(pooled, owners, values * weights[:, None])
        return (pooled / totals[:, None]).astype(np.float32)

    frames = None
    if outputs.frames is not None:
        frames = [
            np.concatenate([outputs.frames[i] for i, owner in enumerate(owners) if owner == segment])
            for segment in range(count)
        ]
    return Outputs(mean(outputs.logits), mean(outputs.scores), mean(outputs.embeddings), frames)
