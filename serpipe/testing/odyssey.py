"""Random checkpoints of the Odyssey baselines in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from serpipe.models.contract import ModelSpec

_CONFIG: dict[str, Any] = {
    "architectures": ["SERModel"],
    "classifier_dropout_prob": 0.5,
    "classifier_hidden_layers": 1,
    "hidden_size": 1024,
    "mean": -8.278621631819787e-05,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "std": 0.08485510250851999,
    "torch_dtype": "float32",
}
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [24] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write `config.json` and `model.safetensors` with random weights.

    Over different clips each output has mean 0 and standard deviation 2, so that a wrong number shows.

    Args:
        spec: of `serpipe.models.odyssey.SPECS`.
        directory: made where it is missing.
        size: `full` has the real sizes (1.3 GB), `tiny` runs in milliseconds.
        seed: the same seed gives the same weights.
    """
    import torch
    from safetensors.torch import save_file

    from serpipe.models.odyssey_network import FIXED, corpus_statistics, network
    from serpipe.testing.weights import calibrate, old_spelling, randomise, voices

    config = {
        **_CONFIG,
        **FIXED,
        **(_TINY if size == "tiny" else {}),
        "id2label": {str(place): label for place, label in enumerate(spec.labels)},
        "num_classes": len(spec.labels),
    }
    made = network(config, spec).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    randomise(made, generator)
    mean, std = corpus_statistics(config, spec)
    with torch.inference_mode():
        clips = [(torch.from_numpy(voice)[None] - mean) / (std + 1e-6) for voice in voices(2.0)]
        outputs = torch.cat([made(clip, torch.tensor([clip.shape[1]]), even=True)[0] for clip in clips])
    calibrate(made.ser_model.out[0], outputs)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {old_spelling(name): tensor.contiguous() for name, tensor in made.state_dict().items()}
    tensors["ssl_model.masked_spec_embed"] = torch.rand(config["hidden_size"], generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
