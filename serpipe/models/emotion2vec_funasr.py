"""FunASR, kept in bounds: handed audited settings only, its effects on the process undone, its loading checked."""

from __future__ import annotations

import io
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serpipe.errors import ModelError
from serpipe.models.checkpoint import fill, read_tensors

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which a training script puts its tensors, in the order in which FunASR looks."""

PREFIXES = ("module.", "d2v_model.")
"""What stands before tensor names: data-parallel training's, and emotion2vec+'s for all but the head."""

OPTIONAL = ("*.decoder.*", "_ema*")
"""Tensors that served pre-training only; emotion2vec has them, emotion2vec+ has not."""


def audited(model: str, conf: Mapping[str, Any], labels: Sequence[str], weights: Path) -> nn.Module:
    """Have FunASR load a checkpoint, and compare every tensor with the file.

    FunASR copies the whole file, optimiser moments included, so loading takes once its size in memory for a moment.

    Args:
        model: the model's name, for messages.
        conf: an audited `model_conf`.
        labels: of the head; none for a model without one.
        weights: a pickle of tensors.

    Returns:
        FunASR's Emotion2vec, in float32 on the CPU.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREADABLE`, `MODEL_WEIGHTS_UNSAFE`,
            `MODEL_WEIGHTS_MISMATCH`, `MODEL_CONFIG_MISMATCH`, `MODEL_BACKEND_UNUSABLE`.
    """
    tensors = _named(model, read_tensors(weights))
    module = build(model, conf, labels, weights)
    for name, loaded in module.state_dict().items():
        found = tensors.get(name)
        if found is not None and found.shape == loaded.shape and not torch.equal(found.to(loaded.dtype), loaded):
            raise _mismatch(model, f"FunASR did not load {name}")
    fill(module, tensors, model=model, optional=OPTIONAL)
    return module


def build(model: str, conf: Mapping[str, Any], labels: Sequence[str], weights: Path | None = None) -> nn.Module:
    """FunASR's Emotion2vec on the CPU; random without weights.

    Named by its class and given its settings, FunASR asks no hub and reads no configuration file.

    Raises:
        ModelError: `MODEL_CONFIG_MISMATCH`, `MODEL_BACKEND_UNUSABLE`.
    """
    from torch.utils.serialization import config

    head: dict[str, Any] = {}
    if labels:
        head = {"tokenizer": "CharTokenizer", "tokenizer_conf": {"token_list": list(labels)}}
    with contained():
        try:
            import funasr.models.emotion2vec.model  # type: ignore[import-untyped]  # noqa: F401
            from funasr import AutoModel
        except (ImportError, OSError) as error:
            raise ModelError(
                "MODEL_BACKEND_UNUSABLE",
                f"FunASR cannot be imported ({error}); a torchaudio that does not fit the installed torch is the usual "
                "cause: uninstall it, nothing here needs it",
            ) from error
        try:
            with config.patch({"load.mmap": True}):  # type: ignore[attr-defined]
                module: nn.Module = AutoModel(
                    model="Emotion2vec",
                    model_conf=dict(conf),
                    init_param=str(weights) if weights else None,
                    scope_map=["d2v_model.", "none"],
                    device="cpu",
                    ncpu=torch.get_num_threads(),
                    disable_update=True,
                    disable_pbar=True,
                    disable_log=True,
                    log_level="ERROR",
                    trust_remote_code=False,
                    **head,
                ).model
        except Exception as error:
            raise ModelError(
                "MODEL_CONFIG_MISMATCH",
                f"FunASR cannot build model {model!r} from this configuration ({type(error).__name__}: {error}); "
                "fetch the checkpoint again",
            ) from error
    return module


@contextmanager
def contained() -> Iterator[None]:
    """Undo what FunASR does to the process when it is imported and when it builds or runs a model.

    It sets the number of threads, seeds every generator, configures the root logger and logs to it, silences warnings,
    prints, and sets an environment variable.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    threads, state, legacy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    hydra = os.environ.get("HYDRA_FULL_ERROR")
    # Asking a device that nothing has used yet for its generator would start CUDA on it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    # A root logger with a handler is not configured again; a filter of its own sees no records of other loggers.
    if not handlers:
        root.addHandler(logging.NullHandler())
    root.addFilter(_nothing)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices), redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(_nothing)
        root.handlers[:] = handlers
        root.setLevel(level)
        random.setstate(state)
        np.random.set_state(legacy)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if hydra is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = hydra


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _named(model: str, content: object) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names that FunASR's network has for them."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and wrapper in content:
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise _mismatch(model, "the file holds no tensors by name")
    tensors: dict[str, Tensor] = {}
    for full, value in content.items():
        name = str(full)
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if name in tensors:
            raise _mismatch(model, f"{name} is there twice")
        if isinstance(value, Tensor):
            tensors[name] = value
        elif not name.startswith("_ema"):
            raise _mismatch(model, f"{name} is no tensor")
    return tensors


def _mismatch(model: str, what: str) -> ModelError:
    return ModelError("MODEL_WEIGHTS_MISMATCH", f"the weights are not those of model {model!r}: {what}")
