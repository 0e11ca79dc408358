"""Students: the same answer from audio and from a stored embedding, and refused when anything about them is off."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from serpipe.engine import request
from serpipe.engine.metrics import Weighed
from serpipe.errors import ModelError, UsageError
from serpipe.models import batching, certificate, probe
from serpipe.models.probe_head import Head, answer, read_head
from serpipe.models.registry import resolve
from serpipe.pseudolabel import student
from serpipe.store.storage import Storage
from serpipe.testing.speech import speech_like

LABELS = ("anger", "neutral", "sadness")


def write_student(
    folder: Path, *, backbone: str = "mel-statistics", hidden: int = 0, seed: int = 0, dtype: str = "float32"
) -> str:
    """A student whose head was drawn, not trained."""
    model = resolve(backbone, dtype=dtype)
    torch.manual_seed(seed)
    head = Head(model.spec.embedding_width, len(LABELS), hidden=hidden).eval()
    head.mean.normal_()
    config = probe.ProbeConfig(labels=LABELS, hidden=hidden, backbone=student.backbone_of(model, backbone))
    student.write(Storage(str(folder)), "", student.files_of(head, config, {"seed": seed}, "made for a test"))
    return str(folder)


def waveforms() -> list[np.ndarray]:
    return [speech_like(seconds, seed=place) for place, seconds in enumerate((1.0, 3.3, 0.4, 2.0))]


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("backbone", ["mel-statistics", "embedded"])
def test_a_student_is_a_model_like_any_other(tmp_path: Path, backbone: str, hidden: int) -> None:
    model = resolve(f"probe-1={write_student(tmp_path, backbone=backbone, hidden=hidden)}")
    assert model.name == "probe-1"
    assert model.spec.labels == LABELS
    adapter = model.load("cpu")
    assert adapter.weights_sha256 == model.weights_sha256
    assert sum(p.numel() for p in Head(model.spec.embedding_width, 3, hidden=hidden).parameters()) == (
        model.spec.parameters - resolve(backbone).spec.parameters
    )
    together = batching.run(adapter, waveforms(), budget_s=60)
    alone = [adapter.forward([waveform], frames=False) for waveform in waveforms()]
    spread = np.ptp(together.logits)
    for place, one in enumerate(alone):
        # Half precision in front of the head: a value at the edge between two of its steps may fall either way.
        assert np.abs(together.logits[place] - one.logits[0]).max() < 1e-3 * spread
    assert np.allclose(together.scores.sum(axis=1), 1.0, atol=1e-6)


def test_the_head_hears_what_a_store_keeps(tmp_path: Path) -> None:
    directory = write_student(tmp_path)
    adapter = resolve(f"probe-1={directory}").load("cpu")
    heard = adapter.forward(waveforms(), frames=False)
    logits, scores = answer(read_head(directory, model="probe-1"), heard.embeddings.astype(np.float16))
    assert np.array_equal(logits, heard.logits)
    assert np.array_equal(scores, heard.scores)


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_segment_longer_than_the_backbone_takes_is_answered_from_its_stored_embedding(
    tmp_path: Path, hidden: int
) -> None:
    """As `relabel` answers it; the mean of what its windows are answered is something else."""
    directory = write_student(tmp_path, backbone="embedded", hidden=hidden)
    adapter = resolve(f"probe-1={directory}").load("cpu")
    longest = round(adapter.spec.max_seconds * 16_000)
    waveform = np.concatenate([speech_like(adapter.spec.max_seconds, seed=1), 0.01 * speech_like(20.0, seed=2)])
    # A run has every adapter wrapped.
    heard = batching.run(Weighed(adapter), [waveform], budget_s=60)
    logits, scores = answer(read_head(directory, model="probe-1"), heard.embeddings)
    assert np.array_equal(logits, heard.logits)
    assert np.array_equal(scores, heard.scores)
    alone = [adapter.forward([part], frames=False).scores for part in np.array_split(waveform, 2)]
    assert len(waveform) > longest
    assert np.abs(np.mean(alone, axis=0) - scores).max() > 1e-3, "windows alike show nothing"


def test_a_student_computes_as_its_backbone_did_and_in_no_other_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    for dtype in ("float32", "bfloat16"):
        model = resolve(f"probe-1={write_student(tmp_path / dtype, backbone='embedded', dtype=dtype)}")
        assert certificate.best_dtype(model, "cpu") == (dtype, "as the model that it hears")
        (ready,) = request.resolved([f"probe-1={tmp_path / dtype}"], "auto", nullcontext("cpu"))
        assert ready.load("cpu").forward(waveforms(), frames=False).scores.shape == (4, 3)
        with pytest.raises(UsageError, match=f"CERTIFICATE_OF_STUDENT.*probe-1 computes in {dtype}"):
            certificate.certify(model, waveforms(), device="cpu")


def test_another_head_or_backbone_is_another_fingerprint(tmp_path: Path) -> None:
    fps = {
        resolve(f"probe-1={write_student(tmp_path / name, backbone=backbone, seed=seed)}").fp
        for name, backbone, seed in (("a", "mel-statistics", 0), ("b", "mel-statistics", 1), ("c", "embedded", 0))
    }
    assert len(fps) == 3
    same = [resolve(f"x={write_student(tmp_path / name)}").fp for name in ("d", "e")]
    assert same[0] == same[1]


def test_a_backbone_that_changed_is_refused(tmp_path: Path) -> None:
    directory = write_student(tmp_path)
    config = json.loads((tmp_path / "probe.json").read_text())
    config["backbone"]["fp"] = "0" * 16
    (tmp_path / "probe.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="MODEL_BACKBONE_MISMATCH: probe-1 was trained on mel-statistics"):
        resolve(f"probe-1={directory}").load("cpu")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 2}', '{"format": 1, "labels": [], "hidden": 0}'])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(ModelError, match="MODEL_CONFIG_UNREADABLE"):
        resolve(f"probe-1={tmp_path}")


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    directory = write_student(tmp_path)
    config = json.loads((tmp_path / "probe.json").read_text())
    config["labels"] = ["anger", "sadness"]
    (tmp_path / "probe.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_MISMATCH"):
        resolve(f"probe-1={directory}").load("cpu")


def test_mel_statistics_by_their_definition() -> None:
    from serpipe.models.embedded.network import LogMel

    adapter = resolve("mel-statistics").load("cpu")
    found = adapter.forward(waveforms(), frames=False).embeddings
    for row, waveform in zip(found, waveforms(), strict=True):
        mels = LogMel()(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))[0][0].numpy()
        assert np.allclose(row, np.concatenate([mels.mean(axis=0), mels.std(axis=0)]), atol=1e-4)


def test_mel_statistics_of_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "front_end.json").write_text('{"sample_rate": 8000}')
    with pytest.raises(ModelError, match="MODEL_CONFIG_MISMATCH"):
        resolve(f"mel-statistics={tmp_path}").load("cpu")
