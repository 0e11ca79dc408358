"""audEERING's dimensional model: arousal, dominance and valence, each about 0 to 1, from MSP-Podcast.

https://huggingface.co/audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim, arXiv 2203.07378: twelve layers of
wav2vec2-large-robust, the mean of the last hidden states, a dense map, tanh, an output map, nothing after it. The
card's code gives neither a mask nor a masked mean, which is the same for an utterance alone.
"""

from __future__ import annotations

from typing import Final

from serpipe.models.contract import Adapter, ModelSpec

FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")

SPEC = ModelSpec(
    name="audeering-dim",
    hub_id="audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim",
    revision="6eba34a2485ea31cb03600241787c3a5edab8626",
    licence="CC-BY-NC-SA-4.0",
    labels=("arousal", "dominance", "valence"),
    taxonomy="adv",
    parameters=165_335_683,
    min_seconds=0.025,
    max_seconds=30.0,
    embedding_width=1024,
    frame_rate=50.0,
    adapter_epoch=1,
    kind="dimensional",
)

SPECS: tuple[ModelSpec, ...] = (SPEC,)

CHECK: Final = (16_000, (0.5460754, 0.6062266, 0.40431657))
"""From the model card: a second of zeros, as a number of samples, and the scores that the real weights give for it."""

FACTS: dict[str, object] = {
    "model_type": "wav2vec2",
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "use_weighted_layer_sum": False,
    "pooling_mode": "mean",
}
"""What the configuration must hold; sizes are free."""


VERIFIED = "against an independent reference of the card's definition, to 1e-5; alone against batched"
NOT_VERIFIED = "real weights, and the card's value on a second of zeros"


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load the model; scores are its logits.

    Args:
        spec: `SPEC`.
        directory: local folder in the hub's layout.
        device: where it runs, as PyTorch names it: `cpu`, `cuda`, `cuda:1`.
        dtype: of the encoder: `float32`, `float16` or `bfloat16`; normalisation and head stay in float32.

    Raises:
        ModelError: the checkpoint is incomplete, damaged, unsafe or another model's; see
            `serpipe.models.transformers_classifier.load_classifier`.
    """
    # Planning and listing models need the specs alone; PyTorch and Transformers take seconds to import.
    from serpipe.models.transformers_classifier import REGRESSION, load_classifier

    return load_classifier(spec, directory, files=FILES, head=REGRESSION, facts=FACTS, device=device, dtype=dtype)
