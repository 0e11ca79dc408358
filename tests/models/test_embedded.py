"""The embedded model: the same numbers in any company, weights refused unless exact, UA as on its card."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models import embedded
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import Adapter
from serpipe.models.embedded.network import EmbeddedNetwork, LogMel, frame_count, mel_filters

SHIPPED = Path(embedded.__file__).parent / "weights.safetensors"
DATA = Path(os.environ.get("SERPIPE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "emodb"
TOLERANCE = 1e-4
"""Of the spread of the logits over clips: what an adapter promises in float32."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def model() -> Adapter:
    return embedded.load(embedded.SPEC, embedded.SHIPPED, device="cpu")


@cache
def sounds() -> tuple[NDArray[np.float32], ...]:
    """Six sounds of 10 s: real speech, or coloured noise that swells where the corpus is absent."""
    if (DATA / "labels.csv").exists():
        files = sorted((DATA / "wav").glob("*.wav"))[::13][:18]
        clips = [soundfile.read(file, dtype="float32")[0] for file in files]
        return tuple(np.resize(np.concatenate(clips[i : i + 3]), 160_000) for i in range(0, len(clips), 3))
    random = np.random.default_rng(7)
    made = []
    for slope in np.linspace(0.0, 2.0, 6):
        spectrum = np.fft.rfft(random.standard_normal(160_000)) / np.arange(1, 80_002) ** (slope / 2)
        noise = np.fft.irfft(spectrum) * (1.0 + np.sin(np.arange(160_000) / 3000.0))
        made.append((noise / np.abs(noise).max()).astype(np.float32))
    return tuple(made)


@cache
def spread() -> float:
    """Standard deviation of each logit over sounds, averaged over the logits."""
    cut = [sound[start : start + 40_000] for sound in sounds() for start in (0, 60_000, 120_000)]
    return float(model().forward(cut, frames=False).logits.std(axis=0).mean())


def test_spec_states_what_the_file_holds() -> None:
    spec = embedded.SPEC
    network = EmbeddedNetwork()
    assert spec.parameters == sum(p.numel() for p in network.parameters())
    assert SHIPPED.stat().st_size <= 5_000_000
    assert model().spec is spec
    assert model().weights_sha256 == content_sha256(embedded.SHIPPED, embedded.FILES)
    outputs = model().forward([sounds()[0][:20_000]], frames=True)
    assert outputs.logits.shape == (1, len(spec.labels))
    assert outputs.embeddings.shape == (1, spec.embedding_width)
    assert outputs.frames is not None
    assert outputs.frames[0].shape == (frame_count(20_000), spec.embedding_width)
    everything = (outputs.logits, outputs.scores, outputs.embeddings, outputs.frames[0])
    assert all(array.dtype == np.float32 for array in everything)


def test_spec_needs_no_torch() -> None:
    program = "import sys; from serpipe.models.embedded import SPEC; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@given(st.integers(min_value=400, max_value=480_000))
@settings(max_examples=200, deadline=None)
def test_frame_count_is_the_number_of_whole_windows(samples: int) -> None:
    assert frame_count(samples) == len(range(0, samples - 400 + 1, 320))


@given(st.integers(min_value=400, max_value=5_000))
@settings(max_examples=30, deadline=None)
def test_frames_follow_the_formula(samples: int) -> None:
    frames = model().forward([sounds()[0][:samples], sounds()[1][:7_000]], frames=True).frames
    assert frames is not None
    assert [len(rows) for rows in frames] == [frame_count(samples), frame_count(7_000)]


def test_mel_filters_peak_at_the_centres_of_the_htk_scale() -> None:
    """One kHz is 1000 mel by the scale's definition; filters are spaced evenly in mel."""
    filters = mel_filters().numpy()
    mels = 2595.0 * np.log10(1.0 + np.array([60.0, 7600.0]) / 700.0)
    centres = 700.0 * (10.0 ** (np.linspace(mels[0], mels[1], 66)[1:-1] / 2595.0) - 1.0)
    peaks = filters.argmax(axis=0) * 16_000 / 512
    wide = filters.sum(axis=0) > 0
    assert np.all(np.abs(peaks - centres)[wide] <= 16_000 / 512)
    assert wide.all()
    assert abs(2595.0 * np.log10(1.0 + 1000.0 / 700.0) - 1000.0) < 0.1


def test_spectrogram_equals_a_plain_dft() -> None:
    """Against the definition of the discrete Fourier transform, in float64, without an FFT."""
    wave = sounds()[0][4_000:5_200].astype(np.float64)
    unit = wave / np.sqrt(np.mean(wave**2))
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(400) / 400)
    window /= np.sqrt(np.sum(window**2))
    turns = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512)
    power = [np.abs((unit[start : start + 400] * window) @ turns) ** 2 for start in range(0, 801, 320)]
    expected = np.log(np.array(power) @ mel_filters().double().numpy() + 1e-3)
    given_, mask = LogMel()(torch.from_numpy(wave.astype(np.float32))[None], torch.tensor([1_200]))
    assert mask.sum() == 3
    np.testing.assert_allclose(given_[0].numpy(), expected, atol=2e-4)


lengths = st.one_of(st.sampled_from([400, 401, 719, 720, 721]), st.integers(min_value=400, max_value=160_000))


@given(st.lists(st.tuples(lengths, st.integers(min_value=0, max_value=5)), min_size=2, max_size=6), st.randoms())
@settings(max_examples=25, deadline=None)
def test_alone_batched_and_shuffled_agree(cuts: list[tuple[int, int]], random: object) -> None:
    waves = [sounds()[which][-length:] for length, which in cuts]
    order = list(range(len(waves)))
    random.shuffle(order)  # type: ignore[attr-defined]
    batched = model().forward(waves, frames=True)
    shuffled = model().forward([waves[i] for i in order], frames=True)
    assert batched.frames is not None
    assert shuffled.frames is not None
    for place, i in enumerate(order):
        alone = model().forward([waves[i]], frames=True)
        assert alone.frames is not None
        for other, row in ((batched, i), (shuffled, place)):
            assert np.abs(alone.logits[0] - other.logits[row]).max() <= TOLERANCE * spread()
            np.testing.assert_allclose(other.embeddings[row], alone.embeddings[0], atol=1e-4)
            assert other.frames is not None
            np.testing.assert_allclose(other.frames[row], alone.frames[0], atol=1e-4)


def test_shortest_beside_longest() -> None:
    longest = np.tile(sounds()[0], 3)
    shortest = sounds()[1][50_000:50_400]
    together = model().forward([shortest, longest], frames=False).logits
    for row, wave in enumerate((shortest, longest)):
        alone = model().forward([wave], frames=False).logits[0]
        assert np.abs(alone - together[row]).max() <= TOLERANCE * spread()


def test_the_tolerance_notices_a_pad_taken_for_speech() -> None:
    """Negative control: the same zeros, handed in as part of the waveform, move the logits far more."""
    for sound in sounds():
        wave = sound[:30_000]
        padded = np.concatenate([wave, np.zeros(20_000, np.float32)])
        difference = model().forward([wave], frames=False).logits - model().forward([padded], frames=False).logits
        assert np.abs(difference).max() > 100 * TOLERANCE * spread()


@pytest.mark.parametrize("removed", ["convolution", "pooling"])
def test_the_tolerance_notices_a_missing_mask(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the mask before convolutions, or without it in pooling, batches differ."""
    network = EmbeddedNetwork().eval()
    network.load_state_dict(load_file(SHIPPED))
    wave = torch.from_numpy(sounds()[0][:30_000])
    padded = torch.nn.functional.pad(wave, (0, 30_000))[None]
    alone, alone_mask = LogMel()(wave[None], torch.tensor([30_000]))
    batched, mask = LogMel()(padded, torch.tensor([30_000]))
    if removed == "convolution":
        for block in network.blocks:
            honest = block.forward
            monkeypatch.setattr(block, "forward", lambda frames, mask, run=honest: run(frames, torch.ones_like(mask)))
        used = mask
    else:
        used = torch.ones_like(mask)
    with torch.inference_mode():
        difference: Tensor = network(alone, alone_mask).logits - network(batched, used).logits
    assert difference.abs().max() > 10 * TOLERANCE * spread()


@pytest.mark.parametrize("samples", [400, 16_000, 480_000])
def test_silence_is_finite(samples: int) -> None:
    silent = np.zeros(samples, np.float32)
    outputs = model().forward([silent, sounds()[0][:16_000]], frames=True)
    assert outputs.frames is not None
    for array in (outputs.logits, outputs.scores, outputs.embeddings, *outputs.frames):
        assert np.isfinite(array).all()


@given(st.floats(min_value=-40.0, max_value=20.0))
@settings(max_examples=20, deadline=None)
def test_gain_does_not_matter(decibels: float) -> None:
    wave = sounds()[2][:48_000]
    louder = (wave * 10.0 ** (decibels / 20.0)).astype(np.float32)
    logits = model().forward([wave, louder], frames=False).logits
    assert np.abs(logits[0] - logits[1]).max() <= 10 * TOLERANCE * spread()


def test_scores_are_the_softmax_of_the_logits() -> None:
    outputs = model().forward([sound[:20_000] for sound in sounds()], frames=False)
    powers = np.exp(outputs.logits.astype(np.float64))
    np.testing.assert_allclose(outputs.scores, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
    assert outputs.frames is None


def test_an_empty_batch_gives_empty_outputs() -> None:
    outputs = model().forward([], frames=True)
    assert (outputs.logits.shape, outputs.embeddings.shape, outputs.frames) == (
        (0, 4),
        (0, embedded.SPEC.embedding_width),
        [],
    )


@pytest.mark.parametrize("samples", [0, 399, 480_001])
def test_lengths_outside_the_spec_are_refused(samples: int) -> None:
    with pytest.raises(ModelError, match=f"segment 1 of this batch has {samples};") as caught:
        model().forward([np.zeros(400, np.float32), np.zeros(samples, np.float32)], frames=False)
    assert caught.value.code == "MODEL_SEGMENT_LENGTH"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(dtype: str) -> None:
    waves = [sound[:40_000] for sound in sounds()]
    exact = model().forward(waves, frames=False)
    half = embedded.load(embedded.SPEC, embedded.SHIPPED, device="cpu", dtype=dtype).forward(waves, frames=False)
    assert half.logits.dtype == np.float32
    assert np.abs(exact.scores - half.scores).max() < 0.1
    with pytest.raises(ModelError, match="float32, float16, bfloat16"):
        embedded.load(embedded.SPEC, embedded.SHIPPED, device="cpu", dtype="int8")


def _refusal(directory: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        embedded.load(embedded.SPEC, str(directory), device="cpu")
    return caught.value


def test_the_same_weights_from_another_folder_give_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / SHIPPED.name).write_bytes(SHIPPED.read_bytes())
    waves = [sounds()[0][:9_000]]
    copied = embedded.load(embedded.SPEC, str(tmp_path), device="cpu")
    np.testing.assert_array_equal(
        copied.forward(waves, frames=False).logits, model().forward(waves, frames=False).logits
    )


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    name = "embedding.weight"

    def without(weights: dict[str, Tensor]) -> None:
        del weights[name]

    def extra(weights: dict[str, Tensor]) -> None:
        weights["embedding.scale"] = torch.ones(1)

    def transposed(weights: dict[str, Tensor]) -> None:
        weights[name] = weights[name].T.contiguous()

    def halved(weights: dict[str, Tensor]) -> None:
        weights[name] = weights[name].half()

    for change, words in (
        (without, f"{name} is missing"),
        (extra, "embedding.scale is unexpected"),
        (transposed, f"{name} is torch.float32"),
        (halved, f"{name} is torch.float16"),
    ):
        weights = load_file(SHIPPED)
        change(weights)
        save_file(weights, tmp_path / SHIPPED.name)
        error = _refusal(tmp_path)
        assert (error.code, error.transient) == ("MODEL_WEIGHTS_MISMATCH", False)
        assert words in error.message
        assert str(tmp_path) in error.message


@pytest.mark.parametrize("kept", [0, 4, 1_000, -1])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    (tmp_path / SHIPPED.name).write_bytes(SHIPPED.read_bytes()[:kept])
    assert _refusal(tmp_path).code == "MODEL_WEIGHTS_UNREADABLE"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    error = _refusal(tmp_path)
    assert error.code == "MODEL_WEIGHTS_UNREADABLE"
    assert str(tmp_path) in error.message


def test_unweighted_accuracy_on_speakers_it_never_heard() -> None:
    if not (DATA / "labels.csv").exists():
        pytest.skip(f"no EmoDB at {DATA}; set SERPIPE_TEST_DATA")
    with (DATA / "labels.csv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "test"]
    assert len(rows) == 99
    logits = np.concatenate(
        [model().forward([soundfile.read(DATA / row["path"], dtype="float32")[0]], frames=False).logits for row in rows]
    )
    predicted = np.array(embedded.SPEC.labels)[logits.argmax(axis=1)]
    true = np.array([row["emotion"] for row in rows])
    recalls = [np.mean(predicted[true == label] == label) for label in embedded.SPEC.labels]
    assert np.mean(recalls) >= 0.75
