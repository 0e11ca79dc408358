"""Coherence: whether arousal, valence and the words fit the label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.pseudolabel.gold import emotion_word

REGIONS = {
    "anger": ((0.5, 1.0), (0.0, 0.5)),
    "sadness": ((0.0, 0.55), (0.0, 0.5)),
    "happiness": ((0.0, 1.0), (0.5, 1.0)),
}
"""Arousal and valence, each from and to, where a class must lie for which gold has too few segments."""

NOTHING_SAID = ("neutral", "calm", "other")
"""Emotions of words that contradict no label: most sentences say none, and `other` names none."""

RIDGE = 1e-4
"""Added to the variances: gold whose arousal hardly varies must not rule everything out."""


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Where gold of one class lies in arousal and valence.

    Attributes:
        mean: arousal, valence.
        precision: inverse of their covariance, row after row.
        farthest: squared Mahalanobis distance beyond which a segment does not fit.
    """

    mean: tuple[float, float]
    precision: tuple[float, float, float, float]
    farthest: float


def ellipses(
    points: NDArray[np.float64], labels: Sequence[str], *, percentile: float, least: int
) -> dict[str, Ellipse]:
    """A Gaussian for each class that gold has enough of.

    The likelihood of a Gaussian falls with the squared Mahalanobis distance alone, so its lowest percentiles are the
    largest distances.

    Args:
        points: float64 (2, n), arousal and valence of gold segments; NaN where there is none.
        labels: gold's, n.
        percentile: share of gold, in percent, that lies outside.
        least: segments a class must have.
    """
    found = {}
    names = np.array(labels, dtype=object)
    for name in sorted(set(labels)):
        mine = points[:, (names == name) & np.isfinite(points).all(axis=0)]
        if mine.shape[1] < least:
            continue
        precision = np.linalg.inv(np.cov(mine) + RIDGE * np.eye(2))
        mean = np.asarray(mine.mean(axis=1), np.float64)
        distance = _distance(mine, mean, np.asarray(precision.ravel(), np.float64))
        farthest = float(np.percentile(distance, 100 - percentile))
        found[name] = Ellipse((float(mean[0]), float(mean[1])), tuple(map(float, precision.ravel())), farthest)  # type: ignore[arg-type]
    return found


def dimensions_fit(
    points: NDArray[np.float64], label: NDArray[np.int64], classes: Sequence[str], known: Mapping[str, Ellipse]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each segment's arousal and valence fit its label.

    Args:
        points: float64 (2, n), arousal and valence; NaN where there is none.
        label: int (n,), place in `classes`.
        classes: of the generation.
        known: from `ellipses`; a class without one has its region, or none.

    Returns:
        Whether it fits, and whether there was anything to compare, bool (n,) each.
    """
    fits = np.ones(points.shape[1], bool)
    compared = np.zeros(points.shape[1], bool)
    there = np.isfinite(points).all(axis=0)
    for place, name in enumerate(classes):
        if name not in known and name not in REGIONS:
            continue
        mine = there & (label == place)
        compared |= mine
        if name in known:
            ellipse = known[name]
            distance = _distance(points[:, mine], np.array(ellipse.mean), np.array(ellipse.precision))
            fits[mine] = distance <= ellipse.farthest
        else:
            (low_a, high_a), (low_v, high_v) = REGIONS[name]
            arousal, valence = points[:, mine]
            fits[mine] = (arousal >= low_a) & (arousal <= high_a) & (valence >= low_v) & (valence <= high_v)
    return fits, compared


def text_fits(
    words: pa.Array, label: NDArray[np.int64], classes: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the words contradict the label: those of another emotion do, be it one of the classes or none of them.

    Words of no emotion (`NOTHING_SAID`), and a word for an emotion that is not known here, never do.

    Args:
        words: the owner's, string (n,), null where there are none.
        label: int (n,), place in `classes`.
        classes: of the generation.

    Returns:
        Whether it fits, and whether there was anything to compare, bool (n,) each.
    """
    coded = pc.fill_null(words, "").dictionary_encode()
    place_of = {name: place for place, name in enumerate(classes)} | dict.fromkeys(NOTHING_SAID, -1)
    said = [
        place_of.get(emotion, len(classes)) if (emotion := emotion_word(word)) else -1
        for word in coded.dictionary.to_pylist()
    ]
    place = np.array(said, np.int64)[coded.indices.to_numpy()] if said else np.full(len(label), -1)
    compared = place >= 0
    return ~compared | (place == label), compared


def _distance(
    points: NDArray[np.float64], mean: NDArray[np.float64], precision: NDArray[np.float64]
) -> NDArray[np.float64]:
    arousal, valence = points[0] - mean[0], points[1] - mean[1]
    a, b, c, d = precision
    return np.asarray(a * arousal * arousal + (b + c) * arousal * valence + d * valence * valence)
