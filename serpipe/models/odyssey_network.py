"""The network of the Odyssey baselines: WavLM of transformers, attentive statistics pooling, one hidden layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serpipe.errors import ModelError
from serpipe.models import checkpoint
from serpipe.models.contract import SAMPLE_RATE, ModelSpec, Outputs
from serpipe.models.masking import even, frame_count, masked_mean, nothing, pad, refuse_lengths
from serpipe.models.odyssey import FILES
from serpipe.models.transformers_encoder import Encoder, bake, build_encoder, encode, place

WAVLM_LARGE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_dim": [512] * 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "num_buckets": 320,
    "max_bucket_distance": 800,
}
"""Sizes of microsoft/wavlm-large, which a checkpoint's configuration names but does not repeat; one that states sizes
of its own has them respected."""

FIXED: Mapping[str, Any] = {"model_type": "ser", "ssl_type": "microsoft/wavlm-large", "sampling_rate": SAMPLE_RATE}
"""What a checkpoint's configuration must say."""


def wavlm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of WavLM large, in the sizes that a checkpoint's configuration states."""
    return {
        "model_type": "wavlm",
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": False,
        **{key: config.get(key, size) for key, size in WAVLM_LARGE.items()},
    }


def network(config: Mapping[str, Any], spec: ModelSpec) -> OdysseyNetwork:
    """The network that a checkpoint's configuration describes, on the meta device.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH` or `MODEL_LABELS_MISMATCH`.
    """
    checkpoint.refuse_config(config, FIXED, model=spec.name)
    # Where there is one label, a configuration that names none leaves nothing to confuse.
    checkpoint.refuse_labels(config, spec.labels, model=spec.name, unnamed=len(spec.labels) == 1)
    if config.get("num_classes") != len(spec.labels):
        raise ModelError(
            "MODEL_LABELS_MISMATCH",
            f"model {spec.name!r} has {len(spec.labels)} labels, and the configuration {config.get('num_classes')!r}",
        )
    layers = config.get("classifier_hidden_layers")
    if not isinstance(layers, int) or layers < 1:
        raise ModelError(
            "MODEL_CONFIG_MISMATCH",
            f"the configuration of model {spec.name!r} gives {layers!r} as classifier_hidden_layers, not their number",
        )
    encoder = build_encoder(wavlm_config(config), model=spec.name)
    with torch.device("meta"):
        return OdysseyNetwork(encoder, layers, len(spec.labels)).eval()


def corpus_statistics(config: Mapping[str, Any], spec: ModelSpec) -> tuple[float, float]:
    """Mean and standard deviation of the corpus' samples, by which every segment is normalised.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH`, they are missing or no such numbers.
    """
    mean, std = config.get("mean"), config.get("std")
    if not (isinstance(mean, float) and isinstance(std, float) and math.isfinite(mean) and 0 < std < math.inf):
        raise ModelError(
            "MODEL_CONFIG_MISMATCH",
            f"the configuration of model {spec.name!r} gives mean {mean!r} and std {std!r}, and without the corpus' "
            "own no segment can be normalised; fetch a revision that has them",
        )
    return mean, std


class AttentiveStatistics(nn.Module):
    """Weighted mean and standard deviation over frames (Okabe et al. 2018, arXiv 1803.10963)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sap_linear = nn.Linear(width, width)
        self.attention = nn.Parameter(torch.empty(width, 1))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(n, frames, width) and bool (n, frames) to (n, 2 * width)."""
        energy = torch.tanh(self.sap_linear(hidden)) @ self.attention
        weights = energy.masked_fill(~mask.unsqueeze(-1), -torch.inf).softmax(1)
        mean = (weights * hidden).sum(1)
        # The same as E[h^2] - E[h]^2, without its cancellation.
        variance = (weights * (hidden - mean[:, None]) ** 2).sum(1)
        return torch.cat([mean, variance.clamp(min=1e-5).sqrt()], dim=1)


class Head(nn.Module):
    """Hidden layers and an output."""

    def __init__(self, width: int, layers: int, labels: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Linear(width if place else 2 * width, width), nn.LayerNorm(width), nn.ReLU())
            for place in range(layers)
        )
        self.out = nn.Sequential(nn.Linear(width, labels))

    def forward(self, pooled: Tensor) -> Tensor:
        """(n, 2 * width) to (n, labels)."""
        for layer in self.fc:
            pooled = layer(pooled)
        logits: Tensor = self.out(pooled)
        return logits


class OdysseyNetwork(nn.Module):
    """The network under the names of the checkpoint's tensors."""

    def __init__(self, encoder: Encoder, layers: int, labels: int) -> None:
        super().__init__()
        self.ssl_model = encoder
        self.pool_model = AttentiveStatistics(encoder.config.hidden_size)
        self.ser_model = Head(encoder.config.hidden_size, layers, labels)

    def forward(self, waveforms: Tensor, lengths: Tensor, *, even: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and padded waveforms (n, samples) to logits (n, labels), embeddings (n, width), hidden states.

        WavLM may run in half precision; pooling and head are in float32. `even` rows have equally many frames.
        """
        encoded = encode(self.ssl_model, waveforms, lengths, even=even)
        hidden = encoded.last.float()
        return self.ser_model(self.pool_model(hidden, encoded.mask)), masked_mean(hidden, encoded.mask), hidden


class OdysseyAdapter:
    """A baseline, loaded; see `serpipe.models.odyssey.load` for arguments and errors."""

    def __init__(self, spec: ModelSpec, directory: str, *, device: str, dtype: str) -> None:
        number = checkpoint.torch_dtype(dtype)
        config = checkpoint.read_json(Path(directory) / FILES[0])
        self._mean, self._std = corpus_statistics(config, spec)
        made = network(config, spec).to_empty(device="cpu")
        tensors = checkpoint.read_tensors(Path(directory) / FILES[1])
        checkpoint.fill(made, tensors, model=spec.name, optional=["ssl_model.masked_spec_embed"])
        weights = sum(tensor.numel() for tensor in tensors.values())
        bake(made.ssl_model)
        self._network, self._device, self._number = made.to(device), torch.device(device), number
        place(made.ssl_model, self._device, number)
        self._sha256 = checkpoint.content_sha256(directory, FILES)
        self._spec = replace(spec, embedding_width=made.ssl_model.config.hidden_size, parameters=weights)

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
        """One micro-batch.

        Args:
            waveforms: mono float32 samples at 16 kHz, each of 400 to 192 000 samples.
            frames: whether frame embeddings are wanted too, float32 (`frame_count(samples)`, width) each.

        Raises:
            ModelError: `MODEL_SEGMENT_LENGTH`.
        """
        if not waveforms:
            return nothing(self._spec, frames=frames)
        refuse_lengths(waveforms, self._spec)
        normalised = [(np.asarray(waveform, np.float32) - self._mean) / (self._std + 1e-6) for waveform in waveforms]
        batch, lengths = pad(normalised, self._device)
        logits, embeddings, hidden = self._network(batch.to(self._number), lengths, even=even(normalised))
        scores = logits.softmax(-1) if self._spec.kind == "categorical" else logits
        rows = None
        if frames:
            every = hidden.cpu().numpy()
            rows = [row[: frame_count(len(waveform))].copy() for row, waveform in zip(every, waveforms, strict=True)]
        return Outputs(logits.cpu().numpy(), scores.cpu().numpy(), embeddings.cpu().numpy(), rows)
