"""A sample of what is left to do: how long recordings are by their headers, and which of them are rehearsed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.audio.headers import stated_seconds
from serpipe.forecast import Range

MOST_ROWS = 20_000
"""Recordings that a sample holds: drawn from any number, they say the mean of whatever they vary in within 1 %."""

MOST_PROBED = 2_000
"""Files whose headers are read."""

GUESS_OFF = 4.0
"""How many times too long or too short a guess by size may be: a WAV holds 16 or 192 kB a second, an MP3 4 or 40."""

_DOUBT = log(GUESS_OFF) / 1.96
"""Of a guess no header stands behind; each header read takes from it as much as it weighs."""

_BOOTSTRAPS = 400

_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True, slots=True)
class Kind:
    """Recordings with one ending.

    Attributes:
        count: how many are left.
        unclaimed: of these, those that it makes no claim for.
        claimed_s: seconds that the manifest claims for those it makes a claim for.
        guessed_s: seconds of the others by their size, as `serpipe.manifest.claim_seconds` guesses.
    """

    count: int
    unclaimed: int
    claimed_s: float
    guessed_s: float


@dataclass(frozen=True, slots=True)
class Left:
    """Recordings with work left.

    Attributes:
        rows: some of them, drawn evenly and in random order: a plan's columns, `query` and `ending`.
        kinds: all of them, by ending.
    """

    rows: pa.Table
    kinds: Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long recordings are.

    Attributes:
        total_s: seconds of all.
        by_kind: seconds by ending.
        factors: true over guessed seconds by ending, of recordings that no manifest makes a claim for.
        unclaimed: recordings that no manifest makes a claim for.
        probed: of these, those whose header was read and states a length.
    """

    total_s: Range
    by_kind: Mapping[str, float]
    factors: Mapping[str, float]
    unclaimed: int
    probed: int

    @property
    def doubts(self) -> list[str]:
        """What this leaves open, in sentences."""
        if not self.unclaimed or self.probed == self.unclaimed:
            return []
        if not self.probed:
            return [
                f"the manifest states no length of {self.unclaimed:,} recordings, and of none could the header be "
                f"read: hours, wall time and cost rest on file sizes and may be {GUESS_OFF:g} times off; give the "
                "manifest a column `duration`, or plan nearer to the archive"
            ]
        return [
            f"the manifest states no length of {self.unclaimed:,} recordings: theirs rests on {self.probed:,} headers"
        ]


def gather(tasks: Iterable[pa.Table], *, seed: int, most: int = MOST_ROWS) -> Left:
    """Count what a plan holds and draw some of it; memory holds the sample and one table.

    Args:
        tasks: a plan's tables, with a column `query`.
        seed: the same seed draws the same recordings.
        most: recordings drawn.
    """
    random = np.random.default_rng(seed)
    totals: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))
    held: list[pa.Table] = []
    rows = 0
    for task in tasks:
        task = task.append_column("ending", _endings(task["uri"]))
        task = task.append_column("drawn", pa.array(random.random(task.num_rows)))
        claimed = task["claimed_s"].is_valid().to_numpy()
        work = task["work_s"].to_numpy()
        endings = task["ending"].to_pylist()
        for ending in set(endings):
            mine = np.array([each == ending for each in endings])
            totals[ending] += (
                mine.sum(),
                (mine & ~claimed).sum(),
                work[mine & claimed].sum(),
                work[mine & ~claimed].sum(),
            )
        held.append(task)
        rows += task.num_rows
        if rows > 2 * most:
            held, rows = [_drawn(held, most)], most
    kinds = {
        ending: Kind(int(count), int(unclaimed), claim, guess)
        for ending, (count, unclaimed, claim, guess) in sorted(totals.items())
    }
    return Left(_drawn(held, most).drop_columns(["drawn"]), kinds)


def lengths(left: Left, *, seconds: float, seed: int) -> Lengths:
    """Estimate how much audio is left: what the manifest claims, and else what a sample of headers says.

    Args:
        left: what is left.
        seconds: that reading headers may take.
        seed: of the bootstrap.
    """
    unclaimed = left.rows.filter(left.rows["claimed_s"].is_null()).slice(0, MOST_PROBED)
    guesses = list(zip(unclaimed["ending"].to_pylist(), unclaimed["work_s"].to_pylist(), strict=True))
    wanted = unclaimed.select(["uri", "query", "size", "etag"]).to_pylist()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for place, true in stated_seconds(wanted, seconds=seconds).items():
        if true is not None:
            ending, guess = guesses[place]
            found[ending].append((guess, true))
    pairs = {ending: np.array(pair) for ending, pair in found.items()}
    by_kind = _totals(_factors(pairs, left.kinds), left.kinds)
    count = sum(kind.unclaimed for kind in left.kinds.values())
    random = np.random.default_rng(seed)
    totals = [sum(_totals(_again(pairs, left.kinds, random), left.kinds).values()) for _ in range(_BOOTSTRAPS)]
    total = sum(by_kind.values())
    low, high = np.quantile(totals, [0.025, 0.975])
    return Lengths(
        total_s=Range(total, min(float(low), total), max(float(high), total)),
        by_kind=by_kind,
        factors=_factors(pairs, left.kinds),
        unclaimed=count,
        probed=sum(map(len, pairs.values())),
    )


def batches(left: Left, sizes: Lengths, *, seconds: float, by_length: bool) -> Iterator[tuple[str, pa.Table]]:
    """What is rehearsed, in an order of which every beginning stands for the whole.

    Args:
        left: what is left.
        sizes: how long that is.
        seconds: of audio that travel together.
        by_length: whether a run labels recordings of like length together.

    Yields:
        Ending, and recordings of it.
    """
    queues = {}
    for ending in left.kinds:
        mine = left.rows.filter(pc.equal(left.rows["ending"], ending))
        if not mine.num_rows:
            continue  # Too few of it are left for any to be drawn.
        work = mine["work_s"].to_numpy() * np.where(mine["claimed_s"].is_valid(), 1.0, sizes.factors[ending])
        if by_length:
            order = np.argsort(-work, kind="stable")
            mine, work = mine.take(pa.array(order)), work[order]
        queues[ending] = _spread_out(list(_cut(mine, work, seconds)))
    given = dict.fromkeys(queues, 0.0)
    while queues:
        # The kind that lags furthest behind its share of the audio is next.
        ending = min(queues, key=lambda kind: given[kind] / max(sizes.by_kind[kind], 1e-9))
        rows, audio_s = queues[ending].pop(0)
        given[ending] += audio_s
        if not queues[ending]:
            del queues[ending]
        yield ending, rows.drop_columns(["ending"])


def _endings(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    found = pc.struct_field(pc.extract_regex(uris, r"\.(?P<ending>[A-Za-z0-9]{1,5})$"), "ending")
    return pc.fill_null(pc.utf8_lower(found), "")


def _drawn(held: list[pa.Table], most: int) -> pa.Table:
    every = pa.concat_tables(held)
    return every.take(pa.array(np.argsort(every["drawn"].to_numpy(), kind="stable")[:most]))


def _factors(pairs: Mapping[str, NDArray[np.float64]], kinds: Mapping[str, Kind]) -> dict[str, float]:
    """True over guessed seconds by ending; of an ending without any, that of all together."""
    every = np.concatenate([np.zeros((0, 2)), *pairs.values()])
    usual = _ratio(every)
    return {ending: _ratio(pairs[ending]) if ending in pairs else usual for ending in kinds}


def _again(
    pairs: Mapping[str, NDArray[np.float64]], kinds: Mapping[str, Kind], random: np.random.Generator
) -> dict[str, float]:
    """Factors as other headers could have shown them."""
    drawn = {ending: pair[random.integers(0, len(pair), len(pair))] for ending, pair in pairs.items()}
    factors = _factors(drawn, kinds)
    read = {ending: len(pair) for ending, pair in pairs.items()}
    for ending, kind in kinds.items():
        count = read.get(ending, 0)
        if count == kind.unclaimed:
            # Where every header was read nothing is left to chance.
            factors[ending] = _ratio(pairs[ending]) if count else 1.0
        else:
            factors[ending] *= float(np.exp(random.normal(0.0, _DOUBT / (1 + count))))
    return factors


def _totals(factors: Mapping[str, float], kinds: Mapping[str, Kind]) -> dict[str, float]:
    """Seconds by ending."""
    return {ending: kind.claimed_s + kind.guessed_s * factors[ending] for ending, kind in kinds.items()}


def _ratio(pairs: NDArray[np.float64]) -> float:
    guessed, true = pairs.sum(axis=0)
    return float(true / guessed) if guessed else 1.0


def _cut(rows: pa.Table, work: NDArray[np.float64], seconds: float) -> Iterator[tuple[pa.Table, float]]:
    start, audio_s = 0, 0.0
    for place, length in enumerate(work):
        audio_s += float(length)
        if audio_s >= seconds or place + 1 == len(work):
            yield rows.slice(start, place + 1 - start), audio_s
            start, audio_s = place + 1, 0.0


def _spread_out(row: list[Any]) -> list[Any]:
    """The same in an order that visits all parts of the row early on."""
    return [row[i] for i in np.argsort((np.arange(len(row)) * _GOLDEN) % 1.0, kind="stable")]
