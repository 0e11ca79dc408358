"""Random-weight checkpoints in each family's exact hub layout."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Literal

from serpipe.errors import UsageError


def make_checkpoint(name: str, directory: str | Path, *, size: Literal["tiny", "full"] = "tiny", seed: int = 0) -> str:
    """Write a checkpoint that loads, audits and answers like the real one, with random weights.

    The head is scaled so that logits over different clips have a standard deviation of 1 or more: an untrained head
    finds all labels equally likely, which would hide every bug.

    Args:
        name: a model of `serpipe models`.
        directory: where to; made if it is not there.
        size: `tiny` for tests, `full` for the real dimensions.
        seed: the same seed gives the same weights.

    Returns:
        The directory, for `NAME=DIRECTORY`.

    Raises:
        UsageError: `MODEL_UNKNOWN`, or `MODEL_SHIPS`, the model needs no checkpoint.

    Examples:
        >>> import tempfile
        >>> from serpipe.models.registry import resolve
        >>> folder = make_checkpoint("audeering-dim", tempfile.mkdtemp())
        >>> resolve(f"audeering-dim={folder}").spec.labels
        ('arousal', 'dominance', 'valence')
    """
    from serpipe.models.registry import families
    from serpipe.models.weights import RANDOM_WEIGHTS

    for module, family in families().items():
        for spec in family.SPECS:
            if spec.name == name:
                if spec.hub_id is None:
                    raise UsageError("MODEL_SHIPS", f"{name} ships with its weights; it needs no checkpoint")
                Path(directory).mkdir(parents=True, exist_ok=True)
                writer = import_module(f"serpipe.testing.{module.rpartition('.')[2]}")
                writer.write(spec, directory, size=size, seed=seed)
                (Path(directory) / RANDOM_WEIGHTS).write_text("made by serpipe.testing.make_checkpoint\n")
                return str(directory)
    raise UsageError("MODEL_UNKNOWN", f"no model is called {name!r}; `serpipe models` lists them")
