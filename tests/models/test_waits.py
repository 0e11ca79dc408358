"""Between a micro-batch and its results nothing is read from the device: a GPU would stand still for each look."""

from __future__ import annotations

from functools import cache
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serpipe.models import emotion2vec_network, exhubert_network, transformers_encoder
from serpipe.models.registry import resolve
from serpipe.testing import make_checkpoint

from .clips import sounds

FAMILIES = (
    "hubert-large-superb-er",
    "wav2vec2-base-superb-er",
    "odyssey-categorical",
    "audeering-dim",
    "emotion2vec-plus-base",
    "exhubert",
    "embedded",
    "mel-statistics",
)


@cache
def written(name: str) -> str:
    """Only those without weights of their own have a hub id."""
    if name in ("embedded", "mel-statistics"):
        return name
    return f"{name}={make_checkpoint(name, mkdtemp(prefix='serpipe-waits-'))}"


LOOKS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero")
"""Operations that take a number out of a tensor; without gradients they arrive as they were called."""


class Looks(TorchDispatchMode):
    """Keeps what reads a number out of a tensor, and what touches certain tensors."""

    def __init__(self, *watched: torch.Tensor) -> None:
        super().__init__()
        self._watched = {tensor.data_ptr() for tensor in watched}
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        if func.overloadpacket.__name__ in LOOKS or any(
            isinstance(one, torch.Tensor) and one.data_ptr() in self._watched for one in given
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [(16_000, 16_000), (16_000, 30_000, 9_001)], ids=["even", "mixed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_micro_batch_runs_without_a_look(
    name: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers that a GPU has: those of a CPU are other ones."""
    for module in (transformers_encoder, emotion2vec_network, exhubert_network):
        monkeypatch.setattr(module, "packable", lambda device, dtype: False)
    adapter: Any = resolve(written(name)).load("cpu")
    sums = getattr(getattr(adapter, "_network", None), "layer_weights", None)
    clips = [sounds()[place][:length] for place, length in enumerate(lengths)]
    with Looks(*([] if sums is None else [sums])) as looks:
        outputs = adapter.forward(clips, frames=False)
    assert looks.found == []
    assert np.isfinite(outputs.embeddings).all()


@pytest.mark.parametrize("inference", [True, False])
def test_a_look_is_noticed(inference: bool) -> None:
    weights = torch.ones(3)
    with torch.inference_mode(inference), Looks(weights) as looks:
        assert bool(torch.ones(2).all())
        weights.double()
    assert len(looks.found) == 2


@pytest.mark.parametrize("name", ["hubert-large-superb-er", "emotion2vec-plus-base", "odyssey-categorical"])
def test_rows_of_equally_many_frames_need_no_mask(name: str) -> None:
    """Samples that end within a frame of each other make the same frames, and the same numbers alone and together."""
    adapter = resolve(written(name)).load("cpu")
    clips = [sounds()[0][:16_240], sounds()[1][:16_399], sounds()[2][:16_080]]
    together = adapter.forward(clips, frames=True)
    assert together.frames is not None
    assert len({len(frames) for frames in together.frames}) == 1
    spread = float(together.logits.std(axis=0).mean())
    for row, clip in enumerate(clips):
        alone = adapter.forward([clip], frames=True)
        assert np.abs(alone.logits[0] - together.logits[row]).max() <= 1e-4 * spread
