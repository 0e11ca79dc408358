"""Overlapping segments: the surest stay, as a plain loop would have it, and no two that are kept share audio."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serpipe.pseudolabel import generation
from serpipe.pseudolabel.overlap import apart
from serpipe.pseudolabel.recipe import Caps, Quality, Recipe, Select
from serpipe.store.storage import Storage
from serpipe.testing.labelled import AUDIO, MadeUpModel, write_labelled_store


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30),
    st.randoms(use_true_random=False),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_the_better_of_two_goes_before_the_other(spans: list[tuple[int, int]], random: object, share: float) -> None:
    ranks = list(range(len(spans)))
    random.shuffle(ranks)  # type: ignore[attr-defined]
    kept: list[int] = []
    for place in sorted(range(len(spans)), key=ranks.__getitem__):
        begin, length = spans[place]
        shared = [
            (min(begin + length, spans[other][0] + spans[other][1]) - max(begin, spans[other][0]), spans[other][1])
            for other in kept
        ]
        if all(both <= share * min(length, size) for both, size in shared):
            kept.append(place)
    first = np.array([begin for begin, _ in spans], np.int64)
    last = np.array([begin + length for begin, length in spans], np.int64)
    assert np.flatnonzero(apart(first, last, np.array(ranks, np.int64), share)).tolist() == sorted(kept)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Windows of six seconds every four."""
    root = str(tmp_path_factory.mktemp("overlap") / "store")
    write_labelled_store(root, [MadeUpModel(name="a", skill=4.0)], recordings=6, segments=20)
    for file in Path(root, f"segments/audio={AUDIO}").iterdir():
        table = pq.read_table(file)
        longer = pa.array(table["start_s"].to_numpy() + 6.0)
        pq.write_table(
            table.set_column(table.schema.get_field_index("end_s"), table.schema.field("end_s"), longer), file
        )
    return root


def kept_of(store: str, overlap: float) -> tuple[dict[str, list[dict[str, object]]], int]:
    recipe = Recipe(
        select=Select(overlap=overlap, margin=0.0),
        caps=Caps(per_speaker=0, feed_share=1),
        quality=Quality(snr_db=-50, clipping=1.0),
    )
    record = generation.make(store, recipe)
    (step,) = (step for step in record["funnel"] if step["stage"] == "overlap")
    found: dict[str, list[dict[str, object]]] = {}
    rows = generation.rows(Storage(store), record["number"]).to_pylist()
    assert step["dropped"] == sum(row["reason"] == "overlap" for row in rows)
    for row in rows:
        assert row["verdicts"]["overlap"] is not True or row["reason"] != "overlap"
        if row["kept"]:
            found.setdefault(row["uri"], []).append(row)
    return found, step["dropped"]


def test_no_two_kept_rows_share_audio(store: str) -> None:
    found, dropped = kept_of(store, 0.0)
    assert dropped
    assert sum(map(len, found.values())) > 6
    for rows in found.values():
        for one, other in combinations(rows, 2):
            assert one["end_s"] <= other["start_s"] or other["end_s"] <= one["start_s"]  # type: ignore[operator]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_recipe_may_let_them_share(store: str, share: float) -> None:
    """Two seconds of six are a third."""
    found, dropped = kept_of(store, share)
    assert not dropped
    starts = sorted(float(str(row["start_s"])) for row in max(found.values(), key=len))
    assert min(np.diff(starts)) == 4
