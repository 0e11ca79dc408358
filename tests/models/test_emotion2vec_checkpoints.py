"""emotion2vec: no checkpoint that FunASR would load in silence and get wrong, and no code out of one."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serpipe.errors import ModelError
from serpipe.models import emotion2vec
from serpipe.models.contract import Adapter, ModelSpec
from tests.models.emotion2vec_cases import (
    AUDIO,
    BASE,
    LARGE,
    PLUS,
    SAME,
    WRONG,
    FunASR,
    configured,
    loaded,
    rewritten,
    waves,
    write_all,
    write_text,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each model."""
    return write_all(tmp_path_factory)


@pytest.fixture(scope="module")
def plus(folders: dict[str, Path]) -> Adapter:
    return loaded(PLUS, folders[PLUS.name])


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of emotion2vec+ base to change."""
    return Path(shutil.copytree(folders[PLUS.name], tmp_path / "checkpoint"))


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoints_are_refused(folder: Path, case: str) -> None:
    damage, code, message = WRONG[case]
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        loaded(PLUS, folder)
    assert caught.value.code == code


def test_funasr_would_have_taken_a_random_head(folder: Path) -> None:
    """Negative control of the blank line: FunASR loads it, says nothing, and its scores are noise."""
    write_text(folder / "tokens.txt", "\n".join([*PLUS.labels, "", ""]))
    before = torch.load(folder / "model.pt", weights_only=True)["model"]["proj.weight"]
    assert FunASR(folder).model.model.proj.weight.shape != before.shape


@pytest.mark.parametrize(
    ("spec", "other"), [(BASE, PLUS), (PLUS, BASE), (LARGE, BASE)], ids=lambda spec: spec.name.removeprefix("emotion")
)
def test_the_folder_of_another_model_is_refused(folders: dict[str, Path], spec: ModelSpec, other: ModelSpec) -> None:
    with pytest.raises(ModelError) as caught:
        loaded(spec, folders[other.name])
    assert caught.value.code == "MODEL_LABELS_MISMATCH"


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_code_in_a_pickle_does_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    rewritten(folder, lambda content: {**content, "extra_state": Payload(marker)})
    with pytest.raises(ModelError) as caught:
        loaded(PLUS, folder)
    assert caught.value.code == "MODEL_WEIGHTS_UNSAFE"
    assert not marker.exists()
    torch.load(folder / "model.pt", weights_only=False)
    assert marker.exists()


def test_code_in_a_configuration_does_not_run(folder: Path, tmp_path: Path) -> None:
    """FunASR itself runs what `feature_encoder_spec` says."""
    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or [(24, 10, 5)]"
    configured(**{f"{AUDIO}feature_encoder_spec": code})(folder)
    with pytest.raises(ModelError) as caught:
        loaded(PLUS, folder)
    assert caught.value.code == "MODEL_CONFIG_UNSAFE"
    assert not marker.exists()
    FunASR(folder)
    assert marker.exists()


@given(st.integers(0, 53), st.integers(0, 3), st.text(alphabet="[]()+* ,05_a.", max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_damaged_list_of_layers_is_read_as_python_reads_it_or_not_at_all(start: int, cut: int, put: str) -> None:
    whole = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
    text = whole[:start] + put + whole[start + cut :]
    layers = None
    with contextlib.suppress(ModelError):
        layers = emotion2vec.convolutions(text)
    assert layers is None or layers == eval(text, {"__builtins__": {}})


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 99), st.integers(1, 9), st.integers(1, 9)), min_size=1))
@settings(max_examples=50, deadline=None)
def test_every_list_of_layers_is_read(layers: list[tuple[int, int, int, int]]) -> None:
    text = " + ".join(f"[({width}, {kernel}, {stride})] * {times}" for width, kernel, stride, times in layers)
    assert emotion2vec.convolutions(text) == eval(text)


@pytest.mark.parametrize("case", SAME)
def test_other_wrappings_of_the_same_weights_load(folder: Path, plus: Adapter, case: str) -> None:
    rewritten(folder, SAME[case])
    again, expected = loaded(PLUS, folder).forward(waves(), frames=False), plus.forward(waves(), frames=False)
    np.testing.assert_array_equal(again.logits, expected.logits)
    np.testing.assert_array_equal(again.embeddings, expected.embeddings)


def test_lines_that_end_and_a_folder_without_configuration_json(folder: Path, plus: Adapter) -> None:
    write_text(folder / "tokens.txt", "\r\n".join([*PLUS.labels, ""]))
    (folder / "configuration.json").unlink()
    again, expected = loaded(PLUS, folder), plus.forward(waves(), frames=False)
    np.testing.assert_array_equal(again.forward(waves(), frames=False).logits, expected.logits)


def test_a_tensor_that_funasr_left_out_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FunASR skips what it cannot place; here it places nothing."""
    import funasr.auto.auto_model as auto

    monkeypatch.setattr(auto, "load_pretrained_model", lambda **_: None)
    with pytest.raises(ModelError, match="FunASR did not load") as caught:
        loaded(PLUS, folder)
    assert caught.value.code == "MODEL_WEIGHTS_MISMATCH"


def test_a_broken_torchaudio_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchaudio for another torch raises OSError, which FunASR swallows; the model is then unknown to it."""
    write_text(tmp_path / "torchaudio.py", "raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("funasr.models.emotion2vec.model", "funasr.utils.load_utils"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModelError, match=r"libcudart.*uninstall it") as caught:
        loaded(PLUS, folder)
    assert caught.value.code == "MODEL_BACKEND_UNUSABLE"
