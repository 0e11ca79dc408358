"""A student on disk: the folder that `label` takes, its card, and where a store keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from serpipe.models.probe import CONFIG, WEIGHTS, Backbone, ProbeConfig
from serpipe.models.probe_head import Head
from serpipe.models.registry import ModelRef
from serpipe.store.storage import Storage

CARD, TRAINING = "card.md", "training.json"


def folder(generation: int) -> str:
    """Where a store keeps the student of a generation.

    Examples:
        >>> folder(2)
        'students/generation=2/'
    """
    return f"students/generation={generation}/"


def name(generation: int) -> str:
    """What a generation's student is called among the models of its store; 0 is the one trained on gold alone.

    Examples:
        >>> name(2), name(0)
        ('probe-2', 'probe-gold')
    """
    return f"probe-{generation}" if generation else "probe-gold"


def training(storage: Storage, generation: int) -> dict[str, Any]:
    """What a generation's student was trained on.

    Raises:
        FileNotFoundError: it has none.
    """
    content: dict[str, Any] = json.loads(storage.get(f"{folder(generation)}{TRAINING}"))
    return content


def backbone_of(model: ModelRef, asked: str) -> Backbone:
    """What a student has to know of the model it hears.

    Args:
        model: the backbone.
        asked: as it was asked for, `NAME` or `NAME=LOCATION`.
    """
    spec = model.spec
    location = asked.partition("=")[2]
    return Backbone(
        model=spec.name,
        location=str(Path(location).resolve()) if location and "://" not in location else location or None,
        fp=model.fp,
        dtype=model.dtype,
        licence=spec.licence,
        parameters=spec.parameters,
        min_seconds=spec.min_seconds,
        max_seconds=spec.max_seconds,
        embedding_width=spec.embedding_width,
    )


def files_of(head: Head, config: ProbeConfig, training: Mapping[str, Any], card: str) -> dict[str, bytes]:
    """A student's files by name; the same for the same head."""
    return {
        WEIGHTS: save({key: value.contiguous() for key, value in head.state_dict().items()}),
        TRAINING: json.dumps(training, indent=1, sort_keys=True, default=float).encode(),
        CARD: card.encode(),
        CONFIG: json.dumps(config.as_json(), indent=1, sort_keys=True).encode(),
    }


def write(storage: Storage, where: str, files: Mapping[str, bytes]) -> None:
    """Put a student's files; the configuration comes last, so that a folder without it is no student."""
    for file, content in files.items():
        storage.put(f"{where}{file}", content)
