"""The embedded network: log-mel spectrogram, masked convolutions, statistics over time, four logits.

A waveform gets the same numbers alone and in a batch because nothing reads a pad: frames are only those whose
window lies inside the waveform, loudness and statistics are taken over what is valid, normalisation is within
a frame, and pads are set to zero before each convolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 400
"""Samples that a frame sees: 25 ms."""
HOP = 320
"""Samples from frame to frame: 20 ms, the 50 Hz grid of wav2vec 2.0 and its relatives."""
MELS = 64
WIDTH = 64
"""Channels of a frame, and length of the utterance embedding."""
CLASSES = 4

_SAMPLE_RATE = 16_000
_FFT = 512
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0
_MEL_FLOOR = 1e-3
"""Added to the mel power of a waveform at unit RMS, so that what lies far below speech looks the same."""
_RMS_FLOOR = 1e-5
"""Below one step of 16-bit audio; digital silence stays silence instead of becoming 0 / 0."""
_VARIANCE_FLOOR = 1e-4
_DILATIONS = (1, 1, 2, 3)


def frame_count(samples: int) -> int:
    """Number of frames of a waveform: every window that fits whole, `1 + (samples - 400) // 320`.

    Examples:
        >>> [frame_count(n) for n in (0, 399, 400, 719, 720, 480_000)]
        [0, 0, 1, 1, 2, 1499]
    """
    return max(0, 1 + (samples - WINDOW) // HOP)


def mel_filters() -> Tensor:
    """Triangular filters of height one as float32 (257 FFT bins, 64 mels), 60 to 7600 Hz.

    The scale is `2595 log10(1 + f / 700)` (O'Shaughnessy, Speech Communication, 1987), that of HTK.

    Examples:
        >>> mel_filters().shape
        torch.Size([257, 64])
    """
    low, high = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (_LOWEST_HZ, _HIGHEST_HZ))
    mels = torch.linspace(low, high, MELS + 2, dtype=torch.float64)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins = torch.arange(_FFT // 2 + 1, dtype=torch.float64)[:, None] * (_SAMPLE_RATE / _FFT)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0).float()


class LogMel(nn.Module):
    """Log-mel spectrogram of waveforms that are first brought to unit RMS, so that gain does not matter."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(WINDOW)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrogram and mask.

        Args:
            waveforms: float32 (batch, samples), zero from each waveform's length on.
            lengths: int64 (batch,), samples that are valid, at least `WINDOW`.

        Returns:
            Natural logarithm of mel power, float32 (batch, frames, 64), and the mask, float32
            (batch, frames, 1): one where a frame is valid, else zero. What stands there is finite.
        """
        power = waveforms.double().square().sum(dim=1) / lengths
        rms = power.sqrt().clamp(min=_RMS_FLOOR).float()
        framed = (waveforms / rms[:, None]).unfold(1, WINDOW, HOP) * self.window
        spectrum = torch.fft.rfft(framed, n=_FFT)
        mels = (spectrum.real.square() + spectrum.imag.square()) @ self.filters
        counts = 1 + (lengths - WINDOW) // HOP
        mask = torch.arange(mels.shape[1], device=mels.device)[None, :] < counts[:, None]
        return torch.log(mels + _MEL_FLOOR), mask[:, :, None].float()


class _Block(nn.Module):
    """Convolution over time, normalised within each frame; residual where the widths agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.convolution = nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation)
        self.norm = nn.LayerNorm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.residual = inputs == outputs

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.convolution((frames * mask).transpose(1, 2)).transpose(1, 2)
        hidden = self.dropout(functional.gelu(self.norm(hidden)))
        return frames + hidden if self.residual else hidden


def _mean_and_deviation(frames: Tensor, weights: Tensor) -> Tensor:
    """(batch, 2 width) from (batch, frames, width) and weights (batch, frames, 1) that sum to one."""
    mean = (frames * weights).sum(dim=1)
    variance = ((frames - mean[:, None, :]).square() * weights).sum(dim=1)
    return torch.cat([mean, (variance + _VARIANCE_FLOOR).sqrt()], dim=-1)


class NetworkOutputs(NamedTuple):
    """Logits (batch, 4), embeddings (batch, `WIDTH`), frames (batch, frames, `WIDTH`)."""

    logits: Tensor
    embeddings: Tensor
    frames: Tensor


class EmbeddedNetwork(nn.Module):
    """From a log-mel spectrogram to logits, an utterance embedding and frame embeddings."""

    mel_mean: Tensor
    mel_deviation: Tensor

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mel_mean", torch.zeros(MELS))
        self.register_buffer("mel_deviation", torch.ones(MELS))
        blocks = [_Block(MELS, WIDTH, 5, _DILATIONS[0], dropout)]
        blocks += [_Block(WIDTH, WIDTH, 3, dilation, dropout) for dilation in _DILATIONS[1:]]
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 1))
        self.pooled_norm = nn.LayerNorm(2 * MELS + 2 * WIDTH)
        self.embedding = nn.Linear(2 * MELS + 2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, log_mel: Tensor, mask: Tensor) -> NetworkOutputs:
        """Run the network.

        Args:
            log_mel: (batch, frames, 64) as from `LogMel`.
            mask: (batch, frames, 1) as from `LogMel`; every row has at least one valid frame.
        """
        mels = (log_mel - self.mel_mean) / self.mel_deviation
        frames = mels
        for block in self.blocks:
            frames = block(frames, mask)
        attention = self.attention(frames).masked_fill(mask == 0, -torch.inf).softmax(dim=1)
        uniform = mask / mask.sum(dim=1, keepdim=True)
        pooled = torch.cat([_mean_and_deviation(mels, uniform), _mean_and_deviation(frames, attention)], dim=-1)
        embeddings = self.embedding(self.dropout(self.pooled_norm(pooled)))
        logits = self.classifier(self.dropout(functional.gelu(embeddings)))
        return NetworkOutputs(logits, embeddings, frames)
