"""Speech encoders written out from their definitions, for one utterance, in float64, head by head and frame by frame.

Nothing here is shared with the package or with Transformers: wav2vec 2.0 (arXiv 2006.11477) gives the front-end and the
positional convolution, WavLM (arXiv 2110.13900, section 3.1) the gated relative position bias.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


class Part:
    """The tensors below a name."""

    def __init__(self, tensors: dict[str, Tensor], name: str = "") -> None:
        self._tensors, self._name = tensors, name

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._name + name].double()

    def below(self, name: str) -> Part:
        return Part(self._tensors, f"{self._name}{name}.")

    def count(self, name: str) -> int:
        start = len(self._name + name)
        return 1 + max(int(key[start:].split(".")[1]) for key in self._tensors if key.startswith(self._name + name))


def linear(x: Tensor, part: Part) -> Tensor:
    return x @ part["weight"].T + part["bias"]


def layer_norm(x: Tensor, part: Part) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * part["weight"] + part["bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """(channels, places) to (channels, places), window by window."""
    kernel = weight.shape[-1]
    windows = x.unfold(1, kernel, stride)
    made = torch.einsum("cpk,dck->dp", windows, weight)
    return made if bias is None else made + bias[:, None]


def front_end(waveform: Tensor, part: Part, *, biased: bool) -> Tensor:
    """(samples,) to (frames, channels)."""
    x = waveform[None].double()
    for place, stride in enumerate((5, 2, 2, 2, 2, 2, 2)):
        layer = part.below(f"conv_layers.{place}")
        x = convolution(x, layer["conv.weight"], layer["conv.bias"] if biased else None, stride)
        x = gelu(layer_norm(x.T, layer.below("layer_norm")).T)
    return x.T


def positional(x: Tensor, part: Part) -> Tensor:
    """What the positional convolution adds to (frames, width)."""
    direction = part["weight_v"]
    weight = part["weight_g"] * direction / direction.square().sum((0, 1), keepdim=True).sqrt()
    width, in_group, kernel = weight.shape
    padded = pad(x.T, (kernel // 2, kernel - 1 - kernel // 2))
    groups = width // in_group
    made = [
        convolution(
            padded[g * in_group : (g + 1) * in_group],
            weight[g * (width // groups) : (g + 1) * (width // groups)],
            None,
            1,
        )
        for g in range(groups)
    ]
    return gelu(torch.cat(made) + part["bias"][:, None]).T


def attention(x: Tensor, part: Part, heads: int, bias: Tensor | None = None) -> Tensor:
    """Self-attention of (frames, width), with (heads, frames, frames) added to its energies."""
    query, key, value = (linear(x, part.below(f"{name}_proj")) for name in "qkv")
    size = x.shape[1] // heads
    outputs = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        energy = query[:, own] @ key[:, own].T / math.sqrt(size)
        if bias is not None:
            energy = energy + bias[head]
        outputs.append(energy.softmax(-1) @ value[:, own])
    return linear(torch.cat(outputs, 1), part.below("out_proj"))


def feed_forward(x: Tensor, part: Part) -> Tensor:
    return linear(gelu(linear(x, part.below("intermediate_dense"))), part.below("output_dense"))


def relative_positions(frames: int, table: Tensor) -> Tensor:
    """WavLM's bias by distance, (heads, frames, frames); `table` is (buckets, heads)."""
    half = len(table) // 2
    exact = half // 2
    bias = torch.empty(table.shape[1], frames, frames, dtype=torch.float64)
    for distance in range(-frames + 1, frames):
        away = abs(distance)
        if away >= exact:
            away = min(exact + int(math.log(away / exact) / math.log(800 / exact) * (half - exact)), half - 1)
        row = table[away + half * (distance > 0)]
        for first in range(max(0, -distance), min(frames, frames - distance)):
            bias[:, first, first + distance] = row
    return bias


def gated(x: Tensor, part: Part, heads: int, bias: Tensor) -> Tensor:
    """WavLM's gate on that bias, by query."""
    made = []
    for head, own in enumerate(x.chunk(heads, 1)):
        gates = linear(own, part.below("gru_rel_pos_linear")).reshape(len(x), 2, 4).sum(-1).sigmoid()
        scale = part["gru_rel_pos_const"][0, head, 0, 0]
        made.append((gates[:, :1] * (gates[:, 1:] * scale - 1) + 2) * bias[head])
    return torch.stack(made)
