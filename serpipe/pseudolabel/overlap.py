"""Segments that share audio: of a recording's overlapping ones the surest stay."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serpipe.pseudolabel.arrays import SAMPLES, fixed, floats, seeded, words
from serpipe.pseudolabel.judge import PASSED, Judged, Rules
from serpipe.pseudolabel.schemas import LOCAL_STAGES, RECORDING_STAGES

Ints = NDArray[np.int64]


def thinned(rules: Rules, judged: Judged) -> Judged:
    """A bucket without what shares audio with a surer segment; a recording lies in one bucket whole.

    Only segments that passed so far compete, by confidence and, where that is equal, by a seeded hash of their ids.
    """
    share, stage = rules.recipe.select.overlap, judged.stage.copy()
    there = np.flatnonzero(stage == PASSED) if share < 1 else np.zeros(0, np.int64)
    rows = judged.rows.select(["recording_id", "channel", "start_s", "end_s", "segment_id"]).take(there)
    high, low = (seeded(half, rules.recipe.seed) for half in words(rows["segment_id"]))
    rank = np.empty(len(there), np.int64)
    rank[np.lexsort((low, high, -fixed(judged.consensus.confidence[there])))] = np.arange(len(there))
    first, last = (np.rint(floats(rows[name]) * SAMPLES).astype(np.int64) for name in ("start_s", "end_s"))
    kept = np.ones(len(there), bool)
    for mine in _stretches(words(rows["recording_id"]), rows["channel"].to_numpy(), first, last):
        kept[mine] = apart(first[mine], last[mine], rank[mine], share)
    stage[there[~kept]] = len(LOCAL_STAGES)
    passes, looked = np.ones(len(stage), bool), np.zeros(len(stage), bool)
    passes[there], looked[there] = kept, True
    (name,) = RECORDING_STAGES
    return replace(judged, stage=stage, verdicts={**judged.verdicts, name: (passes, looked)})


def apart(first: Ints, last: Ints, rank: Ints, share: float) -> NDArray[np.bool_]:
    """Which intervals stay, where the better of two goes before the other.

    Args:
        first: where each begins, (n,).
        last: where it ends.
        rank: the best is 0.
        share: of the shorter of two, the most that both may cover.

    Examples:
        >>> apart(np.array([0, 3, 6]), np.array([6, 9, 12]), np.array([1, 0, 2]), 0.0).tolist()
        [False, True, False]
        >>> apart(np.array([0, 3, 6]), np.array([6, 9, 12]), np.array([1, 0, 2]), 0.5).tolist()
        [True, True, True]
    """
    stay = np.zeros(len(first), bool)
    longest = int((last - first).max(initial=0))
    chosen: list[tuple[int, int]] = []
    for place in np.argsort(rank):
        begin, end = int(first[place]), int(last[place])
        near = bisect_left(chosen, (begin - longest, 0))
        while near < len(chosen) and chosen[near][0] < end:
            start, stop = chosen[near]
            if min(end, stop) - max(begin, start) > share * min(end - begin, stop - start):
                break
            near += 1
        else:
            stay[place] = True
            insort(chosen, (begin, end))
    return stay


def _stretches(recording: NDArray[np.uint64], channel: NDArray[np.int32], first: Ints, last: Ints) -> Iterator[Ints]:
    """Places of segments that overlap one another, or are linked by others that do; nobody who stands alone."""
    order = np.lexsort((last, first, channel, *recording))
    same = np.ones(max(len(order) - 1, 0), bool)
    for values in (*recording, channel):
        same &= values[order][1:] == values[order][:-1]
    # Ends so far, within a recording and channel: one that begins after them all begins a stretch.
    group = np.concatenate([[0], np.cumsum(~same)]) if len(order) else np.zeros(0, np.int64)
    span = int(last.max(initial=0)) + 1
    reached = np.maximum.accumulate(last[order] + group * span)
    linked = first[order][1:] + group[1:] * span < reached[:-1]
    for part in np.split(order, np.flatnonzero(~linked) + 1):
        if len(part) > 1:
            yield part
