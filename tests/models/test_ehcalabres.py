"""ehcalabres' model: the saved head is the one that runs, and the same numbers come out in any batch."""

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

from serpipe.errors import ModelError
from serpipe.models import ehcalabres
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import Adapter
from serpipe.models.transformers_classifier import DENSE, Network
from serpipe.testing import ehcalabres as writer

from . import transformers_checks as checks


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def written() -> Path:
    folder = Path(mkdtemp(prefix="serpipe-ehcalabres-"))
    writer.write(ehcalabres.SPEC, folder, size="tiny", seed=5)
    return folder


@cache
def model() -> Adapter:
    return ehcalabres.load(ehcalabres.SPEC, str(written()), device="cpu", dtype="float32")


@cache
def limit() -> float:
    return checks.TOLERANCE * checks.spread(model())


def test_spec_counts_the_parameters_of_the_real_size() -> None:
    network = Network(writer.config(ehcalabres.SPEC, "full"), DENSE, labels=8, model="ehcalabres")
    assert ehcalabres.SPEC.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_equals_the_stock_class_with_the_saved_head_in_place() -> None:
    """Transformers' own loader, told where the head's two maps belong; in double precision, alone."""
    config = transformers.AutoConfig.from_pretrained(written())
    config.classifier_proj_size = config.hidden_size
    stock, loading = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(
        written(),
        config=config,
        dtype=torch.float64,
        key_mapping={r"^classifier\.dense\.": "projector.", r"^classifier\.output\.": "classifier."},
        output_loading_info=True,
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(written())
    waves = [checks.cut(*piece) for piece in checks.MIXED]
    outputs = model().forward(waves, frames=True)
    for row, wave in enumerate(waves):
        values = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values.double()
        with torch.inference_mode():
            wanted = stock(values).logits[0]
            hidden = stock.wav2vec2(values).last_hidden_state[0]
        np.testing.assert_allclose(outputs.logits[row], wanted, atol=0.3 * limit())
        np.testing.assert_allclose(outputs.scores[row], wanted.softmax(0), atol=1e-5)
        np.testing.assert_allclose(outputs.embeddings[row], hidden.mean(0), atol=1e-5)
        np.testing.assert_allclose(checks.frames_of(outputs)[row], hidden, atol=1e-5)


def test_loaded_as_the_card_shows_the_head_is_random() -> None:
    """Why this family exists: the stock class finds neither of its own maps in the file."""
    _, loading = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(
        written(), dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    missing = {"projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}
    assert set(loading["missing_keys"]) == missing


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
    "missing head": ("MODEL_WEIGHTS_MISMATCH", lambda f: checks.edit_tensors(f, checks.dropped("classifier.output"))),
    "renamed head": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.renamed("classifier.output", "classifier.out_proj")),
    ),
    "a tensor transposed": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.transposed("classifier.output.weight")),
    ),
    "seven labels": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label=dict(enumerate(ehcalabres.SPEC.labels[:7]))),
    ),
    "another kind": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, model_type="wavlm")),
    "truncated": ("MODEL_WEIGHTS_UNREADABLE", checks.truncate),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused(fault: str, tmp_path: Path) -> None:
    shutil.copytree(written(), tmp_path, dirs_exist_ok=True)
    code, break_it = BROKEN[fault]
    break_it(tmp_path)
    with pytest.raises(ModelError) as error:
        ehcalabres.load(ehcalabres.SPEC, str(tmp_path), device="cpu", dtype="float32")
    assert error.value.code == code


def test_the_training_arguments_are_never_opened(tmp_path: Path) -> None:
    """The hub has a pickle with code beside the weights; it does not run and does not count."""
    folder, mark = tmp_path / "checkpoint", tmp_path / "it-ran"
    shutil.copytree(written(), folder)
    shutil.copytree(written(), tmp_path / "trapped")
    checks.trap(tmp_path / "trapped", mark, archive=True)
    shutil.copy(tmp_path / "trapped" / "pytorch_model.bin", folder / "training_args.bin")
    adapter = ehcalabres.load(ehcalabres.SPEC, str(folder), device="cpu", dtype="float32")
    assert adapter.weights_sha256 == model().weights_sha256 == content_sha256(written(), ehcalabres.FILES)
    assert not mark.exists()
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_UNSAFE"):
        ehcalabres.load(ehcalabres.SPEC, str(tmp_path / "trapped"), device="cpu", dtype="float32")
    assert not mark.exists()
