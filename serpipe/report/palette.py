"""A colour for each class, told apart with any kind of colour vision and never the only sign."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

# After Paul Tol's "muted" scheme (Tol 2021, https://sronpersonalpages.nl/~pault/), darker where paper is white and
# lighter where it is black, so that every colour has a contrast of three to one with its ground.
EMOTIONS = {
    "anger": ("#c1425a", "#f0788c"),
    "disgust": ("#117733", "#45b36b"),
    "fear": ("#aa4499", "#d37fc6"),
    "happiness": ("#a8851d", "#e6c65c"),
    "sadness": ("#332288", "#8f86e8"),
    "surprise": ("#23887a", "#52c4b4"),
    "neutral": ("#7a828c", "#9aa4b0"),
    "contempt": ("#882255", "#cf6f9f"),
    "calm": ("#3a8fb7", "#88ccee"),
    "other": ("#7f7f26", "#b5b54a"),
}
"""On white, on black."""


Colours = dict[str, str]
"""Class to colour, as the style sheet names it."""


def colours(classes: Iterable[str]) -> Colours:
    """A colour for each class: canonical emotions have their own, other labels those that are left.

    Examples:
        >>> colours(["anger", "low/negative"])
        {'anger': 'var(--anger)', 'low/negative': 'var(--disgust)'}
    """
    names = list(dict.fromkeys(classes))
    left = itertools.cycle([name for name in EMOTIONS if name not in names] or EMOTIONS)
    return {name: f"var(--{name if name in EMOTIONS else next(left)})" for name in names}


def rules() -> str:
    """The colours as a style sheet's variables.

    Examples:
        >>> rules().splitlines()[0]
        '--anger: light-dark(#c1425a, #f0788c);'
    """
    return "\n".join(f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in EMOTIONS.items())
