"""Students: a small head on another model's utterance embeddings, as a folder that `label` takes like any model.

The head hears what a store keeps, half-precision embeddings, so a segment gets the same answer from its audio and from
its stored embedding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serpipe.errors import ModelError
from serpipe.models.checkpoint import read_json
from serpipe.models.contract import Adapter, ModelSpec

SPECS: tuple[ModelSpec, ...] = ()
"""None: `spec_of` makes one for a student."""

CONFIG, WEIGHTS = "probe.json", "head.safetensors"
FILES = (CONFIG, WEIGHTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The model whose embeddings a student hears, as it was when the student was trained.

    Attributes:
        model: its name.
        location: where its weights lie; None for those that its name finds.
        fp: its model fingerprint; another one is another student's.
        dtype: number format it computes in.
        licence: of its weights.
        parameters: number of its weights.
        min_seconds: shortest segment it accepts.
        max_seconds: longest segment it is run on.
        embedding_width: values per embedding.
    """

    model: str
    location: str | None
    fp: str
    dtype: str
    licence: str
    parameters: int
    min_seconds: float
    max_seconds: float
    embedding_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """What `probe.json` says.

    Attributes:
        labels: canonical emotions in id order.
        hidden: width of the hidden layer; 0 for a linear head.
        backbone: what it hears.
    """

    labels: tuple[str, ...]
    hidden: int
    backbone: Backbone

    def as_json(self) -> dict[str, Any]:
        """For `probe.json`."""
        return asdict(self) | {"labels": list(self.labels), "format": 1}


def is_probe(directory: str) -> bool:
    """Whether a folder holds a student of this family."""
    return (Path(directory) / CONFIG).exists()


def read_config(directory: str) -> ProbeConfig:
    """A student's configuration.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`.
    """
    path = Path(directory) / CONFIG
    content = read_json(path)
    try:
        if content.pop("format") != 1:
            raise ValueError("it is of another format")
        backbone = Backbone(**content.pop("backbone"))
        return ProbeConfig(labels=tuple(content.pop("labels")), backbone=backbone, **content)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "MODEL_CONFIG_UNREADABLE", f"{path} is not a student's ({error}); make it again with `serpipe train`"
        ) from error


def spec_of(directory: str, name: str) -> ModelSpec:
    """The facts of a student; no weights are read.

    Args:
        directory: a student's folder.
        name: what the model is to be called.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`.
    """
    config = read_config(directory)
    backbone, inputs = config.backbone, config.hidden or config.backbone.embedding_width
    head = (inputs + 1) * len(config.labels) + config.hidden * (backbone.embedding_width + 1)
    return ModelSpec(
        name=name,
        hub_id=None,
        revision=None,
        licence=backbone.licence,
        labels=config.labels,
        taxonomy="canonical",
        parameters=backbone.parameters + head,
        min_seconds=backbone.min_seconds,
        max_seconds=backbone.max_seconds,
        embedding_width=backbone.embedding_width,
        frame_rate=None,
        adapter_epoch=2,
    )


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load a student and the model it hears.

    Args:
        spec: of `spec_of`.
        directory: the student's folder.
        device: where it runs, as PyTorch names it.
        dtype: must be the one its backbone computed in.

    Raises:
        ModelError: `MODEL_BACKBONE_MISMATCH`, the backbone at hand is not the one it was trained on; what loading the
            backbone or the head refuses.
    """
    from serpipe.models.probe_head import ProbeAdapter
    from serpipe.models.registry import resolve

    wanted = read_config(directory).backbone
    backbone = resolve(f"{wanted.model}={wanted.location}" if wanted.location else wanted.model, dtype=dtype)
    if backbone.fp != wanted.fp:
        raise ModelError(
            "MODEL_BACKBONE_MISMATCH",
            f"{spec.name} was trained on {wanted.model} with fingerprint {wanted.fp} in {wanted.dtype}, and the one "
            f"here has {backbone.fp} in {dtype}; give its own weights, or train it again",
        )
    return ProbeAdapter(spec, directory, backbone.load(device), device=device)
