"""The four emotion models of the SUPERB benchmark: HuBERT and wav2vec 2.0, base and large, on IEMOCAP's four classes.

Ported from s3prl to Transformers by their authors (https://huggingface.co/superb); the encoder is frozen in training,
and the head sees a learned weighted sum of all layers (arXiv 2105.01051). Waveforms are normalised where the
checkpoint's `preprocessor_config.json` says so: the large ones are, the base ones are not.
"""

from __future__ import annotations

from serpipe.models.contract import Adapter, ModelSpec

LABELS = ("neu", "hap", "ang", "sad")
"""IEMOCAP's classes as s3prl numbers them; `hap` holds the excited utterances too."""

FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
"""The hub's main branch has the pickle, which holds tensors only; a converted copy may have the other."""

_LARGE: dict[str, object] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_BASE: dict[str, object] = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}


def _spec(name: str, revision: str, *, parameters: int, embedding_width: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        hub_id=f"superb/{name}",
        revision=revision,
        licence="Apache-2.0",
        labels=LABELS,
        taxonomy="iemocap4",
        parameters=parameters,
        min_seconds=0.025,
        max_seconds=30.0,
        embedding_width=embedding_width,
        frame_rate=50.0,
        adapter_epoch=1,
    )


HUBERT_LARGE = _spec(
    "hubert-large-superb-er",
    "ef1a2ebfd7cfc424dc7f0fbcdc406e8b794d63bb",
    parameters=315_701_149,
    embedding_width=1024,
)
HUBERT_BASE = _spec(
    "hubert-base-superb-er",
    "bac0e14e92f7f9fd56671c5060e572e883cad667",
    parameters=94_568_849,
    embedding_width=768,
)
WAV2VEC2_LARGE = _spec("wav2vec2-large-superb-er", "bd13d8e", parameters=315_701_149, embedding_width=1024)
WAV2VEC2_BASE = _spec(
    "wav2vec2-base-superb-er",
    "441a7599c3b22107314dcbd9166621c5c83f2cc5",
    parameters=94_568_849,
    embedding_width=768,
)

SPECS: tuple[ModelSpec, ...] = (HUBERT_LARGE, HUBERT_BASE, WAV2VEC2_LARGE, WAV2VEC2_BASE)


VERIFIED = (
    "against Transformers' own classes, one utterance at a time, to 1e-5; alone against batched; "
    "weighted sums of the states after the final norm"
)
NOT_VERIFIED = "real weights; the booleans of the real preprocessor_config.json; one revision is abbreviated"


def facts_of(spec: ModelSpec) -> dict[str, object]:
    """What the configuration of one of `SPECS` must hold; sizes are free.

    Examples:
        >>> facts_of(HUBERT_BASE)["model_type"], facts_of(WAV2VEC2_LARGE)["feat_extract_norm"]
        ('hubert', 'layer')
    """
    kind, size, *_ = spec.name.split("-")
    return {"model_type": kind, **(_LARGE if size == "large" else _BASE)}


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load one of `SPECS`.

    Args:
        spec: which.
        directory: local folder in the hub's layout.
        device: where it runs, as PyTorch names it: `cpu`, `cuda`, `cuda:1`.
        dtype: of the encoder: `float32`, `float16` or `bfloat16`; normalisation, layer sum and head stay in float32.

    Raises:
        ModelError: the checkpoint is incomplete, damaged, unsafe or another model's; see
            `serpipe.models.transformers_classifier.load_classifier`.
    """
    # Planning and listing models need the specs alone; PyTorch and Transformers take seconds to import.
    from serpipe.models.transformers_classifier import SEQUENCE, load_classifier

    return load_classifier(
        spec, directory, files=FILES, head=SEQUENCE, facts=facts_of(spec), device=device, dtype=dtype
    )
