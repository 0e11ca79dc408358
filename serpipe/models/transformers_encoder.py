"""wav2vec 2.0, HuBERT and WavLM encoders of Transformers, run so that a batch leaves no trace in a row's numbers.

The stock networks are exact in a padded batch but for three things, which are mended here: the group norm of the
first convolution of "group" models takes its statistics over the padding too; their own weighted layer sum keeps every
layer's output alive; and since Transformers 5.16 that sum takes the last layer from before the encoder's final norm
(huggingface/transformers #44114, #48087), where the checkpoints were trained with what comes after it. Their layers
are run one by one here, without hooks, so that two threads may run one encoder; a batch without padding needs no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from serpipe.errors import ModelError
from serpipe.models.masking import CONVOLUTIONS, frame_count, valid
from serpipe.models.packed import (
    Norm,
    PackedConvolution,
    PackedFrontEnd,
    apart,
    as_rows,
    attend,
    attend_within,
    exact_gelu,
    layer_norm,
    pack_linears,
    packable,
)
from serpipe.models.wavlm_attention import FusedWavLMAttention

_CLASSES: dict[str, tuple[Any, Any]] = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
}

Encoder: TypeAlias = transformers.Wav2Vec2Model | transformers.HubertModel | transformers.WavLMModel
"""One of the stock networks; they share the names of their parts."""

# What only training reads, or what `load` decides: number format, attention, SpecAugment and its learned embedding.
_OURS = ("torch_dtype", "dtype", "attn_implementation", "_attn_implementation", "quantization_config")
_NO_TRAINING = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}


Keys: TypeAlias = Tensor | list[int] | None
"""What a frame attends to: a mask of the frames that count, or the sizes of segments that lie one after another, each
of which attends to itself; None where all frames count."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder gives for `n` waveforms.

    Attributes:
        last: (n, frames, width), the last hidden states, after the encoder's final norm where it has one.
        weighted: float32 (n, frames, width), the weighted sum of all layers; None where no weights were given.
        mask: bool (n, frames), the frames that are not padding.
    """

    last: Tensor
    weighted: Tensor | None
    mask: Tensor


def build_encoder(config: Mapping[str, Any], *, model: str) -> Encoder:
    """An encoder without weights, on the meta device and in evaluation mode.

    Args:
        config: content of a checkpoint's `config.json`.
        model: the model's name, for the message.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH`, no encoder of the three kinds, one that Transformers cannot build, one
            with another convolutional front-end, or one whose numbers would depend on the batch.

    Examples:
        >>> build_encoder({"model_type": "hubert", "conv_stride": [4, 2, 2, 2, 2, 2, 2]}, model="toy")
        Traceback (most recent call last):
        serpipe.errors.ModelError: MODEL_CONFIG_MISMATCH: the config.json of model 'toy' has convolutions of ...
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise _mismatch(model, f"says model_type {kind!r}, which is none of {', '.join(_CLASSES)}")
    config_class, encoder_class = _CLASSES[kind]
    settings = {key: value for key, value in config.items() if key not in _OURS}
    try:
        parsed = config_class.from_dict({**settings, **_NO_TRAINING})
        _refuse_unmaskable(parsed, model)
        with torch.device("meta"):
            encoder: Encoder = encoder_class(parsed).eval()
    except (StrictDataclassError, ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise _mismatch(model, f"describes no {kind} encoder that can be built ({error})") from error
    for module in encoder.modules():
        if isinstance(module, WavLMAttention):
            module.__class__ = FusedWavLMAttention
    return encoder


def bake(encoder: Encoder) -> None:
    """Replace the weight norm of the positional convolution by its product, computed once and in float32."""
    parametrize.remove_parametrizations(encoder.encoder.pos_conv_embed.conv, "weight")


def place(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> None:
    """Put a baked encoder on a device in a number format; on a CPU, in the layouts that are fastest there."""
    nn.Module.to(encoder, device, dtype)
    if packable(device, dtype):
        pack(encoder)


def pack(encoder: nn.Module) -> None:
    """Replace the layers of a HuBERT-like network by packed ones, where its activations allow it."""
    parts: Any = encoder
    layers = parts.feature_extractor.conv_layers
    if all(exact_gelu(layer.activation) for layer in layers):
        norms = [_packed_norm(getattr(layer, "layer_norm", None)) for layer in layers]
        parts.feature_extractor = PackedFrontEnd([layer.conv for layer in layers], norms)
    positional = parts.encoder.pos_conv_embed
    if exact_gelu(positional.activation):
        parts.encoder.pos_conv_embed = PackedConvolution(positional.conv, gelu=True)
    for layer in parts.encoder.layers:
        if not isinstance(layer.attention, WavLMAttention):
            layer.attention.config._attn_implementation = _ATTENTION
    pack_linears(encoder)


def _attend(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, keys: Keys, **_others: Any
) -> tuple[Tensor, None]:
    if isinstance(keys, list):
        return attend_within(query, key, value, keys, [None] * len(keys)).transpose(1, 2), None
    return attend(query, key, value, keys).transpose(1, 2), None


_ATTENTION = "serpipe"
"""What Transformers' layers call their attention by, where they are packed."""

transformers.AttentionInterface.register(_ATTENTION, _attend)


def encode(
    encoder: Encoder,
    waveforms: Tensor,
    lengths: Tensor,
    *,
    even: bool = False,
    layer_shares: Sequence[float] | None = None,
) -> Encoded:
    """Run an encoder over a padded batch.

    Args:
        encoder: of `build_encoder`, filled.
        waveforms: (n, samples), zero-padded on the right.
        lengths: int64 (n,), samples of each, at least 400.
        even: every row has as many frames as the longest, so that nothing need be masked.
        layer_shares: what the input of the first layer and the output of each count for in the weighted sum.
    """
    extractor: Any = encoder.feature_extractor
    # Layers that are packed take segments one after another; whole rows are as good where none is padded.
    if isinstance(extractor, PackedFrontEnd) and not even:
        features, sizes = extractor.one_after_another(waveforms, lengths)
        last, weighted = _sums(encoder, features, sizes, layer_shares)
        last, weighted = as_rows(last, sizes), None if weighted is None else as_rows(weighted, sizes)
    else:
        features = _features(encoder, waveforms, lengths)
        mask = None if even else valid(frame_count(lengths), features.shape[1])
        last, weighted = _sums(encoder, features, mask, layer_shares)
    return Encoded(last, weighted, valid(frame_count(lengths), last.shape[1]))


def masked_group_norm(channels: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm with one channel a group, over the valid places of each row only.

    Args:
        channels: (n, channels, places).
        lengths: int64 (n,), valid places of each row.
        norm: whose weight, bias and epsilon are used.

    Returns:
        Of the same shape and type; statistics are taken in float32.
    """
    values = channels.float()
    mask = valid(lengths, channels.shape[-1])[:, None]
    count = lengths[:, None, None]
    mean = (values * mask).sum(-1, keepdim=True) / count
    centred = (values - mean) * mask
    variance = centred.square().sum(-1, keepdim=True) / count
    scaled = centred * torch.rsqrt(variance + norm.eps)
    return (scaled * norm.weight.float()[:, None] + norm.bias.float()[:, None]).to(channels.dtype)


def _packed_norm(norm: nn.Module | None) -> Norm | None:
    if isinstance(norm, nn.GroupNorm):
        return lambda hidden, lengths: masked_group_norm(hidden.transpose(1, 2), lengths, norm).transpose(1, 2)
    return layer_norm(norm) if isinstance(norm, nn.LayerNorm) else None


def _features(encoder: Encoder, waveforms: Tensor, lengths: Tensor) -> Tensor:
    """(n, frames, channels)."""
    extractor: Any = encoder.feature_extractor
    if isinstance(extractor, PackedFrontEnd):
        packed: Tensor = extractor(waveforms, lengths)
        return packed
    first, *others = extractor.conv_layers
    hidden: Tensor = waveforms[:, None]
    if encoder.config.feat_extract_norm == "group":
        kernel, stride = CONVOLUTIONS[0]
        hidden = masked_group_norm(first.conv(hidden), (lengths - kernel) // stride + 1, first.layer_norm)
        hidden = first.activation(hidden)
    else:
        hidden = first(hidden)
    for layer in others:
        hidden = layer(hidden)
    return hidden.transpose(1, 2)


def _sums(
    encoder: Encoder, features: Tensor, keys: Keys, layer_shares: Sequence[float] | None
) -> tuple[Tensor, Tensor | None]:
    """The last hidden states, and the weighted sum of all layers where shares of it are given."""
    projected = encoder.feature_projection(features)
    hidden = projected[0] if isinstance(projected, tuple) else projected
    if layer_shares is None:
        return _layers(encoder, hidden, keys), None
    *inputs, final = layer_shares
    total = torch.zeros_like(hidden, dtype=torch.float32)
    last = _layers(encoder, hidden, keys, weights=inputs, total=total)
    return last, total.add_(last, alpha=final)


def _layers(
    encoder: Encoder, hidden: Tensor, keys: Keys, *, weights: Sequence[float] = (), total: Tensor | None = None
) -> Tensor:
    """The last hidden states; every layer's input is added to the total as it passes by, and none is kept."""
    stack: Any = encoder.encoder
    wavlm = isinstance(encoder, transformers.WavLMModel)
    if isinstance(keys, Tensor):
        hidden = hidden.masked_fill(~keys.unsqueeze(-1), 0.0)
    if isinstance(keys, list):
        hidden = hidden + apart(stack.pos_conv_embed, hidden, keys)
    else:
        hidden = hidden + stack.pos_conv_embed(hidden)
    if isinstance(keys, Tensor):
        keys = _attended(keys) if wavlm else _attended(keys)[:, None, None, :]
    if not encoder.config.do_stable_layer_norm:
        hidden = stack.layer_norm(hidden)
    bias: Tensor | None = None
    for number, layer in enumerate(stack.layers):
        if total is not None:
            total.add_(hidden, alpha=weights[number])
        if wavlm:
            hidden, bias = layer(hidden, attention_mask=keys, position_bias=bias)
        else:
            hidden = layer(hidden, attention_mask=keys)
    if encoder.config.do_stable_layer_norm:
        hidden = stack.layer_norm(hidden)
    return hidden


def _attended(mask: Tensor) -> Tensor:
    """Frames that others may attend to."""
    return mask


def _refuse_unmaskable(config: transformers.PretrainedConfig, model: str) -> None:
    found = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
    if found != CONVOLUTIONS:
        raise _mismatch(model, f"has convolutions of (kernel, stride) {found}, not {CONVOLUTIONS}")
    if getattr(config, "add_adapter", False):
        raise _mismatch(model, "adds a convolutional adapter behind the encoder, which classifiers do not have")
    if getattr(config, "conv_pos_batch_norm", False):
        raise _mismatch(model, "has a batch norm before its positional convolution, which padding would pass through")


def _mismatch(model: str, what: str) -> ModelError:
    return ModelError("MODEL_CONFIG_MISMATCH", f"the config.json of model {model!r} {what}; give another checkpoint")
