"""Coherence of arousal, valence and words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.stats import multivariate_normal

from serpipe.pseudolabel import coherence

CLASSES = ("anger", "happiness", "neutral")


def test_what_fits_is_what_scipys_gaussian_finds_likely() -> None:
    random = np.random.default_rng(5)
    gold = random.multivariate_normal([0.7, 0.3], [[0.02, 0.01], [0.01, 0.03]], 200).T
    known = coherence.ellipses(gold, ["anger"] * 200, percentile=5.0, least=30)
    reference = multivariate_normal(gold.mean(axis=1), np.cov(gold) + coherence.RIDGE * np.eye(2))
    least = np.percentile(reference.logpdf(gold.T), 5)
    points = random.uniform(0, 1, (2, 500))
    fits, compared = coherence.dimensions_fit(points, np.zeros(500, np.int64), CLASSES, known)
    assert compared.all()
    likely = reference.logpdf(points.T) >= least
    # At the very edge the percentile of distances and of likelihoods may differ in the last digit.
    edge = np.abs(reference.logpdf(points.T) - least) < 1e-9
    np.testing.assert_array_equal(fits[~edge], likely[~edge])
    assert 0 < fits.sum() < 500
    own, _ = coherence.dimensions_fit(gold, np.zeros(200, np.int64), CLASSES, known)
    assert own.sum() == 190


def test_a_class_with_little_gold_has_its_region_and_others_pass() -> None:
    known = coherence.ellipses(np.full((2, 5), 0.5), ["anger"] * 5, percentile=5.0, least=30)
    assert known == {}
    points = np.array([[0.8, 0.2, 0.5, 0.5, np.nan], [0.2, 0.2, 0.2, 0.0, 0.5]])
    fits, compared = coherence.dimensions_fit(points, np.array([0, 0, 1, 2, 0]), CLASSES, known)
    assert fits.tolist()[:3] == [True, False, False]
    assert compared.tolist() == [True, True, True, False, False]


def test_words_contradict_only_where_they_name_another_emotion() -> None:
    words = pa.array(["ANGRY", "happy", "neutral", "bored", None, "fear", "", "other", "oth", "<unk>"])
    fits, compared = coherence.text_fits(words, np.zeros(10, np.int64), CLASSES)
    assert fits.tolist() == [True, False, True, True, True, False, True, True, True, True]
    assert compared.tolist() == [True, True, False, False, False, True, False, False, False, False]
