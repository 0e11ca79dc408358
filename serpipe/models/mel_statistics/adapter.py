"""The front end as an adapter: padding, masking, two moments over what is valid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serpipe.models.checkpoint import content_sha256, read_json, refuse_config
from serpipe.models.contract import SAMPLE_RATE, ModelSpec, Outputs
from serpipe.models.embedded.network import HOP, MELS, WINDOW, LogMel
from serpipe.models.masking import pad

SETTINGS = "front_end.json"


class MelStatistics:
    """Mean and population deviation of each log-mel band; see `serpipe.models.mel_statistics.load`."""

    def __init__(self, spec: ModelSpec, directory: str, *, device: str) -> None:
        settings = {
            "sample_rate": SAMPLE_RATE,
            "window": WINDOW,
            "hop": HOP,
            "mels": MELS,
            "statistics": ["mean", "deviation"],
        }
        refuse_config(read_json(Path(directory) / SETTINGS), settings, model=spec.name)
        self._spec, self._sha256 = spec, content_sha256(directory, (SETTINGS,))
        self._device = torch.device(device)
        self._front = LogMel().to(self._device)

    @property
    def spec(self) -> ModelSpec:
        """`serpipe.models.mel_statistics.SPEC`."""
        return self._spec

    @property
    def weights_sha256(self) -> str:
        """Hash over the settings, as 64 hexadecimal digits."""
        return self._sha256

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:  # noqa: ARG002 - no frames
        """One micro-batch; there are no frames to give.

        Args:
            waveforms: mono float32 samples at 16 kHz, each of at least 400 samples.
            frames: has no effect.
        """
        nothing = np.zeros((len(waveforms), 0), np.float32)
        if not waveforms:
            return Outputs(nothing, nothing, np.zeros((0, self._spec.embedding_width), np.float32), None)
        log_mel, mask = self._front(*pad(waveforms, self._device))
        weights = mask / mask.sum(dim=1, keepdim=True)
        mean = (log_mel * weights).sum(dim=1)
        deviation = ((log_mel - mean[:, None]).square() * weights).sum(dim=1).sqrt()
        return Outputs(nothing, nothing, torch.cat([mean, deviation], dim=1).cpu().numpy(), None)
