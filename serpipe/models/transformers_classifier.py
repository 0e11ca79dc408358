"""Emotion classifiers of the Transformers kind: an encoder, a mean over its valid frames, two linear maps.

The published heads differ in names and in what lies between the two maps; `Head` says both. The stock classes project
every frame and then take the mean; linear maps commute with a mean, so the mean is taken first, over fewer numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serpipe.errors import ModelError
from serpipe.models.checkpoint import (
    content_sha256,
    fill,
    read_json,
    read_tensors,
    refuse_config,
    refuse_labels,
    torch_dtype,
)
from serpipe.models.contract import SAMPLE_RATE, ModelSpec, Outputs
from serpipe.models.masking import even, frame_count, masked_mean, nothing, pad, refuse_lengths, standardised
from serpipe.models.transformers_encoder import Encoder, bake, build_encoder, encode, place

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The two linear maps behind the mean, as a checkpoint names them.

    Attributes:
        first: name of the first map in the weights file.
        second: name of the second one, whose outputs are the logits.
        width: key of the configuration that holds the width between them.
        activation: what lies between them.
    """

    first: str
    second: str
    width: Literal["classifier_proj_size", "hidden_size"]
    activation: Literal["tanh"] | None = None


SEQUENCE = Head(first="projector", second="classifier", width="classifier_proj_size")
"""`ForSequenceClassification` of Transformers."""

REGRESSION = Head(first="classifier.dense", second="classifier.out_proj", width="hidden_size", activation="tanh")
"""`RegressionHead` on audeering's model card."""

DENSE = Head(first="classifier.dense", second="classifier.output", width="hidden_size")
"""The head in ehcalabres' weights file; see `serpipe.models.ehcalabres` for what is not known of it."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a network gives for `n` waveforms: logits (n, labels), embeddings (n, width), frames (n, frames, width)."""

    logits: Tensor
    embeddings: Tensor
    frames: Tensor


class Network(nn.Module):
    """An encoder and a head, named as in the weights file, on the meta device until it is filled.

    Args:
        config: content of `config.json`.
        head: the checkpoint's head.
        labels: how many.
        model: the model's name, for messages.

    Raises:
        ModelError: see `serpipe.models.transformers_encoder.build_encoder`.
    """

    def __init__(self, config: Mapping[str, Any], head: Head, *, labels: int, model: str) -> None:
        super().__init__()
        encoder = build_encoder(config, model=model)
        self._prefix: str = encoder.base_model_prefix
        self._head = head
        self._shares: list[float] | None = None
        self.add_module(self._prefix, encoder)
        width, inner = encoder.config.hidden_size, getattr(encoder.config, head.width)
        with torch.device("meta"):
            weights = torch.empty(encoder.config.num_hidden_layers + 1)
            self.layer_weights = nn.Parameter(weights) if encoder.config.use_weighted_layer_sum else None
            _attach(self, head.first, nn.Linear(width, inner))
            _attach(self, head.second, nn.Linear(inner, labels))

    @property
    def encoder(self) -> Encoder:
        """The stock encoder."""
        return cast(Encoder, self.get_submodule(self._prefix))

    def freeze(self) -> None:
        """Weigh the layers from now on as the filled weights say; to read them at each batch is to wait for a GPU."""
        self._shares = self._layer_shares()

    def _layer_shares(self) -> list[float] | None:
        if self._shares is not None or self.layer_weights is None:
            return self._shares
        shares: list[float] = self.layer_weights.detach().double().softmax(-1).tolist()
        return shares

    def forward(self, waveforms: Tensor, lengths: Tensor, *, even: bool = False) -> Results:
        """Run a zero-padded batch.

        Args:
            waveforms: (n, samples).
            lengths: int64 (n,).
            even: whether every row has as many frames as the longest.

        Returns:
            From a head that runs in its own type, which is float32.
        """
        encoded = encode(self.encoder, waveforms, lengths, even=even, layer_shares=self._layer_shares())
        frames = encoded.last.float() if encoded.weighted is None else encoded.weighted
        embeddings = masked_mean(frames, encoded.mask)
        inner: Tensor = self.get_submodule(self._head.first)(embeddings)
        if self._head.activation == "tanh":
            inner = inner.tanh()
        return Results(self.get_submodule(self._head.second)(inner), embeddings, frames)


class ClassifierAdapter:
    """A classifier of the Transformers kind, loaded.

    Embeddings are the mean of what the head sees: the last hidden states, or the weighted sum of the layers where the
    checkpoint has one; frames are the same before the mean.
    """

    def __init__(
        self, spec: ModelSpec, network: Network, *, normalise: bool, weights_sha256: str, device: str, dtype: str
    ) -> None:
        self._spec = spec
        self._weights_sha256 = weights_sha256
        self._normalise = normalise
        self._device = torch.device(device)
        self._dtype = torch_dtype(dtype)
        network.freeze()
        self._network = network.to(self._device).eval()
        place(network.encoder, self._device, self._dtype)

    @property
    def spec(self) -> ModelSpec:
        """The model's frozen facts, with the width and the number of parameters of what was loaded."""
        return self._spec

    @property
    def weights_sha256(self) -> str:
        """Hash of the checkpoint's files, as 64 hexadecimal digits."""
        return self._weights_sha256

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        """One micro-batch: normalise each waveform alone where the checkpoint asks for it, pad, mask, run.

        Args:
            waveforms: mono float32 samples at 16 kHz, each within the spec's seconds.
            frames: whether frame embeddings are wanted too, float32 (frame_count(samples), width) each.

        Raises:
            ModelError: `MODEL_SEGMENT_LENGTH`, a waveform shorter or longer than the spec allows.
        """
        if not waveforms:
            return nothing(self._spec, frames=frames)
        refuse_lengths(waveforms, self._spec)
        prepared = [standardised(waveform) for waveform in waveforms] if self._normalise else waveforms
        batch, sizes = pad(prepared, self._device)
        out = self._network(batch.to(self._dtype), sizes, even=even(prepared))
        logits = out.logits.float()
        scores = logits.softmax(-1) if self._spec.kind == "categorical" else logits
        per_frame = None
        if frames:
            rows = out.frames.cpu().numpy()
            per_frame = [row[: frame_count(len(wave))].copy() for row, wave in zip(rows, waveforms, strict=True)]
        return Outputs(logits.cpu().numpy(), scores.cpu().numpy(), out.embeddings.cpu().numpy(), per_frame)


def load_classifier(
    spec: ModelSpec,
    directory: str,
    *,
    files: Sequence[str],
    head: Head,
    facts: Mapping[str, object],
    device: str,
    dtype: str,
) -> ClassifierAdapter:
    """Load a checkpoint after checking every tensor of it.

    Args:
        spec: what the checkpoint must be; its width and number of parameters are taken from the checkpoint.
        directory: local folder in the hub's layout; `model.safetensors` is read where both kinds of weights lie there.
        files: patterns of the files that count.
        head: the checkpoint's head.
        facts: values that the configuration must hold.
        device: as PyTorch names it.
        dtype: of the encoder.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`, `MODEL_CONFIG_MISMATCH`, `MODEL_LABELS_MISMATCH`,
            `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREADABLE`, `MODEL_WEIGHTS_UNSAFE`, `MODEL_WEIGHTS_MISMATCH` or
            `MODEL_DTYPE_UNSUPPORTED`.
    """
    torch_dtype(dtype)
    folder = Path(directory)
    config = read_json(folder / "config.json")
    network = Network(config, head, labels=len(spec.labels), model=spec.name)
    # What a configuration leaves out is what Transformers takes for it.
    refuse_config(network.encoder.config.to_dict(), facts, model=spec.name)
    refuse_labels(config, spec.labels, model=spec.name)
    normalise = normalises(read_json(folder / "preprocessor_config.json"), model=spec.name)
    tensors = _tensors(folder, spec.name)
    network.to_empty(device="cpu")
    # The embedding that SpecAugment puts in place of masked frames; only training uses it.
    fill(network, tensors, model=spec.name, optional=("*.masked_spec_embed",))
    found_spec = replace(
        spec,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        embedding_width=network.encoder.config.hidden_size,
    )
    bake(network.encoder)
    return ClassifierAdapter(
        found_spec,
        network,
        normalise=normalise,
        weights_sha256=content_sha256(folder, files),
        device=device,
        dtype=dtype,
    )


def labels_of(config: Mapping[str, Any], *, model: str) -> tuple[str, ...]:
    """The labels of a configuration in id order.

    Raises:
        ModelError: `MODEL_LABELS_MISMATCH`, none there, or ids or names that leave a label in doubt.

    Examples:
        >>> labels_of({"id2label": {"1": "hap", "0": "neu"}}, model="toy")
        ('neu', 'hap')
    """
    table = config.get("id2label")
    ids = {str(key): value for key, value in table.items()} if isinstance(table, Mapping) else {}
    labels = tuple(ids.get(str(place)) for place in range(len(ids)))
    named = tuple(label for label in labels if isinstance(label, str) and label)
    if not named or len(set(named)) < len(labels):
        raise ModelError(
            "MODEL_LABELS_MISMATCH",
            f"id2label of model {model!r} does not name one label for each id from 0 upwards ({table!r}); "
            "give the labels in config.json",
        )
    return named


def normalises(preprocessor: Mapping[str, Any], *, model: str) -> bool:
    """Whether a checkpoint wants each waveform at zero mean and unit variance.

    Args:
        preprocessor: content of `preprocessor_config.json`.
        model: the model's name, for the message.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH`, it does not say, or wants another rate or another kind of input.

    Examples:
        >>> normalises({"do_normalize": False, "sampling_rate": 16_000}, model="toy")
        False
        >>> normalises({"do_normalize": True, "sampling_rate": 8_000}, model="toy")
        Traceback (most recent call last):
        serpipe.errors.ModelError: MODEL_CONFIG_MISMATCH: model 'toy' takes audio at 8000 Hz, and ... 16000 Hz only
    """
    rate, kind = preprocessor.get("sampling_rate"), preprocessor.get("feature_extractor_type")
    if rate != SAMPLE_RATE:
        raise ModelError(
            "MODEL_CONFIG_MISMATCH",
            f"model {model!r} takes audio at {rate} Hz, and the decoder delivers {SAMPLE_RATE} Hz only",
        )
    if kind not in (None, "Wav2Vec2FeatureExtractor"):
        raise ModelError("MODEL_CONFIG_MISMATCH", f"model {model!r} takes the input of {kind}, not waveforms")
    normalise = preprocessor.get("do_normalize")
    if not isinstance(normalise, bool):
        raise ModelError(
            "MODEL_CONFIG_MISMATCH",
            f"preprocessor_config.json of model {model!r} does not say whether waveforms are normalised; "
            "add do_normalize as the model was trained",
        )
    return normalise


def _tensors(folder: Path, model: str) -> dict[str, Tensor]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise ModelError(
            "MODEL_WEIGHTS_MISSING", f"{folder} holds no {' or '.join(_WEIGHTS)}; fetch model {model!r} again"
        )
    tensors = read_tensors(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ModelError("MODEL_WEIGHTS_MISMATCH", f"{path} is no table of named tensors; fetch it again")
    return tensors


def _attach(parent: nn.Module, name: str, child: nn.Module) -> None:
    *path, last = name.split(".")
    for step in path:
        if not hasattr(parent, step):
            parent.add_module(step, nn.Module())
        parent = parent.get_submodule(step)
    parent.add_module(last, child)
