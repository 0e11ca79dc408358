"""How good labels are: accuracy, F1, AUC, agreement on dimensions, calibration, each with an interval.

Names say what a number is, because the field's own do not: `recall_macro_ua` is the mean of the recalls (UA, UAR,
balanced accuracy), `accuracy_wa` the share of right answers (WA). A reference class counts where it occurs; an answer
that is none of the classes, or no answer, is wrong.

Every number is computed for many sets of row weights at once, for a bootstrap replicate is nothing but weights: first
speakers are drawn, then clips of each drawn speaker, because clips of one voice are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats], dict[str, Floats]]

REPLICATES = 2000
"""Bootstrap replicates; 10,000 for a figure that is published."""

BINS = 15
"""Bins of equal width of the calibration error (Guo et al., On Calibration of Modern Neural Networks, 2017)."""

_CELLS = 4_000_000
"""Weights held at once: 32 MB."""

_LEAST = 1e-12
"""Probability below which a wrong certainty costs no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was said about labelled clips, and what is so.

    Attributes:
        classes: emotions, those of the reference and any others.
        truth: int (n,), index into `classes`.
        predicted: int (n,), index into `classes`; -1 for any other answer or none.
        scores: float (n, classes), probabilities; NaN where a class cannot be named.
        speakers: (n,), whose voice; the clusters of the bootstrap.
        slices: further groups to report, by name, (n,) each.
    """

    classes: tuple[str, ...]
    truth: Ints
    predicted: Ints
    scores: Floats
    speakers: NDArray[np.str_]
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: NDArray[np.bool_] | Ints) -> Answers:
        """Some of the rows."""
        return Answers(
            classes=self.classes,
            truth=self.truth[rows],
            predicted=self.predicted[rows],
            scores=self.scores[rows],
            speakers=self.speakers[rows],
            slices={name: values[rows] for name, values in self.slices.items()},
        )


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its interval.

    Attributes:
        value: over all rows.
        low: 2.5th percentile of the replicates.
        high: 97.5th percentile.
        lower_bound: 5th percentile, the one-sided 95 % bound that gates ask for.
    """

    value: float
    low: float
    high: float
    lower_bound: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def answers_of(
    truth: Sequence[str],
    scores: Floats,
    classes: Sequence[str],
    speakers: Sequence[str],
    *,
    predicted: Sequence[str | None] | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> Answers:
    """Answers from words.

    Args:
        truth: the reference, each one of `classes`.
        scores: float (n, classes), NaN where a class cannot be named.
        classes: emotions.
        speakers: whose voice each clip is.
        predicted: the answers; by default the class of the highest score.
        slices: further groups to report.

    Examples:
        >>> made = answers_of(["anger", "sadness"], np.array([[0.9, 0.1], [0.6, 0.4]]), ["anger", "sadness"], "ab")
        >>> made.predicted.tolist()
        [0, 0]
    """
    place = {name: number for number, name in enumerate(classes)}
    if predicted is None:
        known = ~np.isnan(scores).all(axis=1)
        chosen = np.where(known, np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1), -1)
    else:
        chosen = np.array([place.get(name or "", -1) for name in predicted], np.int64)
    return Answers(
        classes=tuple(classes),
        truth=np.array([place[name] for name in truth], np.int64),
        predicted=np.asarray(chosen, np.int64),
        scores=np.asarray(scores, np.float64),
        speakers=np.array(list(speakers), np.str_),
        slices={name: np.array(list(values), np.str_) for name, values in (slices or {}).items()},
    )


def replicates(speakers: NDArray[np.str_], count: int, seed: int) -> Iterator[Floats]:
    """Weights of two-level bootstrap replicates: speakers drawn with replacement, then clips of each drawn one.

    Args:
        speakers: (n,).
        count: replicates.
        seed: of the draws; the same seed and rows give the same weights, which is what pairs two models.

    Yields:
        float (some, n), the first block beginning with one row of ones: the sample itself.
    """
    names, cluster = np.unique(speakers, return_inverse=True)
    rows = [np.flatnonzero(cluster == place) for place in range(len(names))]
    random = np.random.default_rng(seed)
    block = max(1, _CELLS // max(len(speakers), 1))
    done = 0
    while done < count:
        some = min(block, count - done)
        drawn = random.multinomial(some * [len(names)], [1 / len(names)] * len(names))
        weights = np.zeros((some, len(speakers)))
        for place, mine in enumerate(rows):
            weights[:, mine] = random.multinomial(drawn[:, place] * len(mine), [1 / len(mine)] * len(mine))
        yield np.concatenate([np.ones((1, len(speakers))), weights]) if not done else weights
        done += some


def measured(statistic: Statistic, speakers: NDArray[np.str_], *, count: int, seed: int = 0) -> dict[str, Measure]:
    """A statistic over the sample, with percentile intervals over the replicates.

    Args:
        statistic: weights float (k, n) to values (k,) by name.
        speakers: (n,).
        count: replicates.
        seed: of the draws.
    """
    blocks = [statistic(weights) for weights in replicates(speakers, count, seed)]
    return {name: _measure(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}


def _measure(values: Floats) -> Measure:
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return Measure(value, np.nan, np.nan, np.nan)
    low, bound, high = np.percentile(drawn, [2.5, 5.0, 97.5])
    return Measure(value, float(low), float(high), float(bound))


# Categories


def confusion(answers: Answers, weights: Floats | None = None) -> Floats:
    """Confusion matrices.

    Args:
        answers: n clips.
        weights: float (k, n); each clip once by default.

    Returns:
        float (k, classes, classes + 1): reference by answer, the last column for none of the classes.
    """
    classes = len(answers.classes)
    weights = np.ones((1, len(answers))) if weights is None else weights
    cell = answers.truth * (classes + 1) + np.where(answers.predicted < 0, classes, answers.predicted)
    return (weights @ _one_hot(cell, classes * (classes + 1))).reshape(len(weights), classes, classes + 1)


def categorical(answers: Answers) -> Statistic:
    """Everything that is measured on categories, as a statistic for `measured`.

    Gives `accuracy_wa`, `recall_macro_ua`, `f1_macro`, `auc_macro` (one against the rest), `coverage` (share with an
    answer among the classes), `ece` (`BINS` bins of the score of the answer), `nll` and `brier` (rows whose class can
    be named), and `recall.CLASS`, `f1.CLASS` for each class of the reference.
    """
    rates = recalls(answers)
    probability = _calibration(answers)
    areas = [_auc(answers.scores[:, place], answers.truth == place) for place in np.unique(answers.truth)]

    def statistic(weights: Floats) -> dict[str, Floats]:
        matrix = confusion(answers, weights)
        total = np.maximum(weights.sum(axis=1), _LEAST)
        return {
            "accuracy_wa": np.einsum("kcc->k", matrix[:, :, :-1]) / total,
            "auc_macro": _mean(np.stack([area(weights) for area in areas]), axis=0),
            "coverage": 1 - matrix[:, :, -1].sum(axis=1) / total,
            **probability(weights),
            **rates(weights),
        }

    return statistic


def recalls(answers: Answers) -> Statistic:
    """`recall_macro_ua`, `f1_macro`, and `recall.CLASS`, `f1.CLASS` of each: what models are compared by."""
    present = np.unique(answers.truth)

    def statistic(weights: Floats) -> dict[str, Floats]:
        matrix = confusion(answers, weights)
        counts, asked = matrix.sum(axis=2), matrix[:, :, :-1].sum(axis=1)
        right = np.einsum("kcc->kc", matrix[:, :, :-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = (right / counts)[:, present]
            # A class that a replicate did not draw is not in its mean.
            f1 = np.where(counts > 0, 2 * right / (counts + asked), np.nan)[:, present]
        found = {"recall_macro_ua": _mean(recall, axis=1), "f1_macro": _mean(f1, axis=1)}
        for column, place in enumerate(present):
            found[f"recall.{answers.classes[place]}"] = recall[:, column]
            found[f"f1.{answers.classes[place]}"] = f1[:, column]
        return found

    return statistic


def evaluate(answers: Answers, *, count: int = REPLICATES, seed: int = 0) -> dict[str, Measure]:
    """All that `categorical` measures, with intervals.

    Examples:
        >>> truth, speakers = ["anger", "anger", "sadness", "sadness"] * 5, list("aabb") * 5
        >>> scores = np.tile([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4]], (5, 1))
        >>> found = evaluate(answers_of(truth, scores, ["anger", "sadness"], speakers), count=100)
        >>> found["recall_macro_ua"].value, found["recall.sadness"].value
        (0.75, 0.5)
    """
    return measured(categorical(answers), answers.speakers, count=count, seed=seed)


def by_slice(answers: Answers, *, count: int = REPLICATES, seed: int = 0) -> dict[tuple[str, str], dict[str, Measure]]:
    """The same for every value of every slice, by (slice, value)."""
    return {
        (name, str(value)): evaluate(answers.take(values == value), count=count, seed=seed)
        for name, values in answers.slices.items()
        for value in np.unique(values)
    }


def difference(first: Answers, second: Answers, *, count: int = REPLICATES, seed: int = 0) -> dict[str, Measure]:
    """How much better `first` is than `second` on the same clips, paired: UA, macro-F1 and each recall.

    Raises:
        ValueError: the two do not judge the same clips.
    """
    same = first.classes == second.classes and np.array_equal(first.truth, second.truth)
    if not (same and np.array_equal(first.speakers, second.speakers)):
        raise ValueError("two models can be compared only on the same clips in the same order")
    ours, theirs = recalls(first), recalls(second)

    def statistic(weights: Floats) -> dict[str, Floats]:
        left, right = ours(weights), theirs(weights)
        return {name: left[name] - right[name] for name in left}

    return measured(statistic, first.speakers, count=count, seed=seed)


def _calibration(answers: Answers) -> Statistic:
    scores = np.nan_to_num(answers.scores)
    rows = np.arange(len(answers))
    answered = answers.predicted >= 0
    confidence = np.where(answered, scores[rows, np.maximum(answers.predicted, 0)], 0.0)
    right = (answers.predicted == answers.truth).astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    in_bin = _one_hot(bins, BINS) * answered[:, None]
    named = ~np.isnan(answers.scores[rows, answers.truth])
    loss = -np.log(np.maximum(scores[rows, answers.truth], _LEAST))
    squares = np.square(scores - _one_hot(answers.truth, len(answers.classes))).sum(axis=1)

    def statistic(weights: Floats) -> dict[str, Floats]:
        gap = np.abs(weights @ (in_bin * (right - confidence)[:, None])).sum(axis=1)
        covered, nameable = weights @ answered.astype(float), weights @ named.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "ece": gap / covered,
                "nll": weights @ (loss * named) / nameable,
                "brier": weights @ (squares * named) / nameable,
            }

    return statistic


def _auc(scores: Floats, positive: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """Area under the curve for many sets of weights: the chance that a positive outscores a negative, ties half."""
    if np.isnan(scores).any() or positive.all() or not positive.any():
        return lambda weights: np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    sorted_scores, mine = scores[order], positive[order]
    first = np.searchsorted(sorted_scores, sorted_scores, side="left")
    last = np.searchsorted(sorted_scores, sorted_scores, side="right")

    def area(weights: Floats) -> Floats:
        ours = weights[:, order]
        below = np.concatenate([np.zeros((len(ours), 1)), np.cumsum(ours * ~mine, axis=1)], axis=1)
        wins = (ours * mine * (below[:, first] + below[:, last]) / 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(wins / ((ours * mine).sum(axis=1) * below[:, -1]))

    return area


def _one_hot(places: Ints, width: int) -> Floats:
    table = np.zeros((len(places), width))
    table[np.arange(len(places)), places] = 1.0
    return table


def _mean(values: Floats, axis: int) -> Floats:
    """Mean over what is there; NaN where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(there, values, 0.0).sum(axis=axis) / there.sum(axis=axis))


# Dimensions


def dimensional(truth: Floats, predicted: Floats) -> Statistic:
    """`ccc`, `mse`, `mae` and `pearson` of one dimension, over the whole set and never as a mean of batches.

    CCC is 2 s_xy / (s_x^2 + s_y^2 + (m_x - m_y)^2) with population moments (Lin, Biometrics 45, 1989).

    Args:
        truth: float (n,), on the same scale as the answers.
        predicted: float (n,).
    """
    # Moments about a point near the means lose no digits.
    truth, predicted = truth - truth.mean(), predicted - truth.mean()

    def statistic(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        mean_x, mean_y = weights @ truth / total, weights @ predicted / total
        var_x = weights @ truth**2 / total - mean_x**2
        var_y = weights @ predicted**2 / total - mean_y**2
        both = weights @ (truth * predicted) / total - mean_x * mean_y
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "ccc": 2 * both / (var_x + var_y + (mean_x - mean_y) ** 2),
                "mse": weights @ (truth - predicted) ** 2 / total,
                "mae": weights @ np.abs(truth - predicted) / total,
                "pearson": both / np.sqrt(np.maximum(var_x * var_y, 0.0)),
            }

    return statistic
