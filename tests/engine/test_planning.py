"""A forecast is of the run that follows, and leaves no trace in the store."""

from __future__ import annotations

import json
from dataclasses import replace
from multiprocessing import Event, Queue, Value
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from click.testing import CliRunner

import serpipe
from serpipe.cli import main
from serpipe.engine import catalogue
from serpipe.engine.planning import plan_ahead
from serpipe.errors import SerpipeError, UsageError
from serpipe.models.registry import resolve
from serpipe.pack import rows_of
from serpipe.rehearsal import Company, Crew, decoding, labelling, rehearse
from serpipe.rehearsal.company import Clock
from serpipe.store import runs
from serpipe.store.storage import Storage
from serpipe.testing import speech_like, write_speech
from tests.bench import Bench, write_archive

SEGMENTATION = "window:2/2"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_forecast_is_of_the_run_that_follows(tmp_path: Path) -> None:
    archive, store = tmp_path / "archive", tmp_path / "store"
    write_archive(archive)
    asked = {"segmentation": SEGMENTATION, "speech": False, "rehearse_s": 5.0, "cpus": 2.0, "gpus": 0.0}
    told = plan_ahead(str(archive), str(store), **asked)  # type: ignore[arg-type]
    assert not store.exists()
    bench = Bench(archive, ("embedded",))
    assert bench.run(Storage(str(store))) == told.work.recordings == 6
    found = serpipe.open(str(store))
    seconds = sum(found.recordings()["duration_s"].to_pylist())
    assert told.work.audio_s.value == pytest.approx(seconds, rel=0.1)
    assert told.segments.low - 0.5 <= found.segments().num_rows <= told.segments.high + 0.5
    assert told.quarantined.value == len(set(found.failing()["uri"].to_pylist()))
    assert set(told.bytes) >= {"segments", "predictions", "embeddings", "recordings"}

    before = bytes_of(store)
    again = plan_ahead(str(archive), str(store), **asked)  # type: ignore[arg-type]
    assert (again.work.recordings, again.rehearsal, again.work.done) == (0, None, 6)
    assert again.work.failed == len(set(found.failing()["recording_id"].to_pylist()))
    assert bytes_of(store) == before


def test_the_command_speaks_json_and_assumes_gpus_aloud(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write_archive(archive)
    words = ["plan", str(archive), str(tmp_path / "store"), "--segment", SEGMENTATION, "--rehearse", "2", "--json"]
    priced = ["--gpus", "8", "--cpus", "128", "--price-gpu-hour", "3.2", "--out", str(tmp_path / "forecast.json")]
    done = CliRunner().invoke(main, [*words, *priced])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "forecast.json").read_text())
    assert told["cost"] == pytest.approx(told["wall_s"] / 3600 * 8 * 3.2)
    assert told["gpu_hours"] > 0
    assert told["cores_per_gpu"] > 0
    if told["rehearsal"]["models"]["embedded"]["where"] == "assumed":
        assert any("not rehearsed" in note for note in told["notes"])
        assert "what the CPUs cost is not in the cost; --price-cpu-hour adds it" in told["notes"]


def test_each_pool_is_rehearsed_with_its_own_models_alone(tmp_path: Path) -> None:
    """As in a run: a pack passes one pool after the other, and no process loads what another one hosts."""
    write_archive(tmp_path / "archive")
    told = plan_ahead(
        str(tmp_path / "archive"),
        str(tmp_path / "store"),
        models=("embedded", "mel-statistics"),
        pools=("mel-statistics:1",),
        segmentation=SEGMENTATION,
        speech=False,
        rehearse_s=2.0,
        cpus=4.0,
        gpus=0.0,
    )
    assert told.rehearsal is not None
    assert all(told.rehearsal.models[name].busy_s > 0 for name in ("embedded", "mel-statistics"))
    assert [pool.models for pool in told.pools] == [("mel-statistics",), ("embedded",)]
    # The last pool writes what all have labelled.
    assert told.bytes["predictions"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ["--cpus", "128", "--decoders", "64"],
        ["--cpus", "16", "--gpus", "4", "--pool", "mel-statistics:2", "--pool", "embedded:2"],
    ],
)
def test_a_cluster_larger_than_this_machine_may_have_more_actors_than_it_could(
    options: list[str], tmp_path: Path
) -> None:
    write_archive(tmp_path / "archive")
    words = ["plan", str(tmp_path / "archive"), str(tmp_path / "store"), "--segment", SEGMENTATION, "--rehearse", "1"]
    models = ["--model", "embedded", "--model", "mel-statistics"]
    done = CliRunner().invoke(main, [*words, *models, "--json", *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    if "--decoders" in options:
        assert told["decoders"] == 64
    else:
        assert [(pool["models"], pool["actors"]) for pool in told["pools"]] == [
            (["mel-statistics"], 2),
            (["embedded"], 2),
        ]
    assert all(told["rehearsal"]["models"][name]["busy_s"] > 0 for name in ("embedded", "mel-statistics"))


def test_a_model_process_loads_the_models_of_its_pool() -> None:
    crews = tuple(Crew(models=(resolve(name),), actors=1, threads=1) for name in ("embedded", "mel-statistics"))
    company = Company(
        decoders=1, decode={}, crews=crews, gpu=False, embeddings="none", audio="0" * 16, bundle_bytes=1 << 20
    )
    assert [[*labelling._loaded(company, crew)] for crew in crews] == [["embedded"], ["mel-statistics"]]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--model", "embeded"], "MODEL_UNKNOWN"),
        (["--pool", "nobody"], "POOL_UNKNOWN"),
        (["--segment", "window:3/6"], "SEGMENTATION_INVALID"),
        (["--column", "uri"], "COLUMN_INVALID"),
        (["--out", "nowhere/forecast.json"], "no file can be written to"),
        (["--cpus", "0.5"], "CLUSTER_TOO_FEW_CPUS"),
    ],
)
def test_a_request_without_sense_is_refused_as_by_label(tmp_path: Path, options: list[str], code: str) -> None:
    write_archive(tmp_path / "archive")
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "archive"), str(tmp_path / "store"), *options])
    assert done.exit_code == 2
    assert code in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_plan_that_fails_leaves_the_forecast_that_was_kept(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    kept = tmp_path / "kept" / "forecast.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    words = ["plan", str(tmp_path / "archive"), str(tmp_path / "store"), "--model", "embeded", "--out", str(kept)]
    assert CliRunner().invoke(main, words).exit_code == 2
    assert {path.name: path.read_text() for path in kept.parent.iterdir()} == {"forecast.json": "{}"}


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_rehearsal_with_its_reason(tmp_path: Path) -> None:
    lost = replace(resolve("embedded"), location=str(tmp_path / "nowhere"))
    company = Company(
        decoders=1,
        decode={"segmentation": SEGMENTATION, "models": {"embedded": lost.fp}},
        crews=(Crew(models=(lost,), actors=1, threads=1),),
        gpu=False,
        embeddings="none",
        audio="0" * 16,
        bundle_bytes=1 << 20,
    )
    with pytest.raises(SerpipeError):
        rehearse([], company, seconds=1.0, shares={})


def test_pieces_of_a_pack_are_all_of_it(tmp_path: Path) -> None:
    write_archive(tmp_path)
    decode = serpipe.Decode(segmentation="window:0.5/0.5", speech=False, pack_seconds=600.0)
    (pack,) = decode(serpipe.read_manifest(str(tmp_path)))

    class Endless:
        value = np.inf

    clock = Clock(None, Endless(), Endless())
    whole = pack["segments"].combine_chunks().flatten()
    for pace in ({}, {"a": 0.01}, {"a": 100.0}):
        pieces = list(labelling._pieces(pack, {"a": None}, pace, clock))
        joined = pa.concat_arrays([piece["segments"].combine_chunks().flatten() for piece in pieces])
        assert joined.equals(whole)


def test_pieces_carry_what_an_earlier_pool_has_said_of_their_segments(tmp_path: Path) -> None:
    write_archive(tmp_path)
    decode = serpipe.Decode(segmentation="window:0.5/0.5", speech=False, pack_seconds=600.0)
    (pack,) = decode(serpipe.read_manifest(str(tmp_path)))
    labelled = serpipe.Predict(["mel-statistics"], keep_audio=True)(pack)
    every = range(0, rows_of(labelled, "segments").num_rows, 7)
    failures = pa.array([[{"segment": n, "code": "MODEL_FAILED", "message": str(n)} for n in every]])
    place = labelled.schema.get_field_index("failures:mel-statistics")
    field = labelled.schema.field(place)
    labelled = labelled.set_column(place, field, failures.cast(field.type))

    class Endless:
        value = np.inf

    clock = Clock(None, Endless(), Endless())
    pieces = list(labelling._pieces(labelled, {"a": None}, {}, clock))
    assert len(pieces) > 1
    for column in ("results:mel-statistics", "failures:mel-statistics"):
        start, found = 0, []
        for piece in pieces:
            found += [row | {"segment": row["segment"] + start} for row in rows_of(piece, column).to_pylist()]
            start += rows_of(piece, "segments").num_rows
        assert found == rows_of(labelled, column).to_pylist()


def test_a_decoder_whose_time_is_over_before_it_begins_decodes_one_batch(tmp_path: Path) -> None:
    """On a busy machine nothing would be measured, and a model of which nothing is known cost nothing."""
    write_archive(tmp_path)
    decode = {"segmentation": SEGMENTATION, "speech": False, "pack_seconds": 60.0, "models": {"embedded": "f"}}
    company = Company(
        decoders=1, decode=decode, crews=(), gpu=False, embeddings="none", audio="0" * 16, bundle_bytes=1 << 20
    )
    clock, packs, told = Clock(Event(), Value("d", 0.0), Value("d", 0.0)), Queue(), Queue()
    clock.go.set()
    rows = serpipe.read_manifest(str(tmp_path)).append_column("work_s", pa.array([9.0] * 6))
    decoding.work([("wav", rows), ("wav", rows)], company, clock, [packs], told)
    assert told.get()[0] == "decoder"
    word, done, *_ = told.get()
    assert (word, [batch.ended for batch in done]) == ("decoded", [6])
    assert packs.get().num_rows == 1


def test_a_long_recording_that_is_left_early_is_not_in_quarantine_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its silent segment was met, its end was not: of the recordings that ended, more would fail than there are."""
    monkeypatch.setattr(decoding, "ENOUGH_S", 100.0)
    voice = np.tile(speech_like(10.0), 65)
    voice[:32_000] = 0.0
    soundfile.write(tmp_path / "long.wav", voice, 16_000)
    decode = {"segmentation": SEGMENTATION, "speech": False, "pack_seconds": 60.0, "models": {"embedded": "f"}}
    company = Company(
        decoders=1, decode=decode, crews=(), gpu=False, embeddings="none", audio="0" * 16, bundle_bytes=1 << 20
    )
    clock, packs, told = Clock(Event(), Value("d", 0.0), Value("d", 0.0)), Queue(), Queue()
    clock.go.set()
    rows = serpipe.read_manifest(str(tmp_path)).append_column("work_s", pa.array([650.0]))
    decoding.work([("wav", rows)], company, clock, [packs], told)
    told.get()
    _, (batch,), *_ = told.get()
    # Taken out, or this process would wait at its end for somebody who does.
    assert packs.get().num_rows == 1
    assert (batch.packs, batch.ended, batch.failed) == (1, 0, 0)


def test_a_machine_on_which_ray_cannot_be_imported_ends_the_rehearsal_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    company = Company(
        decoders=1, decode={}, crews=(), gpu=False, embeddings="none", audio="0" * 16, bundle_bytes=1 << 20
    )
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(SerpipeError, match=r"REHEARSAL_FAILED: .*a process that imports Ray Data ends with 1"):
        rehearse([], company, seconds=1.0, shares={})


def test_a_rehearsal_without_a_segment_says_what_it_leaves_open(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "broken.wav").write_bytes(b"RIFF")
    told = plan_ahead(str(tmp_path / "archive"), str(tmp_path / "store"), rehearse_s=1.0, gpus=0.0)
    assert told.quarantined.value == 1
    assert [note for note in told.notes if "nothing to label" in note]


def test_one_silent_segment_puts_a_recording_in_quarantine(tmp_path: Path) -> None:
    for number in range(3):
        voice = speech_like(8.0, seed=number)
        voice[: 32_000 * (number > 0)] = 0.0
        soundfile.write(tmp_path / f"{number}.wav", voice, 16_000)
    asked = {"segmentation": SEGMENTATION, "speech": False, "rehearse_s": 2.0, "cpus": 2.0, "gpus": 0.0}
    told = plan_ahead(str(tmp_path), str(tmp_path / "store"), **asked)  # type: ignore[arg-type]
    storage = Storage(str(tmp_path / "store"))
    Bench(tmp_path, ("embedded",)).run(storage)
    assert told.quarantined.value == len(set(serpipe.open(storage.root).failing()["uri"].to_pylist())) == 2


def test_a_forecast_of_something_else_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_speech(tmp_path / "a" / "a.wav", seconds=4.0)
    write_speech(tmp_path / "b" / "b.wav", seconds=4.0)
    told, store = str(tmp_path / "forecast.json"), str(tmp_path / "store")
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "a"), store, "--rehearse", "1", "--out", told])
    assert done.exit_code == 0, done.output
    with pytest.raises(UsageError, match=r"FORECAST_OF_ANOTHER: .* forecasts the manifest .*/a, and this run has .*/b"):
        serpipe.label(str(tmp_path / "b"), store, forecast=told)
    with pytest.raises(UsageError, match=r"FORECAST_OF_ANOTHER: .* forecasts the store "):
        serpipe.label(str(tmp_path / "a"), f"{store}-2", forecast=told)
    with pytest.raises(UsageError, match="forecasts the models embedded, and this run has others"):
        serpipe.label(str(tmp_path / "a"), store, models=["mel-statistics"], forecast=told)
    assert not Path(store).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_run_sets_what_it_took_beside_its_forecast(tmp_path: Path) -> None:
    archive, store, told = (str(tmp_path / name) for name in ("archive", "store", "forecast.json"))
    write_archive(Path(archive))
    words = [archive, store, "--segment", SEGMENTATION]
    planned = ["plan", *words, "--rehearse", "2", "--price-cpu-hour", "0.04", "--out", told]
    for command in (planned, ["label", *words, "--forecast", told]):
        done = CliRunner().invoke(main, [*command, *(["--max-failed", "1"] if command[0] == "label" else [])])
        assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(main, ["status", store]).output
    for what in ("wall", "audio", "segments", "quarantine", "bytes", "cost"):
        assert f"\n  {what}: forecast " in shown
    (run,) = runs.load(Storage(store))
    ratios = {line.what: line.ratio for line in runs.compared(run)}
    # Mostly start: the Ray of the tests runs already, and other tests may run beside it.
    assert 0.2 < (ratios["wall"] or 0.0) < 5
    assert ratios["cost"] == pytest.approx(ratios["wall"])
    assert ratios["segments"] == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_manifest_too_large_for_one_process_leaves_no_trace_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "archive")
    listed = tmp_path / "list.csv"
    listed.write_text("uri\n" + "".join(f"{path}\n" for path in sorted((tmp_path / "archive").iterdir())))
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    told = plan_ahead(str(listed), str(tmp_path / "store"), segmentation=SEGMENTATION, rehearse_s=1.0)
    assert told.work.recordings == 6
    assert not (tmp_path / "store").exists()


def test_a_forecast_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FORECAST_UNREADABLE"):
        serpipe.label(str(tmp_path), str(tmp_path / "store"), forecast=str(tmp_path / "none.json"))
    assert not (tmp_path / "store").exists()
