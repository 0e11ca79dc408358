"""Micro-batches, windows, out of memory: each segment gets its own numbers in its own place."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.models import batching
from serpipe.models.contract import SAMPLE_RATE, ModelSpec, Outputs

SPEC = ModelSpec(
    name="sums",
    hub_id=None,
    revision=None,
    licence="Apache-2.0",
    labels=("a", "b"),
    taxonomy="ekman",
    parameters=0,
    min_seconds=2 / SAMPLE_RATE,
    max_seconds=50 / SAMPLE_RATE,
    embedding_width=3,
    frame_rate=SAMPLE_RATE / 10,
    adapter_epoch=1,
)
"""Takes 2 to 50 samples; a frame is ten samples."""


class Sums:
    """Numbers that tell segments apart and can be computed by hand; memory for so many padded samples, no more."""

    spec = SPEC
    weights_sha256 = "0" * 64

    def __init__(self, memory: int = 1 << 30) -> None:
        self._memory = memory
        self.batches: list[list[int]] = []

    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        lengths = [len(waveform) for waveform in waveforms]
        held = np.zeros(3)
        if len(lengths) * max(lengths) > self._memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.")
        assert SPEC.max_seconds * SAMPLE_RATE >= max(lengths)
        self.batches.append(lengths)
        return Outputs(
            np.array([logits_of(waveform) for waveform in waveforms], np.float32),
            np.array([logits_of(waveform) / 10 for waveform in waveforms], np.float32),
            np.array([embedding_of(waveform) for waveform in waveforms], np.float32) + held.astype(np.float32),
            [frames_of(waveform) for waveform in waveforms] if frames else None,
        )


def logits_of(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array([waveform.mean(), waveform[0]], np.float64)


def embedding_of(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array([waveform.max(), waveform.min(), len(waveform)], np.float64)


def frames_of(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([waveform[: len(waveform) // 10 * 10 : 10]] * 3, axis=1).astype(np.float32)


def noise(lengths: Sequence[int], seed: int = 0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(length).astype(np.float32) for length in lengths]


@given(st.lists(st.integers(1, 500)), st.integers(1, 2000))
def test_every_segment_once_within_the_budget_longest_first(lengths: list[int], budget: int) -> None:
    batches = list(batching.micro_batches(lengths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    order = [lengths[position] for batch in batches for position in batch]
    assert order == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= budget
    for batch in batches[:-1]:
        # None was cut before it was full.
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@settings(deadline=None)
@given(st.lists(st.integers(2, 50), max_size=30), st.integers(1, 400), st.booleans())
def test_each_segment_gets_its_own_numbers_in_its_own_place(lengths: list[int], budget: int, frames: bool) -> None:
    waveforms = noise(lengths)
    outputs = batching.run(Sums(), waveforms, budget_s=budget / SAMPLE_RATE, frames=frames)
    assert outputs.logits.shape == (len(lengths), 2)
    assert outputs.embeddings.shape == (len(lengths), 3)
    for i, waveform in enumerate(waveforms):
        np.testing.assert_allclose(outputs.logits[i], logits_of(waveform), rtol=1e-6)
        np.testing.assert_allclose(outputs.scores[i], logits_of(waveform) / 10, rtol=1e-6)
        np.testing.assert_allclose(outputs.embeddings[i], embedding_of(waveform), rtol=1e-6)
    if frames:
        assert outputs.frames is not None
        for waveform, mine in zip(waveforms, outputs.frames, strict=True):
            np.testing.assert_array_equal(mine, frames_of(waveform))
    else:
        assert outputs.frames is None


@settings(deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=30), st.integers(50, 400))
def test_out_of_memory_halves_and_changes_nothing(lengths: list[int], memory: int) -> None:
    waveforms = noise(lengths)
    plenty, little = Sums(), Sums(memory)
    calm = batching.run(plenty, waveforms, budget_s=1.0, frames=True)
    tight = batching.run(little, waveforms, budget_s=1.0, frames=True)
    assert len(plenty.batches) == 1
    assert all(len(batch) * max(batch) <= memory for batch in little.batches)
    np.testing.assert_array_equal(calm.logits, tight.logits)
    np.testing.assert_array_equal(calm.embeddings, tight.embeddings)
    assert calm.frames is not None
    assert tight.frames is not None
    for left, right in zip(calm.frames, tight.frames, strict=True):
        np.testing.assert_array_equal(left, right)


def test_one_segment_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        batching.run(Sums(memory=30), noise([10, 40]), budget_s=1.0)


def test_other_errors_are_not_taken_for_out_of_memory() -> None:
    class Broken(Sums):
        def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
            self.batches.append([])
            raise RuntimeError("CUDA error: device-side assert triggered")

    broken = Broken()
    with pytest.raises(RuntimeError, match="device-side"):
        batching.run(broken, noise([10, 10]), budget_s=1.0)
    assert len(broken.batches) == 1


def test_what_a_failed_batch_held_is_free_before_the_halves_run() -> None:
    """The error's traceback holds the failed forward's tensors; kept alive, they would starve the halves too."""

    class Activations:
        pass

    class Hungry(Sums):
        held: weakref.ref[Activations] | None = None

        def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
            if len(waveforms) > 1:
                activations = Activations()
                self.held = weakref.ref(activations)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            gc.collect()
            assert self.held is not None
            assert self.held() is None
            return super().forward(waveforms, frames=frames)

    assert batching.run(Hungry(), noise([10, 20]), budget_s=1.0).logits.shape == (2, 2)


@given(st.integers(0, 5000), st.integers(1, 500), st.integers(1, 500))
def test_windows_are_equal_whole_and_no_longer_than_allowed(length: int, longest: int, shortest: int) -> None:
    waveform = np.arange(length, dtype=np.float32)
    pieces = batching.windows(waveform, longest, shortest)
    np.testing.assert_array_equal(np.concatenate(pieces), waveform)
    lengths = [len(piece) for piece in pieces]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(longest, shortest) or len(pieces) == 1
    assert len(pieces) == max(1, int(np.ceil(length / max(longest, shortest))))


def test_a_long_segment_is_windowed_and_pooled_by_length() -> None:
    """121 samples in windows of at most 50: 41, 40 and 40."""
    short, long = noise([30, 121])
    outputs = batching.run(Sums(), [short, long, short], budget_s=60 / SAMPLE_RATE, frames=True)
    cuts = [long[:41], long[41:81], long[81:]]
    weights = [41 / 121, 40 / 121, 40 / 121]
    expected = sum(weight * logits_of(cut) for weight, cut in zip(weights, cuts, strict=True))
    np.testing.assert_allclose(outputs.logits[1], expected, rtol=1e-5)
    np.testing.assert_allclose(outputs.scores[1], expected / 10, rtol=1e-5)
    vectors = sum(weight * embedding_of(cut) for weight, cut in zip(weights, cuts, strict=True))
    np.testing.assert_allclose(outputs.embeddings[1], vectors, rtol=1e-5)
    assert outputs.frames is not None
    np.testing.assert_array_equal(outputs.frames[1], np.concatenate([frames_of(cut) for cut in cuts]))
    for place in (0, 2):
        np.testing.assert_allclose(outputs.logits[place], logits_of(short), rtol=1e-6)
        np.testing.assert_array_equal(outputs.frames[place], frames_of(short))


def test_no_segments() -> None:
    outputs = batching.run(Sums(), [], budget_s=1.0, frames=True)
    assert outputs.logits.shape == outputs.scores.shape == (0, 2)
    assert outputs.embeddings.shape == (0, 3)
    assert outputs.frames == []
