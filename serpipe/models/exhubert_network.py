"""ExHuBERT's network, after the authors' description, on the HuBERT blocks of transformers.

HuBERT large (pre-LN, layer-normed front-end) in which each of the 24 blocks is followed by its duplicate. Every block
ends in a linear gate; the odd ones, the duplicates, are skipped by a residual connection (arXiv 2406.10275, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import (
    HubertEncoderLayerStableLayerNorm,
    HubertFeatureEncoder,
    HubertFeatureProjection,
    HubertPositionalConvEmbedding,
)

from serpipe.errors import ModelError
from serpipe.models import checkpoint
from serpipe.models.contract import ModelSpec, Outputs
from serpipe.models.exhubert import FILES, WINDOW, window_lengths
from serpipe.models.masking import CONVOLUTIONS, frame_count, nothing, pad, refuse_lengths, standardised
from serpipe.models.packed import PackedFrontEnd, packable
from serpipe.models.transformers_encoder import pack

SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "conv_dim",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "classifier_proj_size",
)
"""Keys of the configuration that only change sizes."""

FIXED: Mapping[str, Any] = {
    "model_type": "hubert",
    "architectures": ["ExHuBERT"],
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "conv_kernel": [kernel for kernel, _ in CONVOLUTIONS],
    "conv_stride": [stride for _, stride in CONVOLUTIONS],
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
}
"""Keys of the configuration that the network below takes for granted."""


def network(config: Mapping[str, Any], spec: ModelSpec) -> ExHubertNetwork:
    """The network that a checkpoint's configuration describes, on the meta device.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH` or `MODEL_LABELS_MISMATCH`.
    """
    # The authors' class has a weighted sum of layers, which this checkpoint was trained without.
    wanted = {**FIXED, "use_weighted_layer_sum": False}
    checkpoint.refuse_config({"use_weighted_layer_sum": False, **config}, wanted, model=spec.name)
    checkpoint.refuse_labels(config, spec.labels, model=spec.name, unnamed=True)
    shape = {key: config[key] for key in SHAPE if key in config}
    try:
        if shape["num_hidden_layers"] % 2:
            raise ValueError(f"{shape['num_hidden_layers']} blocks do not pair")
        # Dropout and masking are for training; without mask probabilities there is no mask embedding to fill.
        fixed = {key: value for key, value in FIXED.items() if key not in ("model_type", "architectures")}
        made = HubertConfig(**shape, **fixed, mask_time_prob=0.0, mask_feature_prob=0.0)
        made._attn_implementation = "sdpa"
        with torch.device("meta"):
            return ExHubertNetwork(made, len(spec.labels)).eval()
    except (StrictDataclassError, ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            "MODEL_CONFIG_MISMATCH", f"the configuration of model {spec.name!r} states impossible sizes ({error})"
        ) from error


class GatedBlock(HubertEncoderLayerStableLayerNorm):
    """A block of HuBERT and its gate."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.gate_bb_linear = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """(n, frames, width) to the same."""
        gated: Tensor = self.gate_bb_linear(super().forward(hidden))
        return gated


class Encoder(nn.Module):
    """Positional convolution, pairs of blocks, final norm."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pos_conv_embed = HubertPositionalConvEmbedding(config)  # type: ignore[no-untyped-call]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(GatedBlock(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, frames, width) to the same."""
        hidden = hidden + self.pos_conv_embed(hidden)
        for original, duplicate in zip(self.layers[::2], self.layers[1::2], strict=True):
            hidden = original(hidden)
            hidden = duplicate(hidden) + hidden
        normed: Tensor = self.layer_norm(hidden)
        return normed


class Body(nn.Module):
    """Waveform to last hidden states."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.feature_extractor: nn.Module = HubertFeatureEncoder(config)  # type: ignore[no-untyped-call]
        self.feature_projection = HubertFeatureProjection(config)  # type: ignore[no-untyped-call]
        self.encoder = Encoder(config)

    def forward(self, windows: Tensor) -> Tensor:
        """(n, samples) to (n, frames, width)."""
        features: Tensor
        if isinstance(self.feature_extractor, PackedFrontEnd):
            features = self.feature_extractor(windows, torch.full((len(windows),), WINDOW))
        else:
            features = self.feature_extractor(windows).transpose(1, 2)
        hidden: Tensor = self.encoder(self.feature_projection(features))
        return hidden


class ExHubertNetwork(nn.Module):
    """The network under the names of the checkpoint's tensors."""

    def __init__(self, config: HubertConfig, labels: int) -> None:
        super().__init__()
        self.hubert = Body(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, labels)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised windows (n, samples) to logits (n, labels), embeddings (n, width), hidden states.

        The body may run in half precision; mean and head are in float32.
        """
        hidden = self.hubert(windows).float()
        embeddings = hidden.mean(1)
        return self.classifier(self.projector(embeddings)), embeddings, hidden


def window(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The input for one window: filled with zeros, then standardised with them, as the authors' extractor does."""
    filled = np.zeros(WINDOW, np.float32)
    filled[: len(samples)] = samples
    return standardised(filled)


class ExHubertAdapter:
    """ExHuBERT, loaded; see `serpipe.models.exhubert.load` for arguments and errors."""

    def __init__(self, spec: ModelSpec, directory: str, *, device: str, dtype: str) -> None:
        number = checkpoint.torch_dtype(dtype)
        made = network(checkpoint.read_json(Path(directory) / FILES[0]), spec).to_empty(device="cpu")
        tensors = checkpoint.read_tensors(Path(directory) / FILES[1])
        checkpoint.fill(made, tensors, model=spec.name, optional=["hubert.masked_spec_embed"])
        # One product instead of one a batch, and in float32.
        parametrize.remove_parametrizations(made.hubert.encoder.pos_conv_embed.conv, "weight")
        self._network, self._device, self._number = made.to(device), torch.device(device), number
        made.hubert.to(number)
        if packable(self._device, number):
            pack(made.hubert)
        self._sha256 = checkpoint.content_sha256(directory, FILES)
        weights = sum(tensor.numel() for tensor in tensors.values())
        self._spec = replace(spec, embedding_width=made.projector.in_features, parameters=weights)

    @property
    def spec(self) -> ModelSpec:
        """The model's facts."""
        return self._spec

    @property
    def weights_sha256(self) -> str:
        """Hash of the files that were read."""
        return self._sha256

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        """One micro-batch, window by window.

        Args:
            waveforms: mono float32 samples at 16 kHz, each of 400 to 480 000 samples.
            frames: whether frame embeddings are wanted too, float32 (`frame_total(samples)`, width) each.

        Raises:
            ModelError: `MODEL_SEGMENT_LENGTH`.
        """
        if not waveforms:
            return nothing(self._spec, frames=frames)
        refuse_lengths(waveforms, self._spec)
        windows = [
            waveform[start : start + WINDOW] for waveform in waveforms for start in range(0, len(waveform), WINDOW)
        ]
        # Short segments grow to 3 s; at once, no more audio than the caller's batch would have held padded.
        at_once = max(1, len(waveforms) * max(map(len, waveforms)) // WINDOW)
        logits, embeddings, states = [], [], []
        for start in range(0, len(windows), at_once):
            batch, _ = pad([window(samples) for samples in windows[start : start + at_once]], self._device)
            made, embedded, hidden = self._network(batch.to(self._number))
            logits.append(made)
            embeddings.append(embedded)
            if frames:
                states.extend(hidden.cpu().numpy())
        return _pooled(torch.cat(logits), torch.cat(embeddings), states, [len(waveform) for waveform in waveforms])


def _pooled(
    logits: Tensor, embeddings: Tensor, states: Sequence[NDArray[np.float32]], samples: Sequence[int]
) -> Outputs:
    """Windows back into segments. `states` holds one array a window, or none at all."""
    lengths = [window_lengths(count) for count in samples]
    ends = np.cumsum([len(own) for own in lengths])
    spans = [slice(end - len(own), end) for end, own in zip(ends, lengths, strict=True)]

    def mean(values: Tensor) -> NDArray[np.float32]:
        of_windows = values.double().cpu().numpy()
        rows = [np.average(of_windows[span], axis=0, weights=own) for span, own in zip(spans, lengths, strict=True)]
        return np.stack(rows).astype(np.float32)

    frames = None
    if states:
        real = [state[: max(0, frame_count(own))] for state, own in zip(states, np.concatenate(lengths), strict=True)]
        frames = [np.concatenate(real[span]) for span in spans]
    return Outputs(mean(logits), mean(logits.softmax(-1)), mean(embeddings), frames)
