"""Random-weight checkpoints of audEERING's dimensional model; see `serpipe.models.audeering`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from serpipe.models.contract import ModelSpec
from serpipe.models.transformers_classifier import REGRESSION
from serpipe.testing.transformers_checkpoint import LARGE, config_of, preprocessor_of, write_checkpoint


def config(spec: ModelSpec, size: Literal["tiny", "full"]) -> dict[str, Any]:
    """Content of the checkpoint's `config.json`."""
    return config_of(
        spec.labels,
        LARGE | {"num_hidden_layers": 12},
        size,
        model_type="wav2vec2",
        architectures=["Wav2Vec2ForSpeechClassification"],
        finetuning_task="wav2vec2_reg",
        pooling_mode="mean",
        problem_type="regression",
        vocab_size=None,
    )


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write a checkpoint in the hub's layout.

    Args:
        spec: `serpipe.models.audeering.SPEC`.
        directory: made where there is none.
        size: `full` has the real sizes, 0.7 GB.
        seed: the same seed gives the same files.
    """
    write_checkpoint(
        directory,
        config=config(spec, size),
        preprocessor=preprocessor_of(do_normalize=True),
        head=REGRESSION,
        weights="model.safetensors",
        seed=seed,
    )
