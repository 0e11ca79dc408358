"""Choosing among all candidates: one threshold a class, duplicates, balance, caps, budget.

Everything here is exact: counts and sums of integers, and ranks under one total order, confidence first and a seeded
hash of the id after it. So the choice does not depend on how rows were dealt or in which order they came. DuckDB does
the ranking, and spills to disk what does not fit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        targets: most segments of each class after balancing.
        feed_limits: most segments of each class from one feed; None where the cap is off.
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
    others = sum(count for place, count in enumerate(kept) if place != neutral)
    if neutral is not None and balance.neutral_share < 1 and others:
        kept[neutral] = min(kept[neutral], floor(balance.neutral_share / (1 - balance.neutral_share) * others))
    return tuple(kept)


def feed_limit(share: float, segments: int, feeds: int) -> int:
    """Most segments of a class from one feed: the share, or twice the even one where feeds are few; at least one.

    Examples:
        >>> feed_limit(0.01, 10_000, 500), feed_limit(0.01, 100, 4)
        (100, 50)
    """
    return max(1, floor(min(1.0, max(share, 2 / feeds)) * segments)) if feeds else 0


def allowed_milliseconds(budget: Budget, considered: int, *, first: bool) -> int:
    """Audio that a generation may keep."""
    share = budget.first if first else budget.later
    return max(round(share * considered), round(budget.least_hours * 3_600_000))


class Selection:
    """Gathers candidates, then chooses; a context manager that owns a folder on local disk.

    Args:
        recipe: the recipe.
        classes: of the generation.
        first: whether it is the store's first generation, for the budget.
    """

    def __init__(self, recipe: Recipe, classes: Sequence[str], *, first: bool) -> None:
        self._recipe, self._classes, self._first = recipe, tuple(classes), first
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
            only="audio IN (SELECT audio FROM candidates GROUP BY audio HAVING count(*) > 1)",
        )
        neutral = self._classes.index("neutral") if "neutral" in self._classes else None
        kept = targets(self._counts(), recipe.balance, neutral)
        rank = f"row_number() OVER (PARTITION BY label ORDER BY {_ORDER})"
        self._keep("balance", f"{rank} <= {_by_label(kept)}")
        self._cap_speakers(recipe.caps)
        limits = self._cap_feeds(recipe.caps)
        allowed = self._spend(recipe.budget)
        self._db.execute("INSERT INTO fates SELECT bucket, place, 0 FROM candidates")
        self._db.execute("DROP TABLE candidates")
        self._db.execute("CREATE TABLE sorted AS SELECT * FROM fates ORDER BY bucket, place")
        self._db.execute("DROP TABLE fates")
        return Chosen(levels, kept, limits, allowed / 3_600_000)

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

    def _cap_feeds(self, caps: Caps) -> tuple[int, ...] | None:
        if caps.feed_share >= 1:
            return None
        feeds = self._per_label("count(DISTINCT feed)")
        counts = self._counts()
        limits = [feed_limit(caps.feed_share, n, feeds.get(place, 0)) for place, n in enumerate(counts)]
        rank = f"row_number() OVER (PARTITION BY feed, label ORDER BY {_ORDER})"
        self._keep("feed", f"{rank} <= {_by_label(limits)}")
        return tuple(limits)

    def _spend(self, budget: Budget) -> int:
        """Each class gives up the same share of its audio, the least confident first."""
        allowed = allowed_milliseconds(budget, self._totals.milliseconds, first=self._first)
        held = self._per_label("sum(milliseconds)")
        total = sum(held.values())
        if total > allowed:
            limits = [held.get(place, 0) * allowed // total for place in range(len(self._classes))]
            spent = f"sum(milliseconds) OVER (PARTITION BY label ORDER BY {_ORDER} ROWS UNBOUNDED PRECEDING)"
            self._keep("budget", f"{spent} <= {_by_label(limits)}")
        return allowed

    def _keep(self, stage: str, condition: str, only: str = "true") -> None:
        """Keep candidates for which a condition holds, looking only at some of them, and note the fate of the rest."""
        code = 1 + GLOBAL_STAGES.index(stage)
        self._db.execute(
            f"CREATE TEMP TABLE losers AS SELECT bucket, place FROM "
            f"(SELECT bucket, place, {condition} AS kept FROM candidates WHERE {only}) WHERE NOT kept"
        )
        self._db.execute(f"INSERT INTO fates SELECT bucket, place, {code} FROM losers")
        self._db.execute("CREATE TABLE winners AS SELECT * FROM candidates ANTI JOIN losers USING (bucket, place)")
        self._db.execute("DROP TABLE losers")
        self._db.execute("DROP TABLE candidates")
        self._db.execute("ALTER TABLE winners RENAME TO candidates")

    def _counts(self) -> list[int]:
        counts = self._per_label("count(*)")
        return [counts.get(place, 0) for place in range(len(self._classes))]

    def _per_label(self, value: str) -> Mapping[int, int]:
        rows = self._db.execute(f"SELECT label, {value} FROM candidates GROUP BY label").fetchall()
        return {int(label): int(number) for label, number in rows}


def _by_label(values: Sequence[int]) -> str:
    """One number a class, as SQL."""
    return f"[{', '.join(map(str, values))}][label + 1]"
