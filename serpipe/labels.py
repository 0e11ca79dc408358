"""Taxonomies: what each set of raw labels means in the canonical one, and what is lost on the way.

Raw labels and scores are always stored as the model gave them. The canonical columns beside them only add up raw
scores; nothing is invented: an emotion that a model cannot name is null, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAPPING_VERSION = "1"
"""Raised by hand when a mapping changes; stored in the footer of every predictions file."""

CANONICAL = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "sadness",
    "surprise",
    "neutral",
    "contempt",
    "calm",
    "other",
)
"""The canonical emotions, the union of what the field's categorical models tell apart."""

TAXONOMIES: dict[str, dict[str, str | None]] = {
    "canonical": {emotion: emotion for emotion in CANONICAL},
    "ekman": {
        emotion: emotion for emotion in ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    },
    # IEMOCAP's four classes as s3prl prepares them: happiness holds the excited clips too.
    "iemocap4": {"neu": "neutral", "hap": "happiness", "ang": "anger", "sad": "sadness"},
    "emotion2vec9": {
        "生气/angry": "anger",
        "厌恶/disgusted": "disgust",
        "恐惧/fearful": "fear",
        "开心/happy": "happiness",
        "中立/neutral": "neutral",
        "其他/other": "other",
        "难过/sad": "sadness",
        "吃惊/surprised": "surprise",
        "<unk>": None,
    },
    "msp8": {
        "Angry": "anger",
        "Sad": "sadness",
        "Happy": "happiness",
        "Surprise": "surprise",
        "Fear": "fear",
        "Disgust": "disgust",
        "Contempt": "contempt",
        "Neutral": "neutral",
    },
    "ravdess8": {
        "angry": "anger",
        "calm": "calm",
        "disgust": "disgust",
        "fearful": "fear",
        "happy": "happiness",
        "neutral": "neutral",
        "sad": "sadness",
        "surprised": "surprise",
    },
}
"""Raw label to canonical emotion; None where a label has no counterpart. A taxonomy that is not here maps nothing."""


@dataclass(frozen=True, slots=True)
class Coarser:
    """A smaller set of emotions that the canonical one is projected onto.

    Attributes:
        emotions: the set.
        mapping: canonical emotion to one of the set; what is not in it stays unmapped.
        lossy: canonical emotions whose counterpart means something else, and what is lost.
    """

    emotions: tuple[str, ...]
    mapping: Mapping[str, str]
    lossy: Mapping[str, str]


_SEVEN = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
_FOUR = ("anger", "happiness", "sadness", "neutral")
_CALM = {"calm": "a low-arousal, mildly positive class becomes neutral"}

COARSER = {
    "C7": Coarser(_SEVEN, {**{emotion: emotion for emotion in _SEVEN}, "calm": "neutral"}, _CALM),
    "C4": Coarser(_FOUR, {**{emotion: emotion for emotion in _FOUR}, "calm": "neutral"}, _CALM),
}
"""Ekman's six with neutral, and the four classes most corpora share."""


def emotion_of(label: str, taxonomy: str) -> str | None:
    """The canonical emotion of a raw label.

    Args:
        label: a raw label.
        taxonomy: key of `TAXONOMIES`, or any other name for labels that map to nothing.

    Returns:
        The emotion, or None where the label has no counterpart.

    Examples:
        >>> emotion_of("hap", "iemocap4"), emotion_of("<unk>", "emotion2vec9"), emotion_of("low/negative", "exhubert6")
        ('happiness', None, None)
    """
    return TAXONOMIES.get(taxonomy, {}).get(label)


def canonical(
    scores: NDArray[np.float32], labels: Sequence[str], taxonomy: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add raw scores up to canonical ones.

    Args:
        scores: float32 (n, labels), probabilities in the order of `labels`.
        labels: raw labels.
        taxonomy: see `emotion_of`.

    Returns:
        float32 (n, len(CANONICAL)), NaN where the model cannot name the emotion, and the mapped mass, float32 (n,):
        the share of probability that has a canonical counterpart.

    Examples:
        >>> table, mass = canonical(np.array([[0.5, 0.3, 0.2]], np.float32), ["angry", "calm", "?"], "ravdess8")
        >>> float(table[0, 0]), bool(np.isnan(table[0, 1])), round(float(mass[0]), 3)
        (0.5, True, 0.8)
    """
    table = np.full((len(scores), len(CANONICAL)), np.nan, np.float32)
    mass = np.zeros(len(scores), np.float32)
    for column, label in enumerate(labels):
        emotion = emotion_of(label, taxonomy)
        if emotion is None:
            continue
        place = CANONICAL.index(emotion)
        table[:, place] = np.nan_to_num(table[:, place]) + scores[:, column]
        mass += scores[:, column]
    return table, mass


def coarser(table: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Project canonical scores onto a smaller set; many to one, and never back.

    Args:
        table: float32 (n, len(CANONICAL)) of `canonical`.
        name: key of `COARSER`.

    Returns:
        float32 (n, emotions of the set), NaN outside the model's support.

    Examples:
        >>> row = np.full((1, 10), np.nan, np.float32); row[0, 6], row[0, 8] = 0.5, 0.25
        >>> coarser(row, "C4").tolist()
        [[nan, nan, nan, 0.75]]
    """
    target = COARSER[name]
    result = np.full((len(table), len(target.emotions)), np.nan, np.float32)
    for column, emotion in enumerate(CANONICAL):
        into = target.mapping.get(emotion)
        if into is None:
            continue
        place = target.emotions.index(into)
        known = ~np.isnan(table[:, column])
        result[known, place] = np.nan_to_num(result[known, place]) + table[known, column]
    return result
