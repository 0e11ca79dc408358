"""The model that ships in the package, so that a first run needs no download; `card.md` says what it is."""

from __future__ import annotations

from pathlib import Path

from serpipe.models.contract import Adapter, ModelSpec

SPEC = ModelSpec(
    name="embedded",
    hub_id=None,
    revision=None,
    licence="Apache-2.0",
    labels=("anger", "happiness", "neutral", "sadness"),
    taxonomy="ekman",
    parameters=77_445,
    min_seconds=0.025,
    max_seconds=30.0,
    embedding_width=64,
    frame_rate=50.0,
    adapter_epoch=1,
)

SPECS = (SPEC,)
FILES = ("weights.safetensors",)
SHIPPED = str(Path(__file__).parent)
"""Folder of the weights in the package."""


VERIFIED = "trained by jobs/train_embedded.py, its card has the figures; alone against batched"
NOT_VERIFIED = "any corpus but acted German"


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str = "float32") -> Adapter:
    """Load the embedded model.

    Args:
        spec: `SPEC`; the family has one model.
        directory: local folder that holds `weights.safetensors`, as `jobs/train_embedded.py` writes it; `SHIPPED` for
            the weights in the package.
        device: where it runs, as PyTorch names it: `cpu`, `cuda`, `cuda:1`.
        dtype: of the network: `float32`, `float16` or `bfloat16`. The spectrogram is always made in float32.

    Raises:
        ModelError: MODEL_WEIGHTS_UNREADABLE if the file is absent or damaged, MODEL_WEIGHTS_MISMATCH if a
            tensor is missing, unexpected, or of another shape or type than the network's,
            MODEL_DTYPE_UNSUPPORTED for another dtype.

    Examples:
        >>> import numpy as np
        >>> model = load(SPEC, SHIPPED, device="cpu")
        >>> outputs = model.forward([np.zeros(16_000, np.float32), np.zeros(400, np.float32)], frames=True)
        >>> outputs.logits.shape, outputs.embeddings.shape, [f.shape for f in outputs.frames]
        ((2, 4), (2, 64), [(49, 64), (1, 64)])
    """
    # PyTorch takes seconds to import; planning and listing models need the spec alone.
    from serpipe.models.embedded.adapter import EmbeddedAdapter

    return EmbeddedAdapter(spec, directory, device=device, dtype=dtype)
