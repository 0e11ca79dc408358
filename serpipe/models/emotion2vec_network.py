"""emotion2vec in batches: FunASR's layers, with masks where FunASR has none; on a CPU without padding.

FunASR's own forward pass takes a padding mask, yet differs by half the range of its embeddings between batches: the
padded frames leak through the positional convolutions. Four things make a batch equal to its utterances one by one:
the waveform is normalised before padding; padded frames are zero before every positional convolution; padded frames
are no keys of the attention, while the learned extra tokens always are; the mean is taken over valid frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from serpipe.models.contract import ModelSpec, Outputs
from serpipe.models.masking import even, frame_count, masked_mean, nothing, pad, refuse_lengths, valid
from serpipe.models.packed import (
    Norm,
    PackedConvolution,
    PackedFrontEnd,
    apart,
    as_rows,
    attend,
    attend_within,
    layer_norm,
    pack_linears,
    packable,
)


class Emotion2vecAdapter:
    """A loaded emotion2vec.

    Args:
        spec: the model's frozen facts, with the labels and the width of the checkpoint.
        weights_sha256: hash of the checkpoint's files.
        module: FunASR's Emotion2vec, loaded and audited; its attention is replaced.
        unused: places of the labels that are switched off.
        device: where to compute.
        dtype: number format of the network.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights_sha256: str,
        module: Any,
        unused: Sequence[int],
        *,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._spec, self._sha256 = spec, weights_sha256
        self._device, self._dtype = device, dtype
        off = torch.zeros(len(spec.labels), dtype=torch.bool)
        off[list(unused)] = True
        self._off = off.to(device) if unused else None
        self._head = None if module.proj is None else module.proj.to(device).eval()
        self._network = PaddedEmotion2vec(module).to(device, dtype).eval()
        self._network.slopes = self._network.slopes.to(device)
        if packable(torch.device(device), dtype):
            self._network.pack()

    @property
    def spec(self) -> ModelSpec:
        """The model's frozen facts."""
        return self._spec

    @property
    def weights_sha256(self) -> str:
        """Hash of the checkpoint's files, as 64 hexadecimal digits."""
        return self._sha256

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        """One micro-batch: normalise, pad, mask, run.

        Args:
            waveforms: mono float32 samples at 16 kHz, each of 400 to 480 000 samples.
            frames: whether frame embeddings are wanted too, 50 a second.

        Raises:
            ModelError: `MODEL_SEGMENT_LENGTH`.
        """
        refuse_lengths(waveforms, self._spec)
        if not len(waveforms):
            return nothing(self._spec, frames=frames)
        batch, lengths = pad([normalised(waveform) for waveform in waveforms], self._device)
        hidden = self._network(batch.to(self._dtype), lengths, even=even(waveforms)).float()
        pooled = masked_mean(hidden, valid(frame_count(lengths), hidden.shape[1]))
        logits = pooled.new_zeros((len(waveforms), 0)) if self._head is None else self._head(pooled)
        if self._off is not None:
            logits = logits.masked_fill(self._off, -torch.inf)
        per_frame = None
        if frames:
            rows = zip(hidden.cpu().numpy(), waveforms, strict=True)
            per_frame = [row[: frame_count(len(waveform))].copy() for row, waveform in rows]
        return Outputs(logits.cpu().numpy(), logits.softmax(-1).cpu().numpy(), pooled.cpu().numpy(), per_frame)


def normalised(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit variance over the utterance: torch's layer norm without weights, 1e-5 beneath the root.

    Examples:
        >>> normalised(np.array([0.0, 1.0], np.float32)).round(4).tolist()
        [-1.0, 1.0]
    """
    result: NDArray[np.float32] = F.layer_norm(torch.tensor(waveform), (len(waveform),)).numpy()
    return result


class PaddedEmotion2vec(nn.Module):
    """The layers of FunASR's Emotion2vec up to its head, for waveforms of different lengths.

    Args:
        module: FunASR's Emotion2vec, in float32; its attention is replaced.
    """

    def __init__(self, module: Any) -> None:
        from funasr.models.emotion2vec.base import get_alibi  # type: ignore[import-untyped]

        super().__init__()
        audio = module.modality_encoders["AUDIO"]
        self.front: nn.Module = FrontEnd(audio.local_encoder)
        _, norm, linear = audio.project_features
        self.project = nn.Sequential(norm, linear)
        layers = audio.relative_positional_encoder
        self.positional = nn.ModuleList(Positional(layer) for layer in layers if isinstance(layer, nn.Sequential))
        self.extra_tokens, self.norm = audio.extra_tokens, audio.context_encoder.norm
        self.blocks = nn.ModuleList([*audio.context_encoder.blocks, *module.blocks])
        for block in self.blocks:
            block.attn = BiasedAttention(block.attn)
        # Press et al., arXiv 2108.12409, symmetric, with learned factors. A plain attribute keeps float32.
        steps = get_alibi(2, module.blocks[0].attn.heads)[:, 0, 1]
        self.slopes = (steps[None, :, None, None] * audio.alibi_scale.detach().squeeze(0).clamp_min(0)).contiguous()

    def pack(self) -> None:
        """Lay the layers out for a CPU; see `serpipe.models.packed`."""
        self.front = PackedFrontEnd(*cast(FrontEnd, self.front).parts())
        self.positional = nn.ModuleList(PackedPositional(cast(Positional, layer)) for layer in self.positional)
        pack_linears(self)

    def forward(self, waveforms: Tensor, lengths: Tensor, *, even: bool = False) -> Tensor:
        """Last hidden states.

        Args:
            waveforms: normalised, zero-padded (n, samples).
            lengths: int64 (n,), samples of each.
            even: every row has as many frames as the longest, so that no key need be masked.

        Returns:
            (n, frames, width); what lies beyond the valid frames of a row means nothing.
        """
        # Layers that are packed take segments one after another; whole rows are as good where none is padded.
        if isinstance(self.front, PackedFrontEnd) and not even:
            return self._one_after_another(*self.front.one_after_another(waveforms, lengths))
        hidden = self.project(self.front(waveforms, lengths))
        mask = valid(frame_count(lengths), hidden.shape[1])
        position, keep = hidden, mask.unsqueeze(-1).to(hidden.dtype)
        for layer in self.positional:
            position = layer(position * keep)
        hidden = self._with_tokens(hidden + position)
        bias = self._bias(mask.shape[1], None if even else mask).to(hidden.dtype)
        for block in self.blocks:
            hidden, _ = block(hidden, None, bias)
        last: Tensor = hidden[:, self.extra_tokens.shape[1] :]
        return last

    def _one_after_another(self, features: Tensor, sizes: list[int]) -> Tensor:
        """The same without padding: segments as one row, of which attention and convolutions take each by itself."""
        hidden = self.project(features)
        position = hidden
        for layer in self.positional:
            position = apart(layer, position, sizes)
        hidden = apart(self._with_tokens, hidden + position, sizes)
        extra = self.extra_tokens.shape[1]
        # What a place adds depends on its distance alone: a shorter segment takes the corner of the longest.
        bias = self._bias(max(sizes), None).to(hidden.dtype)
        biases = [bias[..., : extra + size, : extra + size] for size in sizes]
        for block in self.blocks:
            hidden, _ = block(hidden, None, biases)
        return as_rows(hidden, [extra + size for size in sizes])[:, extra:]

    def _with_tokens(self, hidden: Tensor) -> Tensor:
        """What the blocks take: (n, frames, width) behind the extra tokens, normalised."""
        made: Tensor = self.norm(torch.cat([self.extra_tokens.expand(len(hidden), -1, -1), hidden], dim=1))
        return made

    def _bias(self, frames: int, mask: Tensor | None) -> Tensor:
        """What is added to attention scores: distance in frames, and minus infinity for padded keys.

        Returns:
            float32 (1, heads, size, size), or (n, heads, size, size) where a mask says which frames count.
        """
        extra = self.extra_tokens.shape[1]
        places = torch.arange(frames, device=self.slopes.device)
        distance = (places[None] - places[:, None]).abs()
        bias = F.pad(distance * self.slopes, (extra, 0, extra, 0))
        if mask is None:
            return bias
        return bias.masked_fill(~F.pad(mask, (extra, 0), value=True)[:, None, None], -torch.inf)


class FrontEnd(nn.Module):
    """FunASR's front-end with its channels last.

    Args:
        stock: FunASR's, of layers of convolution, dropout, norm between transpositions, GELU.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self._stock = stock

    def forward(self, waveforms: Tensor, _lengths: Tensor) -> Tensor:
        """(n, samples) to (n, frames, channels)."""
        made: Tensor = self._stock(waveforms).transpose(1, 2)
        return made

    def parts(self) -> tuple[list[nn.Conv1d], list[Norm | None]]:
        """Its convolutions and what follows each, for a packed one."""
        layers = list(self._stock.conv_layers)
        return [layer[0] for layer in layers], [layer_norm(layer[2][1]) for layer in layers]


class Positional(nn.Module):
    """One of FunASR's positional convolutions with its channels last.

    Args:
        stock: FunASR's, of convolution, crop, norm between transpositions, GELU.
    """

    def __init__(self, stock: nn.Sequential) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, frames, width) to the same."""
        made: Tensor = self.stock(hidden.transpose(1, 2)).transpose(1, 2)
        return made


class PackedPositional(nn.Module):
    """The same for a CPU; see `serpipe.models.packed`."""

    def __init__(self, plain: Positional) -> None:
        super().__init__()
        self._convolution = PackedConvolution(cast(nn.Conv1d, plain.stock[0]))
        self._norm = next(part for part in plain.stock if isinstance(part, nn.LayerNorm))

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, frames, width) to the same."""
        return F.gelu(self._norm(self._convolution(hidden)))


class BiasedAttention(nn.Module):
    """FunASR's attention on torch's fused kernels.

    Args:
        attention: FunASR's, whose projections are taken over.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, hidden: Tensor, _padding_mask: None, alibi_bias: Tensor | list[Tensor]) -> Tensor:
        """Attend.

        Args:
            hidden: (n, size, width).
            _padding_mask: None; the bias masks.
            alibi_bias: (1 or n, heads, size, size); or one of each segment where several lie in one row.
        """
        count, size, width = hidden.shape
        query, key, value = self.qkv(hidden).view(count, size, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if isinstance(alibi_bias, list):
            mixed = attend_within(query, key, value, [bias.shape[-1] for bias in alibi_bias], alibi_bias)
        else:
            mixed = attend(query, key, value, alibi_bias)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, size, width))
        return result
