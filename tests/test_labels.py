"""Taxonomies: nothing invented, nothing counted twice, and what is lost on the way is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serpipe.labels import CANONICAL, COARSER, TAXONOMIES, canonical, coarser, emotion_of

taxonomies = st.sampled_from(sorted(TAXONOMIES))


def probabilities(width: int) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(0, 5), st.just(width))
    raw = hnp.arrays(np.float32, shape, elements=st.floats(np.float32(0.01), 1, width=32))
    return raw.map(lambda values: (values / values.sum(axis=1, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize("name", sorted(TAXONOMIES))
def test_every_raw_label_means_one_canonical_emotion_or_none(name: str) -> None:
    meant = [emotion for emotion in TAXONOMIES[name].values() if emotion is not None]
    assert set(meant) <= set(CANONICAL)
    assert len(meant) == len(set(meant))
    assert all(emotion_of(raw, name) == emotion for raw, emotion in TAXONOMIES[name].items())


@pytest.mark.parametrize(
    ("raw", "taxonomy", "emotion"),
    [
        ("ang", "iemocap4", "anger"),
        ("hap", "iemocap4", "happiness"),
        ("难过/sad", "emotion2vec9", "sadness"),
        ("其他/other", "emotion2vec9", "other"),
        ("<unk>", "emotion2vec9", None),
        ("Contempt", "msp8", "contempt"),
        ("calm", "ravdess8", "calm"),
        ("fearful", "ravdess8", "fear"),
        ("Angry", "ravdess8", None),
        ("anger", "no such taxonomy", None),
    ],
)
def test_emotions(raw: str, taxonomy: str, emotion: str | None) -> None:
    assert emotion_of(raw, taxonomy) == emotion


@given(taxonomy=taxonomies, data=st.data())
def test_canonical_scores_add_up_to_the_mapped_mass(taxonomy: str, data: st.DataObject) -> None:
    labels = data.draw(st.permutations(sorted(TAXONOMIES[taxonomy])))
    scores = data.draw(probabilities(len(labels)))
    table, mass = canonical(scores, labels, taxonomy)
    assert table.shape == (len(scores), len(CANONICAL))
    np.testing.assert_allclose(np.nansum(table, axis=1), mass, atol=1e-5)
    assert np.all(mass <= 1 + 1e-5)
    support = {TAXONOMIES[taxonomy][label] for label in labels}
    for place, emotion in enumerate(CANONICAL):
        if emotion in support:
            column = [place for place, label in enumerate(labels) if TAXONOMIES[taxonomy][label] == emotion]
            np.testing.assert_allclose(table[:, place], scores[:, column].sum(axis=1), rtol=1e-6)
        else:
            assert np.isnan(table[:, place]).all()


@given(scores=probabilities(3))
def test_a_taxonomy_nobody_knows_maps_nothing(scores: np.ndarray) -> None:
    table, mass = canonical(scores, ["a", "b", "c"], "unheard of")
    assert np.isnan(table).all()
    assert (mass == 0).all()


@pytest.mark.parametrize("name", sorted(COARSER))
def test_coarser_sets_say_what_they_lose(name: str) -> None:
    target = COARSER[name]
    assert set(target.emotions) <= set(CANONICAL)
    assert set(target.mapping) <= set(CANONICAL)
    assert set(target.mapping.values()) <= set(target.emotions)
    assert set(target.lossy) == {emotion for emotion, into in target.mapping.items() if into != emotion}


@given(name=st.sampled_from(sorted(COARSER)), taxonomy=taxonomies, data=st.data())
def test_coarser_scores_only_add_up(name: str, taxonomy: str, data: st.DataObject) -> None:
    labels = sorted(TAXONOMIES[taxonomy])
    scores = data.draw(probabilities(len(labels)))
    table, _ = canonical(scores, labels, taxonomy)
    target, got = COARSER[name], coarser(table, name)
    assert got.shape == (len(scores), len(target.emotions))
    for row, result in zip(table, got, strict=True):
        for place, emotion in enumerate(target.emotions):
            parts = [
                value
                for value, source in zip(row, CANONICAL, strict=True)
                if target.mapping.get(source) == emotion and not np.isnan(value)
            ]
            if parts:
                assert result[place] == pytest.approx(sum(parts), abs=1e-6)
            else:
                assert np.isnan(result[place])
