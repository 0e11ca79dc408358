"""Random-weight checkpoints of the Transformers kind, in the hub's layout, whose logits differ from clip to clip.

A head drawn at random gives nearly the same probabilities for every clip, and so hides every fault of a batch. These
heads are scaled on a few synthetic clips until the logits spread like those of a trained model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from serpipe.models.masking import pad, standardised
from serpipe.models.transformers_classifier import Head, Network
from serpipe.testing.weights import calibrate, old_spelling, randomise, voices

Size = Literal["tiny", "full"]

BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "conv_bias": False,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 24,
}
_COMMON: dict[str, Any] = {
    "activation_dropout": 0.1,
    "apply_spec_augment": True,
    "attention_dropout": 0.1,
    "classifier_proj_size": 256,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "feat_extract_activation": "gelu",
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "layer_norm_eps": 1e-05,
    "layerdrop": 0.1,
    "mask_time_length": 10,
    "mask_time_prob": 0.05,
    "num_conv_pos_embedding_groups": 16,
    "num_conv_pos_embeddings": 128,
    "num_feat_extract_layers": 7,
    "torch_dtype": "float32",
    "use_weighted_layer_sum": False,
    "vocab_size": 32,
}


def config_of(labels: tuple[str, ...], shape: Mapping[str, Any], size: Size, **others: object) -> dict[str, Any]:
    """Content of a `config.json`.

    Args:
        labels: in id order.
        shape: `BASE`, `LARGE`, or what differs from them.
        size: `full`, or `tiny` for the same structure a thousand times smaller.
        others: keys of this checkpoint alone.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    return _COMMON | dict(shape) | (TINY if size == "tiny" else {}) | names | others


def preprocessor_of(*, do_normalize: bool) -> dict[str, Any]:
    """Content of a `preprocessor_config.json`."""
    return {
        "do_normalize": do_normalize,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0,
        "return_attention_mask": True,
        "sampling_rate": 16_000,
    }


def write_checkpoint(
    directory: str | Path,
    *,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    head: Head,
    weights: Literal["model.safetensors", "pytorch_model.bin"],
    seed: int,
) -> None:
    """Write `config.json`, `preprocessor_config.json` and the weights.

    Args:
        directory: made where there is none.
        config: content of `config.json`.
        preprocessor: content of `preprocessor_config.json`.
        head: what the head's two maps are called.
        weights: the weights file's name. Weight norm is spelled as in the checkpoints of the hub.
        seed: the same seed gives the same files.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2, sort_keys=True) + "\n")
    random = torch.Generator().manual_seed(seed)
    network = Network(config, head, labels=len(config["id2label"]), model="random").to_empty(device="cpu")
    randomise(network, random)
    _scale_head(network, head, normalise=preprocessor["do_normalize"])
    tensors = {old_spelling(name): tensor.contiguous() for name, tensor in network.state_dict().items()}
    tensors[f"{network.encoder.base_model_prefix}.masked_spec_embed"] = torch.rand(
        config["hidden_size"], generator=random
    )
    if weights == "model.safetensors":
        save_file(tensors, folder / weights, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / weights)


@torch.inference_mode()
def _scale_head(network: Network, head: Head, *, normalise: bool) -> None:
    """One clip at a time, so that nothing rests on the masks that these checkpoints are to test."""
    clips = [standardised(clip) if normalise else clip for clip in voices(1.5)]
    values = torch.cat([network(*pad([clip], "cpu"), even=True).embeddings for clip in clips])
    for name in (head.first, head.second):
        layer = network.get_submodule(name)
        calibrate(layer, layer(values))
        values = layer(values)
        if name == head.first and head.activation == "tanh":
            values = values.tanh()
