"""The model that ships in the package, so that a first run needs no download; `card.md` says what it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from serpipe.errors import ModelError
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


def weights_sha256(directory: str | None) -> str:
    """Hash of the weights that `load` would read, as 64 hexadecimal digits.

    Raises:
        ModelError: MODEL_WEIGHTS_UNREADABLE if the file is absent.
    """
    path = Path(directory) / "weights.safetensors" if directory else Path(__file__).with_name("weights.safetensors")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError("MODEL_WEIGHTS_UNREADABLE", f"{path} cannot be read ({error.strerror})") from error


def load(directory: str | None, *, device: str, dtype: str = "float32") -> Adapter:
    """Load the embedded model.

    Args:
        directory: local folder that holds `weights.safetensors`, as `jobs/train_embedded.py` writes it;
            None for the weights in the package.
        device: where it runs, as PyTorch names it: `cpu`, `cuda`, `cuda:1`.
        dtype: of the network: `float32`, `float16` or `bfloat16`. The spectrogram is always made in float32.

    Raises:
        ModelError: MODEL_WEIGHTS_UNREADABLE if the file is absent or damaged, MODEL_WEIGHTS_MISMATCH if a
            tensor is missing, unexpected, or of another shape or type than the network's,
            MODEL_DTYPE_UNSUPPORTED for another dtype.

    Examples:
        >>> import numpy as np
        >>> model = load(None, device="cpu")
        >>> outputs = model.forward([np.zeros(16_000, np.float32), np.zeros(400, np.float32)], frames=True)
        >>> outputs.logits.shape, outputs.embeddings.shape, [f.shape for f in outputs.frames]
        ((2, 4), (2, 64), [(49, 64), (1, 64)])
    """
    # PyTorch takes seconds to import; planning and listing models need the spec alone.
    from serpipe.models.embedded.adapter import EmbeddedAdapter

    return EmbeddedAdapter(directory, device=device, dtype=dtype)
