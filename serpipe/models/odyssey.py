"""The baselines of the Odyssey 2024 challenge (3loi/SER-Odyssey-Baseline-WavLM-*): WavLM large, trained on MSP-Podcast.

Network and input recipe follow msplabresearch/MSP-Podcast_Challenge (net/ser.py, net/pooling.py); the hub's own code is
never run. A segment is shifted and scaled by the corpus' mean and standard deviation, which the configuration states,
then padded with zeros. Frames of a segment are those its samples really make: the original counts one or two more
(`floor((n - 1) / 320) + 1`), so that in its batches silence from the padding is pooled too.

Attributes are the regression's own values, about 0 to 1, with nothing applied to them. An utterance's embedding is the
mean of the last hidden states of its frames, not the pooled statistics.
"""

from __future__ import annotations

from typing import Literal

from serpipe.models.contract import Adapter, ModelSpec

FILES: tuple[str, ...] = ("config.json", "model.safetensors")
"""The files of a checkpoint that are read."""


def _spec(
    name: str, task: str, labels: tuple[str, ...], kind: Literal["categorical", "dimensional"], revision: str | None
) -> ModelSpec:
    return ModelSpec(
        name=f"odyssey-{name}",
        hub_id=f"3loi/SER-Odyssey-Baseline-WavLM-{task}",
        revision=revision,
        licence="MIT",
        labels=labels,
        taxonomy="msp8" if kind == "categorical" else "adv",
        # The head has 1025 weights a label.
        parameters=318_603_968 + 1025 * len(labels),
        min_seconds=0.025,
        # MSP-Podcast's segments end at 11 s, and training cut at 12 s.
        max_seconds=12.0,
        embedding_width=1024,
        frame_rate=50.0,
        adapter_epoch=1,
        kind=kind,
    )


SPECS: tuple[ModelSpec, ...] = (
    _spec(
        "categorical",
        "Categorical",
        ("Angry", "Sad", "Happy", "Surprise", "Fear", "Disgust", "Contempt", "Neutral"),
        "categorical",
        None,
    ),
    _spec(
        "attributes",
        "Multi-Attributes",
        ("arousal", "dominance", "valence"),
        "dimensional",
        # Later than e0676f5, whose configuration is no JSON, and 45e6e02, whose has neither mean nor std.
        "00d0e12ba9bf957f5aeea36e8663c8c61cb50ac9",
    ),
    _spec("arousal", "Arousal", ("arousal",), "dimensional", None),
    _spec("dominance", "Dominance", ("dominance",), "dimensional", None),
    _spec("valence", "Valence", ("valence",), "dimensional", None),
)


VERIFIED = (
    "against an independent float64 reference of the authors' definition, to 1e-5; alone against batched; "
    "the published file's size to the byte"
)
NOT_VERIFIED = "real weights; only the multi-attribute model has a pinned revision"


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load one of the baselines.

    Args:
        spec: of `SPECS`.
        directory: local folder with `FILES`, as the hub lays them out.
        device: where it runs, as PyTorch names it.
        dtype: of WavLM: `float32`, `float16` or `bfloat16`. Normalisation, pooling and head stay in float32.

    Returns:
        The model. Its spec states the embedding width and the number of weights that the checkpoint really has.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`, `MODEL_CONFIG_MISMATCH`, `MODEL_LABELS_MISMATCH`,
            `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREADABLE`, `MODEL_WEIGHTS_MISMATCH` or
            `MODEL_DTYPE_UNSUPPORTED`.

    Examples:
        >>> import tempfile, numpy as np
        >>> from serpipe.testing import odyssey
        >>> folder = tempfile.mkdtemp()
        >>> odyssey.write(SPECS[1], folder, size="tiny", seed=0)
        >>> outputs = load(SPECS[1], folder, device="cpu", dtype="float32").forward(
        ...     [np.zeros(400, np.float32), np.zeros(64_000, np.float32)], frames=True
        ... )
        >>> outputs.scores.shape, [len(frames) for frames in outputs.frames]
        ((2, 3), [1, 199])
    """
    # PyTorch and transformers take seconds to import; planning and listing models need the spec alone.
    from serpipe.models.odyssey_network import OdysseyAdapter

    return OdysseyAdapter(spec, directory, device=device, dtype=dtype)
