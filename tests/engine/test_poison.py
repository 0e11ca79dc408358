"""What kills, hangs or balloons costs itself alone, and is told by name; what was merely lost is labelled after all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile

import serpipe
from serpipe.engine import alone, careful, pipeline
from serpipe.engine.alone import Alone, Deadly, Unusable, Work
from serpipe.models.registry import ModelRef, resolve
from serpipe.pack import rows_of
from serpipe.testing import speech_like, write_speech
from tests.engine import hazards

RATE = 16_000
BREAK, SEGV, EXIT = 0.92, 0.95, 0.98
"""Peaks at which the model `fragile` breaks or dies."""

PROGRAM = """
import os, sys, ray
os.environ["HAZARD_DRIVER"] = str(os.getpid())
import serpipe
from serpipe.audio.child import Limits
archive, store, *models = sys.argv[1:]
ray.init("local", num_cpus=2, object_store_memory=400 << 20, include_dashboard=False, log_to_driver=False)
print(serpipe.label(archive, store, models=models, segmentation="window:4/4", speech=False,
    limits=Limits(stall_s=3.0, memory_bytes=32 << 20)))
"""


def write_loud(path: Path, *, seconds: float, loud: dict[int, float], seed: int = 0) -> None:
    """A voice, some of whose windows of four seconds hold one sample that is louder than any voice."""
    samples = speech_like(seconds, seed=seed)
    for window, peak in loud.items():
        samples[window * 4 * RATE + 100] = peak
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="FLOAT")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    hazards.install(folder)
    return folder


@pytest.fixture
def fragile(site: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRef:
    monkeypatch.syspath_prepend(str(site))
    return resolve("fragile")


def work(model: ModelRef, **options: object) -> Work:
    decode = {"segmentation": "window:4/4", "speech": False, "models": {model.name: model.fp}, **options}
    return Work(decode=decode, models=(model,), embeddings="utterance", threads=1, memory_bytes=1 << 30)


@pytest.mark.slow
def test_segments_that_kill_or_break_the_model_are_named_and_their_neighbours_labelled(
    fragile: ModelRef, tmp_path: Path
) -> None:
    write_loud(tmp_path / "a.wav", seconds=16.0, loud={1: SEGV, 2: BREAK})
    with Alone(work(fragile)) as alone:
        (pack,) = alone.label(serpipe.read_manifest(str(tmp_path)))
    assert rows_of(pack, "results:fragile")["segment"].to_pylist() == [0, 3]
    assert [tuple(row.values()) for row in rows_of(pack, "failures:fragile").to_pylist()] == [
        (1, "MODEL_DIED", "the model's process died of SIGSEGV on it, alone and twice"),
        (2, "MODEL_FAILED", "the network fails on it (RuntimeError: the device is gone)"),
    ]


def test_a_model_that_breaks_on_the_way_refuses_no_segment(fragile: ModelRef, tmp_path: Path) -> None:
    """What comes after the one that broke it is fine, and must not be told to be at fault."""
    write_loud(tmp_path / "a.wav", seconds=16.0, loud={2: BREAK})
    (pack,) = serpipe.Decode(segmentation="window:4/4", speech=False)(serpipe.read_manifest(str(tmp_path)))
    with pytest.raises(RuntimeError, match="the device is gone"):
        serpipe.Predict([fragile], threads=1)(pack)


def test_what_is_labelled_alone_equals_what_is_labelled_together(tmp_path: Path) -> None:
    write_speech(tmp_path / "a.wav", seconds=21.0, seed=3)
    embedded = resolve("embedded")
    with Alone(work(embedded)) as alone:
        (one,) = alone.label(serpipe.read_manifest(str(tmp_path)))
    decode = serpipe.Decode(segmentation="window:4/4", speech=False, models={"embedded": embedded.fp})
    (together,) = [
        serpipe.Predict(["embedded"], threads=1)(pack) for pack in decode(serpipe.read_manifest(str(tmp_path)))
    ]
    left, right = (rows_of(pack, "results:embedded") for pack in (one, together))
    assert left["segment"].equals(right["segment"])
    np.testing.assert_allclose(np.stack(left["logits"].to_pylist()), np.stack(right["logits"].to_pylist()), atol=1e-4)


def test_a_model_that_never_works_blames_no_segment(site: Path, fragile: ModelRef, tmp_path: Path) -> None:
    write_speech(tmp_path / "a.wav", seconds=8.0)
    nowhere = ModelRef(fragile.spec, "serpipe.models.superb", str(tmp_path), "float32", "0" * 64, "fragile")
    with Alone(work(nowhere)) as alone:
        (end,) = alone.label(serpipe.read_manifest(str(tmp_path)))
    assert isinstance(end, Unusable)


def test_a_child_that_ends_before_it_is_given_anything_blames_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it starts, on a machine out of memory say: nothing of the recording was read."""
    write_speech(tmp_path / "a.wav", seconds=8.0)
    begin = subprocess.Popen

    def ended(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = begin([sys.executable, "-c", "raise SystemExit(1)"], **options)
        process.wait()
        return process

    monkeypatch.setattr(subprocess, "Popen", ended)
    with Alone(work(resolve("embedded"))) as alone:
        (end,) = alone.label(serpipe.read_manifest(str(tmp_path)))
    assert isinstance(end, Unusable)


def test_what_costs_too_many_processes_is_left_as_it_is(
    fragile: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "MOST_DEATHS", 3)
    write_loud(tmp_path / "a.wav", seconds=16.0, loud={1: SEGV, 2: SEGV})
    with Alone(work(fragile)) as child:
        (end,) = child.label(serpipe.read_manifest(str(tmp_path)))
    assert end == Deadly("its process died 3 times, of 1 segments and more")


class Here(careful._Lane):
    """The lane's work in this process, where a test may say how much is too much."""

    def label(self, recording: pa.Table, take: Callable[[pa.Table], None]) -> Any:
        with Alone(self._work) as child:
            for found in child.label(recording):
                if not isinstance(found, pa.Table):
                    return found
                take(found)
        return None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "fragile")
def test_a_recording_full_of_poison_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a second one follows is the fault another one's; why each was left is told."""
    monkeypatch.setattr(alone, "MOST_DEATHS", 2)
    monkeypatch.setattr(careful, "_Lane", Here)
    monkeypatch.setattr(pipeline, "execute", lambda *_: None)
    poisonous = {"a", "c", "d"}
    for name in "abcde":
        write_loud(tmp_path / f"{name}.wav", seconds=8.0, loud={0: SEGV, 1: SEGV} if name in poisonous else {})
    result = serpipe.label(
        str(tmp_path), str(tmp_path / "store"), models=["fragile"], segmentation="window:4/4", speech=False
    )
    assert (result.labelled, result.failed, result.codes) == (1, 4, {"WORK_LOST": 4})
    store = serpipe.open(str(tmp_path / "store"))
    assert {Path(uri).stem for uri in store.recordings()["uri"].to_pylist()} == {"b"}
    told = {Path(row["uri"]).stem: row["message"] for row in store.failing().to_pylist()}
    died = "its process died 2 times, of 1 segments and more"
    assert all(told[name].endswith(f"; the next run tries it again (alone: {died})") for name in "acd")
    assert told["e"].endswith(f" (alone: not tried, for of the 2 before it {died})")


@pytest.fixture(scope="module")
def dangerous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short recordings that share packs, some of them hostile to the decoder, its worker or the model."""
    folder = tmp_path_factory.mktemp("dangerous")
    for number in range(6):
        write_loud(folder / f"calm-{number}.wav", seconds=9.0 + number, loud={}, seed=number)
    write_loud(folder / "segv.wav", seconds=16.0, loud={2: SEGV}, seed=7)
    write_loud(folder / "exit.wav", seconds=12.0, loud={0: EXIT}, seed=8)
    write_speech(folder / "deadly.wav", seconds=8.0, seed=9)
    (folder / "broken.wav").write_bytes(b"RIFF")
    os.mkfifo(folder / "pipe.wav")
    soundfile.write(folder / "wide.wav", np.zeros((200_000, 64), np.float32), 384_000)
    uris = [f"hazard://{path}" if path.name == "deadly.wav" else str(path) for path in sorted(folder.iterdir())]
    (folder / "list.csv").write_text("\n".join(["path", *uris]) + "\n")
    return folder / "list.csv"


def run(site: Path, archive: Path, store: Path, *models: str, **more: str) -> str:
    command = [sys.executable, "-c", PROGRAM, str(archive), str(store), *models]
    done = subprocess.run(
        command, env=hazards.environment(site, **more), check=True, timeout=600, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # Two decoders in turn wait a minute each for a codec that never ends.
def test_poison_in_a_run_costs_one_row_each(site: Path, dangerous: Path, tmp_path: Path) -> None:
    run(site, dangerous, tmp_path / "store", "embedded", "fragile", HAZARD_KILL="get:deadly")
    store = serpipe.open(str(tmp_path / "store"))
    failing = {(os.path.basename(row["uri"]), row["model"], row["code"]) for row in store.failing().to_pylist()}
    assert failing == {
        ("broken.wav", None, "AUDIO_UNDECODABLE"),
        ("deadly.wav", None, "AUDIO_WORKER_DIED"),
        ("pipe.wav", None, "AUDIO_DECODER_HUNG"),
        ("wide.wav", None, "AUDIO_DECODER_MEMORY"),
        ("segv.wav", "fragile", "MODEL_DIED"),
        ("exit.wav", "fragile", "MODEL_DIED"),
    }
    assert store.quarantine().num_rows == 6
    assert not pc.any(store.quarantine()["transient"]).as_py()
    segments = set(store.segments()["segment_id"].to_pylist())
    for model, lacking in (("embedded", 0), ("fragile", 2)):
        rows = store.predictions().filter(pc.equal(store.predictions()["model"], model))
        assert len(set(rows["segment_id"].to_pylist())) == rows.num_rows == len(segments) - lacking
    assert hazards.log(site).count("get:deadly") > 2
    # Nothing is left to do, and the poison is not met again.
    met = hazards.log(site)
    assert "run_id=None" in run(site, dangerous, tmp_path / "store", "embedded", "fragile", HAZARD_KILL="get:deadly")
    assert hazards.log(site) == met
