"""Choosing among all candidates: one threshold a class, duplicates, caps, balance, budget.

Every limit holds in what is kept in the end, and not only where it was applied. Caps come before balance, so that
classes are weighed by what they may keep, and a share is a share of what stays: where a later stage makes a class
smaller, its feeds may keep less each.

Everything here is exact: counts and sums of integers, and ranks under one total order, confidence first and a seeded
hash of the id after it. So the choice does not depend on how rows were dealt or in which order they came. DuckDB does
the ranking, and spills to disk what does not fit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from types import TracebackType

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.pseudolabel.arrays import FIXED
from serpipe.pseudolabel.recipe import Balance, Budget, Caps, Recipe, Select
from serpipe.pseudolabel.schemas import GLOBAL_STAGES

MEMORY = "1GB"
"""What DuckDB may hold before it spills."""

NEGLIGIBLE = 0.01
"""Of the most frequent class's candidates, below which a class keeps all of its own and sets no other's rate: a few
stray candidates of an emotion that nobody shows must not cost another class nine tenths of its own."""

CANDIDATES = pa.schema(
    [
        pa.field("bucket", pa.int32()),
        pa.field("place", pa.int32()),  # in the bucket's order
        pa.field("high", pa.uint64()),  # seeded hash of the id, in two halves: the order among equals
        pa.field("low", pa.uint64()),
        pa.field("label", pa.uint8()),
        pa.field("confidence", pa.int32()),  # multiples of 2^-30
        pa.field("audio", pa.uint64()),
        pa.field("voice", pa.int32()),  # recording and speaker, numbered within the bucket
        pa.field("feed", pa.uint64()),
        pa.field("milliseconds", pa.int32()),
    ]
)
"""A segment that passed every stage which looks at one segment."""

_ORDER = "confidence DESC, high, low"
_IN_FEED = f"row_number() OVER (PARTITION BY feed, label ORDER BY {_ORDER})"
_IN_CLASS = f"PARTITION BY label, spread ORDER BY {_ORDER}"


@dataclass(slots=True)
class Totals:
    """Sums over the usable segments; of integers, so that their order does not matter.

    Attributes:
        segments: how many.
        confidence: multiples of 2^-30.
        classes: of each class's probability, multiples of 2^-30.
        milliseconds: of every segment considered, usable or not.
    """

    segments: int
    confidence: int
    classes: tuple[int, ...]
    milliseconds: int

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.segments + other.segments,
            self.confidence + other.confidence,
            tuple(a + b for a, b in zip(self.classes, other.classes, strict=True)),
            self.milliseconds + other.milliseconds,
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """How the choice was made.

    Attributes:
        thresholds: least confidence of each class.
        targets: segments of each class after balancing.
        feed_limits: most segments of each class from one feed, in the end; None where the cap is off.
        budget_hours: hours allowed.
    """

    thresholds: tuple[float, ...]
    targets: tuple[int, ...]
    feed_limits: tuple[int, ...] | None
    budget_hours: float


def thresholds(totals: Totals, select: Select) -> tuple[float, ...]:
    """One threshold a class: FreeMatch's (Wang et al. 2023), over all usable segments instead of a running mean.

    `tau = clip(E[confidence], low, high)`; `tau_k = max(floor, tau * E[p_k] / max_j E[p_j])`.

    Examples:
        >>> thresholds(Totals(4, 3 * FIXED, (2 * FIXED, FIXED), 0), Select(floor=0.3))
        (0.75, 0.375)
    """
    if not totals.segments:
        return (select.floor,) * len(totals.classes)
    mean = totals.confidence / (totals.segments * FIXED)
    level = min(max(mean, select.low), select.high)
    most = max(totals.classes)
    return tuple(max(select.floor, level * total / most) for total in totals.classes)


def targets(counts: Sequence[int], balance: Balance, neutral: int | None) -> tuple[int, ...]:
    """How many candidates of each class stay: CReST's rates (Wei et al. 2021), then the largest share of neutral.

    The l-th most frequent of the L classes with candidates keeps `(N[L+1-l] / N[1]) ** alpha` of its own; classes with
    next to none (`NEGLIGIBLE`) keep them and are not counted.

    Args:
        counts: candidates of each class.
        balance: the recipe's section.
        neutral: place of neutral; None where it is no class.

    Examples:
        >>> targets([1000, 125, 1000], Balance(alpha=1 / 3, neutral_share=0.4), 2)
        (500, 125, 416)
    """
    counted = (place for place, count in enumerate(counts) if count > NEGLIGIBLE * max(counts))
    there = sorted(counted, key=lambda place: (-counts[place], place))
    kept = list(counts)
    for rank, place in enumerate(there):
        opposite = counts[there[len(there) - 1 - rank]]
        rate = max((opposite / counts[there[0]]) ** balance.alpha, balance.least_rate)
        kept[place] = ceil(round(rate * counts[place], 6))
    return with_neutral(kept, balance, neutral)


def with_neutral(counts: Sequence[int], balance: Balance, neutral: int | None) -> tuple[int, ...]:
    """Counts of which neutral is no more than its largest share; where there is nothing but neutral, all of it.

    Examples:
        >>> with_neutral([300, 300, 1000], Balance(neutral_share=0.4), 2)
        (300, 300, 400)
    """
    kept = list(counts)
    others = sum(count for place, count in enumerate(kept) if place != neutral)
    if neutral is not None and balance.neutral_share < 1 and others:
        share = _exact(balance.neutral_share)
        kept[neutral] = min(kept[neutral], floor(share / (1 - share) * others))
    return tuple(kept)


def feed_limit(share: float, segments: int, feeds: int) -> int:
    """Most segments of a class from one feed: the share, or twice the even one where feeds are few; at least one.

    Examples:
        >>> feed_limit(0.01, 10_000, 500), feed_limit(0.01, 100, 4)
        (100, 50)
    """
    return max(1, floor(_feed_share(share, feeds) * segments)) if feeds else 0


def spread(per_feed: Sequence[int] | NDArray[np.int64], most: int, share: float) -> tuple[int, int]:
    """How many segments of a class can stay so that no feed has more than `feed_limit` of those that do.

    With L of each feed at most, S(L) stay. L / S(L) grows with L, so the largest L that is within its share is found by
    bisection.

    Args:
        per_feed: candidates of the class in each feed.
        most: of the class.
        share: of one feed, as the recipe says it.

    Returns:
        Most of one feed, and of the class.

    Examples:
        >>> spread([90, 5, 5], 100, 0.01)  # two thirds, twice the even share
        (20, 30)
        >>> spread([90, 5, 5], 12, 0.01)
        (8, 12)
    """
    feeds = np.sort(np.asarray(per_feed, np.int64))
    if not len(feeds) or not most:
        return 0, 0
    below, allowed = np.concatenate([[0], np.cumsum(feeds)]), _feed_share(share, len(feeds))

    def stay(limit: int) -> int:
        whole = int(np.searchsorted(feeds, limit, side="right"))
        return min(int(below[whole]) + limit * (len(feeds) - whole), most)

    least, beyond = 1, int(feeds[-1]) + 1
    while beyond - least > 1:
        middle = (least + beyond) // 2
        within = middle <= allowed * stay(middle)
        least, beyond = (middle, beyond) if within else (least, middle)
    return least, stay(least)


def _feed_share(share: float, feeds: int) -> Fraction:
    return min(Fraction(1), max(_exact(share), Fraction(2, feeds)))


def _exact(share: float) -> Fraction:
    """A share as it is written: of 100 rows 0.29 is 29, and not 28."""
    return Fraction(str(share))


def allowed_milliseconds(budget: Budget, considered: int, *, first: bool) -> int:
    """Audio that a generation may keep."""
    share = budget.first if first else budget.later
    return max(round(share * considered), round(budget.least_hours * 3_600_000))


class Selection:
    """Gathers candidates, then chooses; a context manager that owns a folder on local disk.

    Args:
        recipe: the recipe.
        classes: of the generation.
        first: whether no promoted student teaches, for the budget.
    """

    def __init__(self, recipe: Recipe, classes: Sequence[str], *, first: bool) -> None:
        self._recipe, self._classes, self._first = recipe, tuple(classes), first
        self._neutral = self._classes.index("neutral") if "neutral" in self._classes else None
        self._folder = Path(tempfile.mkdtemp(prefix="serpipe-selection-"))
        self._db = duckdb.connect(str(self._folder / "candidates.duckdb"))
        self._db.execute(f"SET memory_limit = '{MEMORY}'")
        self._db.execute(f"SET temp_directory = '{self._folder / 'spill'}'")
        self._db.execute("SET preserve_insertion_order = false")
        self._db.register("incoming", CANDIDATES.empty_table())
        self._db.execute("CREATE TABLE candidates AS SELECT * FROM incoming")
        self._db.execute("CREATE TABLE fates (bucket INTEGER, place INTEGER, stage UTINYINT)")
        self._totals = Totals(0, 0, (0,) * len(self._classes), 0)

    def __enter__(self) -> Selection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, candidates: pa.Table, totals: Totals) -> None:
        """One bucket's candidates, rows of `CANDIDATES`, and its sums."""
        self._totals += totals
        if candidates.num_rows:
            self._db.register("incoming", candidates)
            self._db.execute("INSERT INTO candidates SELECT * FROM incoming")
            self._db.unregister("incoming")

    def choose(self) -> Chosen:
        """Apply the stages that weigh a segment against all others, in the order of `GLOBAL_STAGES`."""
        recipe = self._recipe
        levels = thresholds(self._totals, recipe.select)
        self._keep("threshold", f"confidence >= {_by_label([ceil(level * FIXED) for level in levels])}")
        self._keep(
            "duplicate",
            f"row_number() OVER (PARTITION BY audio ORDER BY {_ORDER}) = 1",
            "SELECT * FROM candidates WHERE audio IN (SELECT audio FROM candidates GROUP BY audio HAVING count(*) > 1)",
        )
        self._cap_speakers(recipe.caps)
        self._cap_feeds()
        kept = self._balance()
        limits, allowed = self._spend()
        self._db.execute("INSERT INTO fates SELECT bucket, place, 0 FROM candidates")
        self._db.execute("DROP TABLE candidates")
        self._db.execute("CREATE TABLE sorted AS SELECT * FROM fates ORDER BY bucket, place")
        self._db.execute("DROP TABLE fates")
        capped = tuple(limits) if recipe.caps.feed_share < 1 else None
        return Chosen(levels, tuple(kept), capped, allowed / 3_600_000)

    def fates(self, bucket: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """A bucket's candidates: their places; 0 where kept, else 1 + the place in `GLOBAL_STAGES` of its end."""
        found = self._db.execute(
            "SELECT place, stage FROM sorted WHERE bucket = ? ORDER BY place", [bucket]
        ).fetchnumpy()
        return np.asarray(found["place"], np.int32), np.asarray(found["stage"], np.uint8)

    def _cap_speakers(self, caps: Caps) -> None:
        if caps.per_speaker:
            rank = f"row_number() OVER (PARTITION BY bucket, voice, label ORDER BY {_ORDER})"
            self._keep("speaker", f"{rank} <= {caps.per_speaker}")

    def _cap_feeds(self) -> None:
        share = self._recipe.caps.feed_share
        if share < 1:
            limits = [spread(feeds, int(feeds.sum()), share)[0] for feeds in self._feeds()]
            self._keep("feed", f"{_IN_FEED} <= {_by_label(limits)}")

    def _balance(self) -> list[int]:
        """The most confident of each class, from as many feeds as it takes; of neutral by what the others keep."""
        balance, share, feeds = self._recipe.balance, self._recipe.caps.feed_share, self._feeds()
        counts: Sequence[int] = targets([int(there.sum()) for there in feeds], balance, self._neutral)
        counts = [spread(there, most, share)[1] for there, most in zip(feeds, counts, strict=True)]
        counts = with_neutral(counts, balance, self._neutral)
        kept = [spread(there, most, share) for there, most in zip(feeds, counts, strict=True)]
        condition = f"spread AND row_number() OVER ({_IN_CLASS}) <= {_by_label([count for _, count in kept])}"
        self._keep("balance", condition, self._spread([limit for limit, _ in kept]))
        return [count for _, count in kept]

    def _spend(self) -> tuple[list[int], int]:
        """Each class gives up the same share of its audio, the least confident first, and what is a share follows.

        Returns:
            Most of each class from one feed, and the milliseconds allowed.
        """
        share, balance, feeds = self._recipe.caps.feed_share, self._recipe.balance, self._feeds()
        allowed = allowed_milliseconds(self._recipe.budget, self._totals.milliseconds, first=self._first)
        held = self._per_label("sum(milliseconds)")
        total = sum(held.values())
        most = [int(there.sum()) for there in feeds]
        limits = [spread(there, count, share)[0] for there, count in zip(feeds, most, strict=True)]
        if total <= allowed:
            return limits, allowed
        audio = [held.get(place, 0) * allowed // total for place in range(len(feeds))]
        # Both only fall, and of the first two rounds nearly all is settled: segments are about as long everywhere.
        while True:
            condition = (
                f"spread AND row_number() OVER ({_IN_CLASS}) <= {_by_label(most)} AND "
                f"sum(milliseconds) OVER ({_IN_CLASS} ROWS UNBOUNDED PRECEDING) <= {_by_label(audio)}"
            )
            judged = _judged(condition, self._spread(limits))
            found = self._per_label("count(*) FILTER (WHERE kept)", judged)
            stay = [found.get(place, 0) for place in range(len(feeds))]
            fewer = with_neutral(stay, balance, self._neutral)
            lower = [
                min(limit, feed_limit(share, count, len(there)))
                for limit, count, there in zip(limits, fewer, feeds, strict=True)
            ]
            if lower == limits and list(fewer) == stay:
                self._keep("budget", condition, self._spread(limits))
                return limits, allowed
            limits = lower
            if self._neutral is not None and fewer[self._neutral] < stay[self._neutral]:
                most[self._neutral] = fewer[self._neutral]

    def _spread(self, limits: Sequence[int]) -> str:
        """Candidates, and whether each is among the most confident of its class and feed."""
        within = f"{_IN_FEED} <= {_by_label(limits)}" if self._recipe.caps.feed_share < 1 else "true"
        return f"SELECT *, {within} AS spread FROM candidates"

    def _keep(self, stage: str, condition: str, looked_at: str = "SELECT * FROM candidates") -> None:
        """Keep candidates for which a condition holds, looking only at some of them, and note the fate of the rest."""
        code = 1 + GLOBAL_STAGES.index(stage)
        self._db.execute(
            f"CREATE TEMP TABLE losers AS SELECT bucket, place FROM ({_judged(condition, looked_at)}) WHERE NOT kept"
        )
        self._db.execute(f"INSERT INTO fates SELECT bucket, place, {code} FROM losers")
        self._db.execute("CREATE TABLE winners AS SELECT * FROM candidates ANTI JOIN losers USING (bucket, place)")
        self._db.execute("DROP TABLE losers")
        self._db.execute("DROP TABLE candidates")
        self._db.execute("ALTER TABLE winners RENAME TO candidates")

    def _feeds(self) -> list[NDArray[np.int64]]:
        """Of each class the candidates of every feed that has any."""
        found = self._db.execute("SELECT label, count(*) AS n FROM candidates GROUP BY label, feed").fetchnumpy()
        return [np.asarray(found["n"][found["label"] == place], np.int64) for place in range(len(self._classes))]

    def _per_label(self, value: str, table: str = "SELECT * FROM candidates") -> Mapping[int, int]:
        rows = self._db.execute(f"SELECT label, {value} FROM ({table}) GROUP BY label").fetchall()
        return {int(label): int(number) for label, number in rows}


def _judged(condition: str, table: str) -> str:
    return f"SELECT *, {condition} AS kept FROM ({table})"


def _by_label(values: Sequence[int]) -> str:
    """One number a class, as SQL."""
    return f"[{', '.join(map(str, values))}][label + 1]"
