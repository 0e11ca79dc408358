"""serpipe: point it at an audio archive and the emotion models you trust; get label tables you can prove.

`import serpipe` costs nothing: what needs Ray or torch is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serpipe.audio.stage import Decode
    from serpipe.engine.label import label
    from serpipe.manifest import read_manifest
    from serpipe.models.stage import Predict
    from serpipe.store.reading import Store, open
    from serpipe.store.rows import flatten

__version__ = "0.1.0"

_HOMES = {
    "Decode": "serpipe.audio.stage",
    "Predict": "serpipe.models.stage",
    "Store": "serpipe.store.reading",
    "flatten": "serpipe.store.rows",
    "label": "serpipe.engine.label",
    "open": "serpipe.store.reading",
    "read_manifest": "serpipe.manifest",
}

__all__ = ["Decode", "Predict", "Store", "flatten", "label", "open", "read_manifest"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'serpipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
