"""Models by name: the families that ship with serpipe, and those others add under the entry points `serpipe.models`."""

from __future__ import annotations

import difflib
import re
import socket
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from serpipe import ids
from serpipe.errors import ModelError, UsageError
from serpipe.models import weights
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import Adapter, ModelSpec

GROUP = "serpipe.models"
"""Entry-point group; each entry names the module of a family."""

FAMILIES = (
    "serpipe.models.embedded",
    "serpipe.models.superb",
    "serpipe.models.exhubert",
    "serpipe.models.emotion2vec",
    "serpipe.models.odyssey",
    "serpipe.models.audeering",
    "serpipe.models.ehcalabres",
    "serpipe.models.mel_statistics",
)
"""The families that ship with serpipe, a module each."""

_ANY_CLASSIFIER = "serpipe.models.generic"
_STUDENT = "serpipe.models.probe"
_NAME = re.compile(r"[^./\\\s=][^/\\=\x00-\x1f]*")


class Family(Protocol):
    """What the module of a family offers. Importing it must not import torch.

    A family whose weights come with its module says where in `SHIPPED`.
    """

    SPECS: tuple[ModelSpec, ...]
    FILES: tuple[str, ...]  # patterns of a checkpoint's files; nothing else of it is ever read

    def load(self, spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
        """Audit the checkpoint in a local folder and put the network on a device; refuse what does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a run uses it: found and hashed, not loaded.

    Attributes:
        spec: its frozen facts.
        family: module of its family.
        location: where its weights lie: a local folder or any fsspec URL.
        dtype: number format it computes in.
        weights_sha256: hash of the files that decide its numbers.
        asked: how it was asked for, as `resolve` takes it.
    """

    spec: ModelSpec
    family: str
    location: str
    dtype: str
    weights_sha256: str
    asked: str

    @property
    def name(self) -> str:
        """What people call it."""
        return self.spec.name

    @property
    def fp(self) -> str:
        """Model fingerprint: weights, adapter epoch and number format."""
        return ids.fingerprint("model", self.weights_sha256, self.spec.adapter_epoch, self.dtype)

    @property
    def published(self) -> tuple[int, tuple[float, ...]] | None:
        """Zeros, as a number of samples, and the scores that the model's authors published for them."""
        return getattr(_family(self.family), "CHECK", None)

    @property
    def own_dtype(self) -> str | None:
        """The one number format that it can compute in; None where it may be any.

        A student hears its backbone in the format in which that one labelled what it was trained on.
        """
        if self.family != _STUDENT:
            return None
        from serpipe.models import probe

        return probe.read_config(weights.localised(self.location, probe.FILES)).backbone.dtype

    @property
    def random_weights(self) -> bool:
        """Whether `serpipe.testing.make_checkpoint` made these weights up."""
        directory = weights.localised(self.location, _family(self.family).FILES)
        return (Path(directory) / weights.RANDOM_WEIGHTS).exists()

    def load(self, device: str) -> Adapter:
        """Audit the weights and put the network on a device.

        Raises:
            ModelError: the checkpoint is not this model, whole and unchanged; `MODEL_WEIGHTS_CHANGED`, it holds other
                weights than where and when this was resolved, so that labels would bear another model's fingerprint.
        """
        family = _family(self.family)
        directory = weights.localised(self.location, family.FILES)
        adapter = family.load(self.spec, directory, device=device, dtype=self.dtype)
        if adapter.weights_sha256 != self.weights_sha256:
            raise ModelError(
                "MODEL_WEIGHTS_CHANGED",
                f"{self.location} holds other weights on {socket.gethostname()} now than those that {self.name} was "
                "planned with, and labels would bear the wrong fingerprint; give every machine the same files and run "
                "the same command again",
            )
        return adapter


def families() -> dict[str, Family]:
    """Every family known here, by module."""
    modules = [*FAMILIES, *(point.module for point in entry_points(group=GROUP))]
    return {module: _family(module) for module in dict.fromkeys(modules)}


def specs() -> dict[str, ModelSpec]:
    """Every model known here, by name.

    Examples:
        >>> specs()["embedded"].labels
        ('anger', 'happiness', 'neutral', 'sadness')
    """
    return {spec.name: spec for family in families().values() for spec in family.SPECS}


def resolve(text: str, *, dtype: str = "float32") -> ModelRef:
    """Find a model and hash its weights.

    Args:
        text: `NAME`, `NAME@REVISION`, or `NAME=LOCATION` for weights in a folder or at an fsspec URL. A name that
            is not known makes its own of any Transformers audio classifier at LOCATION.
        dtype: number format to compute in.

    Raises:
        UsageError: `MODEL_UNKNOWN`, with the nearest names; `MODEL_NAME`.
        ModelError: `MODEL_WEIGHTS_MISSING`, with the command that fetches them.

    Examples:
        >>> resolve("embedded").name
        'embedded'
    """
    named, _, location = text.partition("=")
    name, _, revision = named.partition("@")
    if not _NAME.fullmatch(name):
        raise UsageError(
            "MODEL_NAME",
            f"{name!r} is no name for a model: folders and files are named after it; take one without '/', as in "
            f"{name.rpartition('/')[2].strip('. ') or 'mine'}",
        )
    for module, family in families().items():
        for spec in family.SPECS:
            if spec.name == name:
                place = location or getattr(family, "SHIPPED", "") or weights.from_hub(spec, revision, family.FILES)
                digest = content_sha256(weights.localised(place, family.FILES), family.FILES)
                return ModelRef(spec, module, place, dtype, digest, asked=text)
    if location:
        return _classifier(name, location, dtype, asked=text)
    near = difflib.get_close_matches(name, specs(), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`serpipe models` lists them"
    raise UsageError("MODEL_UNKNOWN", f"no model is called {name!r}; {hint}")


def _classifier(name: str, location: str, dtype: str, *, asked: str) -> ModelRef:
    """A student, or a checkpoint no family knows: its configuration says what it is, the audit whether that is so."""
    from serpipe.models import generic, probe

    directory = weights.localised(location, (*probe.FILES, *generic.FILES))
    if probe.is_probe(directory):
        student = probe.spec_of(directory, name)
        return ModelRef(student, _STUDENT, location, dtype, content_sha256(directory, probe.FILES), asked)
    spec = generic.spec_of(directory, name)
    return ModelRef(spec, _ANY_CLASSIFIER, location, dtype, content_sha256(directory, generic.FILES), asked)


def _family(module: str) -> Family:
    return cast(Family, import_module(module))
