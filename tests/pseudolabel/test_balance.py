"""The choice among candidates against a plain loop, in any order of arrival."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serpipe.pseudolabel.arrays import FIXED
from serpipe.pseudolabel.balance import CANDIDATES, Selection, Totals, feed_limit, targets, thresholds
from serpipe.pseudolabel.recipe import Balance, Budget, Caps, Recipe, Select
from serpipe.pseudolabel.schemas import GLOBAL_STAGES

CLASSES = ("anger", "sadness", "neutral")
RECIPE = Recipe(
    select=Select(low=0.6, high=0.7),
    balance=Balance(alpha=0.5, neutral_share=0.4),
    caps=Caps(per_speaker=4, feed_share=0.2),
    budget=Budget(first=0.05, least_hours=0.0),
)
TOTALS = Totals(1000, 800 * FIXED, (300 * FIXED, 100 * FIXED, 600 * FIXED), 4_000_000)


def candidates(count: int = 1500) -> pa.Table:
    random = np.random.default_rng(11)
    bucket = random.integers(0, 5, count)
    place = np.zeros(count, np.int64)
    for number in range(5):
        place[bucket == number] = np.arange((bucket == number).sum())
    columns = {
        "bucket": bucket,
        "place": place,
        "high": random.integers(0, 2**63, count).astype(np.uint64),
        "low": random.integers(0, 2**63, count).astype(np.uint64),
        "label": random.choice(3, count, p=[0.3, 0.1, 0.6]),
        # Coarse, so that ties are many.
        "confidence": (random.integers(40, 100, count) * FIXED) // 100,
        "audio": random.integers(0, 1200, count).astype(np.uint64),
        "voice": random.integers(0, 12, count),
        "feed": random.choice(9, count, p=[0.6, *[0.05] * 8]).astype(np.uint64),
        "milliseconds": random.integers(2000, 6000, count),
    }
    return pa.table(columns).cast(CANDIDATES)


def run(table: pa.Table, order: list[int], recipe: Recipe = RECIPE) -> dict[tuple[int, int], str]:
    with Selection(recipe, CLASSES, first=True) as selection:
        for number, bucket in enumerate(order):
            mine = table.filter(pa.array(table["bucket"].to_numpy() == bucket))
            selection.add(mine, TOTALS if number == 0 else Totals(0, 0, (0, 0, 0), 0))
        selection.choose()
        fates = {}
        for bucket in range(5):
            for place, stage in zip(*selection.fates(bucket), strict=True):
                fates[bucket, int(place)] = ("kept", *GLOBAL_STAGES)[stage]
    return fates


def plainly(rows: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    """The same choice, as one would write it for a list."""
    fates: dict[tuple[int, int], str] = {}

    def drop(stage: str, losers: list[dict[str, Any]]) -> None:
        for row in losers:
            fates[row["bucket"], row["place"]] = stage
        rows[:] = [row for row in rows if (row["bucket"], row["place"]) not in fates]

    def beyond(limit: Any, group: Any) -> list[dict[str, Any]]:
        seen: Counter[Any] = Counter()
        losers = []
        for row in rows:
            seen[group(row)] += 1
            if seen[group(row)] > limit(row):
                losers.append(row)
        return losers

    rows.sort(key=lambda row: (-row["confidence"], row["high"], row["low"]))
    # The mean confidence of 0.8 is clipped to 0.7; shares of the classes are 3, 1 and 6 to the largest.
    level = {0: 0.5, 1: 0.5, 2: 0.7}
    drop("threshold", [row for row in rows if row["confidence"] < level[row["label"]] * FIXED])
    drop("duplicate", beyond(lambda _: 1, lambda row: row["audio"]))
    n = Counter(row["label"] for row in rows)
    order = [label for label, _ in n.most_common()]
    kept = {
        label: int(np.ceil(round((n[order[-1 - rank]] / n[order[0]]) ** 0.5 * n[label], 6)))
        for rank, label in enumerate(order)
    }
    kept[2] = min(kept[2], int(0.4 / 0.6 * (kept[0] + kept[1])))
    drop("balance", beyond(lambda row: kept[row["label"]], lambda row: row["label"]))
    drop("speaker", beyond(lambda _: 4, lambda row: (row["bucket"], row["voice"], row["label"])))
    feeds = defaultdict(set)
    for row in rows:
        feeds[row["label"]].add(row["feed"])
    n = Counter(row["label"] for row in rows)
    most = {label: int(max(0.2, 2 / len(feeds[label])) * n[label]) for label in n}
    drop("feed", beyond(lambda row: most[row["label"]], lambda row: (row["feed"], row["label"])))
    held: Counter[int] = Counter()
    for row in rows:
        held[row["label"]] += row["milliseconds"]
    allowed = round(0.05 * 4_000_000)
    total = sum(held.values())
    spent: Counter[int] = Counter()
    losers = []
    for row in rows:
        spent[row["label"]] += row["milliseconds"]
        if spent[row["label"]] > held[row["label"]] * allowed // total:
            losers.append(row)
    drop("budget", losers)
    return fates | {(row["bucket"], row["place"]): "kept" for row in rows}


def test_the_choice_is_that_of_a_plain_loop() -> None:
    table = candidates()
    found = run(table, [0, 1, 2, 3, 4])
    expected = plainly(table.to_pylist())
    assert set(expected.values()) == {"kept", *GLOBAL_STAGES}
    assert found == expected


def test_the_choice_does_not_depend_on_the_order_of_arrival() -> None:
    table = candidates()
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows)))
    assert run(table, [0, 1, 2, 3, 4]) == run(shuffled, [3, 0, 4, 2, 1])


def test_a_stage_that_is_off_drops_nothing() -> None:
    off = Recipe(
        balance=Balance(alpha=0, neutral_share=1),
        caps=Caps(per_speaker=0, feed_share=1),
        budget=Budget(least_hours=1000),
    )
    assert set(run(candidates(), [0, 1, 2, 3, 4], off).values()) == {"kept", "threshold", "duplicate"}


def test_thresholds_are_freematchs() -> None:
    random = np.random.default_rng(2)
    p = random.dirichlet([3, 1, 0.4], 500)
    sums = tuple(int(np.rint(column * FIXED).sum()) for column in p.T)
    totals = Totals(500, int(np.rint(p.max(axis=1) * FIXED).sum()), sums, 0)
    level = np.clip(p.max(axis=1).mean(), 0.6, 0.9)
    expected = np.maximum(level * p.mean(axis=0) / p.mean(axis=0).max(), 0.1)
    np.testing.assert_allclose(thresholds(totals, Select(floor=0.1)), expected, rtol=1e-6)
    assert thresholds(Totals(0, 0, (0, 0), 0), Select()) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([900, 100, 0], (300, 100, 0)),  # alpha 0.5: the most frequent keeps a third, the rarest all of it
        ([0, 0, 0], (0, 0, 0)),
        ([7, 0, 0], (7, 0, 0)),
        ([1_000_000, 10_001, 0], (100_005, 10_001, 0)),
        ([900, 100, 2], (300, 100, 2)),  # next to none: kept, and nobody's rate
    ],
)
def test_rates_are_crests(counts: list[int], expected: tuple[int, ...]) -> None:
    assert targets(counts, Balance(alpha=0.5), None) == expected


def test_a_feed_may_give_twice_its_even_share() -> None:
    assert feed_limit(0.01, 50, 1) == 50
    assert feed_limit(0.01, 50, 5) == 20
    assert feed_limit(0.5, 50, 1000) == 25
    assert feed_limit(0.01, 3, 1000) == 1
