"""Random emotion2vec checkpoints in the hub's layout."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serpipe.models.contract import ModelSpec
from serpipe.models.emotion2vec import AUDIO, NETWORK

if TYPE_CHECKING:
    from torch import nn

_TRAINING: dict[str, Any] = {
    "loss_beta": 0.0,
    "loss_scale": None,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "norm_eps": 1e-5,
    "encoder_dropout": 0.1,
    "post_mlp_drop": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.05,
    "mlp_ratio": 4.0,
    "average_top_k_layers": 8,
    "end_of_block_targets": False,
    "clone_batch": 8,
}
_AUDIO_TRAINING: dict[str, Any] = {
    "type": "AUDIO",
    "prenet_layerdrop": 0.05,
    "prenet_dropout": 0.1,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "init_extra_token_zero": True,
    "mask_prob": 0.5,
    "mask_length": 5,
    "ema_local_encoder": False,
    "local_grad_mult": 1.0,
    "alibi_scale": 1.0,
    "alibi_max_pos": None,
    "learned_alibi_scale": True,
    "learned_alibi_scale_per_head": True,
    "conv_pos_width": 95,
    "conv_pos_groups": 16,
    "conv_pos_depth": 5,
}
_DECODER: dict[str, Any] = {
    "decoder_groups": 16,
    "decoder_kernel": 7,
    "decoder_layers": 4,
    "input_dropout": 0.1,
    "decoder_residual": True,
    "projection_layers": 1,
    "projection_ratio": 2.0,
}


def write(spec: ModelSpec, directory: str | Path, *, size: Literal["tiny", "full"], seed: int) -> None:
    """Write `config.yaml`, `configuration.json`, the weights and, for a model with a head, `tokens.txt`.

    emotion2vec's weights are called `emotion2vec_base.pt` and hold the decoder of pre-training; emotion2vec+'s are
    called `model.pt`, hold none, and `d2v_model.` stands before every name but the head's. Over different clips each
    logit has mean 0 and standard deviation 2, so that a wrong number shows.

    Args:
        spec: of `serpipe.models.emotion2vec.SPECS`.
        directory: made where it is missing.
        size: `full` has the real sizes, `tiny` runs in milliseconds and keeps the number of heads, which is no power
            of two for all but the large one.
        seed: the same seed gives the same weights.
    """
    import torch

    from serpipe.models.emotion2vec_funasr import build

    conf = _model_conf(large=spec.embedding_width == 1024, full=size == "full")
    network = build(spec.name, conf, spec.labels)
    # Models of one size are different models.
    _randomise(network, seed + zlib.crc32(spec.name.encode()))
    if spec.labels:
        tensors = {
            name if name.startswith("proj.") else f"d2v_model.{name}": tensor
            for name, tensor in network.state_dict().items()
            if ".decoder." not in name
        }
    else:
        tensors = dict(network.state_dict())
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = "model.pt" if spec.labels else "emotion2vec_base.pt"
    torch.save({"args": None, "model": tensors, "extra_state": {"epoch": 1}}, folder / weights)
    settings: dict[str, Any] = {"model": "Emotion2vec", "model_conf": conf}
    paths: dict[str, Any] = {"init_param": weights, "config": "config.yaml"}
    if spec.labels:
        settings["tokenizer"] = "CharTokenizer"
        settings["tokenizer_conf"] = {"unk_symbol": "<unk>", "split_with_space": True}
        settings["scope_map"] = ["d2v_model.", "none"]
        paths["tokenizer_conf"] = {"token_list": "tokens.txt"}
        (folder / "tokens.txt").write_text("\n".join(spec.labels), encoding="utf-8")
    (folder / "config.yaml").write_text(_yaml(settings), encoding="utf-8")
    (folder / "configuration.json").write_text(
        json.dumps({"framework": "pytorch", "task": "emotion-recognition", "file_path_metas": paths}, indent=2) + "\n"
    )


def _model_conf(*, large: bool, full: bool) -> dict[str, Any]:
    """`model_conf` with the values of the hub, as far as they are known and decide anything."""
    heads = 16 if large else 12
    depth, prenet = (8, 4) if full else (2, 2)
    channels = 512 if full else 24
    audio = {
        **AUDIO,
        **_AUDIO_TRAINING,
        "prenet_depth": prenet,
        "model_depth": depth,
        "num_alibi_heads": heads,
        "decoder": {**_DECODER, "decoder_dim": (768 if large else 384) if full else 16},
        "feature_encoder_spec": f"[({channels}, 10, 5)] + [({channels}, 3, 2)] * 4 + "
        f"[({channels}, 2, 2)] + [({channels}, 2, 2)]",
    }
    return {
        **NETWORK,
        **_TRAINING,
        "depth": depth,
        "num_heads": heads,
        "embed_dim": heads * (64 if full else 4),
        "modalities": {"_name": None, "audio": audio},
    }


def _randomise(network: nn.Module, seed: int) -> None:
    import torch

    from serpipe.models.emotion2vec_network import normalised
    from serpipe.testing.weights import calibrate, randomise, voices

    generator = torch.Generator().manual_seed(seed)
    randomise(network, generator)
    parts: Any = network
    audio = parts.modality_encoders["AUDIO"]
    with torch.inference_mode():
        audio.extra_tokens.copy_(torch.randn(audio.extra_tokens.shape, generator=generator))
        audio.alibi_scale.copy_(0.5 + torch.rand(audio.alibi_scale.shape, generator=generator))
        if parts.proj is None:
            return
        # FunASR's own forward pass, one utterance at a time; their lengths differ, as do those of segments.
        clips = [normalised(voice[: 8_000 * (place + 1)]) for place, voice in enumerate(voices(3.0))]
        pooled = [parts.extract_features(torch.from_numpy(clip)[None])["x"].mean(1) for clip in clips]
        calibrate(parts.proj, parts.proj(torch.cat(pooled)))


def _yaml(settings: dict[str, Any]) -> str:
    """YAML with the hub's spelling of small numbers, which YAML's own loader takes for strings."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.create(settings))).replace("1.0e-05", "1e-05")
