"""The size of a micro-batch finds the fastest, from wherever it begins, and stays there."""

from __future__ import annotations

import pytest

from serpipe.models.budget import Budget, for_model


@pytest.mark.parametrize("best", [1.0, 2.0, 8.0, 64.0, 256.0])
@pytest.mark.parametrize("begin", [1.0, 8.0, 256.0])
def test_it_climbs_to_the_fastest_and_stays(begin: float, best: float) -> None:
    budget = Budget(begin=begin, most=256.0)
    packs = 0
    while packs < 40:
        budget.record(300.0, elapsed_s=1.0 + abs(budget.seconds - best))
        packs += 1
    assert budget.seconds == best


def test_the_first_pack_at_a_size_may_be_slow() -> None:
    budget, seen = Budget(begin=8.0, most=32.0), set()
    for _ in range(20):
        fresh = budget.seconds not in seen
        seen.add(budget.seconds)
        budget.record(100.0, elapsed_s=(10.0 if fresh else 0.0) + (1.0 if budget.seconds == 16.0 else 2.0))
    assert budget.seconds == 16.0


def test_memory_bounds_it() -> None:
    budget = Budget(begin=128.0, most=48.0)
    for _ in range(20):
        assert budget.seconds <= 48.0
        budget.record(1_000.0, elapsed_s=1 / budget.seconds)
    assert budget.seconds == 48.0


@pytest.mark.parametrize(("begin", "lanes"), [(1.0, 1), (32.0, 1), (256.0, 1), (256.0, 2)])
def test_no_size_is_kept_that_the_packs_cannot_fill(begin: float, lanes: int) -> None:
    """However much faster the next larger one would have to be."""
    budget = Budget(begin=begin, most=256.0, lanes=lanes)
    for _ in range(40):
        budget.record(20.0, elapsed_s=1 / budget.seconds)
    assert budget.seconds == 16.0 / lanes


def test_a_smaller_pack_than_most_says_nothing() -> None:
    budget = Budget(begin=8.0, most=8.0)
    for _ in range(20):
        budget.record(20.0, elapsed_s=1.0)
        budget.record(3.0, elapsed_s=0.001)
    assert budget.seconds == 8.0


def test_a_large_model_begins_with_a_segment_at_a_time_on_a_cpu() -> None:
    large, small = for_model(300_000_000, "cpu"), for_model(80_000, "cpu")
    assert large.seconds < small.seconds == small.most == large.most
