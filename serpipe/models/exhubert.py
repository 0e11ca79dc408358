"""ExHuBERT (amiriparian/ExHuBERT): six classes of arousal and valence, from windows of three seconds.

The network and its input recipe follow the authors' code at the pinned revision and arXiv 2406.10275; that code is
never run. What this adapter defines where the authors leave it open:

- A segment is cut into consecutive windows of 3 s; the remainder is a window of its own, filled with zeros.
- Each window is filled with zeros first and standardised afterwards, zeros included, and the network gets no mask:
  that is how it was trained. So padding is part of a short segment's result, and no other segment is.
- Logits, scores and embeddings of a segment are means over its windows, weighted by the samples that are its own.
- A window's embedding is the mean of all its 149 last hidden states, which is what the head sees: the head being
  linear, a segment's logits are `classifier(projector(embedding))`.
- Frames are the hidden states that lie wholly in the segment, window after window; `frame_total` counts them.
"""

from __future__ import annotations

from serpipe.models.contract import SAMPLE_RATE, Adapter, ModelSpec

WINDOW = 3 * SAMPLE_RATE
"""Samples of a window: "The model is expecting a 3 second long raw waveform resampled to 16 kHz" (model card)."""

SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="exhubert",
        hub_id="amiriparian/ExHuBERT",
        revision="b158d45ed8578432468f3ab8d46cbe5974380812",
        licence="CC-BY-NC-SA-4.0",
        # Arousal/valence. The card numbers the six combinations in this order; the configuration names none.
        labels=("low/negative", "low/neutral", "low/positive", "high/negative", "high/neutral", "high/positive"),
        taxonomy="exhubert6",
        parameters=668_392_838,
        min_seconds=0.025,
        max_seconds=30.0,
        embedding_width=1024,
        frame_rate=50.0,
        adapter_epoch=1,
    ),
)

FILES: tuple[str, ...] = ("config.json", "pytorch_model.bin")
"""The files of a checkpoint that are read."""


VERIFIED = (
    "against an independent float64 reference of the authors' definition, to 1e-5; alone against batched; "
    "906 tensors, as the published file's size demands"
)
NOT_VERIFIED = "real weights, and the label names in the real config.json"


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load ExHuBERT.

    Args:
        spec: of `SPECS`.
        directory: local folder with `FILES`, as the hub lays them out.
        device: where it runs, as PyTorch names it.
        dtype: of the network: `float32`, `float16` or `bfloat16`. Standardisation and head stay in float32.

    Returns:
        The model. Its spec states the embedding width and the number of weights that the checkpoint really has.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`, `MODEL_CONFIG_MISMATCH`, `MODEL_LABELS_MISMATCH`,
            `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREADABLE`, `MODEL_WEIGHTS_UNSAFE`, `MODEL_WEIGHTS_MISMATCH` or
            `MODEL_DTYPE_UNSUPPORTED`.

    Examples:
        >>> import tempfile, numpy as np
        >>> from serpipe.testing import exhubert
        >>> folder = tempfile.mkdtemp()
        >>> exhubert.write(SPECS[0], folder, size="tiny", seed=0)
        >>> outputs = load(SPECS[0], folder, device="cpu", dtype="float32").forward(
        ...     [np.zeros(400, np.float32), np.zeros(64_000, np.float32)], frames=True
        ... )
        >>> outputs.scores.shape, [len(frames) for frames in outputs.frames]
        ((2, 6), [1, 198])
    """
    # PyTorch and transformers take seconds to import; planning and listing models need the spec alone.
    from serpipe.models.exhubert_network import ExHubertAdapter

    return ExHubertAdapter(spec, directory, device=device, dtype=dtype)


def window_lengths(samples: int) -> list[int]:
    """How many samples of its own each window of a segment has.

    Examples:
        >>> window_lengths(100_000)
        [48000, 48000, 4000]
    """
    return [min(WINDOW, samples - start) for start in range(0, samples, WINDOW)]


def frame_total(samples: int) -> int:
    """Frames of a segment, which are fewer than `masking.frame_count` gives: none straddles two windows.

    Examples:
        >>> frame_total(48_000), frame_total(48_300), frame_total(160_000)
        (149, 149, 496)
    """
    from serpipe.models.masking import frame_count

    return sum(max(0, frame_count(length)) for length in window_lengths(samples))
