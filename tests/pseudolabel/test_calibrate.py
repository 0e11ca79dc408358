"""Calibration against other people's implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from serpipe.pseudolabel import calibrate


def overconfident(count: int, classes: int = 4, heat: float = 0.4) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(7)
    truth = random.integers(0, classes, count)
    logits = random.normal(size=(classes, count))
    logits[truth, np.arange(count)] += 1.5
    return logits / heat, truth


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def test_temperature_is_sklearns() -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 3, 400)
    points = random.normal(size=(400, 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[truth]
    # Hardly regularised on few points, so that it is sure of itself.
    model = LogisticRegression(C=1e4).fit(points[:30], truth[:30])
    reference = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(points[30:], truth[30:])
    ours = calibrate.fit(model.predict_proba(points[30:]).T, truth[30:], "temperature")
    assert ours.temperature is not None
    assert abs(ours.temperature - 1) > 0.05
    np.testing.assert_allclose(
        calibrate.apply(ours, model.predict_proba(points).T).T, reference.predict_proba(points), atol=2e-4
    )


def test_vector_scaling_finds_the_minimum_that_torch_finds() -> None:
    logits, truth = overconfident(300)
    scores = softmax(logits)
    ours = calibrate.fit(scores, truth, "vector")
    x, y = torch.tensor(np.log(scores).T), torch.tensor(truth)
    weights = torch.ones(4, dtype=torch.float64, requires_grad=True)
    biases = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, biases], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        pull = 0.5 * calibrate.L2 * (((weights - 1) ** 2).sum() + (biases**2).sum())
        value = torch.nn.functional.cross_entropy(x * weights + biases, y) + pull
        value.backward()
        return value

    optimiser.step(loss)
    np.testing.assert_allclose(ours.weights, weights.detach().numpy(), atol=1e-3)
    np.testing.assert_allclose(ours.biases, biases.detach().numpy(), atol=1e-3)


def test_temperature_on_restricted_scores_is_the_temperature_on_restricted_logits() -> None:
    """What makes it right to start from canonical scores of the common classes."""
    logits, _ = overconfident(50, classes=6)
    fitted = calibrate.Calibration(method="temperature", weights=(0.4,) * 3, biases=(0.0,) * 3)
    np.testing.assert_allclose(calibrate.apply(fitted, softmax(logits)[:3]), softmax(logits[:3] * 0.4), atol=1e-9)


def test_calibration_mends_overconfidence() -> None:
    logits, truth = overconfident(2000)
    for method in ("temperature", "vector"):
        fitted = calibrate.fit(softmax(logits), truth, method)
        assert fitted.ece_before is not None
        assert fitted.ece_after is not None
        assert fitted.ece_after < 0.3 * fitted.ece_before
    temperature = calibrate.fit(softmax(logits), truth, "temperature").temperature
    # Unit normals that truth moves by 1.5 have log odds of 1.5 times their difference.
    assert temperature == pytest.approx(1 / (0.4 * 1.5), rel=0.1)


def test_expected_calibration_error_is_its_definition() -> None:
    logits, truth = overconfident(500)
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=0), probabilities.argmax(axis=0) == truth
    edges = np.linspace(0, 1, calibrate.BINS + 1)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        mine = (confidence >= low) & ((confidence < high) | (high == 1))
        if mine.any():
            expected += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
    assert calibrate.ece(probabilities, truth) == pytest.approx(expected, abs=1e-12)


def test_too_little_gold_fits_nothing() -> None:
    logits, truth = overconfident(calibrate.LEAST_GOLD - 1)
    fitted = calibrate.fit(softmax(logits), truth, "auto")
    assert fitted.method == "none"
    np.testing.assert_array_equal(calibrate.apply(fitted, softmax(logits)), calibrate.normalised(softmax(logits)))


def test_auto_takes_vector_scaling_where_gold_suffices() -> None:
    for count, method in ((calibrate.VECTOR_FROM - 1, "temperature"), (calibrate.VECTOR_FROM, "vector")):
        logits, truth = overconfident(count)
        assert calibrate.fit(softmax(logits), truth, "auto").method == method


def test_a_score_of_zero_and_a_missing_one_stay_what_they_are() -> None:
    scores = np.array([[1.0, np.nan], [0.0, np.nan]])
    for fitted in (
        calibrate.identity(2),
        calibrate.Calibration(method="vector", weights=(2.0, 1.0), biases=(0.0, 1.0)),
    ):
        result = calibrate.apply(fitted, scores)
        assert np.isfinite(result[:, 0]).all()
        assert np.isnan(result[:, 1]).all()
