"""Taxonomies: what each set of raw labels means in the canonical one. Never invented: outside its support, nothing."""

from __future__ import annotations

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
    "ekman": {
        emotion: emotion for emotion in ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    },
}
"""Raw label to canonical emotion; None where a label has no counterpart."""


def emotion_of(label: str, taxonomy: str) -> str | None:
    """The canonical emotion of a raw label.

    Args:
        label: a raw label of the taxonomy.
        taxonomy: key of `TAXONOMIES`.

    Returns:
        The emotion, or None where the label has no counterpart.

    Raises:
        KeyError: no such taxonomy or label.

    Examples:
        >>> emotion_of("anger", "ekman")
        'anger'
    """
    return TAXONOMIES[taxonomy][label]
