"""The head of a student: standardise, perhaps one hidden layer, logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serpipe.models.checkpoint import content_sha256, fill, read_tensors
from serpipe.models.contract import Adapter, ModelSpec, Outputs
from serpipe.models.probe import FILES, WEIGHTS, read_config
from serpipe.models.results import half


class Head(nn.Module):
    """Multinomial logistic regression on standardised embeddings, with a hidden layer where one is asked for."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, classes: int, *, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden or width, classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (n, classes) of embeddings (n, width)."""
        values = (embeddings - self.mean) / self.deviation
        if self.hidden is not None:
            values = self.dropout(torch.relu(self.hidden(values)))
        logits: Tensor = self.out(values)
        return logits


def read_head(directory: str, *, model: str) -> Head:
    """A student's head, on the CPU.

    Raises:
        ModelError: the weights are missing, damaged or not this head's.
    """
    config = read_config(directory)
    head = Head(config.backbone.embedding_width, len(config.labels), hidden=config.hidden)
    fill(head, read_tensors(Path(directory) / WEIGHTS), model=model)
    return head.eval()


@torch.inference_mode()
def answer(
    head: Head, embeddings: NDArray[np.float16] | NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and scores, float32 (n, classes) each, of embeddings (n, width) as a store keeps them."""
    device = head.mean.device
    logits = head(torch.tensor(half(embeddings)).to(device).float())
    return logits.cpu().numpy(), logits.softmax(dim=1).cpu().numpy()


class ProbeAdapter:
    """A student and the model it hears; see `serpipe.models.probe.load`."""

    def __init__(self, spec: ModelSpec, directory: str, backbone: Adapter, *, device: str) -> None:
        self._spec, self._backbone = spec, backbone
        self._sha256 = content_sha256(directory, FILES)
        self._head = read_head(directory, model=spec.name).to(device)

    @property
    def spec(self) -> ModelSpec:
        """The student's facts."""
        return self._spec

    @property
    def weights_sha256(self) -> str:
        """Hash over head and configuration, which names the backbone's fingerprint."""
        return self._sha256

    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:  # noqa: ARG002 - no frames
        """One micro-batch through the backbone, then the head on its embeddings; no frames."""
        heard = self._backbone.forward(waveforms, frames=False)
        logits, scores = self.answer(heard.embeddings)
        return Outputs(logits, scores, heard.embeddings, None)

    def answer(self, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The head on embeddings of the backbone's, those of whole segments whose windows were pooled too."""
        return answer(self._head, embeddings)
