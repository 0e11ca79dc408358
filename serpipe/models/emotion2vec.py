"""emotion2vec and emotion2vec+: FunASR builds and loads them, serpipe audits their files and runs them in batches.

Ma et al., "emotion2vec: Self-Supervised Pre-Training for Speech Emotion Representation", arXiv 2312.15185. FunASR runs
one utterance at a time, skips tensors of another shape without a word, evaluates a string of the configuration as
Python, and lets a configuration name further models to download. So the text files are read and checked here, FunASR
is handed what passed and nothing else, and every tensor it loaded is compared with the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from serpipe.errors import ModelError
from serpipe.models.checkpoint import content_sha256, read_json, refuse_config, torch_dtype
from serpipe.models.contract import Adapter, ModelSpec

LABELS = (
    "生气/angry",
    "厌恶/disgusted",
    "恐惧/fearful",
    "开心/happy",
    "中立/neutral",
    "其他/other",
    "难过/sad",
    "吃惊/surprised",
    "<unk>",
)
"""tokens.txt of the emotion2vec+ repositories since June 2024."""

UNUSED = "unuse"
"""What the name of a label begins with that FunASR leaves out: people edit tokens.txt to switch classes off."""

WEIGHTS = ("model.pt", "emotion2vec_base.pt")
FILES = ("config.yaml", "configuration.json", "tokens.txt", *WEIGHTS)
"""The files of a checkpoint that are read."""


def _spec(
    name: str, revision: str | None, *, parameters: int, width: int = 768, labels: tuple[str, ...] = LABELS
) -> ModelSpec:
    return ModelSpec(
        name=name,
        hub_id="emotion2vec/" + name.replace("-", "_"),
        revision=revision,
        # Commercial use is allowed; attribution is asked for, and that the model keeps its name.
        licence="FunASR Model License 1.1",
        labels=labels,
        taxonomy="emotion2vec9" if labels else "none",
        parameters=parameters,
        min_seconds=0.025,
        max_seconds=30.0,
        embedding_width=width,
        frame_rate=50.0,
        adapter_epoch=1,
        kind="categorical" if labels else "embeddings",
    )


SPECS = (
    _spec("emotion2vec-base", "0c9a3152734f9d7a7a05b4ee6bfb3c109d288664", parameters=93_171_212, labels=()),
    _spec("emotion2vec-plus-seed", None, parameters=93_178_133),
    _spec("emotion2vec-plus-base", None, parameters=93_178_133),
    _spec(
        "emotion2vec-plus-large",
        "6c303ba987b86b93193de93e34bb2b077a6bedc4",
        parameters=162_140_185,
        width=1024,
    ),
)
"""The four models. The pre-training decoder does not count as parameters: nothing here runs it."""

NETWORK = {"layer_norm_first": False, "norm_affine": True, "normalize": True}
AUDIO = {
    "num_extra_tokens": 10,
    "extractor_mode": "layer_norm",
    "conv_pos_pre_ln": False,
    "use_alibi_encoder": True,
    "learned_alibi": False,
    "learned_alibi_scale_per_layer": False,
}
"""What `model_conf` and its `modalities.audio` say for all four models, as far as it decides the forward pass."""

_LAYER = r"\( *([1-9]\d{0,4}) *, *([1-9]\d{0,2}) *, *([1-9]\d{0,2}) *\)"
_LAYERS = re.compile(rf"\[ *{_LAYER} *\](?: *\* *([1-9]\d?))?")
_LAYER_LIST = re.compile(rf"{_LAYERS.pattern}(?: *\+ *{_LAYERS.pattern})*")


VERIFIED = "against funasr.AutoModel.generate, to 1e-5, utterance and frame, scores and features; alone against batched"
NOT_VERIFIED = "real weights; the revisions of plus-seed and plus-base are not pinned"


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Audit a checkpoint, have FunASR load it, and put the network on a device.

    Args:
        spec: one of `SPECS`.
        directory: a local folder with the files of the hub's repository.
        device: where the network computes.
        dtype: `float32`, `bfloat16` or `float16`; the head, pooling and softmax stay in float32.

    Returns:
        An adapter whose spec has the labels of tokens.txt, where one that begins with `unuse` has the logit minus
        infinity and the score 0, and the embedding width of the configuration.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`, `MODEL_CONFIG_UNSAFE`, `MODEL_CONFIG_MISMATCH`,
            `MODEL_LABELS_MISMATCH`, `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREADABLE`, `MODEL_WEIGHTS_UNSAFE`,
            `MODEL_WEIGHTS_MISMATCH`, `MODEL_DTYPE_UNSUPPORTED`, `MODEL_BACKEND_UNUSABLE`.
    """
    folder = Path(directory)
    kind = torch_dtype(dtype)
    conf = _model_conf(folder / "config.yaml", spec)
    weights = folder / _weights_name(folder, spec)
    labels = _labels(folder / "tokens.txt", spec)
    actual = replace(spec, labels=labels, embedding_width=conf["embed_dim"])

    from serpipe.models.emotion2vec_funasr import audited
    from serpipe.models.emotion2vec_network import Emotion2vecAdapter

    module = audited(spec.name, conf, labels, weights)
    unused = [place for place, label in enumerate(labels) if label.startswith(UNUSED)]
    return Emotion2vecAdapter(actual, content_sha256(folder, FILES), module, unused, device=device, dtype=kind)


def convolutions(text: str) -> list[tuple[int, int, int]]:
    """Read a front-end's layers from the Python expression in which fairseq writes them, without evaluating it.

    Args:
        text: lists of one (width, kernel, stride) each, repeated and added.

    Raises:
        ModelError: `MODEL_CONFIG_UNSAFE`, the text is anything else.

    Examples:
        >>> convolutions("[(512, 10, 5)] + [(512, 3, 2)] * 2")
        [(512, 10, 5), (512, 3, 2), (512, 3, 2)]
        >>> convolutions("__import__('os').system('true')")
        Traceback (most recent call last):
        serpipe.errors.ModelError: MODEL_CONFIG_UNSAFE: feature_encoder_spec is "__import__('os').system('true')", which
        is no list of layers; FunASR would run it as Python, so it goes no further
    """
    if not _LAYER_LIST.fullmatch(text):
        raise ModelError(
            "MODEL_CONFIG_UNSAFE",
            f"feature_encoder_spec is {text!r}, which is no list of layers; FunASR would run it as Python, "
            "so it goes no further",
        )
    layers: list[tuple[int, int, int]] = []
    for width, kernel, stride, times in _LAYERS.findall(text):
        layers += [(int(width), int(kernel), int(stride))] * int(times or 1)
    return layers


def _model_conf(path: Path, spec: ModelSpec) -> dict[str, Any]:
    """The `model_conf` of a configuration, checked, without the decoder."""
    from serpipe.models.masking import CONVOLUTIONS

    content = _read_yaml(path)
    refuse_config(content, {"model": "Emotion2vec"}, model=spec.name)
    conf = _mapping(content, "model_conf", spec)
    audio = _mapping(_mapping(conf, "modalities", spec), "audio", spec)
    _refuse_interpolation(conf)
    refuse_config(conf, NETWORK, model=spec.name)
    refuse_config(audio, {**AUDIO, "num_alibi_heads": conf.get("num_heads")}, model=spec.name)
    width = conf.get("embed_dim")
    others = {other.embedding_width for other in SPECS} - {spec.embedding_width}
    if not isinstance(width, int) or width in others:
        raise _other_model(spec, f"embed_dim is {width!r}, not {spec.embedding_width}")
    layers = convolutions(str(audio.get("feature_encoder_spec")))
    if tuple((kernel, stride) for _, kernel, stride in layers) != CONVOLUTIONS:
        raise _other_model(spec, f"feature_encoder_spec is {audio['feature_encoder_spec']!r}")
    # What FunASR evaluates is written here, from integers. The decoder served pre-training.
    audio = {**audio, "feature_encoder_spec": str(layers), "decoder": None}
    return {**conf, "modalities": {"_name": None, "audio": audio}}


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read as FunASR does, because YAML's own loader takes the hub's `norm_eps: 1e-05` for a string."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ModelError("MODEL_CONFIG_UNREADABLE", f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ModelError("MODEL_CONFIG_UNREADABLE", f"{path} holds no settings; fetch it again")
    return {str(key): value for key, value in content.items()}


def _mapping(settings: Mapping[str, Any], key: str, spec: ModelSpec) -> dict[str, Any]:
    found = settings.get(key)
    if not isinstance(found, dict):
        raise _other_model(spec, f"{key} is {found!r}, not a group of settings")
    return found


def _refuse_interpolation(value: object) -> None:
    """OmegaConf, which FunASR reads settings with, replaces `${...}` by environment variables and the like."""
    if isinstance(value, str) and "${" in value:
        raise ModelError("MODEL_CONFIG_UNSAFE", f"config.yaml has {value!r}, which FunASR would resolve; write it out")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _refuse_interpolation(part)


def _weights_name(folder: Path, spec: ModelSpec) -> str:
    """Which file holds the weights: configuration.json says so, and model.pt is FunASR's default."""
    path = folder / "configuration.json"
    if not path.exists():
        return WEIGHTS[0]
    paths = read_json(path).get("file_path_metas", {})
    name = paths.get("init_param", WEIGHTS[0]) if isinstance(paths, dict) else None
    if name not in WEIGHTS:
        raise _other_model(spec, f"configuration.json has the weights in {name!r}, not in {' or '.join(WEIGHTS)}")
    return str(name)


def _labels(path: Path, spec: ModelSpec) -> tuple[str, ...]:
    """The lines of tokens.txt, whose number sets the width of FunASR's head: one too many, and it stays random."""
    found: list[str] = []
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            found = [line.rstrip() for line in lines]
    if not _fitting(found, spec.labels):
        raise ModelError(
            "MODEL_LABELS_MISMATCH",
            f"the labels of model {spec.name!r} are {', '.join(spec.labels) or 'none'}, and {path} has "
            f"{', '.join(map(repr, found)) or 'none'}; fetch tokens.txt again, or mark a label that is not wanted by "
            f"putting {UNUSED!r} before its name",
        )
    return tuple(found)


def _fitting(found: Sequence[str], wanted: Sequence[str]) -> bool:
    if len(found) != len(wanted) or len(set(found)) != len(found):
        return False
    # FunASR insists on an <unk>.
    return all(
        label == name or (label.startswith(UNUSED) and name != "<unk>")
        for label, name in zip(found, wanted, strict=True)
    )


def _other_model(spec: ModelSpec, what: str) -> ModelError:
    return ModelError(
        "MODEL_CONFIG_MISMATCH",
        f"the configuration is not that of model {spec.name!r}: {what}; point it to the checkpoint of that model",
    )
