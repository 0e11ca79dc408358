"""The Odyssey baselines: equal to their definition, the same numbers in any company, refused unless whole."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models import odyssey, odyssey_network, transformers_encoder
from serpipe.models.contract import Adapter, ModelSpec
from serpipe.models.masking import frame_count, standardised
from serpipe.testing.odyssey import write
from tests.models.clips import sounds
from tests.models.plain_encoder import (
    Part,
    attention,
    feed_forward,
    front_end,
    gated,
    layer_norm,
    linear,
    positional,
    relative_positions,
)

SPECS = {spec.name: spec for spec in odyssey.SPECS}
CATEGORICAL, ATTRIBUTES, VALENCE = (SPECS[f"odyssey-{name}"] for name in ("categorical", "attributes", "valence"))
TOLERANCE = 1e-4
"""Of the spread of the logits over clips: what an adapter promises in float32."""
Waveform = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def folder(spec: ModelSpec) -> Path:
    made = Path(mkdtemp(prefix=f"serpipe-{spec.name}-"))
    write(spec, made, size="tiny", seed=5)
    return made


@cache
def model(spec: ModelSpec = CATEGORICAL) -> Adapter:
    return odyssey.load(spec, str(folder(spec)), device="cpu", dtype="float32")


@cache
def padded() -> Adapter:
    """The same with padded rows, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_encoder, "packable", lambda _device, _dtype: False)
        return odyssey.load(CATEGORICAL, str(folder(CATEGORICAL)), device="cpu", dtype="float32")


@cache
def tensors(spec: ModelSpec = CATEGORICAL) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder(spec) / "model.safetensors")
    return loaded


@cache
def spread() -> float:
    """Standard deviation of each logit over sounds, averaged over the logits."""
    cut = [sound[start : start + 32_000] for sound in sounds() for start in (0, 160_000, 320_000)]
    return float(model().forward(cut, frames=False).logits.std(axis=0).mean())


def plain(
    waveform: Waveform, spec: ModelSpec = CATEGORICAL, *, heads: int = 4
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits, embedding and frames of one segment, from the definition, in float64."""
    everything = Part(tensors(spec))
    body = everything.below("ssl_model")
    samples = (torch.from_numpy(waveform).double() + 8.278621631819787e-05) / (0.08485510250851999 + 1e-6)
    features = front_end(samples, body.below("feature_extractor"), biased=False)
    projection = body.below("feature_projection")
    hidden = linear(layer_norm(features, projection.below("layer_norm")), projection.below("projection"))
    encoder = body.below("encoder")
    hidden = hidden + positional(hidden, encoder.below("pos_conv_embed.conv"))
    bias = relative_positions(len(hidden), encoder["layers.0.attention.rel_attn_embed.weight"])
    for place in range(encoder.count("layers")):
        layer = encoder.below(f"layers.{place}")
        normed = layer_norm(hidden, layer.below("layer_norm"))
        own = layer.below("attention")
        hidden = hidden + attention(normed, own, heads, gated(normed, own, heads, bias))
        hidden = hidden + feed_forward(layer_norm(hidden, layer.below("final_layer_norm")), layer.below("feed_forward"))
    hidden = layer_norm(hidden, encoder.below("layer_norm"))
    pool = everything.below("pool_model")
    energies = [float(linear(frame[None], pool.below("sap_linear")).tanh() @ pool["attention"]) for frame in hidden]
    weights = np.exp(np.array(energies) - max(energies))
    weights /= weights.sum()
    mean = sum(weight * frame for weight, frame in zip(weights, hidden, strict=True))
    square = sum(weight * frame**2 for weight, frame in zip(weights, hidden, strict=True))
    pooled = torch.cat([mean, (square - mean**2).clamp(min=1e-5).sqrt()])  # type: ignore[operator,union-attr]
    head = everything.below("ser_model")
    inner = layer_norm(linear(pooled, head.below("fc.0.0")), head.below("fc.0.1")).clamp(min=0)
    return linear(inner, head.below("out.0")).numpy(), hidden.mean(0).numpy(), hidden.numpy()


def _full_shapes(spec: ModelSpec) -> dict[str, list[int]]:
    """What the real sizes make of a checkpoint: the tiny one's names, the shapes of the network at full size."""
    from serpipe.testing import odyssey as testing
    from serpipe.testing.weights import old_spelling

    config = {**testing._CONFIG, **odyssey_network.FIXED, "num_classes": len(spec.labels)}
    config["id2label"] = {str(place): label for place, label in enumerate(spec.labels)}
    full = odyssey_network.network(config, spec).state_dict()
    shapes = {old_spelling(name): list(tensor.shape) for name, tensor in full.items()}
    shapes["ssl_model.masked_spec_embed"] = [1024]
    tiny = {name for name in shapes if not any(f".layers.{place}." in name for place in range(3, 24))}
    assert tiny == tensors(spec).keys()
    return shapes


def test_the_published_file_is_as_long_as_these_tensors_make_it() -> None:
    """model.safetensors of Multi-Attributes has 1 274 490 516 bytes: a table of names and shapes, and the numbers."""
    shapes = _full_shapes(ATTRIBUTES)
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + 4 * int(np.prod(shapes[name]))
        table[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [start, end]}
    head = len(json.dumps(table, separators=(",", ":")))
    assert 8 + -(-head // 8) * 8 + end == 1_274_490_516
    assert end == 4 * ATTRIBUTES.parameters


@pytest.mark.parametrize("name", SPECS)
def test_specs_count_the_weights(name: str) -> None:
    assert sum(int(np.prod(shape)) for shape in _full_shapes(SPECS[name]).values()) == SPECS[name].parameters
    assert SPECS[name].revision != "main"


def test_spec_needs_no_torch() -> None:
    program = "import sys; import serpipe.models.odyssey; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2]).returncode == 0


def test_the_same_seed_writes_the_same_checkpoint(tmp_path: Path) -> None:
    write(CATEGORICAL, tmp_path, size="tiny", seed=5)
    again = odyssey.load(CATEGORICAL, str(tmp_path), device="cpu", dtype="float32")
    assert again.weights_sha256 == model().weights_sha256
    assert spread() >= 1.0


@pytest.mark.parametrize("samples", [400, 719, 9_000, 40_000, 192_000])
def test_equals_its_definition(samples: int) -> None:
    """Also beyond 80 and beyond 800 frames apart, where the buckets of distance grow and end (12 s are 599)."""
    waveform = sounds()[0][-samples:]
    logits, embedding, frames = plain(waveform)
    made = model().forward([waveform, sounds()[1][:50_000]], frames=True)
    assert made.frames is not None
    assert np.abs(made.logits[0] - logits).max() <= 1e-5 * max(1.0, np.abs(logits).max())
    np.testing.assert_allclose(made.embeddings[0], embedding, atol=1e-5)
    np.testing.assert_allclose(made.frames[0], frames, atol=1e-5)
    odds = np.exp(logits - logits.max())
    np.testing.assert_allclose(made.scores[0], odds / odds.sum(), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "odyssey-categorical"])
def test_attributes_are_the_regression_itself(name: str) -> None:
    spec = SPECS[name]
    made = model(spec).forward([sounds()[2][:20_000]], frames=False)
    expected = plain(sounds()[2][:20_000], spec)[0]
    assert model(spec).spec.kind == "dimensional"
    assert made.logits.shape == (1, len(spec.labels))
    np.testing.assert_allclose(made.logits[0], expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    np.testing.assert_array_equal(made.scores, made.logits)


lengths = st.one_of(st.sampled_from([400, 719, 720, 16_000, 16_080]), st.integers(400, 100_000))


@given(st.lists(st.tuples(lengths, st.integers(0, 5)), min_size=2, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_alone_batched_and_shuffled_agree(cuts: list[tuple[int, int]], chance: random.Random) -> None:
    waves = [sounds()[which][-length:] for length, which in cuts]
    order = list(range(len(waves)))
    chance.shuffle(order)
    batched = model().forward(waves, frames=True)
    shuffled = model().forward([waves[i] for i in order], frames=True)
    for place, i in enumerate(order):
        alone = model().forward([waves[i]], frames=True)
        assert alone.frames is not None
        assert len(alone.frames[0]) == frame_count(len(waves[i]))
        for other, row in ((batched, i), (shuffled, place)):
            assert other.frames is not None
            assert np.abs(alone.logits[0] - other.logits[row]).max() <= TOLERANCE * spread()
            np.testing.assert_allclose(other.embeddings[row], alone.embeddings[0], atol=1e-5)
            np.testing.assert_allclose(other.frames[row], alone.frames[0], atol=1e-4)


def test_shortest_beside_longest() -> None:
    waves = [sounds()[1][50_000:50_400], sounds()[0][:192_000]]
    together = model().forward(waves, frames=False).logits
    for row, wave in enumerate(waves):
        alone = model().forward([wave], frames=False).logits[0]
        assert np.abs(alone - together[row]).max() <= TOLERANCE * spread()


def _moved(change: Callable[[pytest.MonkeyPatch], object], monkeypatch: pytest.MonkeyPatch) -> float:
    """How far a change moves a short segment's logits in the company of a longer one, in spreads."""
    waves = [sounds()[0][:16_000], sounds()[1][:30_000]]
    right = padded().forward(waves[:1], frames=False).logits[0]
    assert np.abs(right - padded().forward(waves, frames=False).logits[0]).max() <= TOLERANCE * spread()
    change(monkeypatch)
    wrong = padded().forward(waves, frames=False).logits[0]
    return float(np.abs(right - wrong).max() / spread())


def _no_mask(patch: pytest.MonkeyPatch) -> None:
    everything = lambda count, size: torch.ones(len(count), size, dtype=torch.bool)  # noqa: E731
    patch.setattr(transformers_encoder, "valid", everything)


def _no_key_mask(patch: pytest.MonkeyPatch) -> None:
    for layer in padded()._network.ssl_model.encoder.layers:  # type: ignore[attr-defined]

        def unmasked(*given: Any, honest: Callable[..., Any] = layer.attention.forward, **options: Any) -> Any:
            return honest(*given, **{**options, "attention_mask": None})

        patch.setattr(layer.attention, "forward", unmasked)


def _pads_not_zeroed(patch: pytest.MonkeyPatch) -> None:
    """Padding is invisible to attention and pooling, but not to the positional convolution."""
    embed = padded()._network.ssl_model.encoder.pos_conv_embed  # type: ignore[attr-defined]
    honest = embed.forward

    def noisy(hidden: Tensor) -> Tensor:
        empty = (hidden == 0).all(-1, keepdim=True)
        return honest(hidden.masked_fill(empty, 1.0))

    patch.setattr(embed, "forward", noisy)


def _published_count(patch: pytest.MonkeyPatch) -> None:
    """The hub's own code, which takes floor((n - 1) / 320) + 1 frames."""
    patch.setattr(transformers_encoder, "frame_count", lambda samples: (samples - 1) // 320 + 1)


def _unmasked_pooling(patch: pytest.MonkeyPatch) -> None:
    pool = padded()._network.pool_model  # type: ignore[attr-defined]
    honest = pool.forward
    patch.setattr(pool, "forward", lambda hidden, mask: honest(hidden, torch.ones_like(mask)))


def _by_utterance(patch: pytest.MonkeyPatch) -> None:
    honest = odyssey_network.pad
    patch.setattr(odyssey_network, "pad", lambda waves, device: honest([standardised(w) for w in waves], device))


@pytest.mark.parametrize(
    "change", [_no_mask, _no_key_mask, _pads_not_zeroed, _published_count, _unmasked_pooling, _by_utterance]
)
def test_the_tolerance_notices_a_safeguard_removed(
    change: Callable[[pytest.MonkeyPatch], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls, one a safeguard."""
    assert _moved(change, monkeypatch) > 10 * TOLERANCE


def test_zeros_come_after_the_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network gets beyond a segment's end is zero, not (0 - mean) / std."""
    seen = []
    honest = odyssey_network.encode
    record = lambda *given, **named: seen.append(given[1].clone()) or honest(*given, **named)  # noqa: E731
    monkeypatch.setattr(odyssey_network, "encode", record)
    model().forward([sounds()[0][:500], sounds()[1][:900]], frames=False)
    expected = (sounds()[0][:500].astype(np.float64) + 8.278621631819787e-05) / 0.08485610250851999
    np.testing.assert_allclose(seen[0][0, :500].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (seen[0][0, 500:] == 0).all()


@pytest.mark.parametrize("samples", [400, 16_000, 192_000])
def test_silence_and_the_longest_are_finite(samples: int) -> None:
    made = model().forward([np.zeros(samples, np.float32), sounds()[0][:samples]], frames=True)
    assert made.frames is not None
    for array in (made.logits, made.scores, made.embeddings, *made.frames):
        assert np.isfinite(array).all()
        assert array.dtype == np.float32
    np.testing.assert_allclose(made.scores.sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 399, 192_001])
def test_lengths_outside_the_spec_are_refused(samples: int) -> None:
    with pytest.raises(ModelError, match=f"segment 1 of this batch has {samples};") as caught:
        model().forward([np.zeros(400, np.float32), np.zeros(samples, np.float32)], frames=False)
    assert caught.value.code == "MODEL_SEGMENT_LENGTH"


def test_an_empty_batch_gives_empty_outputs() -> None:
    made = model().forward([], frames=True)
    assert (made.logits.shape, made.embeddings.shape, made.frames) == ((0, 8), (0, 32), [])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(dtype: str) -> None:
    waves = [sound[: 30_000 + 5_000 * place] for place, sound in enumerate(sounds())]
    half = odyssey.load(CATEGORICAL, str(folder(CATEGORICAL)), device="cpu", dtype=dtype).forward(waves, frames=False)
    exact = model().forward(waves, frames=False)
    assert half.logits.dtype == np.float32
    assert 0 < np.abs(half.embeddings - exact.embeddings).max() < 0.1
    with pytest.raises(ModelError, match="float32, bfloat16, float16"):
        odyssey.load(CATEGORICAL, str(folder(CATEGORICAL)), device="cpu", dtype="int8")


# Checkpoints that are refused.


def _weights(change: Callable[[dict[str, Tensor]], object], target: Path) -> None:
    changed = dict(tensors(ATTRIBUTES))
    change(changed)
    save_file(changed, target / "model.safetensors")


def _config(change: dict[str, Any], target: Path) -> None:
    config = json.loads((target / "config.json").read_text())
    config.update(change)
    for key in [key for key, value in config.items() if value is None]:
        del config[key]
    (target / "config.json").write_text(json.dumps(config))


def _transpose(weights: dict[str, Tensor]) -> None:
    weights["ser_model.fc.0.0.weight"] = weights["ser_model.fc.0.0.weight"].T.contiguous()


def _rename(weights: dict[str, Tensor]) -> None:
    weights["ser_model.out.weight"] = weights.pop("ser_model.out.0.weight")


def _fourth_output(weights: dict[str, Tensor]) -> None:
    weights["ser_model.out.0.bias"] = torch.zeros(4)


def _truncate(kept: int, target: Path) -> None:
    (target / "model.safetensors").write_bytes((target / "model.safetensors").read_bytes()[:kept])


def _absent(target: Path) -> None:
    (target / "model.safetensors").unlink()


def _as_in_e0676f5(target: Path) -> None:
    text = (target / "config.json").read_text()
    (target / "config.json").write_text(text.replace("{", '{"maxlen": 12*16000,', 1))


def _names(*labels: str) -> dict[str, Any]:
    return {"id2label": {str(place): label for place, label in enumerate(labels)}}


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "head missing": (
        partial(_weights, lambda w: w.pop("ser_model.out.0.bias")),
        "MODEL_WEIGHTS_MISMATCH",
        "ser_model.out.0.bias is missing",
    ),
    "head renamed": (partial(_weights, _rename), "MODEL_WEIGHTS_MISMATCH", "ser_model.out.weight is unexpected"),
    "pooling missing": (
        partial(_weights, lambda w: w.pop("pool_model.attention")),
        "MODEL_WEIGHTS_MISMATCH",
        "pool_model.attention is missing",
    ),
    "four outputs": (partial(_weights, _fourth_output), "MODEL_WEIGHTS_MISMATCH", "is (4,), not (3,)"),
    "transposed": (partial(_weights, _transpose), "MODEL_WEIGHTS_MISMATCH", "is (64, 32), not (32, 64)"),
    "cut short": (partial(_truncate, 100_000), "MODEL_WEIGHTS_UNREADABLE", "model.safetensors"),
    "cut to nothing": (partial(_truncate, 0), "MODEL_WEIGHTS_UNREADABLE", "model.safetensors"),
    "absent": (_absent, "MODEL_WEIGHTS_MISSING", "model.safetensors"),
    "revision e0676f5": (_as_in_e0676f5, "MODEL_CONFIG_UNREADABLE", "config.json"),
    "revision 45e6e02": (partial(_config, {"mean": None, "std": None}), "MODEL_CONFIG_MISMATCH", "mean None"),
    "std of zero": (partial(_config, {"std": 0.0}), "MODEL_CONFIG_MISMATCH", "std 0.0"),
    "mean in words": (partial(_config, {"mean": "0"}), "MODEL_CONFIG_MISMATCH", "mean '0'"),
    "another model": (partial(_config, {"model_type": "wavlm"}), "MODEL_CONFIG_MISMATCH", "'wavlm', not 'ser'"),
    "another body": (partial(_config, {"ssl_type": "microsoft/wavlm-base"}), "MODEL_CONFIG_MISMATCH", "wavlm-base"),
    "another rate": (partial(_config, {"sampling_rate": 8_000}), "MODEL_CONFIG_MISMATCH", "8000"),
    "no hidden layers": (partial(_config, {"classifier_hidden_layers": None}), "MODEL_CONFIG_MISMATCH", "None"),
    "impossible heads": (partial(_config, {"num_attention_heads": 5}), "MODEL_CONFIG_MISMATCH", "wavlm"),
    "fewer blocks": (partial(_config, {"num_hidden_layers": 2}), "MODEL_WEIGHTS_MISMATCH", "layers.2"),
    "two labels": (partial(_config, _names("arousal", "dominance")), "MODEL_LABELS_MISMATCH", "arousal, dominance"),
    "two outputs": (partial(_config, {"num_classes": 2}), "MODEL_LABELS_MISMATCH", "the configuration 2"),
    "another order": (
        partial(_config, _names("arousal", "valence", "dominance")),
        "MODEL_LABELS_MISMATCH",
        "arousal, valence, dominance",
    ),
    "no names": (partial(_config, {"id2label": None}), "MODEL_LABELS_MISMATCH", "none"),
    "names of nothing": (partial(_config, _names("LABEL_0", "LABEL_1", "LABEL_2")), "MODEL_LABELS_MISMATCH", "LABEL_"),
}


def _copied(spec: ModelSpec, target: Path) -> Path:
    for name in odyssey.FILES:
        (target / name).write_bytes((folder(spec) / name).read_bytes())
    return target


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    spoil, code, words = DAMAGE[damage]
    spoil(_copied(ATTRIBUTES, tmp_path))
    with pytest.raises(ModelError) as caught:
        odyssey.load(ATTRIBUTES, str(tmp_path), device="cpu", dtype="float32")
    assert (caught.value.code, caught.value.transient) == (code, False)
    assert words in caught.value.message


def test_one_attribute_is_not_taken_for_another() -> None:
    with pytest.raises(ModelError, match="valence") as caught:
        odyssey.load(SPECS["odyssey-arousal"], str(folder(VALENCE)), device="cpu", dtype="float32")
    assert caught.value.code == "MODEL_LABELS_MISMATCH"


@pytest.mark.parametrize("change", [{"id2label": None}, _names("LABEL_0"), _names("Valence")])
def test_one_attribute_needs_no_name(change: dict[str, Any], tmp_path: Path) -> None:
    _config(change, _copied(VALENCE, tmp_path))
    made = odyssey.load(VALENCE, str(tmp_path), device="cpu", dtype="float32")
    waves = [sounds()[0][:9_000]]
    np.testing.assert_array_equal(
        made.forward(waves, frames=False).logits, model(VALENCE).forward(waves, frames=False).logits
    )


def test_both_spellings_of_weight_normalisation_load(tmp_path: Path) -> None:
    """And a file without the embedding of masked frames, which inference has no use for."""
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in tensors().items()
        if name != "ssl_model.masked_spec_embed"
    }
    save_file(renamed, _copied(CATEGORICAL, tmp_path) / "model.safetensors")
    other = odyssey.load(CATEGORICAL, str(tmp_path), device="cpu", dtype="float32")
    waves = [sounds()[0][:20_000]]
    np.testing.assert_array_equal(
        other.forward(waves, frames=False).logits, model().forward(waves, frames=False).logits
    )
    assert other.weights_sha256 != model().weights_sha256
