"""Random-weight checkpoints of the SUPERB family; see `serpipe.models.superb`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from serpipe.models.contract import ModelSpec
from serpipe.models.superb import facts_of
from serpipe.models.transformers_classifier import SEQUENCE
from serpipe.testing.transformers_checkpoint import BASE, LARGE, config_of, preprocessor_of, write_checkpoint


def config(spec: ModelSpec, size: Literal["tiny", "full"]) -> dict[str, Any]:
    """Content of the checkpoint's `config.json`."""
    facts = facts_of(spec)
    architecture = {"hubert": "HubertForSequenceClassification", "wav2vec2": "Wav2Vec2ForSequenceClassification"}
    return config_of(
        spec.labels,
        LARGE if _is_large(spec) else BASE,
        size,
        model_type=facts["model_type"],
        architectures=[architecture[str(facts["model_type"])]],
        use_weighted_layer_sum=True,
    )


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write a checkpoint in the layout of the hub's main branch, weights as a pickle of tensors.

    Args:
        spec: one of `serpipe.models.superb.SPECS`.
        directory: made where there is none.
        size: `full` has the real sizes, up to 1.3 GB.
        seed: the same seed gives the same files.
    """
    write_checkpoint(
        directory,
        config=config(spec, size),
        preprocessor=preprocessor_of(do_normalize=_is_large(spec)),
        head=SEQUENCE,
        weights="pytorch_model.bin",
        seed=seed,
    )


def _is_large(spec: ModelSpec) -> bool:
    return facts_of(spec)["feat_extract_norm"] == "layer"
