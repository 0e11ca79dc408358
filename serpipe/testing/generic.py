"""Random-weight WavLM classifiers, as Transformers itself saves them; see `serpipe.models.generic`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from serpipe.models.contract import ModelSpec
from serpipe.models.transformers_classifier import SEQUENCE
from serpipe.testing.transformers_checkpoint import BASE, LARGE, config_of, preprocessor_of, write_checkpoint

BASE_PLUS = ModelSpec(
    name="wavlm-base-example",
    hub_id=None,
    revision=None,
    licence="Apache-2.0",
    labels=("ang", "hap", "neu", "sad"),
    taxonomy="iemocap4",
    parameters=94_579_073,
    min_seconds=0.025,
    max_seconds=30.0,
    embedding_width=768,
    frame_rate=50.0,
    adapter_epoch=1,
)
"""WavLM base with a weighted layer sum, as the SUPERB recipe would train it."""

LARGE_LAST = ModelSpec(
    name="wavlm-large-example",
    hub_id=None,
    revision=None,
    licence="Apache-2.0",
    labels=("low", "mid", "high"),
    taxonomy="none",
    parameters=315_715_267,
    min_seconds=0.025,
    max_seconds=30.0,
    embedding_width=1024,
    frame_rate=50.0,
    adapter_epoch=1,
)
"""WavLM large whose head sees the last hidden states, with labels of no known taxonomy."""


def config(spec: ModelSpec, size: Literal["tiny", "full"]) -> dict[str, Any]:
    """Content of the checkpoint's `config.json`."""
    large = spec.embedding_width == 1024
    return config_of(
        spec.labels,
        LARGE | {"conv_bias": False} if large else BASE,
        size,
        model_type="wavlm",
        architectures=["WavLMForSequenceClassification"],
        use_weighted_layer_sum=not large,
    )


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write a checkpoint.

    Args:
        spec: `BASE_PLUS` or `LARGE_LAST`.
        directory: made where there is none.
        size: `full` has the real sizes, up to 1.3 GB.
        seed: the same seed gives the same files.
    """
    write_checkpoint(
        directory,
        config=config(spec, size),
        preprocessor=preprocessor_of(do_normalize=spec.embedding_width == 1024),
        head=SEQUENCE,
        weights="model.safetensors",
        seed=seed,
    )
