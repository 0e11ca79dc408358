"""How a figure is taken: arms take turns, and each round gives one ratio.

A machine that is busy for a while slows the arms of one round alike, so a ratio of two neighbours in time says more
than two medians. What is reported is the median over the rounds, with its spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        name: as `decode/bare`: what is measured, over what it is held against.
        ratio: median over the rounds of the first's speed over the second's.
        median: median speed of the first.
        spread: largest less smallest ratio of the rounds, over their median; None of one round.
        unit: of `median`, as `audio s/s`.
    """

    name: str
    ratio: float
    median: float
    spread: float | None
    unit: str


def take_turns(arms: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Let each arm measure itself, one after the other, for some rounds; every other round backwards.

    Args:
        arms: name to what does one measurement and returns a speed.
        rounds: at least one.

    Returns:
        For each arm its speeds, round by round.

    Examples:
        >>> take_turns({"a": lambda: 1.0, "b": lambda: 2.0}, rounds=2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in reversed(arms) if turn % 2 else arms:
            speeds[name].append(arms[name]())
    return speeds


def figure(name: str, speeds: Sequence[float], against: Sequence[float], *, unit: str = "audio s/s") -> Figure:
    """What the rounds of two arms say together.

    Examples:
        >>> figure("a/b", [3.0, 2.0, 2.0], [2.0, 2.0, 1.0])
        Figure(name='a/b', ratio=1.5, median=2.0, spread=0.666..., unit='audio s/s')
    """
    ratios = [one / other for one, other in zip(speeds, against, strict=True)]
    middle = statistics.median(ratios)
    return Figure(
        name=name,
        ratio=middle,
        median=statistics.median(speeds),
        spread=spread_of(ratios),
        unit=unit,
    )


def spread_of(values: Sequence[float]) -> float | None:
    """Largest less smallest over the median; None of one value, which says nothing of it.

    Examples:
        >>> spread_of([1.0, 1.5, 2.0]), spread_of([1.0])
        (0.666..., None)
    """
    return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 else None
