"""Any emotion classifier that Transformers' own audio classes made: wav2vec 2.0, HuBERT or WavLM with the stock head.

Nothing about such a checkpoint is known beforehand, so its own configuration is its spec, and what leaves a doubt
(unnamed labels, another sampling rate, several labels at once) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serpipe.errors import ModelError
from serpipe.labels import TAXONOMIES
from serpipe.models.checkpoint import read_json
from serpipe.models.contract import LICENCE_NOT_KNOWN, Adapter, ModelSpec

SPECS: tuple[ModelSpec, ...] = ()
"""None: `spec_of` makes one for a checkpoint."""

FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")

ARCHITECTURES = {
    "wav2vec2": "Wav2Vec2ForSequenceClassification",
    "hubert": "HubertForSequenceClassification",
    "wavlm": "WavLMForSequenceClassification",
}

_UNNAMED = re.compile(r"LABEL_\d+", re.IGNORECASE)


def spec_of(directory: str, name: str) -> ModelSpec:
    """The facts of a checkpoint, as its own files state them; no weights are read.

    Args:
        directory: local folder in the hub's layout.
        name: what the model is to be called.

    Raises:
        ModelError: `MODEL_CONFIG_UNREADABLE`, `MODEL_CONFIG_MISMATCH` (no such classifier, another sampling rate), or
            `MODEL_LABELS_MISMATCH` (labels without names).
    """
    from serpipe.models.transformers_classifier import SEQUENCE, Network, labels_of, normalises

    folder = Path(directory)
    config = read_json(folder / "config.json")
    _refuse_other_classifiers(config, name)
    normalises(read_json(folder / "preprocessor_config.json"), model=name)
    labels = labels_of(config, model=name)
    if any(_UNNAMED.fullmatch(label) for label in labels):
        raise ModelError(
            "MODEL_LABELS_MISMATCH",
            f"model {name!r} calls its labels {', '.join(labels)}, so nobody can tell the emotions; "
            "write their names, as it was trained, into id2label of config.json",
        )
    network = Network(config, SEQUENCE, labels=len(labels), model=name)
    return ModelSpec(
        name=name,
        hub_id=None,
        revision=None,
        licence=LICENCE_NOT_KNOWN,
        labels=labels,
        taxonomy=taxonomy_of(labels),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        min_seconds=0.025,
        max_seconds=30.0,
        embedding_width=network.encoder.config.hidden_size,
        frame_rate=50.0,
        adapter_epoch=1,
    )


def taxonomy_of(labels: Sequence[str]) -> str:
    """The taxonomy with exactly these labels, in any order; `canonical` for a part of those words, else `none`.

    Examples:
        >>> taxonomy_of(["ang", "hap", "neu", "sad"]), taxonomy_of(["ang", "hap", "bored"])
        ('iemocap4', 'none')
    """
    own = "canonical" if set(labels) <= set(TAXONOMIES["canonical"]) else "none"
    return next((key for key, mapping in TAXONOMIES.items() if set(mapping) == set(labels)), own)


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load a checkpoint.

    Args:
        spec: of `spec_of`.
        directory: local folder in the hub's layout.
        device: where it runs, as PyTorch names it: `cpu`, `cuda`, `cuda:1`.
        dtype: of the encoder: `float32`, `float16` or `bfloat16`; normalisation, layer sum and head stay in float32.

    Raises:
        ModelError: the checkpoint is incomplete, damaged, unsafe or no longer the one `spec` was made of; see
            `serpipe.models.transformers_classifier.load_classifier`.
    """
    # Planning and listing models need the specs alone; PyTorch and Transformers take seconds to import.
    from serpipe.models.transformers_classifier import SEQUENCE, load_classifier

    _refuse_other_classifiers(read_json(Path(directory) / "config.json"), spec.name)
    return load_classifier(spec, directory, files=FILES, head=SEQUENCE, facts={}, device=device, dtype=dtype)


def _refuse_other_classifiers(config: dict[str, Any], name: str) -> None:
    wanted = ARCHITECTURES.get(str(config.get("model_type")))
    if wanted is None:
        raise _mismatch(
            name, f"says model_type {config.get('model_type')!r}, which is none of {', '.join(ARCHITECTURES)}"
        )
    architectures = config.get("architectures") or [wanted]
    if architectures != [wanted]:
        raise _mismatch(name, f"is of {architectures}, and only {wanted} has the head that is run here")
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise _mismatch(name, f"is for {problem}, and only one label for each segment is known here")


def _mismatch(name: str, what: str) -> ModelError:
    return ModelError("MODEL_CONFIG_MISMATCH", f"the config.json of model {name!r} {what}; give another checkpoint")
