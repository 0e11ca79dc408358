"""One bucket of segments: the teachers' consensus and what the stages that look at one segment say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.models.results import DIMENSIONS
from serpipe.pseudolabel import agree, calibrate, coherence, sources
from serpipe.pseudolabel.arrays import SAMPLES, audio_keys, first_known, floats
from serpipe.pseudolabel.gold import Barred
from serpipe.pseudolabel.recipe import Recipe
from serpipe.pseudolabel.schemas import LOCAL_STAGES
from serpipe.pseudolabel.teachers import Voter
from serpipe.store.storage import Storage

Verdict = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Whether each segment passes, and whether there was anything to look at."""

PASSED = 255
"""In `Judged.stage`: no stage that looks at one segment drops it."""

USABLE = ("teachers", "gold", "length", "snr", "clipping", "speech", "abstain")
"""Stages a segment must pass to count in the means that thresholds are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All that decides about a segment, the same for every bucket.

    Attributes:
        root: the store.
        number: of the generation.
        recipe: whole.
        classes: the generation's, in canonical order.
        voters: who votes; their places are those of the buckets' models.
        calibrations: of each voter.
        dimensions: place of the dimensional model among the buckets' models; None without.
        ellipses: where gold's classes lie in arousal and valence.
        barred: what gold keeps out; None without gold.
    """

    root: str
    number: int
    recipe: Recipe
    classes: tuple[str, ...]
    voters: tuple[Voter, ...]
    calibrations: tuple[calibrate.Calibration, ...]
    dimensions: int | None = None
    ellipses: Mapping[str, coherence.Ellipse] = field(default_factory=dict)
    barred: Barred | None = None

    @property
    def lineages(self) -> int:
        """Independent votes."""
        return len({voter.lineage for voter in self.voters if voter.witness})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A bucket after the stages that look at one segment.

    Attributes:
        rows: segments sorted by id, with `uri`, `recording_meta`.
        consensus: of the teachers.
        abstain: float64 (n,), mass outside the classes; NaN where a teacher is missing.
        dimensions: float64 (3, n), arousal, valence, dominance; NaN where there is none.
        audio: uint64 (n,), equal for equal audio.
        milliseconds: int64 (n,).
        verdicts: of each stage.
        stage: uint8 (n,), place in `LOCAL_STAGES` of the first that drops it, or `PASSED`.
        usable: bool (n,), counts in the means.
        speaker: string (n,), null where the owner names none.
        feed: string (n,), null where even the uri is unknown.
    """

    rows: pa.Table
    consensus: agree.Consensus
    abstain: NDArray[np.float64]
    dimensions: NDArray[np.float64]
    audio: NDArray[np.uint64]
    milliseconds: NDArray[np.int64]
    verdicts: Mapping[str, Verdict]
    stage: NDArray[np.uint8]
    usable: NDArray[np.bool_]
    speaker: pa.Array
    feed: pa.Array


def votes(rules: Rules) -> tuple[list[str], list[float], list[bool]]:
    """Lineage and weight of each voter, and whether it is a witness, as `agree.consensus` takes them."""
    voters = rules.voters
    return [v.lineage for v in voters], [v.weight for v in voters], [v.witness for v in voters]


def teacher_scores(
    storage: Storage, rules: Rules, bucket: sources.Bucket, wanted: pa.ChunkedArray
) -> list[NDArray[np.float64]]:
    """Each teacher's scores by class, before calibration, float64 (classes, n); NaN where it has not labelled."""
    tables = []
    for place, voter in enumerate(rules.voters):
        leaves = agree.leaves(rules.classes, voter.stored.emotions)
        scores = sources.scores(storage, bucket, place, list(leaves), wanted)
        tables.append(agree.project(scores, list(leaves.values()), len(rules.classes)))
    return tables


def dimension_scores(
    storage: Storage, rules: Rules, bucket: sources.Bucket, wanted: pa.ChunkedArray
) -> NDArray[np.float64]:
    """Arousal, valence, dominance, float64 (3, n); NaN without a dimensional model."""
    if rules.dimensions is None:
        return np.full((len(DIMENSIONS), len(wanted)), np.nan)
    return sources.scores(storage, bucket, rules.dimensions, DIMENSIONS, wanted)


def judge(storage: Storage, rules: Rules, bucket: sources.Bucket) -> Judged:
    """Join a bucket's tables and judge each segment by itself."""
    rows = sources.segments(storage, bucket)
    wanted = rows["segment_id"]
    scores = teacher_scores(storage, rules, bucket, wanted)
    lineages, weights, witnesses = votes(rules)
    calibrated = [calibrate.apply(fitted, table) for fitted, table in zip(rules.calibrations, scores, strict=True)]
    voted = agree.consensus(calibrated, lineages, weights, witnesses)
    abstain = np.clip(1 - _mass(scores, agree.shares(lineages, weights)), 0.0, 1.0)
    dimensions = dimension_scores(storage, rules, bucket, wanted)
    audio = audio_keys(rows)
    speaker, feed = _owners(rules.recipe, rows)
    verdicts = {
        **_gold(rules, rows, speaker, audio),
        **_quality(rules.recipe, rows),
        **_votes(rules, voted, abstain),
        **_coherent(rules, rows, voted, dimensions),
    }
    stage = np.full(rows.num_rows, PASSED, np.uint8)
    for place in reversed(range(len(LOCAL_STAGES))):
        passes, looked = verdicts[LOCAL_STAGES[place]]
        stage[looked & ~passes] = place
    usable = np.ones(rows.num_rows, bool)
    for name in USABLE:
        passes, looked = verdicts[name]
        usable &= passes | ~looked
    seconds = floats(rows["end_s"]) - floats(rows["start_s"])
    return Judged(
        rows=rows,
        consensus=voted,
        abstain=abstain,
        dimensions=dimensions,
        audio=audio,
        milliseconds=np.rint(seconds * 1000).astype(np.int64),
        verdicts=verdicts,
        stage=stage,
        usable=usable,
        speaker=speaker,
        feed=feed,
    )


def good_audio(recipe: Recipe, rows: pa.Table) -> NDArray[np.bool_]:
    """Whether the audio is better than the gates ask, bool (n,); a measure that is absent counts as good."""
    quality = recipe.quality
    snr, clipping, speech = (floats(rows[name]) for name in ("snr_db", "clipping", "speech"))
    good = ~(snr < quality.good_snr_db) & ~(clipping > quality.good_clipping) & ~(speech < quality.good_speech)
    return np.asarray(good)


def _mass(scores: list[NDArray[np.float64]], shares: list[float]) -> NDArray[np.float64]:
    """The share of the scores within the classes, averaged as the votes are."""
    mass = np.zeros(scores[0].shape[1])
    for table, share in zip(scores, shares, strict=True):
        for row in table:
            mass = mass + share * row
    return mass


def _gold(rules: Rules, rows: pa.Table, speaker: pa.Array, audio: NDArray[np.uint64]) -> dict[str, Verdict]:
    count = rows.num_rows
    if rules.barred is None:
        return {"gold": (np.ones(count, bool), np.zeros(count, bool))}
    return {"gold": (~rules.barred.of(rows, speaker, audio), np.ones(count, bool))}


def _quality(recipe: Recipe, rows: pa.Table) -> dict[str, Verdict]:
    quality = recipe.quality
    # Whole samples: a window of exactly the longest length is not longer than it.
    samples = np.rint((floats(rows["end_s"]) - floats(rows["start_s"])) * SAMPLES)
    snr, clipping, speech = (floats(rows[name]) for name in ("snr_db", "clipping", "speech"))
    everywhere = np.ones(rows.num_rows, bool)
    return {
        "length": ((samples >= quality.min_s * SAMPLES) & (samples <= quality.max_s * SAMPLES), everywhere),
        "snr": (snr >= quality.snr_db, np.isfinite(snr)),
        "clipping": (clipping <= quality.clipping, everywhere),
        "speech": (speech >= quality.speech, np.isfinite(speech)),
    }


def _votes(rules: Rules, voted: agree.Consensus, abstain: NDArray[np.float64]) -> dict[str, Verdict]:
    recipe, known = rules.recipe, voted.known
    agreed = (voted.votes >= recipe.agree.lineages) & (voted.jsd <= recipe.agree.jsd)
    return {
        "teachers": (known, np.ones_like(known)),
        "abstain": (abstain <= recipe.agree.abstain, known),
        "agree": (agreed, known if rules.lineages > 1 else np.zeros_like(known)),
        "margin": (voted.margin >= recipe.select.margin, known),
    }


def _coherent(
    rules: Rules, rows: pa.Table, voted: agree.Consensus, dimensions: NDArray[np.float64]
) -> dict[str, Verdict]:
    fits, compared = coherence.dimensions_fit(dimensions[:2], voted.label, rules.classes, rules.ellipses)
    words = first_known(_metas(rows), [rules.recipe.coherence.text_emotion])
    text, said = coherence.text_fits(words, voted.label, rules.classes)
    return {"dimensions": (fits, compared & voted.known), "text": (text, said & voted.known)}


def _owners(recipe: Recipe, rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    speaker = first_known(_metas(rows), recipe.caps.speaker)
    feed = first_known(_metas(rows), recipe.caps.feed)
    uris = rows["uri"].combine_chunks().dictionary_encode()
    folders = pa.array([uri.rpartition("/")[0] for uri in uris.dictionary.to_pylist()], pa.string())
    return speaker, pc.coalesce(feed, folders.take(uris.indices))


def _metas(rows: pa.Table) -> list[pa.Array]:
    return [rows[name].combine_chunks() for name in ("meta", "recording_meta")]
