"""A whole model through Ray Train, tiny: two workers, one of them killed, and a result that `label` takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

import serpipe
from serpipe.models.registry import resolve
from serpipe.pseudolabel import student
from serpipe.pseudolabel.finetune import finetune
from serpipe.store.storage import Storage
from serpipe.testing import generic
from serpipe.testing.speech import speech_like
from tests.bench import Bench

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "audio").mkdir()
    gold = ["uri,label,speaker,split"]
    for place in range(16):
        emotion = ("anger", "sadness")[place % 2]
        path = folder / "audio" / f"{place}.wav"
        soundfile.write(path, speech_like(2.0, seed=place, pitch_hz=(260.0, 110.0)[place % 2]), 16_000)
        gold.append(f"{path},{emotion},s{place // 4},train")
    (folder / "gold.csv").write_text("\n".join(gold))
    Bench(folder / "audio", ("mel-statistics",)).run(Storage(str(folder / "store")))
    generic.write(generic.BASE_PLUS, folder / "model", size="tiny", seed=0)
    return folder


def checkpoints(store: Path) -> list[Path]:
    return sorted((store / "students" / "runs").glob("*/checkpoint_*/state.pt"))


def kill_a_worker(store: Path, killed: list[int]) -> None:
    """End one of this test's own training workers once there is a checkpoint to go on from."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not checkpoints(store):
        time.sleep(0.2)
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.kill()
            killed.append(process.pid)
            return


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_two_workers_one_killed(corpus: Path) -> None:
    store, killed = corpus / "store", []
    killer = threading.Thread(target=kill_a_worker, args=(store, killed))
    killer.start()
    asked = {"steps": 40, "every": 2, "batch": 8, "gpu": False}
    made = finetune(str(store), 0, str(corpus / "gold.csv"), str(corpus / "model"), **asked)
    killer.join()
    assert killed
    assert made.rows == 16
    assert np.isfinite(made.loss)
    model = resolve(f"{made.name}={made.folder}")
    told = student.training(Storage(str(store)), 0, "finetuned")
    assert (made.name, made.steps, told["settings"]["steps"]) == ("finetuned-gold", 40, 40)
    assert told["weights_sha256"] == model.weights_sha256
    assert told["backbone"] == {"model": "model", "weights_sha256": resolve(f"x={corpus / 'model'}").weights_sha256}
    assert Path(made.folder, "card.md").read_text().startswith("# finetuned-gold\n")
    assert model.spec.labels == ("anger", "sadness")
    assert model.spec.taxonomy == "canonical"
    outputs = model.load("cpu").forward([speech_like(2.0, seed=1)], frames=False)
    assert np.isfinite(outputs.scores).all()
    before = resolve(f"before={corpus / 'model'}").load("cpu").forward([speech_like(2.0, seed=1)], frames=False)
    assert not np.allclose(before.embeddings, outputs.embeddings, atol=1e-5)
    # The same command again finds that everything is done.
    again = finetune(str(store), 0, str(corpus / "gold.csv"), str(corpus / "model"), **asked)
    assert resolve(f"{made.name}={again.folder}").fp == model.fp
    assert serpipe.open(str(store)).recordings().num_rows == 16
    # With a label corrected it is other work.
    gold = (corpus / "gold.csv").read_text()
    (corpus / "corrected.csv").write_text(gold.replace("0.wav,anger", "0.wav,sadness", 1))
    corrected = finetune(str(store), 0, str(corpus / "corrected.csv"), str(corpus / "model"), **asked | {"steps": 2})
    assert resolve(f"{made.name}={corrected.folder}").fp != model.fp
    assert len({place.parents[1] for place in checkpoints(store)}) == 2
