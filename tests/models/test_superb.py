"""SUPERB's four: the stock class's numbers, the same in any batch; a damaged checkpoint is refused."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from serpipe.errors import ModelError
from serpipe.models import superb
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import Adapter, ModelSpec
from serpipe.models.transformers_classifier import SEQUENCE, Network
from serpipe.testing import superb as writer

from . import transformers_checks as checks

SPECS = {spec.name: spec for spec in superb.SPECS}
NAMES = sorted(SPECS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def written(name: str) -> Path:
    folder = Path(mkdtemp(prefix="serpipe-superb-"))
    writer.write(SPECS[name], folder, size="tiny", seed=3)
    return folder


@cache
def model(name: str) -> Adapter:
    return superb.load(SPECS[name], str(written(name)), device="cpu", dtype="float32")


@cache
def limit(name: str) -> float:
    return checks.TOLERANCE * checks.spread(model(name))


@pytest.mark.parametrize("spec", superb.SPECS, ids=lambda spec: spec.name)
def test_spec_counts_the_parameters_of_the_real_sizes(spec: ModelSpec) -> None:
    network = Network(writer.config(spec, "full"), SEQUENCE, labels=4, model=spec.name)
    assert spec.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert spec.embedding_width == network.encoder.config.hidden_size


def test_specs_need_no_torch() -> None:
    names = "superb, audeering, ehcalabres, generic"
    program = f"import sys; from serpipe.models import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_the_stock_class_saves(name: str, tmp_path: Path) -> None:
    tensors = torch.load(written(name) / "pytorch_model.bin", weights_only=True)
    stock = stock_class(name)(transformers.AutoConfig.from_pretrained(written(name)))
    spelled = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value.shape
        for key, value in stock.state_dict().items()
    }
    assert {key: tensor.shape for key, tensor in tensors.items()} == spelled
    writer.write(SPECS[name], tmp_path, size="tiny", seed=3)
    assert content_sha256(tmp_path, superb.FILES) == model(name).weights_sha256


def stock_class(name: str) -> type[transformers.PreTrainedModel]:
    stock: type[transformers.PreTrainedModel] = (
        transformers.HubertForSequenceClassification
        if name.startswith("hubert")
        else transformers.Wav2Vec2ForSequenceClassification
    )
    return stock


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_stock_class_one_utterance_at_a_time(name: str) -> None:
    """In double precision; `tie_last_hidden_states` makes its layer sum what it was before Transformers 5.16."""
    config = transformers.AutoConfig.from_pretrained(written(name))
    config.tie_last_hidden_states = True
    stock: Any = stock_class(name).from_pretrained(written(name), config=config, dtype=torch.float64)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(written(name))
    waves = [checks.cut(*piece) for piece in checks.MIXED]
    outputs = model(name).forward(waves, frames=True)
    for row, wave in enumerate(waves):
        values = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.inference_mode():
            out = stock(values.double(), output_hidden_states=True)
            weights = stock.layer_weights.softmax(0)
        seen = sum(weight * hidden[0] for weight, hidden in zip(weights, out.hidden_states, strict=True))
        np.testing.assert_allclose(outputs.logits[row], out.logits[0], atol=0.3 * limit(name))
        np.testing.assert_allclose(outputs.scores[row], out.logits[0].softmax(0), atol=1e-5)
        np.testing.assert_allclose(checks.frames_of(outputs)[row], seen, atol=1e-5)
        np.testing.assert_allclose(outputs.embeddings[row], seen.mean(0), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_logits_spread_over_clips(name: str) -> None:
    assert checks.spread(model(name)) >= 1.0


@pytest.mark.parametrize("name", NAMES)
@given(checks.batches, st.randoms())
@settings(max_examples=10, deadline=None)
def test_alone_batched_and_shuffled_agree(name: str, cuts: checks.Cuts, random: object) -> None:
    order = list(range(len(cuts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    checks.check_invariance(model(name), limit(name), cuts, order)


@pytest.mark.parametrize("name", ["hubert-base-superb-er", "wav2vec2-large-superb-er"])
def test_shortest_silent_and_longest(name: str) -> None:
    checks.check_lengths(model(name))
    assert checks.worst(model(name), [(0, 480_000), (1, 400), (2, 16_000)]) <= limit(name)


def test_waveforms_are_normalised_where_the_preprocessor_says_so(tmp_path: Path) -> None:
    wave = checks.cut(0, 20_000)[:16_000]
    large = model("hubert-large-superb-er")
    np.testing.assert_allclose(
        large.forward([np.float32(3) * wave + np.float32(0.1)], frames=False).logits,
        large.forward([wave], frames=False).logits,
        atol=0.02,
    )
    name = "hubert-base-superb-er"
    shutil.copytree(written(name), tmp_path, dirs_exist_ok=True)
    checks.edit_config(tmp_path, "preprocessor_config.json", do_normalize=True)
    told = superb.load(SPECS[name], str(tmp_path), device="cpu", dtype="float32")
    offset = wave + np.float32(0.2)
    asked = np.float32((offset - offset.mean()) / np.sqrt(offset.var() + 1e-7))
    given_ = told.forward([offset], frames=False).logits
    np.testing.assert_allclose(given_, model(name).forward([asked], frames=False).logits, atol=1e-4)
    assert np.abs(given_ - model(name).forward([offset], frames=False).logits).max() > 0.01
    assert told.weights_sha256 != model(name).weights_sha256


def test_safetensors_give_the_same_numbers(tmp_path: Path) -> None:
    name = "wav2vec2-base-superb-er"
    shutil.copytree(written(name), tmp_path, dirs_exist_ok=True)
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    other = superb.load(SPECS[name], str(tmp_path), device="cpu", dtype="float32")
    wave = [checks.cut(0, 20_000)[:16_000]]
    np.testing.assert_array_equal(
        other.forward(wave, frames=False).logits, model(name).forward(wave, frames=False).logits
    )


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near(name: str) -> None:
    rough = superb.load(SPECS[name], str(written(name)), device="cpu", dtype="bfloat16")
    waves = [checks.cut(*piece) for piece in checks.MIXED]
    exact, near = model(name).forward(waves, frames=True), rough.forward(waves, frames=True)
    assert 0.0 < np.abs(exact.logits - near.logits).max() < 0.5 * checks.spread(model(name))
    assert near.embeddings.dtype == checks.frames_of(near)[0].dtype == np.float32


HEADLESS = "MODEL_WEIGHTS_MISMATCH"
BROKEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "missing head": (HEADLESS, lambda f: checks.edit_tensors(f, checks.dropped("projector"))),
    "renamed head": (HEADLESS, lambda f: checks.edit_tensors(f, checks.renamed("projector", "classifier.dense"))),
    "no layer weights": (HEADLESS, lambda f: checks.edit_tensors(f, checks.dropped("layer_weights"))),
    "layer weights unannounced": (HEADLESS, lambda f: checks.edit_config(f, use_weighted_layer_sum=False)),
    "a layer gone": (HEADLESS, lambda f: checks.edit_tensors(f, checks.dropped("hubert.encoder.layers.2"))),
    "half a weight norm": (
        HEADLESS,
        lambda f: checks.edit_tensors(f, checks.dropped("hubert.encoder.pos_conv_embed.conv.weight_g")),
    ),
    "a tensor transposed": (
        HEADLESS,
        lambda f: checks.edit_tensors(f, checks.transposed("layers.0.feed_forward.output_dense.weight")),
    ),
    "five outputs": (
        HEADLESS,
        lambda f: checks.edit_tensors(f, lambda t: t.update({"classifier.weight": torch.zeros(5, 24)})),
    ),
    "not tensors": (HEADLESS, lambda f: checks.edit_tensors(f, lambda t: t.update({"epoch": 3}))),
    "five labels": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label=dict(enumerate(("neu", "hap", "ang", "sad", "fru")))),
    ),
    "another order": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label=dict(enumerate(("ang", "hap", "neu", "sad")))),
    ),
    "an id left out": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label={"0": "neu", "1": "hap", "2": "ang", "4": "sad"}),
    ),
    "no labels": ("MODEL_LABELS_MISMATCH", lambda f: checks.edit_config(f, id2label=None)),
    "another kind": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, model_type="wav2vec2")),
    "another size": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, feat_extract_norm="group")),
    "no such encoder": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, num_attention_heads=7)),
    "another rate": (
        "MODEL_CONFIG_MISMATCH",
        lambda f: checks.edit_config(f, "preprocessor_config.json", sampling_rate=8_000),
    ),
    "normalisation unsaid": (
        "MODEL_CONFIG_MISMATCH",
        lambda f: checks.edit_config(f, "preprocessor_config.json", do_normalize=None),
    ),
    "no configuration": ("MODEL_CONFIG_UNREADABLE", lambda f: (f / "config.json").unlink()),
    "a list for a configuration": ("MODEL_CONFIG_UNREADABLE", lambda f: checks.replace_config(f, "[]")),
    "no preprocessor": ("MODEL_CONFIG_UNREADABLE", lambda f: (f / "preprocessor_config.json").unlink()),
    "no weights": ("MODEL_WEIGHTS_MISSING", lambda f: (f / "pytorch_model.bin").unlink()),
    "truncated": ("MODEL_WEIGHTS_UNREADABLE", checks.truncate),
    "a pointer to the weights": (
        "MODEL_WEIGHTS_UNREADABLE",
        lambda f: checks.replace_weights(f, b"version https://git-lfs.github.com/spec/v1\n"),
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused(fault: str, tmp_path: Path) -> None:
    name = "hubert-large-superb-er"
    shutil.copytree(written(name), tmp_path, dirs_exist_ok=True)
    code, break_it = BROKEN[fault]
    break_it(tmp_path)
    with pytest.raises(ModelError) as error:
        superb.load(SPECS[name], str(tmp_path), device="cpu", dtype="float32")
    assert error.value.code == code
    assert "\n" not in error.value.message.split(" (")[0]


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_pickle_does_not_run(archive: bool, tmp_path: Path) -> None:
    name, mark = "hubert-large-superb-er", tmp_path / "it-ran"
    folder = tmp_path / "checkpoint"
    shutil.copytree(written(name), folder)
    checks.trap(folder, mark, archive=archive)
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_UNSAFE" if archive else "MODEL_WEIGHTS_UN"):
        superb.load(SPECS[name], str(folder), device="cpu", dtype="float32")
    assert not mark.exists()
    if archive:
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    else:
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert mark.exists()


def test_another_dtype_is_refused() -> None:
    name = "hubert-base-superb-er"
    with pytest.raises(ModelError, match="MODEL_DTYPE_UNSUPPORTED"):
        superb.load(SPECS[name], str(written(name)), device="cpu", dtype="int8")
