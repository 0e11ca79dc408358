"""Packs in, packs with results and failures out: what the model stage appends, drops and refuses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from numpy.typing import NDArray

import serpipe
from serpipe.errors import ModelError
from serpipe.models.lanes import Lanes
from serpipe.models.registry import resolve
from serpipe.models.results import result_type
from serpipe.pack import rows_of, samples_of
from serpipe.store import schemas
from serpipe.testing import speech_like, write_speech
from tests import thirdparty

NOT_FINITE = """
def load(spec, directory, *, device, dtype):
    class Sometimes(Loudness):
        def forward(self, waveforms, *, frames):
            outputs = super().forward(waveforms, frames=frames)
            for i, waveform in enumerate(waveforms):
                if len(waveform) < 16_000:
                    outputs.scores[i, 0] = np.nan
                elif len(waveform) < 24_000:
                    outputs.embeddings[i, 1] = np.inf
            return outputs
    return Sometimes()
"""

PICKY = """
def load(spec, directory, *, device, dtype):
    class Picky(Loudness):
        def forward(self, waveforms, *, frames):
            if any(len(waveform) < 24_000 for waveform in waveforms):
                raise ValueError("kernel size can't be greater than actual input size")
            return super().forward(waveforms, frames=frames)
    return Picky()
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    write_speech(folder / "a.wav", seconds=5.5, seed=1)
    write_speech(folder / "b.wav", seconds=3.2, seed=2)
    write_speech(folder / "c-tiny.wav", seconds=0.02, seed=3)
    voice = speech_like(2.0, seed=4)
    soundfile.write(folder / "d-silent.wav", np.concatenate([voice, np.zeros(48_000, np.float32), voice]), 16_000)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> object:
    site = tmp_path_factory.mktemp("site")
    thirdparty.install(site, "stage_level", "stage_nan", "stage_picky")
    for name, load in (("stage_nan", NOT_FINITE), ("stage_picky", PICKY)):
        with (site / f"{name}.py").open("a") as file:
            file.write(load)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield


@pytest.fixture(scope="module")
def pack(archive: Path) -> pa.Table:
    decode = serpipe.Decode(segmentation="window:2/2", speech=False)
    (pack,) = decode(serpipe.read_manifest(str(archive)))
    return pack


def _failures(labelled: pa.Table, name: str) -> dict[int, str]:
    rows = rows_of(labelled, f"failures:{name}")
    return dict(zip(rows["segment"].to_pylist(), rows["code"].to_pylist(), strict=True))


def test_silent_and_short_segments_are_left_out(pack: pa.Table) -> None:
    """a: 3 windows, b: 2, the tiny one, then 2, 2, 2 and 1 s of which the second is silent."""
    labelled = serpipe.Predict(["embedded"])(pack)
    segments = rows_of(pack, "segments").to_pylist()
    uris = [rows_of(pack, "units")["uri"][segment["unit"]].as_py().rsplit("/", 1)[1] for segment in segments]
    tiny, silent = uris.index("c-tiny.wav"), uris.index("d-silent.wav") + 1
    assert segments[silent]["peak"] == 0.0
    results = rows_of(labelled, "results:embedded")
    assert results["segment"].to_pylist() == [i for i in range(len(segments)) if i not in (tiny, silent)]
    # Silence is the decoder's to report, once; shortness is each model's own.
    assert _failures(labelled, "embedded") == {tiny: "SEGMENT_TOO_SHORT"}
    assert {row["code"] for row in rows_of(pack, "failures").to_pylist()} == {"SEGMENT_SILENT"}
    (message,) = rows_of(labelled, "failures:embedded")["message"].to_pylist()
    assert message == "0.020 s is shorter than the model's least, 0.025 s"


def test_results_are_the_models_numbers_for_the_segments_samples(pack: pa.Table) -> None:
    labelled = serpipe.Predict(["embedded"], embeddings="frame")(pack)
    model, audio = resolve("embedded").load("cpu"), samples_of(pack)
    segments = rows_of(pack, "segments").to_pylist()
    for row in rows_of(labelled, "results:embedded").to_pylist():
        segment = segments[row["segment"]]
        alone = model.forward([audio[segment["offset"] :][: segment["length"]]], frames=True)
        np.testing.assert_allclose(row["logits"], alone.logits[0], atol=1e-4)
        np.testing.assert_allclose(row["scores"], alone.scores[0], atol=1e-4)
        np.testing.assert_allclose(row["embedding"], alone.embeddings[0], rtol=2e-3, atol=2e-3)
        assert alone.frames is not None
        np.testing.assert_allclose(np.array(row["frames"]), alone.frames[0], rtol=2e-3, atol=4e-3)


def test_what_is_not_finite_is_a_failure_and_not_a_row(pack: pa.Table) -> None:
    labelled = serpipe.Predict(["stage_nan"])(pack)
    lengths = rows_of(pack, "segments")["length"].to_numpy()
    peaks = rows_of(pack, "segments")["peak"].to_numpy()
    failures = _failures(labelled, "stage_nan")
    broken = {i for i in range(len(lengths)) if 1600 <= lengths[i] < 24_000 and peaks[i] > 0}
    assert len(broken) >= 2
    assert {i for i, code in failures.items() if code == "MODEL_NOT_FINITE"} == broken
    labelled_segments = set(rows_of(labelled, "results:stage_nan")["segment"].to_pylist())
    assert not labelled_segments & set(failures)
    assert labelled_segments | set(failures) == {i for i in range(len(lengths)) if peaks[i] > 0}


def test_a_segment_on_which_the_network_fails_costs_its_neighbours_nothing(pack: pa.Table) -> None:
    labelled = serpipe.Predict(["stage_picky"])(pack)
    calm = serpipe.Predict(["stage_level"])(pack)
    failures = _failures(labelled, "stage_picky")
    refused = {i for i, code in failures.items() if code == "MODEL_FAILED"}
    rows = {row["segment"]: row for row in rows_of(calm, "results:stage_level").to_pylist()}
    lengths = rows_of(pack, "segments")["length"].to_pylist()
    assert refused == {i for i in rows if lengths[i] < 24_000}
    assert refused
    mine = {row["segment"]: row for row in rows_of(labelled, "results:stage_picky").to_pylist()}
    assert mine == {i: row for i, row in rows.items() if i not in refused}
    messages = [row["message"] for row in rows_of(labelled, "failures:stage_picky").to_pylist()]
    assert any("ValueError: kernel size" in message for message in messages)


@pytest.mark.parametrize("count", [1, 2])
def test_calls_that_overlap_give_what_calls_in_turn_give(pack: pa.Table, count: int) -> None:
    """Also where the network fails on some segments, and those are tried one by one."""
    names = ["embedded", "stage_level", "stage_picky"]
    stage = serpipe.Predict(names, keep_audio=True)
    alone = stage(pack)
    stage._lanes = Lanes(count)
    meeting = threading.Barrier(4, timeout=60)

    def label(_: int) -> pa.Table:
        meeting.wait()
        return stage(pack)

    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(label, range(8)))
    for labelled in together:
        assert labelled.column_names == alone.column_names
        for name in names:
            assert _failures(labelled, name) == _failures(alone, name)
            ours, theirs = (rows_of(table, f"results:{name}") for table in (labelled, alone))
            assert ours["segment"].equals(theirs["segment"])
            assert ours["label"].equals(theirs["label"])
            np.testing.assert_allclose(_flat(ours["logits"]), _flat(theirs["logits"]), atol=1e-4)
            np.testing.assert_allclose(_flat(ours["scores"]), _flat(theirs["scores"]), atol=1e-5)


def _flat(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(column.combine_chunks().flatten())


def test_every_model_appends_its_own_columns(pack: pa.Table) -> None:
    labelled = serpipe.Predict(["embedded", "stage_level"])(pack)
    assert labelled.num_rows == 1
    assert labelled.column_names == [
        *(name for name in pack.column_names if name != "audio"),
        "results:embedded",
        "failures:embedded",
        "results:stage_level",
        "failures:stage_level",
    ]
    for name in ("embedded", "stage_level"):
        assert labelled.schema.field(f"results:{name}").type.value_type == result_type(
            resolve(name).spec.embedding_width
        )
    # One may take what another does not: the second model wants a tenth of a second.
    assert set(_failures(labelled, "stage_level")) == set(_failures(labelled, "embedded"))
    # One stage with both models, or a stage each.
    first = serpipe.Predict(["embedded"], keep_audio=True)(pack)
    assert first.column("audio").equals(pack.column("audio"))
    second = serpipe.Predict(["stage_level"])(first)
    assert second.equals(labelled)


@pytest.mark.parametrize(
    ("kind", "nulls"), [("none", (True, True)), ("utterance", (False, True)), ("frame", (False, False))]
)
def test_embeddings_that_were_asked_for(pack: pa.Table, kind: str, nulls: tuple[bool, bool]) -> None:
    results = rows_of(serpipe.Predict(["embedded"], embeddings=kind)(pack), "results:embedded")
    assert results.num_rows > 5
    for name, null in zip(("embedding", "frames"), nulls, strict=True):
        assert results[name].null_count == (results.num_rows if null else 0)


def test_only_wanted_units_are_labelled(archive: Path) -> None:
    """A unit that one model has settled is emitted for the other alone."""
    models = {name: resolve(name).fp for name in ("embedded", "stage_level")}
    recordings = serpipe.read_manifest(str(archive / "a.wav"))
    entry = {"unit": 0, "model": "embedded", "fp": models["embedded"], "status": "labelled"}
    kind = pa.list_(
        pa.struct([("unit", pa.int32()), ("model", pa.string()), ("fp", pa.string()), ("status", pa.string())])
    )
    recordings = recordings.append_column("settled", pa.array([[entry]], kind))
    decode = serpipe.Decode(segmentation="window:2/2", speech=False, models=models)
    (pack,) = decode(recordings)
    labelled = serpipe.Predict(list(models))(pack)
    count = rows_of(pack, "segments").num_rows
    assert count > 1
    assert rows_of(labelled, "results:embedded").num_rows == rows_of(labelled, "failures:embedded").num_rows == 0
    done = rows_of(labelled, "results:stage_level").num_rows + rows_of(labelled, "failures:stage_level").num_rows
    assert done == count


@pytest.mark.parametrize("rows", [0, 2])
def test_a_batch_of_packs_is_refused(pack: pa.Table, rows: int) -> None:
    packs = pa.concat_tables([pack] * rows) if rows else pack.slice(0, 0)
    with pytest.raises(ModelError, match=rf"MODEL_NEEDS_PACKS: a batch of {rows} packs; use batch_size=1"):
        serpipe.Predict(["embedded"])(packs)


def test_flatten_is_a_row_per_segment_and_model(pack: pa.Table) -> None:
    labelled = serpipe.Predict(["embedded", "stage_level"])(pack)
    rows = serpipe.flatten(pa.concat_tables([labelled, labelled]))
    results = {name: rows_of(labelled, f"results:{name}") for name in ("embedded", "stage_level")}
    assert rows.num_rows == 2 * sum(table.num_rows for table in results.values())
    assert set(rows.column_names) == {"uri", "model", "embedding", *schemas.PREDICTIONS.names} - {"run_id"}
    assert set(rows["model"].to_pylist()) == set(results)
    for row in rows.to_pylist():
        assert row["label"] == row["labels"][int(np.argmax(row["scores"]))]
        assert row["confidence"] == max(row["scores"])
        assert len(row["embedding"]) == resolve(row["model"]).spec.embedding_width
        assert row["end_s"] > row["start_s"]


def test_flatten_of_packs_without_segments(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    decode, predict = serpipe.Decode(segmentation="window:2/2"), serpipe.Predict(["embedded"])
    (labelled,) = [predict(pack) for pack in decode(serpipe.read_manifest(str(tmp_path)))]
    assert serpipe.flatten(labelled).num_rows == 0
    assert serpipe.flatten(labelled.slice(0, 0)).num_rows == 0
