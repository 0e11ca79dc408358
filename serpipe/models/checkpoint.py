"""Checkpoints on disk: read without running anything in them, and refused unless every tensor fits.

A head that was never trained has the right shape and labels everything with noise; most libraries only warn. Here a
missing, unexpected or misshapen tensor is an error, and nothing of such a checkpoint runs.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serpipe.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_SHOWN = 4


def read_tensors(path: Path) -> dict[str, Any]:
    """What a weights file holds, on the CPU: tensors by name, or the nested dictionary a training script saved.

    Args:
        path: a `.safetensors` file, or a pickle that holds tensors and plain containers only.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREADABLE` (truncated, no weights file), or
            `MODEL_WEIGHTS_UNSAFE` (a pickle that would run code).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise ModelError("MODEL_WEIGHTS_MISSING", f"there is no {path}; fetch the checkpoint again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "MODEL_WEIGHTS_UNSAFE", f"{path} is a pickle with more than tensors in it; it is not opened ({error})"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            "MODEL_WEIGHTS_UNREADABLE", f"{path} is no whole weights file ({error}); fetch it again"
        ) from error
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`.
    """
    try:
        content: Any = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no table of settings")
    except (OSError, ValueError) as error:
        raise ModelError("MODEL_CONFIG_UNREADABLE", f"{path} cannot be read ({error}); fetch it again") from error
    return content


def refuse_config(config: Mapping[str, Any], wanted: Mapping[str, Any], *, model: str) -> None:
    """Refuse a configuration that describes another model.

    Args:
        config: as `read_json` gives it.
        wanted: what it must say, by key.
        model: the model's name, for the message.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH`.

    Examples:
        >>> refuse_config({"model_type": "wavlm"}, {"model_type": "hubert"}, model="toy")
        Traceback (most recent call last):
        serpipe.errors.ModelError: MODEL_CONFIG_MISMATCH: the configuration is not that of model 'toy': model_type is
        'wavlm', not 'hubert'; point it to the checkpoint of that model
    """
    faults = [
        f"{key} is {config[key]!r}, not {value!r}" if key in config else f"{key} is missing"
        for key, value in wanted.items()
        if key not in config or config[key] != value
    ]
    if faults:
        raise ModelError(
            "MODEL_CONFIG_MISMATCH",
            f"the configuration is not that of model {model!r}: {'; '.join(faults)}; "
            "point it to the checkpoint of that model",
        )


def refuse_labels(config: Mapping[str, Any], labels: Sequence[str], *, model: str, unnamed: bool = False) -> None:
    """Refuse a configuration whose labels are others, or in another order.

    Args:
        config: as `read_json` gives it; its `id2label` counts, without regard to upper and lower case.
        labels: what the model's labels are, in id order.
        model: the model's name, for the message.
        unnamed: whether a configuration without `id2label`, or with placeholders (`LABEL_0`), is accepted.

    Raises:
        ModelError: `MODEL_LABELS_MISMATCH`.

    Examples:
        >>> refuse_labels({"id2label": {"0": "sad", "1": "happy"}}, ["happy", "sad"], model="toy")
        Traceback (most recent call last):
        serpipe.errors.ModelError: MODEL_LABELS_MISMATCH: the labels of model 'toy' are happy, sad, and the
        configuration has sad, happy; its scores would be filed under wrong names
    """
    found = config.get("id2label")
    names = dict(found) if isinstance(found, Mapping) else {}
    placeholders = {str(place): f"LABEL_{place}" for place in range(len(labels))}
    if unnamed and (found is None or names == placeholders):
        return
    if {place: str(name).casefold() for place, name in names.items()} != {
        str(place): label.casefold() for place, label in enumerate(labels)
    }:
        raise ModelError(
            "MODEL_LABELS_MISMATCH",
            f"the labels of model {model!r} are {', '.join(labels)}, and the configuration has "
            f"{', '.join(map(str, names.values())) or 'none'}; its scores would be filed under wrong names",
        )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, model: str, optional: Iterable[str] = ()) -> None:
    """Put tensors into a network, every one into its place.

    Weight normalisation may be spelled the old way (`weight_g`, `weight_v`) or the new one.

    Args:
        module: a network on the CPU (one from the meta device needs `to_empty` first); its parameters are replaced.
        tensors: by name.
        model: the model's name, for the message.
        optional: patterns of names that may be missing from either side.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISMATCH`, naming what is missing, unexpected or misshapen.

    Examples:
        >>> import torch
        >>> fill(torch.nn.Linear(2, 1), {"weight": torch.zeros(1, 2)}, model="toy")
        Traceback (most recent call last):
        serpipe.errors.ModelError: MODEL_WEIGHTS_MISMATCH: the weights are not those of model 'toy': bias is missing
    """
    wanted = module.state_dict()
    found = {_new_spelling(name): tensor for name, tensor in tensors.items()}
    patterns = tuple(optional)

    def excused(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    faults = [f"{name} is missing" for name in wanted if name not in found and not excused(name)]
    faults += [f"{name} is unexpected" for name in found if name not in wanted and not excused(name)]
    faults += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(
            "MODEL_WEIGHTS_MISMATCH",
            f"the weights are not those of model {model!r}: {'; '.join(faults[:_SHOWN])}{more}",
        )
    module.load_state_dict({name: tensor for name, tensor in found.items() if name in wanted}, strict=False)


def content_sha256(directory: str | Path, files: Iterable[str]) -> str:
    """Hash of the files that decide a model's numbers: weights and configuration.

    Args:
        directory: the checkpoint.
        files: patterns of file names; what they do not match does not count.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISSING`, nothing matches.
    """
    folder = Path(directory)
    names = sorted({path.name for pattern in files for path in folder.glob(pattern)}) if folder.is_dir() else []
    if not names:
        raise ModelError("MODEL_WEIGHTS_MISSING", f"there is no checkpoint in {directory}")
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def torch_dtype(dtype: str) -> torch.dtype:
    """A number format by name.

    Raises:
        ModelError: `MODEL_DTYPE_UNSUPPORTED`.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError("MODEL_DTYPE_UNSUPPORTED", f"{dtype!r} is none of {', '.join(known)}")
    return known[dtype]


def _new_spelling(name: str) -> str:
    return name.replace(".weight_g", ".parametrizations.weight.original0").replace(
        ".weight_v", ".parametrizations.weight.original1"
    )
