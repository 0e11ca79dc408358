"""What a rehearsal's processes tell, summed up."""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from serpipe.errors import SerpipeError
from serpipe.rehearsal import _ended, decoding, labelling, summary
from serpipe.rehearsal.company import Clock, Company, Decoded, Labelled, Pace
from serpipe.testing import write_speech
from tests.audio.test_stage import row, table
from tests.audio.web import served


def labelled(**paces: Pace) -> Labelled:
    done = Labelled()
    for phase, pace in paces.items():
        done.paces["a", phase] = pace  # type: ignore[index]
    return done


def test_what_was_measured_beside_rushing_decoders_counts_where_decoders_never_waited() -> None:
    done = [labelled(cold=Pace(10, 50, 50), rushing=Pace(100, 20, 10), calm=Pace(100, 10, 10))]
    free = summary.stage_of(done, "a", 2.0, waited=False, where="cpu")
    assert (free.busy_s, free.cpu_s) == (pytest.approx(0.3), pytest.approx(0.2))
    assert summary.stage_of(done, "a", 2.0, waited=True, where="cpu").busy_s == pytest.approx(0.2)


def test_a_first_piece_counts_where_there_is_no_other() -> None:
    assert summary.stage_of([labelled(cold=Pace(10, 5, 5))], "a", 1.0, waited=True, where="cpu").busy_s == 0.5


def test_kinds_count_by_their_share_of_the_audio_and_not_of_the_sample() -> None:
    decoded = [Decoded("wav", audio_s=100.0, busy_s=1.0), Decoded("opus", audio_s=10.0, busy_s=1.0)]
    assert summary.mixed(decoded, {"wav": 0.5, "opus": 0.5}, "busy_s") == pytest.approx(0.055)
    assert summary.mixed(decoded, {"wav": 0.0, "opus": 1.0, "mp3": 9.0}, "busy_s") == pytest.approx(0.1)


def test_bytes_are_of_rows_and_of_commits() -> None:
    """A commit of 100 s: 1,000 bytes of rows, and 300 of its own; it is half as large as a run's commits."""
    done = Labelled(written_s=100.0, sink_cpu_s=2.0, row_bytes=500, bytes={"t": 1300}, commit_bytes={"t": 300})
    found = summary.written([done, Labelled()], 0.5, bundle_bytes=1000)
    assert found.cpu_s == pytest.approx(0.01)
    assert found.of(400.0) == pytest.approx({"t": 2000 + 300})
    assert found.of(1000.0) == pytest.approx({"t": 5000 + 3 * 300})


@pytest.mark.parametrize("dies", [False, True])
def test_a_model_process_that_ends_before_its_queue_is_empty_is_an_error(dies: bool) -> None:
    context = multiprocessing.get_context("spawn")
    packs, told = context.Queue(maxsize=1), context.Queue()
    packs.put("a pack that nobody takes")
    worker = context.Process(target=os._exit, args=(9 if dies else 0,))
    worker.start()
    worker.join()
    if not dies:
        told.put(("failed", MemoryError("no room")))
    with pytest.raises(SerpipeError, match="died" if dies else "no room"):
        _ended(packs, told, [worker], actors=1)
    packs.cancel_join_thread()


def test_what_models_did_is_heard_while_others_still_work() -> None:
    context = multiprocessing.get_context("spawn")
    packs, told = context.Queue(maxsize=1), context.Queue()
    packs.put("a pack that is taken late")
    told.put(("labelled", Labelled(row_bytes=1)))
    while told.empty():
        time.sleep(0.01)

    def late() -> None:
        while not told.empty():
            time.sleep(0.05)
        while packs.get() is not None:
            pass
        packs.get()
        told.put(("labelled", Labelled(row_bytes=2)))

    other = threading.Thread(target=late)
    other.start()
    assert [done.row_bytes for done in _ended(packs, told, [], actors=2)] == [1, 2]
    other.join()


@pytest.mark.parametrize(("visible", "gpus"), [(None, ["0", "1"]), ("5,GPU-7f", ["5", "GPU-7f"])])
def test_a_model_process_takes_a_gpu_that_is_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [labelling._gpu(place) for place in (0, 1)] == gpus


def test_what_a_child_that_ended_took_is_counted() -> None:
    before_s = decoding._cpu_s()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time())"
    took_s = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert decoding._cpu_s() - before_s >= 0.9 * took_s


def test_the_next_batch_of_a_remote_archive_is_fetched_meanwhile_as_in_a_run(tmp_path: Path) -> None:
    """Half a second a file of the network, and models that take longer: once they are busy, no file is waited for."""
    (tmp_path / "archive").mkdir()
    for number in range(10):
        write_speech(tmp_path / "archive" / f"{number}.wav", seconds=20.0, seed=number)
    bytes_each = (tmp_path / "archive" / "0.wav").stat().st_size
    company = Company(
        decoders=1,
        decode={"segmentation": "whole", "speech": False},
        crews=(),
        gpu=False,
        embeddings="none",
        audio="0" * 16,
        bundle_bytes=1,
    )
    never = SimpleNamespace(value=float("inf"))
    clock = Clock(SimpleNamespace(wait=lambda: None), SimpleNamespace(value=0.0), never)
    packs: queue.Queue[object] = queue.Queue(maxsize=1)
    told: queue.Queue[tuple[object, ...]] = queue.Queue()

    def label() -> None:
        while packs.get() is not None:
            time.sleep(0.8)

    model = threading.Thread(target=label)
    model.start()
    with served(tmp_path / "archive", bytes_per_s=2 * bytes_each) as site:
        batches = [
            ("wav", table([row(f"{site.url}/{number}.wav")]).append_column("work_s", pa.array([20.0])))
            for number in range(10)
        ]
        decoding.work(batches, company, clock, [packs], told)
    packs.put(None)
    model.join()
    assert told.get()[0] == "decoder"
    word, done, *_ = told.get()
    assert word == "decoded", done
    assert [(batch.ended, batch.failed) for batch in done] == [(1, 0)] * 10
    assert [batch.audio_s for batch in done] == pytest.approx([20.0] * 10)
    assert done[0].busy_s > 0.45
    assert min(batch.busy_s for batch in done[-3:]) < done[0].busy_s / 2
