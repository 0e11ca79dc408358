"""Relabelling from stored embeddings is labelling without audio: the same rows, resumable, safe to kill anywhere."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow.compute as pc
import pytest
from safetensors.torch import load_file, save_file

import serpipe
from serpipe.errors import ModelError, UsageError
from serpipe.models.probe import WEIGHTS
from serpipe.models.registry import resolve
from serpipe.pseudolabel import generation
from serpipe.pseudolabel import relabel as module
from serpipe.pseudolabel.recipe import Recipe, Teacher
from serpipe.pseudolabel.relabel import relabel
from serpipe.store import runs
from serpipe.store.storage import Storage
from tests import tables
from tests.bench import Bench, Killed, Mortal, short_units, write_archive
from tests.models.test_probe import write_student


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with a backbone's embeddings, and a student beside it."""
    folder = tmp_path_factory.mktemp("relabel")
    write_archive(folder / "archive")
    write_student(folder / "student")
    with pytest.MonkeyPatch.context() as patch:
        short_units(patch)
        Bench(folder / "archive", ("mel-statistics",)).run(Storage(str(folder / "store")))
        yield folder


@pytest.fixture
def store(labelled: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(labelled / "store", tmp_path / "store"))


def test_the_rows_are_those_of_the_audio(labelled: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = relabel(store, str(labelled / "student"), name="probe-1")
    direct = str(Path(store).parent / "direct")
    monkeypatch.setattr(
        "tests.bench.resolve", lambda name: resolve(f"probe-1={labelled / 'student'}" if name == "probe-1" else name)
    )
    Bench(labelled / "archive", ("mel-statistics", "probe-1")).run(Storage(direct))
    mine, theirs = serpipe.open(store), serpipe.open(direct)
    assert done.segments == mine.predictions("probe-1").num_rows == theirs.predictions("probe-1").num_rows > 5
    order = [("segment_id", "ascending")]
    left, right = mine.predictions("probe-1").sort_by(order), theirs.predictions("probe-1").sort_by(order)
    for column in left.column_names:
        if column not in tables.OF_THE_RUN:
            tables.assert_column(column, left[column], right[column], 1e-3)
    keys = ["recording_id", "unit", "final", "model", "fp", "audio", "status", "segments", "rows"]
    sort = [("model", "ascending"), ("recording_id", "ascending"), ("unit", "ascending")]
    assert mine.entries.select(keys).sort_by(sort).equals(theirs.entries.select(keys).sort_by(sort))


def test_again_there_is_nothing_to_do(labelled: Path, store: str) -> None:
    first = relabel(store, str(labelled / "student"), name="probe-1")
    before = len(runs.load(Storage(store)))
    again = relabel(store, str(labelled / "student"), name="probe-1")
    assert again.segments == 0
    assert again.done_before == serpipe.open(store).entries.filter(pc.field("model") == "probe-1").num_rows
    assert first.fp == again.fp
    assert len(runs.load(Storage(store))) == before


def test_killed_at_any_change_it_ends_as_if_it_had_not_been(
    labelled: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = str(shutil.copytree(store, tmp_path / "calm"))
    relabel(calm, str(labelled / "student"), name="probe-1")
    # A dead process's lease has tests of its own, and costs seconds.
    monkeypatch.setattr(module.lease, "Lease", lambda *_: nullcontext())
    monkeypatch.setattr(module.lease, "check", lambda *_: None)
    for torn in (False, True):
        for at in itertools.count():
            killed = str(shutil.copytree(store, tmp_path / f"killed-{at}-{torn}"))
            with monkeypatch.context() as patch:
                patch.setattr(module, "Storage", lambda root, at=at, torn=torn: Mortal(root, at, torn=torn))
                try:
                    relabel(killed, str(labelled / "student"), name="probe-1")
                except Killed:
                    pass
                else:
                    break
            relabel(killed, str(labelled / "student"), name="probe-1")
            tables.assert_same(calm, killed, tolerance=0.0)
        assert at > 4


def test_without_embeddings_it_says_what_to_do(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"RELABEL_NO_EMBEDDINGS: .* holds nothing of mel-statistics"):
        relabel(str(tmp_path / "empty"), str(labelled / "student"), name="probe-1")
    bare = str(tmp_path / "bare")
    Bench(labelled / "archive", ("mel-statistics",), embeddings="none").run(Storage(bare))
    with pytest.raises(UsageError, match=r"RELABEL_NO_EMBEDDINGS: .* keep no embeddings"):
        relabel(bare, str(labelled / "student"), name="probe-1")


def test_a_student_from_elsewhere_has_passed_no_gates_here(labelled: Path, store: str) -> None:
    relabel(store, str(labelled / "student"), name="other")
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED: student other has passed no gates of this store"):
        generation.make(store, Recipe(teachers=(Teacher(model="other"),)))


def test_a_folder_without_a_student_is_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="MODEL_CONFIG_UNREADABLE"):
        relabel(store, str(tmp_path), name="probe-1")


def test_a_sure_student_labels_and_a_deaf_one_is_refused(labelled: Path, store: str, tmp_path: Path) -> None:
    for name, weight, bias in (("sure", 1.0, 500.0), ("deaf", 0.0, 0.0)):
        folder = Path(shutil.copytree(labelled / "student", tmp_path / name))
        tensors = load_file(folder / WEIGHTS)
        tensors["out.weight"] *= weight
        tensors["out.bias"][0] += bias
        save_file(tensors, folder / WEIGHTS)
    assert relabel(store, str(tmp_path / "sure"), name="sure").segments > 5
    # Scores alone would tell it from the other as little as its labels do.
    assert set(serpipe.open(store).predictions("sure")["confidence"].to_pylist()) == {1.0}
    with pytest.raises(ModelError, match="MODEL_DEAF: deaf gives the same answer to every embedding"):
        relabel(store, str(tmp_path / "deaf"), name="deaf")
