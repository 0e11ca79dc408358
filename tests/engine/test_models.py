"""Every model of the registry in one pass, on random weights and real Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import serpipe
from serpipe.engine import label
from serpipe.errors import SerpipeError
from serpipe.labels import CANONICAL
from serpipe.models.registry import ModelRef, specs
from serpipe.store.storage import Storage
from serpipe.testing import make_checkpoint
from tests.tables import read


@pytest.mark.usefixtures("ray_session")
def test_all_models_in_one_pass(archive: Path, tmp_path: Path) -> None:
    wanted = [
        f"{name}={make_checkpoint(name, tmp_path / 'checkpoints' / name)}" if spec.hub_id else name
        for name, spec in specs().items()
    ]
    assert len(wanted) >= 15
    store = str(tmp_path / "store")
    result = serpipe.label(str(archive / "a"), store, models=wanted, segmentation="window:6/3", embeddings="frame")
    opened = serpipe.open(store)
    segments = opened.segments().num_rows
    assert (result.failed, result.predictions) == (0, segments * len(wanted))
    rows = opened.predictions().to_pylist()
    for name, spec in specs().items():
        mine = [row for row in rows if row["model"] == name]
        assert len({row["segment_id"] for row in mine}) == len(mine) == segments, name
        assert all(row["labels"] == list(spec.labels) for row in mine)
        assert all(len(row["scores"]) == len(row["logits"]) == len(spec.labels) for row in mine)
        if spec.kind == "categorical":
            assert all(row["label"] in spec.labels and abs(sum(row["scores"]) - 1) < 1e-4 for row in mine)
            assert all(row["arousal"] is None for row in mine)
            _assert_canonical(mine)
        elif spec.kind == "dimensional":
            assert all(row["label"] is None and row["emotion"] is None for row in mine)
            assert all(row[label] == row["scores"][i] for row in mine for i, label in enumerate(spec.labels))
        assert opened.embeddings(name).num_rows == segments
        frames = read(store, f"frames/model={name}").num_rows
        assert frames == (segments if spec.frame_rate else 0), name
    assert len(Storage(store).list("passports/")) == len(wanted)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_weights_replaced_behind_the_plan_end_the_run_and_label_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, store = tmp_path / "checkpoint", str(tmp_path / "store")
    make_checkpoint("hubert-base-superb-er", place)
    passport = label._passport

    def replaced_after(storage: Storage, model: ModelRef) -> str:
        issued = passport(storage, model)
        shutil.rmtree(place)
        make_checkpoint("hubert-base-superb-er", place, seed=1)
        return issued

    monkeypatch.setattr(label, "_passport", replaced_after)
    with pytest.raises(SerpipeError, match=r"RUN_BROKEN.*MODEL_WEIGHTS_CHANGED"):
        serpipe.label(str(archive / "a"), store, models=[f"hubert-base-superb-er={place}"], segmentation="window:6/3")
    assert serpipe.open(store).predictions().num_rows == 0


def _assert_canonical(rows: list[dict[str, object]]) -> None:
    """Null outside the support, mass kept inside."""
    for row in rows:
        scores = row["emotion_scores"]
        assert isinstance(scores, dict)
        assert list(scores) == list(CANONICAL)
        known = [score for score in scores.values() if score is not None]
        assert abs(sum(known) - row["mapped_mass"]) < 1e-5
        if row["emotion"] is not None:
            assert scores[row["emotion"]] is not None
