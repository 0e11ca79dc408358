"""What the tests of the Transformers family share: sounds, the tolerance, and ways to break a checkpoint."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models.contract import Adapter, Outputs
from serpipe.models.masking import frame_count

from .clips import sounds

TOLERANCE = 1e-4
"""Of the spread of the logits over clips: what an adapter promises in float32."""

Wave = NDArray[np.float32]
Cuts = Sequence[tuple[int, int]]


def cut(which: int, length: int) -> Wave:
    """The end of one of the sounds."""
    return sounds()[which][-length:]


lengths = st.one_of(st.sampled_from([400, 401, 719, 720, 721]), st.integers(min_value=400, max_value=80_000))
batches = st.lists(st.tuples(st.integers(min_value=0, max_value=5), lengths), min_size=2, max_size=4)

MIXED: Cuts = ((0, 16_000), (1, 400), (2, 40_000), (3, 1_200), (4, 31_999), (5, 23_456))


def spread(adapter: Adapter) -> float:
    """Standard deviation of each logit over clips, averaged over the logits."""
    waves = [cut(which, 48_000 + 8_000 * start)[:32_000] for which in range(6) for start in range(2)]
    return float(adapter.forward(waves, frames=False).logits.std(axis=0).mean())


def worst(adapter: Adapter, cuts: Cuts) -> float:
    """The largest difference between logits of a batch and alone."""
    waves = [cut(*piece) for piece in cuts]
    batch = adapter.forward(waves, frames=False).logits
    alone = np.concatenate([adapter.forward([wave], frames=False).logits for wave in waves])
    return float(np.abs(batch - alone).max())


def check_invariance(adapter: Adapter, limit: float, cuts: Cuts, order: Sequence[int]) -> None:
    """Alone, batched and shuffled agree in everything that is given out."""
    waves = [cut(*piece) for piece in cuts]
    batched = adapter.forward(waves, frames=True)
    shuffled = adapter.forward([waves[i] for i in order], frames=True)
    for place, i in enumerate(order):
        alone = adapter.forward([waves[i]], frames=True)
        for other, row in ((batched, i), (shuffled, place)):
            assert np.abs(alone.logits[0] - other.logits[row]).max() <= limit
            assert np.abs(alone.scores[0] - other.scores[row]).max() <= limit
            np.testing.assert_allclose(other.embeddings[row], alone.embeddings[0], atol=1e-4)
            np.testing.assert_allclose(frames_of(other)[row], frames_of(alone)[0], atol=1e-4)
            assert len(frames_of(other)[row]) == frame_count(len(waves[i]))


def check_lengths(adapter: Adapter) -> None:
    """The shortest, silence and 30 s beside each other; what is outside is refused."""
    waves = [np.zeros(480_000, np.float32), sounds()[0], sounds()[1][:400]]
    outputs = adapter.forward(waves, frames=True)
    for array in (outputs.logits, outputs.scores, outputs.embeddings, *frames_of(outputs)):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    assert [len(rows) for rows in frames_of(outputs)] == [1_499, 1_499, 1]
    # The embedding is the mean of the frames, and nothing of the padding.
    for row, rows in zip(outputs.embeddings, frames_of(outputs), strict=True):
        np.testing.assert_allclose(row, rows.mean(axis=0, dtype=np.float64), atol=1e-5)
    for length in (399, 480_001):
        with pytest.raises(ModelError, match="MODEL_SEGMENT_LENGTH"):
            adapter.forward([np.zeros(length, np.float32)], frames=False)
    nothing = adapter.forward([], frames=True)
    assert nothing.logits.shape == (0, len(adapter.spec.labels))
    assert nothing.frames == []


def frames_of(outputs: Outputs) -> list[Wave]:
    assert outputs.frames is not None
    return outputs.frames


def weights_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.suffix in {".bin", ".safetensors"})


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite the weights file with something else in it."""
    path = weights_of(folder)
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    change(tensors)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)


def edit_config(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Rewrite a configuration; a key set to None goes away."""
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def replace_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)


def replace_weights(folder: Path, content: bytes) -> None:
    weights_of(folder).write_bytes(content)


def truncate(folder: Path) -> None:
    replace_weights(folder, weights_of(folder).read_bytes()[:-1_000])


class _Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def trap(folder: Path, mark: Path, *, archive: bool) -> None:
    """Put a pickle with code in place of the weights, as `torch.save` would write it or bare."""
    weights_of(folder).unlink()
    path = folder / "pytorch_model.bin"
    if archive:
        torch.save({"classifier.weight": _Trap(str(mark))}, path)
    else:
        path.write_bytes(pickle.dumps({"classifier.weight": _Trap(str(mark))}))


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[name.replace(old, new, 1)] = tensors.pop(name)

    return change


def dropped(start: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        names = [name for name in tensors if name.startswith(start)]
        assert names
        for name in names:
            del tensors[name]

    return change


def transposed(ending: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith(ending))
        assert tensors[name].shape[0] != tensors[name].shape[1]
        tensors[name] = tensors[name].T.contiguous()

    return change
