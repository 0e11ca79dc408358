"""A random ExHuBERT checkpoint in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serpipe.models.contract import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG: dict[str, Any] = {
    "_name_or_path": "facebook/hubert-large-ls960-ft",
    "apply_spec_augment": True,
    "feat_proj_layer_norm": True,
    "feat_proj_dropout": 0.1,
    "hidden_dropout": 0.1,
    "layerdrop": 0.1,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_feature_prob": 0.0,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "use_weighted_layer_sum": False,
}
_SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "hidden_size": 1024,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "conv_dim": [512] * 7,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "classifier_proj_size": 256,
    },
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [24] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 16,
    },
}


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write `config.json` and `pytorch_model.bin` with random weights.

    Over different clips each logit has mean 0 and standard deviation 2, so that a wrong number shows.

    Args:
        spec: of `serpipe.models.exhubert.SPECS`.
        directory: made where it is missing.
        size: `full` has the real sizes (2.7 GB), `tiny` runs in milliseconds.
        seed: the same seed gives the same weights.
    """
    import torch

    from serpipe.models.exhubert_network import FIXED, network, window
    from serpipe.testing.weights import calibrate, old_spelling, randomise, voices

    config = {**_CONFIG, **FIXED, **_SIZES[size]}
    made = network(config, spec).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    randomise(made, generator)
    with torch.inference_mode():
        windows = torch.stack([torch.from_numpy(window(voice)) for voice in voices(3.0)])
        outputs = torch.cat([made(row[None])[0] for row in windows])
    calibrate(made.classifier, outputs)
    tensors: dict[str, Tensor] = dict(made.state_dict())
    tensors["hubert.masked_spec_embed"] = torch.rand(config["hidden_size"], generator=generator)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({old_spelling(name): tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
