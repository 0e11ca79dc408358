"""Tiny emotion2vec checkpoints, the sounds and the reference they are tried with, and what may be wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from serpipe.models import emotion2vec
from serpipe.models.contract import Adapter, ModelSpec
from serpipe.models.emotion2vec_funasr import contained
from serpipe.testing import emotion2vec as checkpoints
from serpipe.testing.weights import voices

BASE, SEED, PLUS, LARGE = emotion2vec.SPECS
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SERPIPE_TEST_DATA", ROOT.parent / "shared" / "data")) / "emodb"


def write_all(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each model, by name."""
    made = {spec.name: tmp_path_factory.mktemp(spec.name) for spec in emotion2vec.SPECS}
    for spec in emotion2vec.SPECS:
        checkpoints.write(spec, made[spec.name], size="tiny", seed=3)
    return made


def loaded(spec: ModelSpec, directory: Path, dtype: str = "float32") -> Adapter:
    return emotion2vec.load(spec, str(directory), device="cpu", dtype=dtype)


@cache
def sounds() -> tuple[NDArray[np.float32], ...]:
    """Six sounds of 10 s: real speech, or synthetic voices where the corpus is absent."""
    if (DATA / "labels.csv").exists():
        files = sorted((DATA / "wav").glob("*.wav"))[::13][:18]
        clips = [soundfile.read(file, dtype="float32")[0] for file in files]
        return tuple(np.resize(np.concatenate(clips[i : i + 3]), 160_000) for i in range(0, len(clips), 3))
    return tuple(voices(10.0))


def waves() -> list[NDArray[np.float32]]:
    lengths = (400, 9_001, 23_456, 40_000, 16_000, 719)
    return [sound[-length:] for sound, length in zip(sounds(), lengths, strict=True)]


def spread(adapter: Adapter) -> float:
    """Standard deviation of each logit over sounds, averaged over the logits."""
    cut = [sound[start : start + 32_000] for sound in sounds() for start in (0, 60_000, 120_000)]
    return float(adapter.forward(cut, frames=False).logits.std(axis=0).mean())


class FunASR:
    """The reference: FunASR reads the folder as it would read the hub's."""

    def __init__(self, directory: Path) -> None:
        with contained():
            from funasr import AutoModel

            self.model = AutoModel(
                model=str(directory),
                device="cpu",
                disable_update=True,
                disable_pbar=True,
                disable_log=True,
                log_level="ERROR",
                ncpu=1,
            )

    def __call__(self, wave: NDArray[np.float32], granularity: str = "utterance") -> dict[str, Any]:
        with contained():
            result: dict[str, Any] = self.model.generate(wave, granularity=granularity, extract_embedding=True)[0]
        return result


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what the weights file holds."""
    content = torch.load(folder / "model.pt", weights_only=True)
    torch.save(change(content), folder / "model.pt")


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, lambda content: {**content, "model": change(content["model"])})


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return tensors(lambda held: {name.replace(old, new): value for name, value in held.items()})


def transposed(folder: Path) -> None:
    name = "d2v_model.blocks.0.mlp.fc1.weight"
    tensors(lambda held: {**held, name: held[name].T.contiguous()})(folder)


def twice(folder: Path) -> None:
    name = "blocks.0.norm1.weight"
    tensors(lambda held: {**held, name: held[f"d2v_model.{name}"] + 1})(folder)


def labelled(*names: str) -> Callable[[Path], None]:
    return lambda folder: write_text((folder / "tokens.txt"), "\n".join(names))


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def configured(**changes: object) -> Callable[[Path], None]:
    """Change settings; `a__b` is a key inside a group."""

    def change(folder: Path) -> None:
        config = OmegaConf.load(folder / "config.yaml")
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        OmegaConf.save(config, folder / "config.yaml")

    return change


def pointed(name: str) -> Callable[[Path], None]:
    paths = {"file_path_metas": {"init_param": name, "config": "config.yaml"}}
    return lambda folder: write_text(folder / "configuration.json", json.dumps(paths))


def truncated(folder: Path) -> None:
    data = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(data[: len(data) // 2])


def of_large(folder: Path) -> None:
    """The configuration of the large network's tiny sister beside these weights."""
    sizes = {"embed_dim": 64, "num_heads": 16, "modalities__audio__num_alibi_heads": 16}
    configured(**{f"model_conf__{key}": value for key, value in sizes.items()})(folder)


AUDIO = "model_conf__modalities__audio__"
LAYERS = "[(24, 10, 5)] + [(24, 3, 2)] * 3 + [(24, 2, 2)] * 3"
WRONG: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no head": (
        tensors(lambda held: {name: value for name, value in held.items() if not name.startswith("proj")}),
        "MODEL_WEIGHTS_MISMATCH",
        "proj.weight is missing; proj.bias is missing",
    ),
    "another head": (renamed("proj.weight", "head.weight"), "MODEL_WEIGHTS_MISMATCH", "is missing"),
    "a tensor more": (
        tensors(lambda held: {**held, "d2v_model.more": torch.zeros(2)}),
        "MODEL_WEIGHTS_MISMATCH",
        "more is unexpected",
    ),
    "a tensor twice": (twice, "MODEL_WEIGHTS_MISMATCH", "blocks.0.norm1.weight is there twice"),
    "not a tensor": (
        tensors(lambda held: {**held, "proj.bias": [0.0]}),
        "MODEL_WEIGHTS_MISMATCH",
        "proj.bias is no tensor",
    ),
    "a list": (lambda folder: rewritten(folder, lambda _: [1]), "MODEL_WEIGHTS_MISMATCH", "no tensors by name"),
    "transposed": (transposed, "MODEL_WEIGHTS_MISMATCH", r"is \(48, 192\), not \(192, 48\)"),
    "weights of another size": (of_large, "MODEL_WEIGHTS_MISMATCH", r"not \(64"),
    "truncated": (truncated, "MODEL_WEIGHTS_UNREADABLE", "model.pt"),
    "no weights": (lambda folder: (folder / "model.pt").unlink(), "MODEL_WEIGHTS_MISSING", "model.pt"),
    "weights elsewhere": (pointed("../model.pt"), "MODEL_CONFIG_MISMATCH", "'../model.pt'"),
    "weights of the other name": (pointed("emotion2vec_base.pt"), "MODEL_WEIGHTS_MISSING", "emotion2vec_base.pt"),
    "no configuration.json": (
        lambda folder: write_text(folder / "configuration.json", "{"),
        "MODEL_CONFIG_UNREADABLE",
        "configuration.json",
    ),
    "a blank line": (labelled(*PLUS.labels, "", ""), "MODEL_LABELS_MISMATCH", "'<unk>', ''"),
    "a blank line amidst": (labelled(*PLUS.labels[:4], "", *PLUS.labels[4:]), "MODEL_LABELS_MISMATCH", "''"),
    "a label short": (labelled(*PLUS.labels[1:]), "MODEL_LABELS_MISMATCH", "has '厌恶/disgusted'"),
    "another order": (labelled(*PLUS.labels[1::-1], *PLUS.labels[2:]), "MODEL_LABELS_MISMATCH", "has '厌恶/disgusted'"),
    "english": (labelled(*(name.split("/")[-1] for name in PLUS.labels)), "MODEL_LABELS_MISMATCH", "has 'angry'"),
    "unuse twice": (labelled("unuse", "unuse", *PLUS.labels[2:]), "MODEL_LABELS_MISMATCH", "'unuse', 'unuse'"),
    "no <unk>": (labelled(*PLUS.labels[:8], "unuse"), "MODEL_LABELS_MISMATCH", "'unuse'"),
    "no tokens": (lambda folder: (folder / "tokens.txt").unlink(), "MODEL_LABELS_MISMATCH", "has none"),
    "another model": (configured(model="Paraformer"), "MODEL_CONFIG_MISMATCH", "model is 'Paraformer'"),
    "the large one": (configured(model_conf__embed_dim=1024), "MODEL_CONFIG_MISMATCH", "embed_dim is 1024, not 768"),
    "another order of norms": (
        configured(model_conf__layer_norm_first=True),
        "MODEL_CONFIG_MISMATCH",
        "layer_norm_first is True",
    ),
    "heads without slopes": (configured(**{f"{AUDIO}num_alibi_heads": 8}), "MODEL_CONFIG_MISMATCH", "num_alibi_heads"),
    "another front-end": (configured(**{f"{AUDIO}feature_encoder_spec": LAYERS}), "MODEL_CONFIG_MISMATCH", "spec is"),
    "no audio": (configured(model_conf__modalities=None), "MODEL_CONFIG_MISMATCH", "modalities is None"),
    "a setting missing": (
        configured(model_conf__depth=None),
        "MODEL_CONFIG_MISMATCH",
        "FunASR cannot build model 'emotion2vec-plus-base'",
    ),
    "environment": (configured(model_conf__depth="${oc.env:HOME}"), "MODEL_CONFIG_UNSAFE", "oc.env"),
    "no YAML": (lambda folder: write_text(folder / "config.yaml", "a: [1"), "MODEL_CONFIG_UNREADABLE", "config.yaml"),
    "no settings": (lambda folder: write_text(folder / "config.yaml", "- 1"), "MODEL_CONFIG_UNREADABLE", "no settings"),
}


def extras(held: dict[str, Tensor]) -> dict[str, Any]:
    decoder = {"d2v_model.modality_encoders.AUDIO.decoder.proj.weight": torch.zeros(3, 3)}
    return {**held, **decoder, "_ema": {"blocks": torch.zeros(2)}, "_ema.blocks": torch.zeros(2)}


SAME: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda content: content["model"],
    "state_dict": lambda content: {"state_dict": content["model"]},
    "model_state_dict": lambda content: {"model_state_dict": content["model"], "epoch": 3},
    "nested": lambda content: {"state_dict": {"model": content["model"]}},
    "data-parallel": lambda content: {
        "model": {
            f"module.{n.split('.', 1)[1]}" if n.startswith("d2v") else f"module.{n}": v
            for n, v in content["model"].items()
        }
    },
    "plain names": lambda content: {"model": {n.removeprefix("d2v_model."): v for n, v in content["model"].items()}},
    "decoder and teacher": lambda content: {**content, "model": extras(content["model"])},
    "double precision": lambda content: {"model": {name: value.double() for name, value in content["model"].items()}},
}
