"""The embedded model as an adapter: strict loading, padding and masking of a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import ModelSpec, Outputs
from serpipe.models.embedded import SPEC
from serpipe.models.embedded.network import EmbeddedNetwork, LogMel, frame_count
from serpipe.models.masking import nothing, pad, refuse_lengths

WEIGHTS = "weights.safetensors"

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_REMEDY = "reinstall serpipe, or train it again with jobs/train_embedded.py"


class EmbeddedAdapter:
    """The embedded model, loaded; see `serpipe.models.embedded.load` for arguments and errors."""

    def __init__(self, spec: ModelSpec, directory: str, *, device: str, dtype: str) -> None:
        if dtype not in _DTYPES:
            raise ModelError(
                "MODEL_DTYPE_UNSUPPORTED",
                f"model 'embedded' cannot run in {dtype!r}; choose one of {', '.join(_DTYPES)}",
            )
        path = Path(directory) / WEIGHTS
        weights = _read(path)
        self._spec, self._sha256 = spec, content_sha256(directory, (WEIGHTS,))
        network = EmbeddedNetwork().eval()
        _refuse_mismatch(network.state_dict(), weights, path)
        network.load_state_dict(weights)
        self._device = torch.device(device)
        self._dtype = _DTYPES[dtype]
        self._front = LogMel().to(self._device)
        self._network = network.to(self._device, self._dtype)

    @property
    def spec(self) -> ModelSpec:
        """`serpipe.models.embedded.SPEC`."""
        return self._spec

    @property
    def weights_sha256(self) -> str:
        """Hash over the file the weights were read from, as 64 hexadecimal digits."""
        return self._sha256

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        """One micro-batch: pad, mask, run.

        Args:
            waveforms: mono float32 samples at 16 kHz, each of 400 to 480 000 samples.
            frames: whether frame embeddings are wanted too, float32 (1 + (samples - 400) // 320, 64) each.

        Raises:
            ModelError: MODEL_SEGMENT_LENGTH if a waveform is shorter or longer than the spec allows.
        """
        refuse_lengths(waveforms, SPEC)
        if not waveforms:
            return nothing(SPEC, frames=frames)
        log_mel, mask = self._front(*pad(waveforms, self._device))
        outputs = self._network(log_mel.to(self._dtype), mask.to(self._dtype))
        logits = outputs.logits.float()
        per_frame = None
        if frames:
            every = outputs.frames.float().cpu().numpy()
            per_frame = [rows[: frame_count(len(one))].copy() for rows, one in zip(every, waveforms, strict=True)]
        return Outputs(
            logits=logits.cpu().numpy(),
            scores=logits.softmax(dim=-1).cpu().numpy(),
            embeddings=outputs.embeddings.float().cpu().numpy(),
            frames=per_frame,
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            "MODEL_WEIGHTS_UNREADABLE",
            f"the weights of model 'embedded' at {path} cannot be read ({error}); {_REMEDY}",
        ) from error


def _refuse_mismatch(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"{name} is unexpected" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        ours, theirs = wanted[name], found[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            faults.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, not {ours.dtype} {tuple(ours.shape)}")
    if faults:
        raise ModelError(
            "MODEL_WEIGHTS_MISMATCH",
            f"the weights at {path} are not those of model 'embedded': {'; '.join(faults)}; {_REMEDY}",
        )
