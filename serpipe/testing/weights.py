"""Random weights whose numbers tell inputs apart, so that a test that compares them can fail."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from serpipe.testing.speech import speech_like

SPREAD = 2.0
"""Standard deviation of each calibrated output over clips."""


def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter: matrices and kernels that keep the variance, norms around one, biases around zero."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("parametrizations.weight.original0"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / (parameter.numel() / parameter.shape[0]) ** 0.5)
            else:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))
        for module in network.modules():
            # Weight normalisation starts as the identity: the norm it sets is the norm the direction has.
            if isinstance(module, parametrize.ParametrizationList):
                norm, direction = module.parameters()
                norm.copy_(direction.norm(dim=(0, 1), keepdim=True))


def calibrate(head: nn.Module, outputs: Tensor) -> None:
    """Scale a last layer until its outputs over clips have mean 0 and standard deviation `SPREAD`.

    Args:
        head: the layer, an `nn.Linear`.
        outputs: what it gives now, (clips, outputs).
    """
    with torch.no_grad():
        scale = SPREAD / outputs.std(0)
        weight, bias = head.parameters()
        weight.mul_(scale[:, None])
        bias.copy_((bias - outputs.mean(0)) * scale)


def voices(seconds: float) -> list[NDArray[np.float32]]:
    """Speech-like clips of unlike voices, for `calibrate`."""
    pitches = np.geomspace(80.0, 320.0, 6)
    return [speech_like(seconds, seed=seed, pitch_hz=pitch) for seed, pitch in enumerate(pitches)]


def old_spelling(name: str) -> str:
    """A tensor's name as checkpoints of these models have it: weight normalisation's from before PyTorch 2.0."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )
