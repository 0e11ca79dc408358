"""Random-weight checkpoints of ehcalabres' model; see `serpipe.models.ehcalabres`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from serpipe.models.contract import ModelSpec
from serpipe.models.transformers_classifier import DENSE
from serpipe.testing.transformers_checkpoint import LARGE, config_of, preprocessor_of, write_checkpoint


def config(spec: ModelSpec, size: Literal["tiny", "full"]) -> dict[str, Any]:
    """Content of the checkpoint's `config.json`, which names a class that does not have the saved head."""
    return config_of(
        spec.labels,
        LARGE,
        size,
        model_type="wav2vec2",
        architectures=["Wav2Vec2ForSequenceClassification"],
    )


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write a checkpoint in the hub's layout, weights as a pickle of tensors.

    Args:
        spec: `serpipe.models.ehcalabres.SPEC`.
        directory: made where there is none.
        size: `full` has the real sizes, 1.3 GB.
        seed: the same seed gives the same files.
    """
    write_checkpoint(
        directory,
        config=config(spec, size),
        preprocessor=preprocessor_of(do_normalize=True),
        head=DENSE,
        weights="pytorch_model.bin",
        seed=seed,
    )
