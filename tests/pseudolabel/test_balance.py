"""The choice among candidates against a plain loop, in any order of arrival."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serpipe.pseudolabel.arrays import FIXED
from serpipe.pseudolabel.balance import CANDIDATES, Selection, Totals, feed_limit, spread, targets, thresholds
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
    drop("speaker", beyond(lambda _: 4, lambda row: (row["bucket"], row["voice"], row["label"])))

    def most_of(feeds: Counter[int], most: int) -> tuple[int, int]:
        """Every size a class may have, from the largest down, until its feeds can fill it."""
        size = min(most, sum(feeds.values()))
        while sum(min(count, feed_limit(0.2, size, len(feeds))) for count in feeds.values()) < size:
            size -= 1
        return feed_limit(0.2, size, len(feeds)), size

    def feeds() -> dict[int, Counter[int]]:
        found: dict[int, Counter[int]] = defaultdict(Counter)
        for row in rows:
            found[row["label"]][row["feed"]] += 1
        return found

    def both(limits: dict[int, int], sizes: dict[int, int]) -> list[dict[str, Any]]:
        outside = beyond(lambda row: limits[row["label"]], lambda row: (row["feed"], row["label"]))
        gone = {(row["bucket"], row["place"]) for row in outside}
        seen: Counter[int] = Counter()
        for row in rows:
            if (row["bucket"], row["place"]) not in gone:
                seen[row["label"]] += 1
                if seen[row["label"]] > sizes[row["label"]]:
                    outside.append(row)
        return outside

    limits = {label: most_of(found, 10**6)[0] for label, found in feeds().items()}
    drop("feed", beyond(lambda row: limits[row["label"]], lambda row: (row["feed"], row["label"])))
    n = Counter(row["label"] for row in rows)
    order = [label for label, _ in n.most_common()]
    kept = {
        label: int(np.ceil(round((n[order[-1 - rank]] / n[order[0]]) ** 0.5 * n[label], 6)))
        for rank, label in enumerate(order)
    }
    settled = {label: most_of(found, kept[label]) for label, found in feeds().items()}
    settled[2] = most_of(feeds()[2], min(settled[2][1], (settled[0][1] + settled[1][1]) * 2 // 3))
    drop("balance", both({k: v[0] for k, v in settled.items()}, {k: v[1] for k, v in settled.items()}))
    held: Counter[int] = Counter()
    for row in rows:
        held[row["label"]] += row["milliseconds"]
    allowed = round(0.05 * 4_000_000)
    total = sum(held.values())
    sizes = dict(Counter(row["label"] for row in rows))
    limits = {label: most_of(found, sizes[label])[0] for label, found in feeds().items()}
    there = {label: len(found) for label, found in feeds().items()}
    while True:
        losers = both(limits, sizes)
        gone = {(row["bucket"], row["place"]) for row in losers}
        spent: Counter[int] = Counter()
        for row in rows:
            if (row["bucket"], row["place"]) not in gone:
                spent[row["label"]] += row["milliseconds"]
                if spent[row["label"]] > held[row["label"]] * allowed // total:
                    losers.append(row)
        gone = {(row["bucket"], row["place"]) for row in losers}
        stay = Counter(row["label"] for row in rows if (row["bucket"], row["place"]) not in gone)
        before = dict(limits), dict(sizes)
        sizes[2] = min(sizes[2], (stay[0] + stay[1]) * 2 // 3)
        stay[2] = min(stay[2], sizes[2])
        limits = {label: min(limit, feed_limit(0.2, stay[label], there[label])) for label, limit in limits.items()}
        if (limits, sizes) == before:
            break
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


def test_a_feed_gives_as_much_as_its_share_of_what_stays() -> None:
    """Not of what there was: half of 90 beside 10 others would be five sixths of what stays."""
    assert spread([90, 2, 2, 2, 2, 2], 100, 0.4) == (6, 16)
    assert spread([90, 2, 2, 2, 2, 2], 8, 0.4) == (3, 8)
    assert spread([50], 100, 0.01) == (50, 50)
    assert spread([], 100, 0.01) == spread([3], 0, 0.01) == (0, 0)
    # 0.29 * 100 is less than 29 in floating point.
    assert spread([29, *[1] * 71], 100, 0.29) == (29, 100)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200), st.integers(1, 99))
def test_a_class_is_as_large_as_its_feeds_allow(per_feed: list[int], most: int, percent: int) -> None:
    limit, size = spread(per_feed, most, percent / 100)
    feeds, share = len(per_feed), max(Fraction(percent, 100), Fraction(2, len(per_feed)))

    def fills(wanted: int) -> bool:
        allowed = max(1, min(int(share * wanted), wanted))
        return sum(min(count, allowed) for count in per_feed) >= wanted

    assert size == max(wanted for wanted in range(1, min(most, sum(per_feed)) + 1) if fills(wanted))
    assert limit <= feed_limit(percent / 100, size, feeds)
    assert sum(min(count, limit) for count in per_feed) >= size


@st.composite
def populations(draw: st.DrawFn) -> tuple[pa.Table, Recipe]:
    """Classes, voices and feeds as unequal as they come, and any recipe."""
    count, seed = draw(st.integers(0, 600)), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    feeds, voices = draw(st.integers(1, 40)), draw(st.integers(1, 30))
    bucket = random.integers(0, 3, count)
    place = np.zeros(count, np.int64)
    for number in range(3):
        place[bucket == number] = np.arange((bucket == number).sum())
    feed = random.choice(feeds, count, p=random.dirichlet([draw(st.sampled_from([0.1, 1.0, 50.0]))] * feeds))
    columns = {
        "bucket": bucket,
        "place": place,
        "high": random.integers(0, 2**63, count).astype(np.uint64),
        "low": random.integers(0, 2**63, count).astype(np.uint64),
        "label": random.choice(3, count, p=random.dirichlet([0.5, 0.5, 1.0])),
        # Of some feeds the teachers are surer.
        "confidence": (np.minimum(random.integers(50, 90, count) + feed % 10, 99) * FIXED) // 100,
        "audio": np.arange(count).astype(np.uint64),
        "voice": random.integers(0, voices, count),
        "feed": feed.astype(np.uint64),
        "milliseconds": random.integers(1000, 3000 * (1 + draw(st.integers(0, 4))), count),
    }
    share, neutral = draw(st.sampled_from([0.01, 0.05, 0.2, 0.5, 1.0])), draw(st.sampled_from([0.1, 0.4, 1.0]))
    recipe = Recipe(
        balance=Balance(alpha=draw(st.sampled_from([0.0, 1 / 3])), neutral_share=neutral),
        caps=Caps(per_speaker=draw(st.sampled_from([0, 1, 5])), feed_share=share),
        budget=Budget(first=draw(st.sampled_from([0.01, 0.2, 1.0])), least_hours=0.0),
    )
    return pa.table(columns).cast(CANDIDATES), recipe


@settings(max_examples=25, deadline=None)
@given(populations())
def test_every_limit_holds_in_what_is_kept(made: tuple[pa.Table, Recipe]) -> None:
    table, recipe = made
    milliseconds = int(np.sum(table["milliseconds"].to_numpy()))
    count = max(table.num_rows, 1)
    totals = Totals(count, count * FIXED * 6 // 10, (count * FIXED // 3,) * 3, milliseconds)
    with Selection(recipe, CLASSES, first=True) as selection:
        selection.add(table, totals)
        chosen = selection.choose()
        kept = {(bucket, int(p)) for bucket in range(3) for p, s in zip(*selection.fates(bucket), strict=True) if not s}
    rows = [row for row in table.to_pylist() if (row["bucket"], row["place"]) in kept]
    sizes = Counter(row["label"] for row in rows)
    assert all(sizes[label] <= target for label, target in enumerate(chosen.targets))
    assert sum(row["milliseconds"] for row in rows) <= round(recipe.budget.first * milliseconds)
    others = sizes[0] + sizes[1]
    if others and recipe.balance.neutral_share < 1:
        assert sizes[2] <= Fraction(str(recipe.balance.neutral_share)) * (others + sizes[2])
    if recipe.caps.per_speaker:
        voices = Counter((row["bucket"], row["voice"], row["label"]) for row in rows)
        assert max(voices.values(), default=0) <= recipe.caps.per_speaker
    if recipe.caps.feed_share < 1:
        for label in sizes:
            feeds = Counter(row["feed"] for row in rows if row["label"] == label)
            share = max(Fraction(str(recipe.caps.feed_share)), Fraction(2, len(feeds)))
            assert max(feeds.values()) <= max(1, int(share * sizes[label]))
            assert chosen.feed_limits is not None
            assert max(feeds.values()) <= chosen.feed_limits[label]


def test_a_class_that_few_voices_speak_does_not_let_neutral_in() -> None:
    """Ten voices are angry and sad, four hundred neutral, and nine tenths come from one feed."""
    random = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [1000, 1000, 2000])
    columns = {
        "bucket": np.zeros(4000, np.int64),
        "place": np.arange(4000),
        "high": random.integers(0, 2**62, 4000).astype(np.uint64),
        "low": random.integers(0, 2**62, 4000).astype(np.uint64),
        "label": label,
        "confidence": (random.integers(80, 100, 4000) * FIXED) // 100,
        "audio": np.arange(4000).astype(np.uint64),
        "voice": np.where(label < 2, random.integers(0, 10, 4000), random.integers(10, 400, 4000)),
        "feed": np.where(random.random(4000) < 0.9, 0, random.integers(1, 100, 4000)).astype(np.uint64),
        "milliseconds": np.full(4000, 4000),
    }
    table = pa.table(columns).cast(CANDIDATES)
    totals = Totals(4000, 3600 * FIXED, (1333 * FIXED,) * 3, 16_000_000)
    for caps in (Caps(feed_share=1), Caps(per_speaker=0), Caps()):
        with Selection(Recipe(caps=caps), CLASSES, first=True) as selection:
            selection.add(table, totals)
            selection.choose()
            places, stages = selection.fates(0)
        kept = np.sort(places[stages == 0])
        sizes = np.bincount(label[kept], minlength=3)
        assert sizes.min() > 10
        assert sizes[2] <= 0.4 * sizes.sum()
        if caps.feed_share < 1:
            feeds = [Counter(table["feed"].to_numpy()[kept[label[kept] == place]]) for place in range(3)]
            for mine, size in zip(feeds, sizes, strict=True):
                assert mine[0] <= max(1, 2 / len(mine) * size)
