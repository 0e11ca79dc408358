"""ehcalabres' model: XLSR-53 large, fine-tuned on the eight emotions of RAVDESS.

https://huggingface.co/ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition. The weights file holds a head called
`classifier.dense` and `classifier.output`, where the stock class looks for `projector` and `classifier`: loaded as the
model card shows, it labels with a random head. Here the saved head is the one that runs.
"""

from __future__ import annotations

from serpipe.models.contract import Adapter, ModelSpec

# `training_args.bin`, which lies beside these on the hub, is a pickle that runs code; it is never opened.
FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")

SPEC = ModelSpec(
    name="ehcalabres",
    hub_id="ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition",
    revision="17cf17c",
    licence="Apache-2.0",
    labels=("angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised"),
    taxonomy="ravdess8",
    parameters=316_495_496,
    min_seconds=0.025,
    max_seconds=30.0,
    embedding_width=1024,
    frame_rate=50.0,
    adapter_epoch=1,
)
"""Assumed, not known: that nothing lies between the dense and the output map.

The code that the author trained with is lost. With tanh or ReLU in between the labels on RAVDESS hardly change (a
third party measured .921 to .925 of 480 clips, most of them training data), the probabilities do. So trust its labels
more than its scores.
"""

SPECS: tuple[ModelSpec, ...] = (SPEC,)

FACTS: dict[str, object] = {
    "model_type": "wav2vec2",
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "use_weighted_layer_sum": False,
}
"""What the configuration must hold; sizes are free."""


VERIFIED = "against an independent reference of the saved head, to 1e-5; alone against batched"
NOT_VERIFIED = (
    "real weights; the activation inside the head is unknown and taken to be none, so probabilities are a guess"
)


def load(spec: ModelSpec, directory: str, *, device: str, dtype: str) -> Adapter:
    """Load the model.

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
    from serpipe.models.transformers_classifier import DENSE, load_classifier

    return load_classifier(spec, directory, files=FILES, head=DENSE, facts=FACTS, device=device, dtype=dtype)
