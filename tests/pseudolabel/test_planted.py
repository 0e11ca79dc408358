"""Planted gold: how often the labels are right that a generation would have kept."""

from __future__ import annotations

import csv
from pathlib import Path

from serpipe.pseudolabel import generation, schemas
from serpipe.pseudolabel.recipe import Budget, Quality, Recipe, Teacher
from serpipe.store.storage import Storage
from serpipe.testing.labelled import MadeUpModel, write_labelled_store

GOLD = 200


def test_labels_that_would_have_been_kept_are_judged_by_people(tmp_path: Path) -> None:
    """The same clips in a generation without gold, where nothing sets them apart, pass as was foretold."""
    root, gold = str(tmp_path / "store"), str(tmp_path / "gold.csv")
    models = [MadeUpModel(name="a", skill=2.0), MadeUpModel(name="b", taxonomy="iemocap4", skill=2.0)]
    made = write_labelled_store(root, models, recordings=20, segments=20)
    with Path(gold).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "start", "end", "label", "speaker", "split"])
        for place in range(GOLD):
            row = [made.uris[place], made.starts[place], made.starts[place] + 4, made.truth[place]]
            writer.writerow([*row, made.speakers[place], "test" if place < GOLD // 2 else "final"])
    recipe = Recipe(
        teachers=(Teacher(model="a"), Teacher(model="b")),
        budget=Budget(least_hours=1000),
        quality=Quality(snr_db=-50, clipping=1.0),
    )
    record = generation.make(root, recipe, gold=gold)
    planted = record["gold"]["planted"]
    truth = dict(zip(made.segment_ids[: GOLD // 2], made.truth[: GOLD // 2], strict=True))
    rows = [row for row in generation.rows(Storage(root), 1).to_pylist() if row["segment_id"] in truth]
    assert all(row["reason"] == "gold" for row in rows)
    assert planted["clips"] == GOLD // 2
    assert planted["right"] == sum(row["label"] == truth[row["segment_id"]] for row in rows)
    # Nothing was calibrated on these splits, so that without gold the same consensus decides.
    free = generation.make(root, recipe)
    assert free["gold"] is None
    kept = [
        row["label"] == truth[row["segment_id"]]
        for row in generation.rows(Storage(root), free["number"]).to_pylist()
        if row["segment_id"] in truth
        and row["reason"] not in schemas.LOCAL_STAGES
        and row["confidence"] >= record["thresholds"][row["label"]]
    ]
    assert (planted["kept"], planted["kept_right"]) == (len(kept), sum(kept))
    assert 20 < planted["kept"] < planted["clips"]
    assert planted["kept_right"] / planted["kept"] > planted["right"] / planted["clips"]
