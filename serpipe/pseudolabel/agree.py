"""Consensus of teachers: what they can all name, what independent lineages say together, how far they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.labels import CANONICAL, COARSER
from serpipe.pseudolabel.calibrate import LEAST

_UNCLEAR = ("other",)
"""Canonical, but no class to learn: what is neither this nor that."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the lineages say of n segments; NaN, and no votes, where a teacher is missing.

    Attributes:
        soft: float64 (classes, n).
        label: int64 (n,), the likeliest class; 0 where a teacher is missing.
        confidence: float64 (n,), its probability.
        margin: float64 (n,), between the two likeliest classes.
        entropy: float64 (n,), as a share of log(classes).
        jsd: float64 (n,), Jensen-Shannon divergence between lineages, nats; 0 with one lineage.
        votes: int64 (n,), lineages whose likeliest class is the label.
        known: bool (n,), every teacher has labelled the segment.
    """

    soft: NDArray[np.float64]
    label: NDArray[np.int64]
    confidence: NDArray[np.float64]
    margin: NDArray[np.float64]
    entropy: NDArray[np.float64]
    jsd: NDArray[np.float64]
    votes: NDArray[np.int64]
    known: NDArray[np.bool_]


def common_classes(supports: Sequence[Sequence[str]], wanted: str | Sequence[str]) -> tuple[str, ...]:
    """The classes of a generation, in canonical order.

    Args:
        supports: canonical emotions that each teacher can name.
        wanted: `common`, a key of `serpipe.labels.COARSER`, or emotions.

    Raises:
        UsageError: `CLASSES_NOT_COMMON`, a teacher cannot name one of them, or there are fewer than two.

    Examples:
        >>> common_classes([("anger", "sadness", "calm", "neutral"), ("anger", "neutral", "sadness", "fear")], "common")
        ('anger', 'sadness', 'neutral')
    """
    nameable: list[set[str]] = [set(support) | ({"neutral"} if "calm" in support else set()) for support in supports]
    shared = nameable[0].intersection(*nameable[1:]) - set(_UNCLEAR)
    if wanted == "common":
        chosen = tuple(name for name in CANONICAL if name in shared)
    else:
        asked = COARSER[wanted].emotions if isinstance(wanted, str) else wanted
        chosen = tuple(name for name in CANONICAL if name in asked)
    missing = sorted(set(chosen) - nameable[0].intersection(*nameable[1:]))
    if missing or len(chosen) < 2:
        what = f"not all of them can name {', '.join(missing)}" if missing else "fewer than two are left"
        raise UsageError(
            "CLASSES_NOT_COMMON",
            f"the teachers share {', '.join(name for name in CANONICAL if name in shared) or 'no emotion'}: {what}; "
            "name other classes or other teachers in the recipe",
        )
    return chosen


def leaves(classes: Sequence[str], support: Sequence[str]) -> dict[str, int]:
    """Which canonical scores of a teacher go into which class: calm into neutral where it is no class itself.

    Examples:
        >>> leaves(("anger", "neutral"), ("anger", "calm", "fear"))
        {'anger': 0, 'calm': 1}
    """
    into = {name: place for place, name in enumerate(classes)}
    if "calm" not in into and "neutral" in into:
        into["calm"] = into["neutral"]
    return {name: into[name] for name in support if name in into}


def project(scores: NDArray[np.float64], into: Sequence[int], classes: int) -> NDArray[np.float64]:
    """Add a teacher's canonical scores up by class.

    Args:
        scores: float64 (leaves, n).
        into: the class of each leaf.
        classes: how many there are.

    Returns:
        float64 (classes, n); what is missing to 1 is the mass outside the classes.
    """
    table = np.zeros((classes, scores.shape[1]))
    for row, place in zip(scores, into, strict=True):
        table[place] += row
    return table


def shares(lineages: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Each teacher's share of the vote: a lineage weighs the mean of its members' weights, however many they are.

    Examples:
        >>> shares(["a", "a", "b"], [1.0, 1.0, 1.0])
        [0.25, 0.25, 0.5]
    """
    split = [weight / lineages.count(lineage) for lineage, weight in zip(lineages, weights, strict=True)]
    return [part / sum(split) for part in split]


def consensus(
    probabilities: Sequence[NDArray[np.float64]],
    lineages: Sequence[str],
    weights: Sequence[float],
    witnesses: Sequence[bool] | None = None,
) -> Consensus:
    """One vote a lineage: members are averaged within it, then lineages by their weight.

    With H the entropy and w a lineage's share, the divergence is `H(sum_l w_l p_l) - sum_l w_l H(p_l)` (Lin 1991).
    A lineage that is no witness, as students are none beside others, weighs in the label and is left out of votes and
    divergence, which say how far independent ones agree.

    Args:
        probabilities: for each teacher float64 (classes, n), calibrated; NaN where it has not labelled a segment.
        lineages: of each teacher.
        weights: of each teacher.
        witnesses: whether each teacher's lineage is one, the same for all of a lineage; all are by default.
    """
    share = shares(lineages, weights)
    counted = (
        set(lineages) if witnesses is None else {n for n, is_one in zip(lineages, witnesses, strict=True) if is_one}
    )
    names = sorted(set(lineages))
    voices, parts = [], []
    for name in names:
        members = [place for place, lineage in enumerate(lineages) if lineage == name]
        part = sum(share[place] for place in members)
        voices.append(_mixed([probabilities[place] for place in members], [share[place] / part for place in members]))
        parts.append(part)
    soft = _mixed(voices, parts)
    known = np.asarray(np.isfinite(soft).all(axis=0))
    safe = np.where(known, soft, 0.0)
    label = safe.argmax(axis=0)
    ordered = np.sort(soft, axis=0)
    heard = [place for place, name in enumerate(names) if name in counted]
    jsd, votes = _agreement([voices[place] for place in heard], [parts[place] for place in heard], label, known)
    return Consensus(
        soft=soft,
        label=label,
        confidence=ordered[-1],
        margin=ordered[-1] - ordered[-2],
        entropy=_entropy(soft) / np.log(len(soft)),
        jsd=jsd,
        votes=np.where(known, votes, 0),
        known=known,
    )


def _agreement(
    voices: Sequence[NDArray[np.float64]], parts: Sequence[float], label: NDArray[np.int64], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How far witnesses are apart, and how many say the label; one alone is agreed with itself."""
    if len(voices) == 1:
        return np.zeros(len(label)), known.astype(np.int64)
    total = sum(parts)
    jsd = _entropy(_mixed(voices, [part / total for part in parts]))
    votes = np.zeros(len(label), np.int64)
    for voice, part in zip(voices, parts, strict=True):
        jsd -= part / total * _entropy(voice)
        votes += np.where(known, voice, -1.0).argmax(axis=0) == label
    return np.maximum(jsd, 0.0), votes


def _mixed(rows: Sequence[NDArray[np.float64]], parts: Sequence[float]) -> NDArray[np.float64]:
    total = parts[0] * rows[0]
    for row, part in zip(rows[1:], parts[1:], strict=True):
        total = total + part * row
    return total


def _entropy(table: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros(table.shape[1])
    for row in table:
        total -= row * np.log(np.maximum(row, LEAST))
    return total
