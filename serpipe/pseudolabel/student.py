"""A student on disk: the folder that `label` takes, its card, where a store keeps it, and how it is known again.

A store remembers the weights of every student that was trained or relabelled in it. So a student is known for one under
any name, and after another was trained in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from serpipe.errors import ModelError
from serpipe.models import weights
from serpipe.models.probe import CONFIG, FILES, WEIGHTS, Backbone, ProbeConfig, read_config
from serpipe.models.probe_head import Head
from serpipe.models.registry import ModelRef, resolve
from serpipe.store.storage import Storage

CARD, TRAINING = "card.md", "training.json"

_CALLED = re.compile(r"(?:probe|finetuned)-(?:(\d+)|(?:probe-)?gold)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a student is from.

    Attributes:
        generations: whose kept rows it learnt from, 0 for gold alone; several where training gave the same weights
            again, none where its folder does not say.
        here: whether they are generations of this store.
    """

    generations: tuple[int, ...]
    here: bool


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


def ref(storage: Storage, generation: int) -> ModelRef:
    """A generation's student as a model, in the number format that its backbone computes in.

    Raises:
        ModelError: it has none.
    """
    return at(f"{storage.root}/{folder(generation)}".rstrip("/"), name(generation))


def at(location: str, name: str) -> ModelRef:
    """A student's folder as a model.

    Raises:
        ModelError: it holds none.
    """
    place = localised(location)
    model = resolve(f"{name}={place}", dtype=read_config(place).backbone.dtype)
    return replace(model, location=location)


def localised(location: str) -> str:
    """A local folder with a student's files; copies are named after what they hold, for a student is trained again.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISSING`.
    """
    if "://" not in location:
        return location
    try:
        files = {file: Storage(location).get(file) for file in FILES}
    except FileNotFoundError as error:
        raise ModelError("MODEL_WEIGHTS_MISSING", f"there is no student at {location} ({error})") from error
    place = weights.cache() / "students" / hashlib.sha256(b"".join(files.values())).hexdigest()[:24]
    copy = Storage(str(place))
    for file, content in files.items():
        copy.put(file, content)
    return str(place)


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


def register(storage: Storage, weights_sha256: str, generation: int | None, *, here: bool) -> None:
    """Remember a student's weights.

    Args:
        storage: the store.
        weights_sha256: as of `serpipe.models.registry.ModelRef`.
        generation: as of `Origin`.
        here: as of `Origin`; what is known as trained here stays so.
    """
    before = _known(storage, weights_sha256) or Origin((), here)
    if before.here and not here:
        return
    mine = set(before.generations) if before.here == here else set()
    content = {"generations": sorted(mine | ({generation} if generation is not None else set())), "here": here}
    storage.put(_registered(weights_sha256), json.dumps(content).encode())


def origin(storage: Storage, model: str, fp: str) -> Origin | None:
    """Where a model of a store is from, by the weights its passport names; None for one that is no student.

    What no passport speaks of goes by its name, as `name` gives it.

    Args:
        storage: the store.
        model: its name among the store's models.
        fp: its model fingerprint.
    """
    for passport in storage.list(f"passports/{model}-{fp}-"):
        found = _known(storage, json.loads(storage.get(passport))["weights_sha256"])
        if found is not None:
            return found
    called = _CALLED.fullmatch(model)
    return Origin((int(called[1] or 0),), here=True) if called else None


def _known(storage: Storage, weights_sha256: str) -> Origin | None:
    try:
        found = json.loads(storage.get(_registered(weights_sha256)))
    except FileNotFoundError:
        return None
    return Origin(tuple(found["generations"]), found["here"])


def _registered(weights_sha256: str) -> str:
    return f"students/weights/{weights_sha256}.json"
