"""The main job on real Ray: what goes in comes out, once, with a reason where it does not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data.datasource import ReadTask

import serpipe
from serpipe.audio.stage import audio_fingerprint
from serpipe.engine import pipeline, source
from serpipe.errors import StoreError, UsageError
from serpipe.store import version
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.tables import assert_same, read

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def labelled(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, serpipe.Store]:
    store = str(tmp_path_factory.mktemp("store"))
    result = serpipe.label(str(archive), store, segmentation="window:6/3")
    assert (result.recordings, result.failed) == (9, 2)
    return store, serpipe.open(store)


def test_every_segment_is_labelled_or_in_quarantine(labelled: tuple[str, serpipe.Store]) -> None:
    _, store = labelled
    segments = set(store.segments()["segment_id"].to_pylist())
    predicted = store.predictions()["segment_id"].to_pylist()
    failed = [row["segment_id"] for row in store.quarantine().to_pylist() if row["segment_id"]]
    assert len(predicted) == len(set(predicted))
    assert segments == {*predicted, *failed}
    assert not set(predicted) & set(failed)


def test_every_recording_is_there_or_in_quarantine(archive: Path, labelled: tuple[str, serpipe.Store]) -> None:
    _, store = labelled
    files = {str(path) for path in archive.rglob("*") if path.is_file()}
    there = set(store.recordings()["uri"].to_pylist())
    failing = {row["uri"]: row["code"] for row in store.failing().to_pylist()}
    assert there | set(failing) == files
    assert failing == {
        str(archive / "b/page.mp3"): "AUDIO_UNDECODABLE",
        str(archive / "b/tiny.wav"): "SEGMENT_TOO_SHORT",
    }


def test_predictions_are_the_models_own(labelled: tuple[str, serpipe.Store]) -> None:
    """Decoded and labelled again by hand, one segment at a time."""
    import numpy as np
    import soundfile

    from serpipe.models.registry import resolve

    _, store = labelled
    uri = next(uri for uri in store.recordings()["uri"].to_pylist() if uri.endswith("one.wav"))
    recording = next(row for row in store.recordings().to_pylist() if row["uri"] == uri)
    samples = soundfile.read(uri, dtype="float32")[0]
    model = resolve("embedded").load("cpu")
    rows = [row for row in store.predictions().to_pylist() if row["recording_id"] == recording["recording_id"]]
    assert sorted((row["start_s"], row["end_s"]) for row in rows) == [(0.0, 6.0), (3.0, 8.0)]
    for row in rows:
        clip = samples[round(row["start_s"] * 16_000) : round(row["end_s"] * 16_000)]
        alone = model.forward([clip], frames=False)
        np.testing.assert_allclose(row["logits"], alone.logits[0], atol=1e-4)
        np.testing.assert_allclose(row["scores"], alone.scores[0], atol=1e-4)
        assert row["label"] == row["labels"][int(np.argmax(row["scores"]))] == row["emotion"]
        assert row["confidence"] == max(row["scores"])


def test_the_second_run_does_nothing_and_never_imports_ray(archive: Path, labelled: tuple[str, serpipe.Store]) -> None:
    store, _ = labelled
    before = _tables(store)
    program = (
        "import sys, serpipe\n"
        f"result = serpipe.label({str(archive)!r}, {store!r}, segmentation='window:6/3')\n"
        "assert result.run_id is None and result.done_before == 9, result\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert _tables(store) == before


def _tables(store: str) -> list[Path]:
    """Every file but the claims of those that held the store, which are numbered."""
    return sorted(path for path in Path(store).rglob("*") if path.parent.name != "lease")


def test_a_new_recording_alone_is_work(archive: Path, tmp_path: Path) -> None:
    import shutil

    from serpipe.testing import write_speech

    shutil.copytree(archive / "a", tmp_path / "archive")
    store = str(tmp_path / "store")
    first = serpipe.label(str(tmp_path / "archive"), store, segmentation="window:6/3")
    write_speech(tmp_path / "archive" / "new.wav", seconds=7.0, seed=99)
    second = serpipe.label(str(tmp_path / "archive"), store, segmentation="window:6/3")
    assert (first.recordings, second.recordings, second.done_before) == (3, 1, 3)
    whole = str(tmp_path / "whole")
    serpipe.label(str(tmp_path / "archive"), whole, segmentation="window:6/3")
    assert_same(whole, store)


class Watched(source.PlanSource):
    """Notes in a folder when each of its reads begins and ends."""

    notes: Path

    def get_read_tasks(self, *arguments: Any, **named: Any) -> list[ReadTask]:
        notes = self.notes

        def noted(task: ReadTask) -> Iterator[pa.Table]:
            began = time.time()
            time.sleep(0.5)
            tables = list(task())
            (notes / uuid.uuid4().hex).write_text(f"{began} {time.time()}")
            yield from tables

        tasks = super().get_read_tasks(*arguments, **named)
        return [ReadTask(partial(noted, task), task.metadata) for task in tasks]


def test_no_more_is_read_at_a_time_than_decoders_want(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serpipe.testing import write_speech

    manifest = tmp_path / "list.csv"
    # Each long enough, by its own word, for a read task of its own.
    paths = [write_speech(tmp_path / f"{seed}.wav", seconds=4.0, seed=seed) for seed in range(6)]
    manifest.write_text("\n".join(["path,duration", *(f"{path},600" for path in paths)]))
    Watched.notes = tmp_path / "notes"
    Watched.notes.mkdir()
    monkeypatch.setattr(source, "PlanSource", Watched)
    result = serpipe.label(str(manifest), str(tmp_path / "store"), segmentation="window:4/4", speech=False, decoders=1)
    assert (result.predictions, result.failed) == (6, 0)
    reads = sorted(tuple(map(float, note.read_text().split())) for note in Watched.notes.iterdir())
    assert len(reads) == 6
    assert all(before[1] <= after[0] for before, after in pairwise(reads))


def counting() -> set[int]:
    """The processes on this machine that count what runs do."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if " ".join(process.info["cmdline"] or []).startswith("ray::_Counters")
    }


def test_a_run_leaves_no_process_in_a_cluster_that_goes_on(archive: Path, tmp_path: Path) -> None:
    before, seen, ended = counting(), set[int](), threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            seen.update(counting() - before)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        serpipe.label(str(archive / "a"), str(tmp_path / "store"), segmentation="window:6/3")
    finally:
        ended.set()
        looking.join()
    assert seen
    until = time.monotonic() + 60
    while (left := counting() & seen) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left


def test_changed_content_is_another_recording(tmp_path: Path) -> None:
    from serpipe.testing import write_speech

    write_speech(tmp_path / "archive/a.wav", seconds=4.0, seed=1)
    store = str(tmp_path / "store")
    serpipe.label(str(tmp_path / "archive"), store, segmentation="whole")
    write_speech(tmp_path / "archive/a.wav", seconds=5.0, seed=2)
    again = serpipe.label(str(tmp_path / "archive"), store, segmentation="whole")
    assert (again.recordings, again.done_before) == (1, 0)
    shown = serpipe.open(store).recordings()["duration_s"].to_pylist()
    assert shown == [5.0], "only the newest version is shown"


def test_vad_and_split_channels(archive: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    serpipe.label(str(archive / "a"), store, segmentation="vad", channels="split", embeddings="frame")
    segments = serpipe.open(store).segments()
    by_channel = {uri.rsplit("/", 1)[1]: channels for uri, channels in _channels(serpipe.open(store)).items()}
    assert by_channel == {"one.wav": {0}, "two.wav": {0, 1}, "three.flac": {0}}
    assert segments["audio"].unique().to_pylist() == [audio_fingerprint("vad", "split")]
    assert all(0 <= share <= 1 for share in segments["speech"].to_pylist())
    frames = read(store, "frames").to_pylist()
    spans = {row["segment_id"]: row["end_s"] - row["start_s"] for row in segments.to_pylist()}
    assert {row["segment_id"] for row in frames} == set(spans)
    for row in frames:
        assert abs(len(row["frames"]) - 50 * spans[row["segment_id"]]) <= 2


def _channels(store: serpipe.Store) -> dict[str, set[int]]:
    names = {row["recording_id"]: row["uri"] for row in store.recordings().to_pylist()}
    found: dict[str, set[int]] = {}
    for row in store.segments().to_pylist():
        found.setdefault(names[row["recording_id"]], set()).add(row["channel"])
    return found


def test_given_segments_keep_their_owners_columns(archive: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        "path,start,end,speaker\n"
        f"{archive}/a/one.wav,1.5,4.25,ann\n"
        f"{archive}/a/one.wav,5,7,bob\n"
        f"{archive}/a/one.wav,100,101,nobody\n"
    )
    store = str(tmp_path / "store")
    serpipe.label(str(manifest), store)
    rows = serpipe.open(store).segments().to_pylist()
    assert {(row["start_s"], row["end_s"], dict(row["meta"])["speaker"]) for row in rows} == {
        (1.5, 4.25, "ann"),
        (5.0, 7.0, "bob"),
    }
    (outside,) = serpipe.open(store).failing().to_pylist()
    assert (outside["code"], outside["start_s"]) == ("SEGMENT_OUTSIDE", 100.0)


def test_bad_rows_stop_a_run_before_it_starts_or_go_to_quarantine(archive: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,start,end\n{archive}/a/one.wav,0,2\n{archive}/a/two.wav,nan,3\n")
    store = str(tmp_path / "store")
    with pytest.raises(UsageError, match="row 3"):
        serpipe.label(str(manifest), store)
    assert not (tmp_path / "store" / "runs").exists()
    result = serpipe.label(str(manifest), store, skip_bad_rows=True)
    assert (result.bad_rows, result.predictions) == (1, 1)
    (row,) = serpipe.open(store).quarantine().to_pylist()
    assert (row["stage"], row["uri"]) == ("manifest", f"{archive}/a/two.wav")


def test_what_two_workers_of_a_run_labelled_is_told_and_made_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a decoder dies, and the recordings before one that can be read only now fall into other packs."""
    store, calm = str(tmp_path / "store"), str(tmp_path / "calm")
    carried_out = pipeline.execute

    def twice(source: Any, stages: Any, sink: Any, board: Any) -> None:
        carried_out(source, stages, sink, board)
        recordings = serpipe.read_manifest(str(archive / "a")).slice(0, 1)
        predict = serpipe.Predict(list(stages.pools[0].models), threads=1)
        sink.of(sink._run, "other", 0).commit([predict(pack) for pack in serpipe.Decode(**stages.decode)(recordings)])

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "execute", twice)
        result = serpipe.label(str(archive / "a"), store, segmentation="window:6/3")
    assert result.twice == 1
    assert "ROWS_TWICE" in {found.code for found in verify(Storage(store)).findings}
    again = serpipe.label(str(archive / "a"), store, segmentation="window:6/3")
    # Both were taken out.
    assert (again.twice, again.mended, again.recordings) == (0, 2, 1)
    serpipe.label(str(archive / "a"), calm, segmentation="window:6/3")
    assert_same(calm, store)
    assert verify(Storage(store)).findings == ()


def test_a_held_store_is_refused_with_its_holder(archive: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    version.check(Storage(store))
    with (
        Lease(Storage(store), "run-of-somebody"),
        pytest.raises(StoreError, match=r"run-of-somebody on .* since 20"),
    ):
        serpipe.label(str(archive), store)


def test_footers_say_what_they_settle(labelled: tuple[str, serpipe.Store]) -> None:
    store, opened = labelled
    from serpipe.store.commit import settled_by

    storage = Storage(store)
    files = storage.list("predictions/")
    units = [row for file in files for row in settled_by(storage, file).to_pylist()]
    assert sorted(map(str, units)) == sorted(map(str, opened.entries.to_pylist()))
    metadata = pq.read_metadata(Path(store, files[0])).metadata
    assert {b"serpipe.schema", b"serpipe.audio", b"serpipe.model", b"serpipe.fp"} <= set(metadata)
