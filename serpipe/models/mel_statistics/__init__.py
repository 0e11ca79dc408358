"""Mean and deviation of 64 log-mels over time: a front end that has learned nothing and seen no data.

It names no emotion. A student trained on its embeddings (`serpipe train`) owes everything to the labels it was given,
which is what an honest comparison of label sets needs; on small corpora it is also hard to beat.
"""

from __future__ import annotations

from pathlib import Path

from serpipe.models.contract import Adapter, ModelSpec

SPEC = ModelSpec(
    name="mel-statistics",
    hub_id=None,
    revision=None,
    licence="Apache-2.0",
    labels=(),
    taxonomy="none",
    parameters=0,
    min_seconds=0.025,
    max_seconds=30.0,
    embedding_width=128,
    frame_rate=None,
    adapter_epoch=1,
    kind="embeddings",
)

SPECS = (SPEC,)
FILES = ("front_end.json",)
SHIPPED = str(Path(__file__).parent)
"""Folder of the settings in the package."""

VERIFIED = "against its definition; alone against batched"
NOT_VERIFIED = "nothing is learned"


def load(
    spec: ModelSpec,
    directory: str,
    *,
    device: str,
    dtype: str = "float32",  # noqa: ARG001 - the signature of every family
) -> Adapter:
    """Load the front end.

    Args:
        spec: `SPEC`.
        directory: local folder with `front_end.json`, the settings; `SHIPPED` for those of the package.
        device: where it runs, as PyTorch names it.
        dtype: whichever; it is always computed in float32.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`, or `MODEL_CONFIG_MISMATCH` for other settings than the code's.

    Examples:
        >>> import numpy as np
        >>> model = load(SPEC, SHIPPED, device="cpu")
        >>> model.forward([np.zeros(16_000, np.float32)], frames=False).embeddings.shape
        (1, 128)
    """
    from serpipe.models.mel_statistics.adapter import MelStatistics

    return MelStatistics(spec, directory, device=device)
