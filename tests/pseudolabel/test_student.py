"""Students are known by their weights: under any name, wherever they lie, and after another took their place."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from serpipe.engine import request
from serpipe.errors import ModelError
from serpipe.models.passport import issue
from serpipe.models.registry import resolve
from serpipe.pseudolabel import student
from serpipe.store.storage import Storage
from tests.models.test_probe import write_student


def test_a_remote_student_that_was_trained_again_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    place = f"memory://{tmp_path.name}/students/generation=1"
    for seed in (0, 1):
        local = write_student(tmp_path / f"seed-{seed}", seed=seed)
        for file in Path(local).iterdir():
            fsspec.filesystem("memory").pipe_file(f"{place}/{file.name}", file.read_bytes())
        found = student.at(place, "probe-1")
        assert (found.fp, found.location) == (resolve(f"x={local}").fp, place)
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_MISSING: there is no student at memory://nowhere"):
        student.localised("memory://nowhere")


def test_what_is_known_of_weights_grows_and_is_not_unlearnt(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("passports/any-00-x.json", b'{"weights_sha256": "aa"}')
    assert student.origin(storage, "any", "00") is None
    student.register(storage, "aa", None, here=False)
    assert student.origin(storage, "any", "00") == student.Origin((), here=False)
    for number in (2, 1):
        student.register(storage, "aa", number, here=True)
    student.register(storage, "aa", 7, here=False)
    assert student.origin(storage, "any", "00") == student.Origin((1, 2), here=True)
    # What no passport speaks of goes by its name.
    names = ("probe-3", "probe-gold", "finetuned-2", "finetuned-gold", "a")
    called = {name: student.origin(storage, name, "11") for name in names}
    assert {name: origin and (origin.generations, origin.kind) for name, origin in called.items()} == {
        "probe-3": ((3,), "probe"),
        "probe-gold": ((0,), "probe"),
        "finetuned-2": ((2,), "finetuned"),
        "finetuned-gold": ((0,), "finetuned"),
        "a": None,
    }
    assert all(student.name(number, kind) in names for number, kind in ((3, "probe"), (2, "finetuned"), (0, "probe")))
    # Nor what kind it is.
    student.register(storage, "bb", 4, here=True, kind="finetuned")
    storage.put("passports/whole-00-x.json", b'{"weights_sha256": "bb"}')
    assert student.origin(storage, "whole", "00") == student.Origin((4,), here=True, kind="finetuned")


def test_a_head_that_was_trained_elsewhere_is_a_student_here_too(tmp_path: Path) -> None:
    """It labelled the archive from its audio, like any model, under a name of its own."""
    storage = Storage(str(tmp_path / "store"))
    foreign, backbone = resolve(f"mine={write_student(tmp_path / 'elsewhere')}"), resolve("mel-statistics")
    for model in (foreign, backbone):
        storage.put(request.passport(model), issue(model).text().encode())
    assert student.origin(storage, "mine", foreign.fp) == student.Origin((), here=False)
    assert student.origin(storage, "mel-statistics", backbone.fp) is None
    # Once it is known here, it is what it is known for.
    student.register(storage, foreign.weights_sha256, 3, here=True)
    assert student.origin(storage, "mine", foreign.fp) == student.Origin((3,), here=True)
