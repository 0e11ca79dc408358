"""One night after another: what is new is work, what is old is not, and what has changed is told and asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import serpipe
from serpipe.audio.stage import audio_facts, audio_fingerprint
from serpipe.engine import invalidation
from serpipe.engine.label import _recorded
from serpipe.engine.stopping import RunStopped
from serpipe.errors import StoreError, UsageError
from serpipe.models.embedded import SHIPPED
from serpipe.models.passport import issue
from serpipe.models.registry import resolve
from serpipe.store import layout, runs, summary, version
from serpipe.store.lease import holders
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.tables import read

FACTS = audio_facts("vad", "mix")
AUDIO = audio_fingerprint("vad", "mix")
WEIGHTS = "weights.safetensors"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path / "store"))
    version.check(storage)
    return storage


def kept(storage: Storage, *, fp: str | None = None, audio: str = AUDIO) -> str:
    model = resolve("embedded")
    held = {("embedded", fp or model.fp, audio): 1204}
    (sentence,) = invalidation.sentences(storage, held, [model], audio=AUDIO, asked=FACTS)
    return sentence


def passport_of(storage: Storage, **changed: object) -> str:
    """The passport of a model that was another in some way, and its fingerprint."""
    passport = replace(issue(resolve("embedded")), fp="0" * 16, **changed)  # type: ignore[arg-type]
    storage.put(layout.passport("embedded", passport.fp, "libraries"), passport.text().encode())
    return passport.fp


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights_sha256": "3fa0" * 16}, f"weights 3fa03fa0 (today: {resolve('embedded').weights_sha256[:8]})"),
        ({"adapter_epoch": 0}, "adapter epoch 0 (today: 1)"),
        ({"dtype": "bfloat16"}, "dtype bfloat16 (today: float32)"),
    ],
    ids=["weights", "epoch", "dtype"],
)
def test_a_changed_model_is_named_with_what_changed(storage: Storage, changed: dict[str, object], words: str) -> None:
    assert kept(storage, fp=passport_of(storage, **changed)) == (
        f"embedded: 1,204 recordings keep the labels of {words}; --relabel labels them again, "
        f"`serpipe gc {storage.root}` then drops the old labels"
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"segmentation": "window:6.0/3.0"}, "segmentation window:6.0/3.0 (today: vad)"),
        ({"channels": "split"}, "channels split (today: mix)"),
        ({"decoder_epoch": 0}, f"decoder epoch 0 (today: {FACTS['decoder_epoch']})"),
        ({"decoder_epoch": 0, "channels": "first"}, "channels first (today: mix) and decoder epoch 0"),
    ],
    ids=["segmentation", "channels", "decoder", "two"],
)
def test_changed_audio_is_named_with_what_changed(storage: Storage, changed: dict[str, object], words: str) -> None:
    runs.save(storage, runs.Run(run_id="R1", audio="old", asked=FACTS | changed))
    assert f"keep the labels of {words}" in kept(storage, audio="old")


def test_without_a_record_the_fingerprints_are_named(storage: Storage) -> None:
    assert f"the labels of model 0000 (today: {resolve('embedded').fp})" in kept(storage, fp="0000")
    assert f"the labels of audio old (today: {AUDIO})" in kept(storage, audio="old")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_run_says_so_in_its_record_and_how_to_go_on(storage: Storage, stop: type[BaseException]) -> None:
    with (
        pytest.raises(RunStopped, match=r"0 predictions of 0 recordings are committed, and the same command goes on"),
        _recorded(storage, runs.Run(run_id="R1")),
    ):
        raise stop
    (record,) = runs.load(storage)
    assert (record.state, record.result) == ("stopped", {"stopped": stop.__name__})
    assert runs.unfinished(storage) == [record], "what it left open is still to be closed"


def test_a_broken_run_keeps_its_error_and_its_record_the_code(storage: Storage) -> None:
    with pytest.raises(StoreError, match="STORE_LOST"), _recorded(storage, runs.Run(run_id="R1")):
        raise StoreError("STORE_LOST", "somewhere a secret is written")
    (record,) = runs.load(storage)
    assert (record.state, record.result) == ("stopped", {"stopped": "STORE_LOST"})


@pytest.mark.usefixtures("ray_session")
def test_a_usage_error_leaves_no_run(tmp_path: Path) -> None:
    """Refused only once the cluster is known, which is after the plan."""
    write_speech(tmp_path / "archive/a.wav", seconds=2.0)
    store = str(tmp_path / "store")
    with pytest.raises(UsageError, match="POOL_UNKNOWN"):
        serpipe.label(str(tmp_path / "archive"), store, segmentation="whole", pools=["nobody"])
    assert serpipe.open(store).runs() == []
    assert holders(Storage(store)) == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_nights_of_an_archive(tmp_path: Path) -> None:
    """One recording is new, one changed, and a model is added; weights change; the segmentation changes."""
    archive, store = tmp_path / "archive", str(tmp_path / "store")
    for seed in range(2):
        write_speech(archive / f"{seed}.wav", seconds=4.0, seed=seed)
    (archive / "broken.wav").write_bytes(b"RIFF")

    def night(*models: str, segmentation: str = "window:2/2", relabel: bool = False) -> serpipe.Result:
        return serpipe.label(
            str(archive), store, models=models, segmentation=segmentation, relabel=relabel, speech=False
        )

    first = night("embedded")
    assert (first.recordings, first.labelled, first.codes) == (3, 2, {"AUDIO_UNDECODABLE": 1})

    write_speech(archive / "1.wav", seconds=6.0, seed=7)
    write_speech(archive / "2.wav", seconds=2.0, seed=8)
    second = night("embedded", "mel-statistics")
    # Of the new model every recording is work, of the old one what is new or has changed.
    assert (second.recordings, second.predictions, second.kept) == (4, (2 + 3 + 1) + (3 + 1), ())
    assert (second.labelled, second.codes) == (3, {"AUDIO_UNDECODABLE": 1})
    assert read(store, "quarantine").num_rows == 1, "what fails before any model is logged once"
    assert sorted(serpipe.open(store).recordings()["duration_s"].to_pylist()) == [2.0, 4.0, 6.0]
    assert second.audio_s == 12.0, "of what the store knew already, too"
    both = {model: {"0.wav": 2, "1.wav": 3, "2.wav": 1} for model in ("embedded", "mel-statistics")}
    assert _shown(store) == both

    retrained = f"embedded={_retrained(tmp_path / 'weights')}"
    third = night(retrained, "mel-statistics")
    assert (third.run_id, third.done_before) == (None, 4)
    (sentence,) = third.kept
    assert sentence.startswith("embedded: 4 recordings keep the labels of weights ")
    before = read(store, "predictions/model=embedded").num_rows
    fourth = night(retrained, "mel-statistics", relabel=True)
    assert (fourth.recordings, fourth.predictions, fourth.kept, fourth.audio_s) == (4, 6, (), 12.0)
    last = runs.load(Storage(store))[-1]
    assert list(last.models) == ["embedded"], "the other had nothing to do"
    assert serpipe.open(store).predictions("embedded")["fp"].unique().to_pylist() == [last.models["embedded"]]
    assert _shown(store) == both
    assert read(store, "predictions/model=embedded").num_rows == before + 6, "old labels stay where they lie"

    fifth = night(retrained, segmentation="window:3/3")
    assert fifth.run_id is None
    assert fifth.kept[0].startswith("embedded: 4 recordings keep the labels of segmentation window:2/2 (today: ")
    models = summary.status(serpipe.open(store)).models
    assert {model.model: (model.recordings, model.left_recordings) for model in models} == {
        "embedded": (3, 0),
        "mel-statistics": (3, 0),
    }


def _retrained(folder: Path) -> Path:
    """The embedded model with slightly other weights."""
    folder.mkdir()
    weights = load_file(Path(SHIPPED, WEIGHTS))
    name = next(name for name, values in weights.items() if values.dtype == np.float32)
    save_file({key: values * 1.01 if key == name else values for key, values in weights.items()}, folder / WEIGHTS)
    return folder


def _shown(store: str) -> dict[str, dict[str, int]]:
    """Current predictions of each model by recording; each is of a segment that is shown."""
    tables = serpipe.open(store)
    uris = {row["recording_id"]: Path(row["uri"]).name for row in tables.recordings().to_pylist()}
    segments = set(tables.segments()["segment_id"].to_pylist())
    shown: dict[str, dict[str, int]] = {}
    for row in tables.predictions().to_pylist():
        assert row["segment_id"] in segments
        counts = shown.setdefault(row["model"], {})
        counts[uris[row["recording_id"]]] = counts.get(uris[row["recording_id"]], 0) + 1
    return {model: dict(sorted(counts.items())) for model, counts in shown.items()}


PROGRAM = """
import os, sys
from serpipe.engine import spread
spread.bundle_bytes = lambda *_: 1  # a commit a pack, so that there is a middle to be stopped in
os.environ["RAY_ADDRESS"] = "local"
from serpipe.cli import main
main(["label", *sys.argv[1:], "--segment", "window:2/1"])
"""


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_on_request_ends_in_order(tmp_path: Path, how: signal.Signals) -> None:
    archive, store = tmp_path / "archive", str(tmp_path / "store")
    for seed in range(6):
        write_speech(archive / f"{seed}.wav", seconds=320.0, seed=seed)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(archive), store],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores interrupts, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list(Path(store).glob("ledger/*.parquet")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, how)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out == ""
    assert "serpipe: RUN_STOPPED: the run was stopped; " in err
    assert " are committed, and the same command goes on from there" in err
    assert "Traceback" not in err
    assert holders(Storage(store)) == []
    (record,) = runs.load(Storage(store))
    assert record.state == "stopped"
    told = json.loads(Storage(store).get(layout.progress(record.run_id)))
    assert told["total_s"] > 0
