"""The size of a micro-batch finds the fastest, from wherever it begins, and stays there."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from serpipe.models.budget import Budget, for_model


@pytest.mark.parametrize("best", [1.0, 2.0, 8.0, 64.0, 256.0])
@pytest.mark.parametrize("begin", [1.0, 8.0, 256.0])
def test_it_climbs_to_the_fastest_and_stays(begin: float, best: float) -> None:
    budget = Budget(begin=begin, most=256.0)
    packs = 0
    while packs < 40:
        budget.record(budget.seconds, audio_s=300.0, busy_s=1.0 + abs(budget.seconds - best))
        packs += 1
    assert budget.seconds == best
    assert budget.settled


def test_the_first_pack_at_a_size_may_be_slow() -> None:
    budget, seen = Budget(begin=8.0, most=32.0), set()
    for _ in range(20):
        fresh = budget.seconds not in seen
        seen.add(budget.seconds)
        slow = 10.0 if fresh else 0.0
        budget.record(budget.seconds, audio_s=100.0, busy_s=slow + (1.0 if budget.seconds == 16.0 else 2.0))
    assert budget.seconds == 16.0


def test_memory_bounds_it() -> None:
    budget = Budget(begin=128.0, most=48.0)
    for _ in range(20):
        assert budget.seconds <= 48.0
        budget.record(budget.seconds, audio_s=1_000.0, busy_s=1 / budget.seconds)
    assert budget.seconds == 48.0


@pytest.mark.parametrize(("begin", "lanes"), [(1.0, 1), (32.0, 1), (256.0, 1), (256.0, 2)])
def test_no_size_is_kept_that_the_packs_cannot_fill(begin: float, lanes: int) -> None:
    """However much faster the next larger one would have to be."""
    budget = Budget(begin=begin, most=256.0, lanes=lanes)
    for _ in range(40):
        budget.record(budget.seconds, audio_s=20.0, busy_s=1 / budget.seconds)
    assert budget.seconds == 16.0 / lanes


def test_a_smaller_pack_than_most_says_nothing() -> None:
    budget = Budget(begin=8.0, most=8.0)
    for _ in range(20):
        budget.record(budget.seconds, audio_s=20.0, busy_s=1.0)
        budget.record(budget.seconds, audio_s=3.0, busy_s=0.001)
        budget.record(budget.seconds, audio_s=0.0, busy_s=0.0)
    assert budget.seconds == 8.0


def test_a_pack_of_silence_says_nothing() -> None:
    budget = Budget(begin=8.0, most=8.0)
    budget.record(8.0, audio_s=0.0, busy_s=0.0)
    assert budget.seconds == 8.0


def overlapping(budget: Budget, busy_s: Callable[[float, int], float], *, packs: int) -> None:
    """Two calls at once in simulated time: each takes the size of the moment it begins, and tells it when it ends."""
    begun: dict[float, int] = {}
    running: list[tuple[float, int, float, float]] = []

    def begin(now: float, number: int) -> None:
        size = budget.seconds
        begun[size] = begun.get(size, 0) + 1
        own = busy_s(size, begun[size])
        # Beside another a pack takes twice as long as it is worked on.
        heapq.heappush(running, (now + 2 * own, number, size, own))

    begin(0.0, 0)
    begin(0.1, 1)
    for number in range(2, packs):
        now, _, size, own = heapq.heappop(running)
        budget.record(size, audio_s=300.0, busy_s=own)
        begin(now, number)


@pytest.mark.parametrize("best", [1.0, 16.0, 128.0])
def test_calls_that_overlap_settle_on_the_fastest_size(best: float) -> None:
    """Long and short calls end in any order, and the first two at each size are slow."""
    budget = Budget(begin=64.0, most=256.0, lanes=2, calls=2)
    overlapping(budget, lambda size, nth: (30.0 if nth <= 2 else 0.0) + 1.0 + abs(size - best), packs=60)
    assert budget.seconds == best
    assert budget.settled


def test_a_call_counts_for_the_size_it_began_with() -> None:
    """The slow end of an old size says nothing of the new one."""
    budget = Budget(begin=8.0, most=16.0)
    for _ in range(2):
        budget.record(8.0, audio_s=100.0, busy_s=10.0)
    assert budget.seconds == 4.0
    budget.record(8.0, audio_s=100.0, busy_s=500.0)
    for _ in range(2):
        budget.record(4.0, audio_s=100.0, busy_s=20.0)
    for _ in range(2):
        budget.record(16.0, audio_s=100.0, busy_s=5.0)
    assert budget.seconds == 16.0
    assert budget.settled


def test_a_large_model_begins_with_less_than_the_most_on_a_cpu() -> None:
    large, small = for_model(300_000_000, "cpu"), for_model(80_000, "cpu")
    assert large.seconds < small.seconds == small.most == large.most
