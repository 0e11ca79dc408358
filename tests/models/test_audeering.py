"""audEERING's dimensional model: the card's network one utterance at a time, the same in any batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from serpipe.errors import ModelError
from serpipe.models import audeering
from serpipe.models.contract import Adapter
from serpipe.models.transformers_classifier import REGRESSION, Network
from serpipe.testing import audeering as writer
from serpipe.testing import ehcalabres as other

from . import transformers_checks as checks


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def written() -> Path:
    folder = Path(mkdtemp(prefix="serpipe-audeering-"))
    writer.write(audeering.SPEC, folder, size="tiny", seed=4)
    return folder


@cache
def model() -> Adapter:
    return audeering.load(audeering.SPEC, str(written()), device="cpu", dtype="float32")


@cache
def limit() -> float:
    return checks.TOLERANCE * checks.spread(model())


def test_spec_counts_the_parameters_of_the_real_size() -> None:
    network = Network(writer.config(audeering.SPEC, "full"), REGRESSION, labels=3, model="audeering-dim")
    assert audeering.SPEC.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
def test_the_real_size_weighs_what_the_hubs_file_weighs(tmp_path: Path) -> None:
    """To the byte, which only the same names and shapes give; and it is exact in a batch."""
    writer.write(audeering.SPEC, tmp_path, size="full", seed=1)
    assert (tmp_path / "model.safetensors").stat().st_size == 661_375_508
    adapter = audeering.load(audeering.SPEC, str(tmp_path), device="cpu", dtype="float32")
    assert adapter.spec == audeering.SPEC
    cuts = [(0, 16_000), (1, 400), (2, 31_999), (3, 9_000)]
    logits = adapter.forward([checks.cut(which, 16_000) for which in range(6)], frames=False).logits
    assert checks.worst(adapter, cuts) <= checks.TOLERANCE * logits.std(axis=0).mean()


def test_check_is_a_second_and_a_score_for_each_label() -> None:
    samples, scores = audeering.CHECK
    outputs = model().forward([np.zeros(samples, np.float32)], frames=False)
    assert outputs.scores.shape == (1, len(scores))
    assert not np.allclose(outputs.scores[0], scores, atol=1e-4), "random weights cannot pass for the real ones"


def test_equals_the_card_one_utterance_at_a_time() -> None:
    """The card's forward, in double precision: mean over time, dense, tanh, out_proj; no mask, nothing after it."""
    encoder = transformers.Wav2Vec2Model.from_pretrained(written(), dtype=torch.float64)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(written())
    tensors = {name: tensor.double() for name, tensor in load_file(written() / "model.safetensors").items()}
    waves = [checks.cut(*piece) for piece in checks.MIXED]
    outputs = model().forward(waves, frames=True)
    assert outputs.scores is outputs.logits or np.array_equal(outputs.scores, outputs.logits)
    for row, wave in enumerate(waves):
        values = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.inference_mode():
            hidden = encoder(values.double()).last_hidden_state[0]
        pooled = hidden.mean(0)
        inner = torch.tanh(tensors["classifier.dense.weight"] @ pooled + tensors["classifier.dense.bias"])
        wanted = tensors["classifier.out_proj.weight"] @ inner + tensors["classifier.out_proj.bias"]
        np.testing.assert_allclose(outputs.logits[row], wanted, atol=0.3 * limit())
        np.testing.assert_allclose(outputs.embeddings[row], pooled, atol=1e-5)
        np.testing.assert_allclose(checks.frames_of(outputs)[row], hidden, atol=1e-5)


def test_logits_spread_over_clips() -> None:
    assert checks.spread(model()) >= 1.0


@given(checks.batches, st.randoms())
@settings(max_examples=10, deadline=None)
def test_alone_batched_and_shuffled_agree(cuts: checks.Cuts, random: object) -> None:
    order = list(range(len(cuts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    checks.check_invariance(model(), limit(), cuts, order)


def test_shortest_silent_and_longest() -> None:
    checks.check_lengths(model())


BROKEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "missing head": ("MODEL_WEIGHTS_MISMATCH", lambda f: checks.edit_tensors(f, checks.dropped("classifier"))),
    "stock head": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.renamed("classifier.dense", "projector")),
    ),
    "a tensor transposed": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.transposed("out_proj.weight")),
    ),
    "another order": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label=dict(enumerate(("arousal", "valence", "dominance")))),
    ),
    "another pooling": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, pooling_mode="max")),
    "another kind": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, model_type="hubert")),
    "truncated": ("MODEL_WEIGHTS_UNREADABLE", checks.truncate),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused(fault: str, tmp_path: Path) -> None:
    shutil.copytree(written(), tmp_path, dirs_exist_ok=True)
    code, break_it = BROKEN[fault]
    break_it(tmp_path)
    with pytest.raises(ModelError) as error:
        audeering.load(audeering.SPEC, str(tmp_path), device="cpu", dtype="float32")
    assert error.value.code == code


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    from serpipe.models.ehcalabres import SPEC

    other.write(SPEC, tmp_path, size="tiny", seed=1)
    with pytest.raises(ModelError, match="MODEL_CONFIG_MISMATCH"):
        audeering.load(audeering.SPEC, str(tmp_path), device="cpu", dtype="float32")


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "it-ran"
    shutil.copytree(written(), folder)
    checks.trap(folder, mark, archive=True)
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_UNSAFE"):
        audeering.load(audeering.SPEC, str(folder), device="cpu", dtype="float32")
    assert not mark.exists()
