"""A model is looked at before it labels anything."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from serpipe.cli import main
from serpipe.engine import request
from serpipe.errors import ModelError, UsageError
from serpipe.models import certificate
from serpipe.models.contract import Outputs
from serpipe.models.passport import issue
from serpipe.models.registry import resolve
from serpipe.models.weights import RANDOM_WEIGHTS
from serpipe.testing import make_checkpoint, speech_like, write_speech


def test_the_embedded_models_passport() -> None:
    passport = issue(resolve("embedded"))
    again = issue(resolve("embedded"))
    assert passport.sha256() == again.sha256()
    told = json.loads(passport.text())
    assert told["labels"] == ["anger", "happiness", "neutral", "sadness"]
    assert told["checks"]["change"] > 0.01
    assert {"torch", "serpipe", "numpy"} <= set(told["versions"])


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    folder = Path(make_checkpoint("audeering-dim", tmp_path))
    assert "published" not in issue(resolve(f"audeering-dim={folder}")).checks
    (folder / RANDOM_WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"MODEL_CHECK_VALUE: audeering-dim answers .* to 16000 zeros"):
        issue(resolve(f"audeering-dim={folder}"))


@pytest.mark.parametrize(("scale", "code"), [(0.0, "MODEL_DEAF"), (1e-6, "MODEL_UNTRAINED")])
def test_a_head_that_shrugs_is_refused(tmp_path: Path, scale: float, code: str) -> None:
    """Right shapes, no training: what other libraries load with a warning."""
    folder = Path(make_checkpoint("odyssey-categorical", tmp_path))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor * scale if "ser_model.out" in name else tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        issue(resolve(f"odyssey-categorical={folder}"))
    assert caught.value.code == code


def test_a_changed_weight_is_another_fingerprint(tmp_path: Path) -> None:
    folder = Path(make_checkpoint("odyssey-categorical", tmp_path))
    before = resolve(f"odyssey-categorical={folder}")
    tensors = load_file(folder / "model.safetensors")
    name = "ser_model.out.0.bias"
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(9.0))
    save_file(tensors, folder / "model.safetensors")
    after = resolve(f"odyssey-categorical={folder}")
    assert before.fp != after.fp
    assert before.fp != resolve(f"odyssey-categorical={folder}", dtype="bfloat16").fp


def test_the_certificate_chooses_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    for seed in range(2):
        write_speech(tmp_path / "audio" / f"{seed}.wav", seconds=40.0, seed=seed)
    model = resolve("embedded")
    assert certificate.best_dtype(model, "cpu")[0] == "float32"
    told = CliRunner().invoke(main, ["label", "nowhere", str(tmp_path / "store"), "--dtype", "auto"])
    assert "embedded: float32, it has no certificate for " in told.output
    made = certificate.certify(model, str(tmp_path / "audio"), device="cpu")
    exact = [row for row in made.measures if row.dtype == "float32"]
    assert len(exact) == len(certificate.BUCKETS_S)
    assert all(row.scores < 1e-5 and row.batched < 1e-5 and not row.flips for row in exact)
    half = [row for row in made.measures if row.dtype == "bfloat16"]
    assert max(row.scores for row in half) > 1e-4, "half precision cannot be exact: is it measured at all?"
    assert certificate.best_dtype(model, "cpu") == (made.chosen, "certified on cpu, where this run labels")
    told = CliRunner().invoke(main, ["label", "nowhere", str(tmp_path / "store"), "--dtype", "auto"])
    with request.device() as where:
        assert f"embedded: {', '.join(certificate.best_dtype(model, where))}" in told.output
    newer = replace(model, spec=replace(model.spec, adapter_epoch=model.spec.adapter_epoch + 1))
    assert certificate.best_dtype(newer, "cpu")[0] == "float32"
    with monkeypatch.context() as patched:
        patched.setattr(certificate, "version", lambda _: "99.0")
        dtype, why = certificate.best_dtype(model, "cpu")
        assert dtype == "float32"
        assert why == (
            "its certificate for cpu is not of this adapter and torch 99.0; "
            "`serpipe models certify embedded --audio DIR --device cpu` makes a new one"
        )
    strict = certificate.certify(model, str(tmp_path / "audio"), device="cpu", drift=1e-6)
    assert strict.chosen == "float32"
    assert np.isfinite([row.speed for row in strict.measures]).all()


def test_a_certificate_of_one_device_says_nothing_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU rounds away is not what a GPU does, and a run is told which of them it lacks."""
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path))
    model = resolve("embedded")
    voice = [speech_like(12.0, seed=1), speech_like(9.0, seed=2)]
    made = certificate.certify(model, voice, device="cpu", drift=1.0, per_bucket=2)
    path = next((tmp_path / "certificates").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chosen": "bfloat16"}))
    assert {row.bucket_s for row in made.measures} == set(certificate.BUCKETS_S)
    assert request.resolved(["embedded"], "auto", nullcontext("cpu"))[0].dtype == "bfloat16"
    assert request.resolved(["embedded"], "auto", nullcontext("cuda"))[0].dtype == "float32"
    assert certificate.best_dtype(model, "cuda") == (
        "float32",
        "it has no certificate for cuda, where this run labels; "
        "`serpipe models certify embedded --audio DIR --device cuda` makes one",
    )
    path.rename(path.with_name(path.name.replace("-cpu.json", "-cuda.json")))
    assert request.resolved(["embedded"], "auto", nullcontext("cuda"))[0].dtype == "bfloat16"
    assert request.resolved(["embedded"], "auto", nullcontext("cpu"))[0].dtype == "float32"


def outputs_of(scores: list[list[float]], embeddings: list[list[float]] | None = None) -> Outputs:
    answers = np.array(scores, np.float32)
    return Outputs(np.log(answers), answers, np.array(embeddings or scores, np.float32), None)


@pytest.mark.parametrize(
    ("scores", "embeddings"),
    [([[np.nan, np.nan], [0.2, 0.8]], None), ([[0.9, 0.1], [0.2, 0.8]], [[np.inf, 0.0], [1.0, 2.0]])],
)
def test_a_format_whose_answers_are_no_numbers_is_not_chosen(
    scores: list[list[float]], embeddings: list[list[float]] | None
) -> None:
    """A run would put each of those segments into quarantine."""
    exact = outputs_of([[0.9, 0.1], [0.2, 0.8]])
    broken = outputs_of(scores, embeddings)
    fine = certificate._compare("float32", (0.0, 2.0), exact, exact, [exact], 1.0)
    wrong = certificate._compare("float16", (0.0, 2.0), exact, broken, [broken], 9.0)
    assert (fine.scores, wrong.scores, wrong.batched) == (0.0, np.inf, np.inf)
    assert certificate._choose([fine, wrong], drift=1.0) == "float32"


def test_a_format_too_slow_to_count_is_not_the_fastest() -> None:
    exact = outputs_of([[0.9, 0.1]])
    measures = [
        certificate._compare(dtype, (0.0, 2.0), exact, exact, [exact], speed)
        for dtype, speed in (("float32", 4.0), ("bfloat16", 0.01))
    ]
    assert certificate._choose(measures, drift=1.0) == "float32"


def test_the_worse_of_two_batches_is_told() -> None:
    exact, near, far = (outputs_of([[first, 1 - first], [0.5, 0.5]]) for first in (0.9, 0.8, 0.3))
    measure = certificate._compare("bfloat16", (0.0, 2.0), exact, exact, [near, far], 1.0)
    assert measure.scores == pytest.approx(0.6)
    assert measure.flips == 1


def test_what_is_certified_is_what_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the float32 that others are held against must not be TF32."""
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    certificate.certify(resolve("embedded"), [speech_like(8.0)], device="cpu", per_bucket=1)
    assert not torch.backends.cudnn.allow_tf32


def test_weights_of_ones_own_are_certified_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    asked = f"superb-hubert-base={make_checkpoint('hubert-base-superb-er', tmp_path / 'weights')}"
    assert f"`serpipe models certify {asked} --audio DIR " in certificate.best_dtype(resolve(asked), "cpu")[1]


def test_nothing_cannot_be_certified_on() -> None:
    with pytest.raises(UsageError, match="CERTIFICATE_NO_AUDIO"):
        certificate.certify(resolve("embedded"), [], device="cpu")
