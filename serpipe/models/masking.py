"""Padding without a trace: lengths in frames, masks, and means that see valid frames only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models.contract import SAMPLE_RATE, ModelSpec, Outputs

CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""(kernel, stride) of the front-end that wav2vec 2.0, HuBERT, WavLM and emotion2vec share: 400 samples, then 320."""

Length = TypeVar("Length", int, Tensor)


def frame_count(samples: Length) -> Length:
    """Frames that the shared front-end makes of a number of samples, layer by layer.

    Args:
        samples: at least 400; an int or a tensor of ints.

    Examples:
        >>> frame_count(400), frame_count(16_000)
        (1, 49)
    """
    for kernel, stride in CONVOLUTIONS:
        samples = (samples - kernel) // stride + 1
    return samples


def pad(waveforms: Sequence[NDArray[np.float32]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Waveforms as one zero-padded batch.

    Returns:
        float32 (n, longest) and int64 (n,) lengths, both on the device.
    """
    sizes = [len(waveform) for waveform in waveforms]
    # Only from pinned memory does a copy to a GPU run beside its kernels.
    pinned = torch.device(device).type == "cuda"
    lengths = torch.tensor(sizes, pin_memory=pinned)
    batch = torch.zeros(len(sizes), max(sizes), pin_memory=pinned)
    rows = batch.numpy()
    for row, waveform in zip(rows, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return batch.to(device, non_blocking=pinned), lengths.to(device, non_blocking=pinned)


def even(waveforms: Sequence[NDArray[np.float32]]) -> bool:
    """Whether the shared front-end makes equally many frames of each; told here, or a GPU would be waited for.

    Examples:
        >>> even([np.zeros(400), np.zeros(719)]), even([np.zeros(400), np.zeros(720)])
        (True, False)
    """
    sizes = [len(waveform) for waveform in waveforms]
    return frame_count(min(sizes)) == frame_count(max(sizes))


def valid(lengths: Tensor, size: int) -> Tensor:
    """Which of `size` places hold something: bool (n, size)."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def masked_mean(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid frames: (n, frames, width) and bool (n, frames) give (n, width)."""
    weights = mask.unsqueeze(-1).to(frames.dtype)
    return (frames * weights).sum(1) / weights.sum(1)


def standardised(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit variance, as Wav2Vec2FeatureExtractor does it: population variance, 1e-7 beneath the root."""
    scaled: NDArray[np.float32] = ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)).astype(np.float32)
    return scaled


def refuse_lengths(waveforms: Sequence[NDArray[np.float32]], spec: ModelSpec) -> None:
    """Refuse segments outside a model's valid seconds.

    Raises:
        ModelError: `MODEL_SEGMENT_LENGTH`.
    """
    shortest, longest = round(spec.min_seconds * SAMPLE_RATE), round(spec.max_seconds * SAMPLE_RATE)
    for position, waveform in enumerate(waveforms):
        if not shortest <= len(waveform) <= longest:
            raise ModelError(
                "MODEL_SEGMENT_LENGTH",
                f"model {spec.name!r} takes {shortest} to {longest} samples at {SAMPLE_RATE} Hz, and segment "
                f"{position} of this batch has {len(waveform)}; leave short segments out, and window long ones",
            )


def nothing(spec: ModelSpec, *, frames: bool) -> Outputs:
    """What a model gives for no segments."""
    logits = np.zeros((0, len(spec.labels)), np.float32)
    embeddings = np.zeros((0, spec.embedding_width), np.float32)
    return Outputs(logits, logits.copy(), embeddings, [] if frames else None)
