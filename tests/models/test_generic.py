"""Any stock classifier: its own configuration is its spec, and what leaves a doubt is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
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

from serpipe.errors import ModelError
from serpipe.models import generic
from serpipe.models.contract import Adapter, ModelSpec
from serpipe.models.transformers_classifier import SEQUENCE, Network
from serpipe.testing import generic as writer

from . import transformers_checks as checks

SPECS = {spec.name: spec for spec in (writer.BASE_PLUS, writer.LARGE_LAST)}
NAMES = sorted(SPECS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def written(name: str) -> Path:
    folder = Path(mkdtemp(prefix="serpipe-generic-"))
    writer.write(SPECS[name], folder, size="tiny", seed=6)
    return folder


@cache
def model(name: str) -> Adapter:
    return generic.load(generic.spec_of(str(written(name)), name), str(written(name)), device="cpu", dtype="float32")


@cache
def limit(name: str) -> float:
    return checks.TOLERANCE * checks.spread(model(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_is_what_the_files_say(name: str) -> None:
    spec = generic.spec_of(str(written(name)), "mine")
    assert (spec.name, spec.hub_id, spec.revision) == ("mine", None, None)
    assert spec.labels == SPECS[name].labels
    assert spec.taxonomy == SPECS[name].taxonomy
    assert replace(model(name).spec, name="mine") == spec


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_have_the_real_sizes(name: str) -> None:
    spec: ModelSpec = SPECS[name]
    network = Network(writer.config(spec, "full"), SEQUENCE, labels=len(spec.labels), model=name)
    assert spec.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_stock_class_one_utterance_at_a_time(name: str) -> None:
    """In double precision, with WavLM's own attention."""
    config = transformers.AutoConfig.from_pretrained(written(name))
    config.tie_last_hidden_states = True
    stock: Any = transformers.WavLMForSequenceClassification.from_pretrained(
        written(name), config=config, dtype=torch.float64
    )
    extractor = transformers.AutoFeatureExtractor.from_pretrained(written(name))
    waves = [checks.cut(*piece) for piece in checks.MIXED]
    outputs = model(name).forward(waves, frames=False)
    for row, wave in enumerate(waves):
        values = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.inference_mode():
            wanted = stock(values.double()).logits[0]
        np.testing.assert_allclose(outputs.logits[row], wanted, atol=0.3 * limit(name))
        np.testing.assert_allclose(outputs.scores[row], wanted.softmax(0), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_logits_spread_over_clips(name: str) -> None:
    assert checks.spread(model(name)) >= 1.0


@pytest.mark.parametrize("name", NAMES)
@given(checks.batches, st.randoms())
@settings(max_examples=8, deadline=None)
def test_alone_batched_and_shuffled_agree(name: str, cuts: checks.Cuts, random: object) -> None:
    order = list(range(len(cuts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    checks.check_invariance(model(name), limit(name), cuts, order)


def test_shortest_silent_and_longest() -> None:
    checks.check_lengths(model("wavlm-base-example"))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_what_transformers_saves_today_loads(kind: str, tmp_path: Path) -> None:
    """`save_pretrained` spells weight norm the new way, and leaves defaults out of the configuration."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "classifier_proj_size": 8,
        "id2label": {0: "calm", 1: "tense"},
    }
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock: Any = transformers.AutoModelForAudioClassification.from_config(config).eval()
    stock.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    adapter = generic.load(generic.spec_of(str(tmp_path), "mine"), str(tmp_path), device="cpu", dtype="float32")
    assert adapter.spec.labels == ("calm", "tense")
    wave = checks.cut(0, 20_000)[:16_000]
    values = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]
    with torch.inference_mode():
        wanted = stock(values).logits
    np.testing.assert_allclose(adapter.forward([wave], frames=False).logits, wanted, atol=1e-5)


REFUSED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "labels without names": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2", "3": "LABEL_3"}),
    ),
    "labels left to the default": ("MODEL_LABELS_MISMATCH", lambda f: checks.edit_config(f, id2label=None)),
    "the same label twice": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label={"0": "ang", "1": "hap", "2": "ang", "3": "sad"}),
    ),
    "another rate": (
        "MODEL_CONFIG_MISMATCH",
        lambda f: checks.edit_config(f, "preprocessor_config.json", sampling_rate=44_100),
    ),
    "another extractor": (
        "MODEL_CONFIG_MISMATCH",
        lambda f: checks.edit_config(f, "preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor"),
    ),
    "a recogniser": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, architectures=["WavLMForCTC"])),
    "another family": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, model_type="whisper")),
    "several labels at once": (
        "MODEL_CONFIG_MISMATCH",
        lambda f: checks.edit_config(f, problem_type="multi_label_classification"),
    ),
    "a regression": ("MODEL_CONFIG_MISMATCH", lambda f: checks.edit_config(f, problem_type="regression")),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_leaves_a_doubt_is_refused(fault: str, tmp_path: Path) -> None:
    shutil.copytree(written("wavlm-base-example"), tmp_path, dirs_exist_ok=True)
    code, change = REFUSED[fault]
    change(tmp_path)
    with pytest.raises(ModelError) as error:
        generic.spec_of(str(tmp_path), "mine")
    assert error.value.code == code


BROKEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "missing head": ("MODEL_WEIGHTS_MISMATCH", lambda f: checks.edit_tensors(f, checks.dropped("classifier"))),
    "renamed head": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.renamed("projector", "classifier.dense")),
    ),
    "no layer weights": ("MODEL_WEIGHTS_MISMATCH", lambda f: checks.edit_tensors(f, checks.dropped("layer_weights"))),
    "no position bias": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.dropped("wavlm.encoder.layers.0.attention.rel_attn_embed")),
    ),
    "a tensor transposed": (
        "MODEL_WEIGHTS_MISMATCH",
        lambda f: checks.edit_tensors(f, checks.transposed("projector.weight")),
    ),
    "more labels than before": (
        "MODEL_LABELS_MISMATCH",
        lambda f: checks.edit_config(f, id2label=dict(enumerate(("ang", "hap", "neu", "sad", "bored")))),
    ),
    "truncated": ("MODEL_WEIGHTS_UNREADABLE", checks.truncate),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused(fault: str, tmp_path: Path) -> None:
    name = "wavlm-base-example"
    shutil.copytree(written(name), tmp_path, dirs_exist_ok=True)
    code, break_it = BROKEN[fault]
    break_it(tmp_path)
    with pytest.raises(ModelError) as error:
        generic.load(model(name).spec, str(tmp_path), device="cpu", dtype="float32")
    assert error.value.code == code


def test_fewer_outputs_than_labels_are_refused(tmp_path: Path) -> None:
    name = "wavlm-large-example"
    shutil.copytree(written(name), tmp_path, dirs_exist_ok=True)
    checks.edit_config(tmp_path, id2label=dict(enumerate(("low", "mid", "high", "top"))))
    with pytest.raises(ModelError, match=r"classifier\.weight is \(3, 24\), not \(4, 24\)"):
        generic.load(generic.spec_of(str(tmp_path), name), str(tmp_path), device="cpu", dtype="float32")


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "it-ran"
    shutil.copytree(written("wavlm-base-example"), folder)
    checks.trap(folder, mark, archive=True)
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_UNSAFE"):
        generic.load(model("wavlm-base-example").spec, str(folder), device="cpu", dtype="float32")
    assert not mark.exists()
