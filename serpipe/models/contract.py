"""What every model adapter promises: frozen facts, and the same numbers for a segment in any company.

Nothing here knows Ray, Parquet or a file system; an adapter is a plain object around a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

LICENCE_NOT_KNOWN = "see the checkpoint's own card"
"""The licence in the spec of a checkpoint that nobody but its configuration describes."""

SAMPLE_RATE = 16_000
"""Hz. Every model of the field takes 16 kHz mono; the decoder delivers nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The frozen facts of a model.

    Attributes:
        name: what people type, and the `model=` partition of the store.
        hub_id: repository on the model hub; None for a model that ships in the package.
        revision: pinned commit of that repository.
        licence: SPDX identifier, or the licence's own name.
        labels: raw labels in id order; scores and logits follow the same order.
        taxonomy: key of `serpipe.labels.TAXONOMIES`, which maps raw labels to canonical emotions.
        parameters: number of weights.
        min_seconds: shortest segment the network accepts.
        max_seconds: longest segment it is run on; a longer one is windowed and pooled.
        embedding_width: length of an utterance embedding.
        frame_rate: frame embeddings per second; None where the model has no frames.
        adapter_epoch: raised by hand when a change of the adapter changes its numbers.
        kind: `categorical` scores are probabilities; `dimensional` ones are arousal, dominance or valence, 0 to 1,
            named by `labels`; a model for `embeddings` has no labels.
    """

    name: str
    hub_id: str | None
    revision: str | None
    licence: str
    labels: tuple[str, ...]
    taxonomy: str
    parameters: int
    min_seconds: float
    max_seconds: float
    embedding_width: int
    frame_rate: float | None
    adapter_epoch: int
    kind: Literal["categorical", "dimensional", "embeddings"] = "categorical"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model gives for `n` segments, in the order they were handed in.

    Attributes:
        logits: float32 (n, labels), before the final activation.
        scores: float32 (n, labels), after it.
        embeddings: float32 (n, embedding_width).
        frames: per segment float32 (frames, embedding_width); None when not asked for.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    frames: list[NDArray[np.float32]] | None


class Adapter(Protocol):
    """A loaded model. A segment gets the same numbers alone, in any batch and in any order."""

    @property
    def spec(self) -> ModelSpec:
        """The model's frozen facts."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Hash of the family's files, as `serpipe.models.checkpoint.content_sha256` gives it of what was loaded."""
        ...

    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        """One micro-batch: pad, mask, run.

        Args:
            waveforms: mono float32 samples at `SAMPLE_RATE`, each within the spec's valid seconds.
            frames: whether frame embeddings are wanted too.
        """
        ...


@runtime_checkable
class OnEmbeddings(Protocol):
    """An adapter whose answers follow from a segment's embedding alone, those of a windowed segment too."""

    def answer(self, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores, float32 (n, labels) each, of embeddings, float32 (n, embedding_width)."""
        ...
