"""Layers for CPUs whose weights oneDNN has laid out once, instead of at every call.

Measured on an AVX-512 core with the sizes of HuBERT large: float32 maps of 75 to 1,000 frames run at 93 to 109 GFLOP/s
against 61 to 96 of `nn.Linear`, bfloat16 ones at 204 to 222 against 184 to 213; a GELU behind a map is free; the
grouped positional convolution takes half its time. Segments of different lengths lie one after another as one row, so
that none is padded and maps see all their frames at once: only convolutions and attention take each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Norm = Callable[[Tensor, Tensor], Tensor]
"""What follows a convolution: (n, places, channels) and the int64 (n,) valid places of each row give the same shape."""


def packable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of its own for a number format here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`, and of a GELU behind it; no gradients.

    Examples:
        >>> plain, row = nn.Linear(3, 2), torch.ones(1, 5, 3)
        >>> with torch.inference_mode():
        ...     torch.allclose(PackedLinear(plain, gelu=True)(row), F.gelu(plain(row)), atol=1e-6)
        True
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed = _packed(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach().contiguous()
        self._after = "gelu" if gelu else "none"

    def forward(self, values: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return _linear(values, self._packed, self._bias, self._after)


class PackedConvolution(nn.Module):
    """Takes the place of a padded `nn.Conv1d` with stride 1, on values whose last dimension is the channels.

    Args:
        convolution: whose padding is half its kernel; of an even kernel the last place is dropped.
        gelu: whether a GELU follows.
    """

    def __init__(self, convolution: nn.Conv1d, *, gelu: bool = False) -> None:
        super().__init__()
        (kernel,) = convolution.kernel_size
        self._padding, self._groups = kernel // 2, convolution.groups
        weight = convolution.weight.detach().unsqueeze(2)
        usual = [1, convolution.in_channels, 1, 250]  # oneDNN asks for a size, and takes any afterwards
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, [0, self._padding], [1, 1], [1, 1], self._groups, usual
        )
        self._bias = None if convolution.bias is None else convolution.bias.detach()
        self._after = "gelu" if gelu else "none"

    def forward(self, values: Tensor) -> Tensor:
        """(n, places, channels) to the same."""
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            values.transpose(1, 2).unsqueeze(2),
            self._packed,
            self._bias,
            [0, self._padding],
            [1, 1],
            [1, 1],
            self._groups,
            self._after,
            [],
            "none",
        )
        return made.squeeze(2).transpose(1, 2)[:, : values.shape[1]]


class PackedFrontEnd(nn.Module):
    """The convolutions from waveform to frames as matrix products, channels last, so that nothing is transposed.

    Args:
        convolutions: the first takes one channel; of the others the kernel is the stride or one longer.
        norms: what follows each, before a GELU.
    """

    def __init__(self, convolutions: Sequence[nn.Conv1d], norms: Sequence[Norm | None]) -> None:
        super().__init__()
        self._norms = norms
        first, *others = convolutions
        self._kernel, self._stride = first.kernel_size[0], first.stride[0]
        self._first, self._first_bias = _packed(first.weight.detach()[:, 0]), _bias(first)
        self._others: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for layer in others:
            (kernel,), (stride,) = layer.kernel_size, layer.stride
            if (stride, kernel) not in ((2, 2), (2, 3)):
                raise ValueError(f"a kernel of {kernel} with a stride of {stride}")
            weight = layer.weight.detach()
            pair = weight[:, :, :2].transpose(1, 2).flatten(1)
            self._others.append((_packed(pair), _packed(weight[:, :, 2]) if kernel == 3 else None, _bias(layer)))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(n, samples) and int64 (n,) samples of each to (n, frames, channels)."""
        hidden = _linear(waveforms.unfold(1, self._kernel, self._stride).contiguous(), self._first, self._first_bias)
        lengths = (lengths - self._kernel) // self._stride + 1
        hidden = self._after(0, hidden, lengths)
        for place, (pair, third, bias) in enumerate(self._others, start=1):
            taps = 2 if third is None else 3
            count = (hidden.shape[1] - taps) // 2 + 1
            made = _linear(hidden[:, : 2 * count].reshape(len(hidden), count, -1), pair, bias)
            if third is not None:
                made = _added(hidden[:, 2 : 2 * count + 1 : 2].contiguous(), made, third)
            lengths = (lengths - taps) // 2 + 1
            hidden = self._after(place, made, lengths)
        return hidden

    def one_after_another(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """The same, each without its padding: (1, frames of all, channels), and how many frames each has."""
        rows = [self(waveforms[n : n + 1, :end], lengths[n : n + 1]) for n, end in enumerate(lengths.tolist())]
        return torch.cat(rows, dim=1), [row.shape[1] for row in rows]

    def _after(self, place: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        norm = self._norms[place]
        return F.gelu(hidden if norm is None else norm(hidden, lengths))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by the fastest means.

    Args:
        query: (n, heads, size, width).
        key: the same.
        value: the same.
        bias: what is added to the scores, or which keys count (bool); it broadcasts to (n, heads, size, size).
    """
    if query.device.type != "cpu" or query.dtype is not torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    # PyTorch's fused kernel for CPUs is no faster in bfloat16 than in float32; two products are, by two fifths.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if bias is not None and bias.dtype is torch.bool:
        scores.masked_fill_(~bias, -torch.inf)
    elif bias is not None:
        scores.add_(bias)
    return torch.matmul(scores.softmax(-1), value)


def attend_within(
    query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int], biases: Sequence[Tensor | None]
) -> Tensor:
    """Attention of each of several segments to itself.

    Args:
        query: (1, heads, size, width), the segments one after another.
        key: the same.
        value: the same.
        sizes: frames of each segment.
        biases: of each, as for `attend`.
    """
    parts = (torch.split(values, list(sizes), 2) for values in (query, key, value))
    return torch.cat([attend(*segment) for segment in zip(*parts, biases, strict=True)], dim=2)


def apart(run: Callable[[Tensor], Tensor], values: Tensor, sizes: Sequence[int]) -> Tensor:
    """What is made of each of several segments by itself.

    Args:
        run: takes and gives (1, size, width), of whichever sizes.
        values: (1, size, width), the segments one after another.
        sizes: frames of each segment.
    """
    return torch.cat([run(segment) for segment in torch.split(values, list(sizes), 1)], dim=1)


def as_rows(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Segments one after another, (1, size, width), as (n, longest, width); zero behind the end of each."""
    return pad_sequence(list(torch.split(values[0], list(sizes))), batch_first=True)


def layer_norm(norm: nn.LayerNorm) -> Norm:
    """A layer norm as what follows a convolution.

    Torch's own, which computes in float32 whatever it is given: some that derive from it copy everything to float32 and
    back for that.
    """
    return lambda hidden, _: F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def exact_gelu(activation: object) -> bool:
    """Whether an activation is the GELU itself, not one of its approximations."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    # The one of Transformers, which is not imported for those who do not use it.
    return getattr(activation, "act", None) is F.gelu


def pack_linears(network: nn.Module) -> None:
    """Replace every linear map below a network, and the GELUs of its feed-forward parts."""
    for parent in list(network.modules()):
        # As Transformers and timm call the parts of a feed-forward.
        for first, activation in (("intermediate_dense", "intermediate_act_fn"), ("fc1", "act")):
            if exact_gelu(getattr(parent, activation, None)):
                setattr(parent, first, PackedLinear(getattr(parent, first), gelu=True))
                setattr(parent, activation, nn.Identity())
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))


def _packed(weight: Tensor) -> Tensor:
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return made


def _linear(values: Tensor, packed: Tensor, bias: Tensor | None, after: str = "none") -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(values, packed, bias, after, [], "none")
    return made


def _added(values: Tensor, other: Tensor, packed: Tensor) -> Tensor:
    """`other` plus a map of the values."""
    binary: Any = torch.ops.mkldnn._linear_pointwise.binary
    made: Tensor = binary(values, other, packed, None, "add")
    return made


def _bias(convolution: nn.Conv1d) -> Tensor | None:
    return None if convolution.bias is None else convolution.bias.detach()
