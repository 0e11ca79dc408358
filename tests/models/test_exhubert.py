"""ExHuBERT: equal to its definition, the same numbers in any company, refused unless whole."""

from __future__ import annotations

import json
import pickle
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
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models import batching, exhubert, exhubert_network
from serpipe.models.contract import Adapter, Outputs
from serpipe.models.masking import frame_count
from serpipe.testing.exhubert import write
from tests.models.clips import sounds
from tests.models.plain_encoder import Part, attention, feed_forward, front_end, layer_norm, linear, positional

SPEC = exhubert.SPECS[0]
TOLERANCE = 1e-4
"""Of the spread of the logits over clips: what an adapter promises in float32."""
Waveform = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def folder() -> Path:
    made = Path(mkdtemp(prefix="serpipe-exhubert-"))
    write(SPEC, made, size="tiny", seed=3)
    return made


@cache
def model() -> Adapter:
    return exhubert.load(SPEC, str(folder()), device="cpu", dtype="float32")


@cache
def tensors() -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(folder() / "pytorch_model.bin", weights_only=True)
    return loaded


@cache
def spread() -> float:
    """Standard deviation of each logit over sounds, averaged over the logits."""
    cut = [sound[start : start + 48_000] for sound in sounds() for start in (0, 160_000, 320_000)]
    return float(model().forward(cut, frames=False).logits.std(axis=0).mean())


def plain_hidden(own: Waveform, *, fill_first: bool = True, gate: bool = True, skip: bool = True) -> Tensor:
    """Last hidden states of one window, from the definition: float64, (149, width)."""
    samples = own.astype(np.float64)
    if not fill_first:
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    x = np.concatenate([samples, np.zeros(48_000 - len(samples))])
    if fill_first:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
    body = Part(tensors()).below("hubert")
    features = front_end(torch.from_numpy(x), body.below("feature_extractor"), biased=True)
    projection = body.below("feature_projection")
    hidden = linear(layer_norm(features, projection.below("layer_norm")), projection.below("projection"))
    encoder = body.below("encoder")
    hidden = hidden + positional(hidden, encoder.below("pos_conv_embed.conv"))
    kept = torch.zeros_like(hidden)
    for place in range(encoder.count("layers")):
        layer = encoder.below(f"layers.{place}")
        hidden = hidden + attention(layer_norm(hidden, layer.below("layer_norm")), layer.below("attention"), 4)
        hidden = hidden + feed_forward(layer_norm(hidden, layer.below("final_layer_norm")), layer.below("feed_forward"))
        if gate:
            hidden = linear(hidden, layer.below("gate_bb_linear"))
        if place % 2 == 0:
            kept = hidden
        elif skip:
            hidden = hidden + kept
    return layer_norm(hidden, encoder.below("layer_norm"))


def plain(waveform: Waveform, **change: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits, scores, embedding and frames of one segment, window by window."""
    head = Part(tensors())
    logits = scores = embedding = torch.zeros(())
    frames = []
    for start in range(0, len(waveform), 48_000):
        own = waveform[start : start + 48_000]
        hidden = plain_hidden(own, **change)
        share = len(own) / len(waveform)
        answer = linear(linear(hidden, head.below("projector")), head.below("classifier"))[None].mean(1)[0]
        logits = logits + share * answer
        scores = scores + share * answer.softmax(-1)
        embedding = embedding + share * hidden.mean(0)
        frames.append(hidden[: len(range(0, len(own) - 399, 320))])
    return logits.numpy(), scores.numpy(), embedding.numpy(), torch.cat(frames).numpy()


def test_spec_and_checkpoint_state_the_published_numbers() -> None:
    """906 tensors, 668.39 million weights, 2 673 871 413 bytes of which a few hundred kilobytes are not weights."""
    from serpipe.testing import exhubert as testing

    config = {**testing._CONFIG, **exhubert_network.FIXED, **testing._SIZES["full"]}
    network = exhubert_network.network(config, SPEC)
    # The embedding of masked frames is in the file, and of no use to inference.
    assert len(network.state_dict()) + 1 == 906
    assert sum(parameter.numel() for parameter in network.parameters()) + 1024 == SPEC.parameters
    assert 0 < 2_673_871_413 - 4 * SPEC.parameters < 400_000
    assert len(network.hubert.encoder.layers) == 48
    assert set(tensors()) >= {
        "hubert.masked_spec_embed",
        "hubert.encoder.pos_conv_embed.conv.weight_g",
        "hubert.encoder.layers.3.gate_bb_linear.weight",
        "projector.bias",
        "classifier.weight",
    }
    assert len(tensors()) == 906 - 44 * 18


def test_spec_needs_no_torch() -> None:
    program = "import sys; import serpipe.models.exhubert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2]).returncode == 0


def test_the_same_seed_writes_the_same_checkpoint(tmp_path: Path) -> None:
    write(SPEC, tmp_path, size="tiny", seed=3)
    assert exhubert.load(SPEC, str(tmp_path), device="cpu", dtype="float32").weights_sha256 == model().weights_sha256
    assert spread() >= 1.0


@pytest.mark.parametrize("samples", [400, 9_000, 47_999, 48_000, 48_200, 100_000, 480_000])
def test_equals_its_definition(samples: int) -> None:
    waveform = sounds()[0][-samples:]
    logits, scores, embedding, frames = plain(waveform)
    made = model().forward([waveform], frames=True)
    assert made.frames is not None
    assert np.abs(made.logits[0] - logits).max() <= 1e-5 * max(1.0, np.abs(logits).max())
    np.testing.assert_allclose(made.scores[0], scores, atol=1e-5)
    np.testing.assert_allclose(made.embeddings[0], embedding, atol=1e-5)
    np.testing.assert_allclose(made.frames[0], frames, atol=1e-5)


@pytest.mark.parametrize("removed", ["fill_first", "gate", "skip"])
def test_the_reference_notices_what_is_left_out(removed: str) -> None:
    """Negative control: standardising before the zeros come, a gate or the skip left out all show in the logits."""
    waveform = sounds()[1][:30_000]
    moved = plain(waveform)[0] - plain(waveform, **{removed: False})[0]
    assert np.abs(moved).max() > 100 * TOLERANCE * spread()


def test_input_equals_the_authors_extractor() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    for own in (sounds()[0][:48_000], sounds()[1][:5_000]):
        theirs = extractor(own, sampling_rate=16_000, padding="max_length", max_length=48_000, return_tensors="np")
        np.testing.assert_allclose(exhubert_network.window(own), theirs["input_values"][0], atol=1e-6)


lengths = st.one_of(st.sampled_from([400, 47_999, 48_000, 48_001, 96_000]), st.integers(400, 130_000))


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
        _agree(alone, batched, i)
        _agree(alone, shuffled, place)


def _agree(alone: Outputs, other: Outputs, row: int) -> None:
    assert alone.frames is not None
    assert other.frames is not None
    assert np.abs(alone.logits[0] - other.logits[row]).max() <= TOLERANCE * spread()
    np.testing.assert_allclose(other.embeddings[row], alone.embeddings[0], atol=1e-5)
    np.testing.assert_allclose(other.frames[row], alone.frames[0], atol=1e-4)


def test_the_tolerance_notices_windows_that_follow_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: zeros up to another segment's end, not up to 3 s, move a short segment's logits."""
    short = sounds()[0][:8_000]
    right = model().forward([short], frames=False).logits
    monkeypatch.setattr(exhubert_network, "WINDOW", 40_000)
    wrong = model().forward([short], frames=False).logits
    assert np.abs(right - wrong).max() > 100 * TOLERANCE * spread()


@given(st.integers(400, 480_000))
@settings(max_examples=200, deadline=None)
def test_frames_are_those_that_lie_in_one_window(samples: int) -> None:
    """Counted one by one: a frame starts every 320 samples of its window and takes 400."""
    starts = [window + own for window in range(0, samples, 48_000) for own in range(0, 48_000 - 399, 320)]
    assert exhubert.frame_total(samples) == sum(start + 400 <= samples for start in starts)
    assert exhubert.frame_total(samples) <= frame_count(samples)
    assert sum(exhubert.window_lengths(samples)) == samples


@pytest.mark.parametrize("samples", [400, 48_000, 48_399, 48_400, 160_000])
def test_as_many_frames_come_as_are_counted(samples: int) -> None:
    made = model().forward([sounds()[2][:samples]], frames=True)
    assert made.frames is not None
    assert made.frames[0].shape == (exhubert.frame_total(samples), model().spec.embedding_width)
    assert {array.dtype for array in (made.logits, made.scores, made.embeddings, made.frames[0])} == {
        np.dtype(np.float32)
    }


def test_a_long_segment_is_the_weighted_mean_of_its_windows() -> None:
    whole = sounds()[3][:100_000]
    parts = [whole[:48_000], whole[48_000:96_000], whole[96_000:]]
    one = model().forward([whole], frames=True)
    three = model().forward(parts, frames=True)
    weights = np.array([0.48, 0.48, 0.04])
    for name in ("logits", "scores", "embeddings"):
        np.testing.assert_allclose(getattr(one, name)[0], weights @ getattr(three, name), atol=1e-4)
    assert one.frames is not None
    assert three.frames is not None
    np.testing.assert_allclose(one.frames[0], np.concatenate(three.frames), atol=1e-4)
    head = Part(tensors())
    given_back = linear(
        linear(torch.from_numpy(one.embeddings).double(), head.below("projector")), head.below("classifier")
    )
    np.testing.assert_allclose(one.logits, given_back.numpy(), atol=1e-4)


def test_a_batch_of_short_segments_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty half seconds fill 30 s; as windows they would fill 180 s at once."""
    sizes = []
    network = model()._network  # type: ignore[attr-defined]
    honest = network.forward
    monkeypatch.setattr(network, "forward", lambda windows: sizes.append(windows.numel()) or honest(windows))
    outputs = batching.run(model(), [sounds()[i % 6][:8_000] for i in range(60)], budget_s=30.0)
    assert max(sizes) <= 480_000
    assert len(outputs.logits) == 60


@pytest.mark.parametrize("samples", [400, 16_000, 480_000])
def test_silence_and_the_longest_are_finite(samples: int) -> None:
    made = model().forward([np.zeros(samples, np.float32), sounds()[0][:samples]], frames=True)
    assert made.frames is not None
    for array in (made.logits, made.scores, made.embeddings, *made.frames):
        assert np.isfinite(array).all()
    np.testing.assert_allclose(made.scores.sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 399, 480_001])
def test_lengths_outside_the_spec_are_refused(samples: int) -> None:
    with pytest.raises(ModelError, match=f"segment 1 of this batch has {samples};") as caught:
        model().forward([np.zeros(400, np.float32), np.zeros(samples, np.float32)], frames=False)
    assert caught.value.code == "MODEL_SEGMENT_LENGTH"


def test_an_empty_batch_gives_empty_outputs() -> None:
    made = model().forward([], frames=True)
    assert (made.logits.shape, made.embeddings.shape, made.frames) == ((0, 6), (0, 32), [])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(dtype: str) -> None:
    waves = [sound[:60_000] for sound in sounds()]
    half = exhubert.load(SPEC, str(folder()), device="cpu", dtype=dtype).forward(waves, frames=False)
    exact = model().forward(waves, frames=False)
    assert half.logits.dtype == np.float32
    assert 0 < np.abs(half.embeddings - exact.embeddings).max() < 0.1
    with pytest.raises(ModelError, match="float32, bfloat16, float16"):
        exhubert.load(SPEC, str(folder()), device="cpu", dtype="int8")


# Checkpoints that are refused.


def _weights(change: Callable[[dict[str, Tensor]], object], target: Path) -> None:
    changed = dict(tensors())
    change(changed)
    torch.save(changed, target / "pytorch_model.bin")


def _config(change: dict[str, Any], target: Path) -> None:
    config = json.loads((folder() / "config.json").read_text())
    config.update(change)
    (target / "config.json").write_text(json.dumps(config))


def _transpose(weights: dict[str, Tensor]) -> None:
    name = "hubert.encoder.layers.1.feed_forward.intermediate_dense.weight"
    weights[name] = weights[name].T.contiguous()


def _rename(weights: dict[str, Tensor]) -> None:
    weights["classifier.out_proj.weight"] = weights.pop("classifier.weight")


def _without_gate(weights: dict[str, Tensor]) -> None:
    del weights["hubert.encoder.layers.2.gate_bb_linear.bias"]


def _more_classes(weights: dict[str, Tensor]) -> None:
    weights["classifier.weight"] = torch.zeros(7, 16)


def _truncate(target: Path) -> None:
    content = (folder() / "pytorch_model.bin").read_bytes()
    (target / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


def _absent(target: Path) -> None:
    (target / "pytorch_model.bin").unlink()


def _no_json(target: Path) -> None:
    (target / "config.json").write_text('{"hidden_size": 12*16}')


def _names(*labels: str) -> dict[str, Any]:
    return {"id2label": {str(place): label for place, label in enumerate(labels)}}


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "head missing": (
        partial(_weights, lambda w: w.pop("classifier.bias")),
        "MODEL_WEIGHTS_MISMATCH",
        "classifier.bias is missing",
    ),
    "head renamed": (partial(_weights, _rename), "MODEL_WEIGHTS_MISMATCH", "classifier.out_proj.weight is unexpected"),
    "gate missing": (partial(_weights, _without_gate), "MODEL_WEIGHTS_MISMATCH", "gate_bb_linear.bias is missing"),
    "seven classes": (partial(_weights, _more_classes), "MODEL_WEIGHTS_MISMATCH", "is (7, 16), not (6, 16)"),
    "transposed": (partial(_weights, _transpose), "MODEL_WEIGHTS_MISMATCH", "is (32, 64), not (64, 32)"),
    "truncated": (_truncate, "MODEL_WEIGHTS_UNREADABLE", "pytorch_model.bin"),
    "absent": (_absent, "MODEL_WEIGHTS_MISSING", "pytorch_model.bin"),
    "no json": (_no_json, "MODEL_CONFIG_UNREADABLE", "config.json"),
    "another class": (
        partial(_config, {"architectures": ["HubertForSequenceClassification"]}),
        "MODEL_CONFIG_MISMATCH",
        "HubertForSequenceClassification",
    ),
    "another encoder": (partial(_config, {"model_type": "wavlm"}), "MODEL_CONFIG_MISMATCH", "'wavlm', not 'hubert'"),
    "group norm": (partial(_config, {"feat_extract_norm": "group"}), "MODEL_CONFIG_MISMATCH", "feat_extract_norm"),
    "layer sum": (partial(_config, {"use_weighted_layer_sum": True}), "MODEL_CONFIG_MISMATCH", "use_weighted_layer"),
    "odd blocks": (partial(_config, {"num_hidden_layers": 3}), "MODEL_CONFIG_MISMATCH", "3 blocks do not pair"),
    "fewer blocks": (partial(_config, {"num_hidden_layers": 2}), "MODEL_WEIGHTS_MISMATCH", "layers.2"),
    "impossible heads": (partial(_config, {"num_attention_heads": 5}), "MODEL_CONFIG_MISMATCH", "impossible"),
    "five labels": (partial(_config, _names(*SPEC.labels[:5])), "MODEL_LABELS_MISMATCH", "low/negative"),
    "another order": (partial(_config, _names(*SPEC.labels[::-1])), "MODEL_LABELS_MISMATCH", "high/positive"),
    "emotions": (partial(_config, _names("a", "b", "c", "d", "e", "f")), "MODEL_LABELS_MISMATCH", "a, b, c, d, e, f"),
}


def _copied(target: Path) -> Path:
    for name in exhubert.FILES:
        (target / name).write_bytes((folder() / name).read_bytes())
    return target


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    spoil, code, words = DAMAGE[damage]
    spoil(_copied(tmp_path))
    with pytest.raises(ModelError) as caught:
        exhubert.load(SPEC, str(tmp_path), device="cpu", dtype="float32")
    assert (caught.value.code, caught.value.transient) == (code, False)
    assert words in caught.value.message


class _Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.touched,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    touched = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Payload(touched)))
    assert touched.exists(), "the payload works where it is let"
    touched.unlink()
    torch.save({**tensors(), "classifier.bias": _Payload(touched)}, _copied(tmp_path) / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        exhubert.load(SPEC, str(tmp_path), device="cpu", dtype="float32")
    assert caught.value.code == "MODEL_WEIGHTS_UNSAFE"
    assert not touched.exists()


@pytest.mark.parametrize("change", [{}, _names(*SPEC.labels), _names(*(f"LABEL_{i}" for i in range(6)))])
def test_what_names_no_other_classes_is_accepted(change: dict[str, Any], tmp_path: Path) -> None:
    """The new spelling of weight normalisation and a file without the embedding of masked frames are fine too."""
    _config(change, _copied(tmp_path))
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in tensors().items()
        if name != "hubert.masked_spec_embed"
    }
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    other = exhubert.load(SPEC, str(tmp_path), device="cpu", dtype="float32")
    waves = [sounds()[0][:20_000]]
    np.testing.assert_array_equal(
        other.forward(waves, frames=False).logits, model().forward(waves, frames=False).logits
    )
    assert other.weights_sha256 != model().weights_sha256
