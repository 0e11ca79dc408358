"""A student on disk: the folder that `label` takes, its card, where a store keeps it, and how it is known again.

There are two kinds: a probe is a head on stored embeddings, a fine-tuned student a whole model of its own. A store
remembers the weights of every student that was trained or relabelled in it. So a student is known for one under any
name, and after another was trained in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save

from serpipe.errors import ModelError
from serpipe.models import probe, weights
from serpipe.models.probe import CONFIG, FILES, WEIGHTS, Backbone, ProbeConfig, read_config
from serpipe.models.probe_head import Head
from serpipe.models.registry import ModelRef, resolve
from serpipe.pseudolabel import schemas
from serpipe.pseudolabel.schemas import Kind
from serpipe.store.storage import Storage

CARD, TRAINING = "card.md", "training.json"

KINDS: tuple[Kind, ...] = get_args(Kind)

_CALLED = re.compile(rf"({'|'.join(KINDS)})-(?:(\d+)|gold)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a student is from.

    Attributes:
        generations: whose kept rows it learnt from, 0 for gold alone; several where training gave the same weights
            again, none where its folder does not say.
        here: whether they are generations of this store.
        kind: what it is.
    """

    generations: tuple[int, ...]
    here: bool
    kind: Kind = "probe"


def folder(generation: int, kind: Kind = "probe") -> str:
    """Where a store keeps the student of a generation.

    Examples:
        >>> folder(2), folder(2, "finetuned")
        ('students/generation=2/', 'students/finetuned-2/')
    """
    return f"students/generation={generation}/" if kind == "probe" else f"students/{kind}-{generation}/"


def name(generation: int, kind: Kind = "probe") -> str:
    """What a generation's student is called among the models of its store; 0 is the one trained on gold alone.

    Examples:
        >>> name(2), name(0), name(2, "finetuned")
        ('probe-2', 'probe-gold', 'finetuned-2')
    """
    return f"{kind}-{generation or 'gold'}"


def training(storage: Storage, generation: int, kind: Kind = "probe") -> dict[str, Any]:
    """What a generation's student was trained on.

    Raises:
        FileNotFoundError: it has none.
    """
    content: dict[str, Any] = json.loads(storage.get(f"{folder(generation, kind)}{TRAINING}"))
    return content


def weights_of(storage: Storage, generation: int, kind: Kind) -> str:
    """Hash of the weights of a generation's student, as of `serpipe.models.registry.ModelRef`.

    That of a whole model stands in its `training.json`, for it may lie elsewhere and be large.

    Raises:
        FileNotFoundError: it has none.
    """
    if kind == "probe":
        if not storage.exists(f"{folder(generation)}{CONFIG}"):
            raise FileNotFoundError(folder(generation))
        return ref(storage, generation).weights_sha256
    return str(training(storage, generation, kind)["weights_sha256"])


def judged(storage: Storage, generation: int, kind: Kind = "probe") -> dict[str, Any] | None:
    """What the gates said of a generation's student, as its promotion file holds it; None where they were not asked."""
    try:
        said: dict[str, Any] = json.loads(storage.get(schemas.promotion(generation, kind)))
    except FileNotFoundError:
        return None
    return said


def promotions(storage: Storage, generation: int) -> list[dict[str, Any]]:
    """What the gates said of each of a generation's students that they were asked of."""
    said = (judged(storage, generation, kind) for kind in KINDS)
    return [one for one in said if one is not None]


def ref(storage: Storage, generation: int) -> ModelRef:
    """A generation's probe as a model, in the number format that its backbone computes in.

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
    """A probe's files by name; the same for the same head."""
    return {
        WEIGHTS: save({key: value.contiguous() for key, value in head.state_dict().items()}),
        **told(training, card),
        CONFIG: json.dumps(config.as_json(), indent=1, sort_keys=True).encode(),
    }


def told(training: Mapping[str, Any], card: str) -> dict[str, bytes]:
    """What a student's folder says of its training, to people and to `promote`; no model is loaded from these files."""
    return {
        CARD: card.encode(),
        TRAINING: json.dumps(training, indent=1, sort_keys=True, default=float).encode(),
    }


def card(called: str, about: str, facts: Mapping[str, object], end: str) -> str:
    """What a person should know before using a student.

    Args:
        called: its name.
        about: what it is, in a sentence.
        facts: rows of a table.
        end: what else there is to say.
    """
    rows = [f"| {fact} | {value} |" for fact, value in facts.items()]
    last = f"{end} Teachers' and audio's licences bind this student too."
    return "\n".join([f"# {called}", "", about, "", "| | |", "|---|---|", *rows, "", last, ""])


def learnt(training: Mapping[str, Any]) -> dict[str, object]:
    """What a student learnt from, for its card."""
    taught = ", ".join(str(teacher.get("model", teacher)) for teacher in training["teachers"]) or "nobody"
    return {
        "Classes": ", ".join(training["classes"]),
        "Gold rows, in every batch": training["gold"]["rows"],
        "Pseudo-labelled rows": f"{training['pseudo_rows']} of generation {training['generation']}, taught by {taught}",
    }


def write(storage: Storage, where: str, files: Mapping[str, bytes]) -> None:
    """Put a student's files in their order; what it is known by comes last, so that a folder without it is none."""
    for file, content in files.items():
        storage.put(f"{where}{file}", content)


def register(
    storage: Storage, weights_sha256: str, generation: int | None, *, here: bool, kind: Kind = "probe"
) -> None:
    """Remember a student's weights.

    Args:
        storage: the store.
        weights_sha256: as of `serpipe.models.registry.ModelRef`.
        generation: as of `Origin`.
        here: as of `Origin`; what is known as trained here stays so.
        kind: as of `Origin`.
    """
    before = _known(storage, weights_sha256) or Origin((), here)
    if before.here and not here:
        return
    mine = set(before.generations) if before.here == here else set()
    generations = sorted(mine | ({generation} if generation is not None else set()))
    content = {"generations": generations, "here": here, "kind": kind}
    storage.put(_registered(weights_sha256), json.dumps(content).encode())


def origin(storage: Storage, model: str, fp: str) -> Origin | None:
    """Where a model of a store is from, by the weights its passport names; None for one that is no student.

    A head that the store does not know is another store's student. What no passport speaks of goes by its name, as
    `name` gives it.

    Args:
        storage: the store.
        model: its name among the store's models.
        fp: its model fingerprint.
    """
    for weights_sha256 in weights_behind(storage, model, fp):
        found = _known(storage, weights_sha256)
        if found is not None:
            return found
    if any(told.get("family") == probe.__name__ for told in _passports(storage, model, fp)):
        return Origin((), here=False)
    called = _CALLED.fullmatch(model)
    if called is None:
        return None
    return Origin((int(called[2] or 0),), here=True, kind="probe" if called[1] == "probe" else "finetuned")


def weights_behind(storage: Storage, model: str, fp: str) -> list[str]:
    """Hashes of the weights that a model of a store has labelled with, as its passports name them: one, or none."""
    return sorted({str(told["weights_sha256"]) for told in _passports(storage, model, fp)})


def _passports(storage: Storage, model: str, fp: str) -> list[dict[str, Any]]:
    return [json.loads(storage.get(name)) for name in storage.list(f"passports/{model}-{fp}-")]


def _known(storage: Storage, weights_sha256: str) -> Origin | None:
    try:
        found = json.loads(storage.get(_registered(weights_sha256)))
    except FileNotFoundError:
        return None
    return Origin(tuple(found["generations"]), found["here"], found.get("kind", "probe"))


def _registered(weights_sha256: str) -> str:
    return f"students/weights/{weights_sha256}.json"
