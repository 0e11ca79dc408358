"""Calibration: making a teacher's scores mean what they say, on gold it was not trained on.

Scores are first restricted to the generation's classes and made to add up to one. For a softmax model that is the
softmax over those classes' logits, so a temperature on the logarithm of the scores is the temperature on its logits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

Method = Literal["temperature", "vector", "none"]

LEAST = 1e-12
"""Scores below this count as this: their logarithm stays finite and no single clip decides a fit."""

TEMPERATURES = (0.05, 20.0)
"""What a temperature may be; a fit at an end says that the scores carry nothing, or that gold is tiny."""

VECTOR_FROM = 500
"""Gold segments from which `auto` fits a weight and a bias a class."""

LEAST_GOLD = 20
"""Gold segments without which nothing is fitted."""

L2 = 1e-3
"""Pull of vector scaling towards the plain scores, per gold segment, so that a class without gold stays finite."""

BINS = 15
"""Of the expected calibration error, equal in width (Guo et al. 2017)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How one teacher's scores become probabilities: softmax(weights * log(scores) + biases).

    Attributes:
        method: what was fitted.
        weights: one a class; 1 / temperature for temperature scaling.
        biases: one a class.
        segments: gold segments it was fitted on.
        ece_before: expected calibration error there, before; None where nothing was fitted.
        ece_after: and after.
        nll_before: mean negative log-likelihood there, nats, before.
        nll_after: and after.
    """

    method: Method
    weights: tuple[float, ...]
    biases: tuple[float, ...]
    segments: int = 0
    ece_before: float | None = None
    ece_after: float | None = None
    nll_before: float | None = None
    nll_after: float | None = None

    @property
    def temperature(self) -> float | None:
        """The temperature; None for vector scaling."""
        return 1 / self.weights[0] if self.method == "temperature" else None

    def to_dict(self) -> dict[str, Any]:
        """For the generation's record."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**plain, "temperature": self.temperature}


def identity(classes: int) -> Calibration:
    """Scores as they are."""
    return Calibration(method="none", weights=(1.0,) * classes, biases=(0.0,) * classes)


def normalised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores that add up to one within the classes.

    Args:
        scores: float64 (classes, n); NaN where there is none.
    """
    safe = np.maximum(scores, LEAST)
    return np.asarray(safe / _added(safe))


def apply(calibration: Calibration, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of the classes.

    Args:
        calibration: from `fit`, or `identity`.
        scores: float64 (classes, n), of the model; need not add up to one.

    Returns:
        float64 (classes, n); NaN where a score is.

    Examples:
        >>> half = Calibration(method="temperature", weights=(0.5, 0.5), biases=(0.0, 0.0))
        >>> apply(half, np.array([[0.9], [0.1]])).round(3).T.tolist()
        [[0.75, 0.25]]
    """
    if calibration.method == "none":
        return normalised(scores)
    logits = np.log(np.maximum(scores, LEAST))
    logits = np.array(calibration.weights)[:, None] * logits + np.array(calibration.biases)[:, None]
    return _softmax(logits)


def fit(scores: NDArray[np.float64], truth: NDArray[np.int64], method: Literal["auto"] | Method) -> Calibration:
    """Fit on gold by maximum likelihood.

    Args:
        scores: float64 (classes, n), finite.
        truth: int (n,), the gold class.
        method: what to fit.

    Returns:
        `identity` where gold has fewer than `LEAST_GOLD` segments.
    """
    classes, count = scores.shape
    if method == "none" or count < LEAST_GOLD:
        return identity(classes)
    if method == "auto":
        method = "vector" if count >= VECTOR_FROM else "temperature"
    logits = np.log(np.maximum(scores, LEAST))
    weights, biases = _vector(logits, truth) if method == "vector" else _temperature(logits, truth)
    before = normalised(scores)
    fitted = Calibration(method=method, weights=weights, biases=biases, segments=count)
    after = apply(fitted, scores)
    return Calibration(
        method=method,
        weights=weights,
        biases=biases,
        segments=count,
        ece_before=ece(before, truth),
        ece_after=ece(after, truth),
        nll_before=nll(before, truth),
        nll_after=nll(after, truth),
    )


def nll(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood, nats."""
    return float(-np.mean(np.log(np.maximum(probabilities[truth, np.arange(len(truth))], LEAST))))


def ece(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, on average over `BINS` equal bins.

    Examples:
        >>> ece(np.array([[0.9, 0.9], [0.1, 0.1]]), np.array([0, 1])).__round__(3)
        0.4
    """
    confidence, right = probabilities.max(axis=0), probabilities.argmax(axis=0) == truth
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(place, right.astype(np.float64) - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(truth))


def _temperature(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: nll(_softmax(logits / np.exp(log_t)), truth),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-8},
    )
    classes = len(logits)
    return (float(np.exp(-found.x)),) * classes, (0.0,) * classes


def _vector(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    classes, count = logits.shape
    right = np.zeros_like(logits)
    right[truth, np.arange(count)] = 1

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, biases = parameters[:classes], parameters[classes:]
        probabilities = _softmax(weights[:, None] * logits + biases[:, None])
        error = (probabilities - right) / count
        pull = L2 * np.concatenate([weights - 1, biases])
        gradient = np.concatenate([(error * logits).sum(axis=1), error.sum(axis=1)]) + pull
        return nll(probabilities, truth) + 0.5 * L2 * float(((weights - 1) ** 2).sum() + (biases**2).sum()), gradient

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8})
    return tuple(map(float, found.x[:classes])), tuple(map(float, found.x[classes:]))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / _added(powers))


def _added(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum over classes, class after class: the same whatever the number of columns."""
    total: NDArray[np.float64] = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total
