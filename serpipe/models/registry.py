"""Models by name: what ships with serpipe, and what others add under the entry-point group `serpipe.models`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol

from serpipe import ids
from serpipe.errors import UsageError
from serpipe.models.contract import Adapter, ModelSpec

GROUP = "serpipe.models"
"""Entry-point group: name of a model to a module with `SPEC`, `weights_sha256` and `load`."""

_SHIPPED = {"embedded": "serpipe.models.embedded"}


class ModelModule(Protocol):
    """What a model's module offers. Importing it must not import torch."""

    SPEC: ModelSpec

    def weights_sha256(self, directory: str | None) -> str:
        """Hash of the weights in a directory; None for those that ship with the module."""
        ...

    def load(self, directory: str | None, *, device: str, dtype: str) -> Adapter:
        """Read the weights and put the network on a device."""
        ...


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a run uses it: found, hashed, not loaded.

    Attributes:
        name: name of the model.
        directory: where its weights lie; None for those that ship with it.
        dtype: number format it computes in.
        fp: model fingerprint: weights, adapter epoch and dtype.
    """

    name: str
    directory: str | None
    dtype: str
    fp: str

    @property
    def spec(self) -> ModelSpec:
        """The model's frozen facts."""
        return module_of(self.name).SPEC

    def load(self, device: str) -> Adapter:
        """Read the weights and put the network on a device."""
        return module_of(self.name).load(self.directory, device=device, dtype=self.dtype)


def names() -> list[str]:
    """Every model known here.

    Examples:
        >>> "embedded" in names()
        True
    """
    return sorted({*_SHIPPED, *(point.name for point in entry_points(group=GROUP))})


@cache
def module_of(name: str) -> ModelModule:
    """The module behind a name.

    Raises:
        UsageError: `MODEL_UNKNOWN`, with the nearest names.
    """
    if name in _SHIPPED:
        return import_module(_SHIPPED[name])
    for point in entry_points(group=GROUP):
        if point.name == name:
            found: ModelModule = point.load()
            return found
    near = difflib.get_close_matches(name, names(), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`serpipe models` lists them"
    raise UsageError("MODEL_UNKNOWN", f"no model is called {name!r}; {hint}")


def resolve(text: str, *, dtype: str = "float32") -> ModelRef:
    """Find a model and hash its weights.

    Args:
        text: `NAME`, or `NAME=DIRECTORY` for weights that lie elsewhere.
        dtype: number format to compute in.

    Raises:
        UsageError: `MODEL_UNKNOWN`.

    Examples:
        >>> resolve("embedded").name
        'embedded'
    """
    name, _, directory = text.partition("=")
    found = module_of(name)
    weights = found.weights_sha256(directory or None)
    fp = ids.fingerprint("model", weights, str(found.SPEC.adapter_epoch), dtype)
    return ModelRef(name, directory or None, dtype, fp)
