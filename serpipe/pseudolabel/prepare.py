"""What a generation needs before its first pass: teachers, classes, calibration, the place of gold's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.pseudolabel import agree, calibrate, coherence, judge, sources, teachers
from serpipe.pseudolabel import gold as golds
from serpipe.pseudolabel.arrays import places, words
from serpipe.pseudolabel.recipe import Recipe
from serpipe.store.reading import Store


@dataclass(frozen=True, slots=True)
class _GoldScores:
    """What the models say of gold, sorted by segment, so that sums over it have one order.

    Attributes:
        labels: canonical, n.
        splits: n.
        scores: of each teacher, float64 (classes, n).
        points: arousal and valence, float64 (2, n).
    """

    labels: list[str]
    splits: list[str]
    scores: list[NDArray[np.float64]]
    points: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What was fitted on gold: on which split, on how many segments, and the consensus' calibration error there.

    `spared` names the students that were not fitted because they had learnt that very split.
    """

    split: str | None
    segments: int
    ece: float | None
    spared: tuple[str, ...]


def prepare(
    store: Store, recipe: Recipe, gold: str | None, number: int, *, ungated: bool = False
) -> tuple[judge.Rules, list[sources.Bucket], dict[str, Any]]:
    """Find teachers and classes, calibrate on gold, and deal the store's recordings into buckets.

    Args:
        store: the store.
        recipe: whole.
        gold: where gold lies; None without.
        number: of the generation.
        ungated: whether students that passed no gates may teach.

    Returns:
        The rules, the buckets, and what the record says of audio, dimensions, gold and notes.

    Raises:
        UsageError: as `serpipe.pseudolabel.generation.make`.
    """
    _refuse_judging(recipe)
    storage = store.storage
    audio = sources.audio_of(store, recipe.audio)
    models = sources.stored_models(store, audio)
    voters = teachers.resolve(storage, recipe, models, ungated=ungated)
    measured = teachers.dimensional(recipe, models)
    classes = agree.common_classes([voter.stored.emotions for voter in voters], recipe.classes)
    asked = [voter.stored for voter in voters] + ([measured] if measured else [])
    plain = judge.Rules(
        root=storage.root,
        number=number,
        recipe=recipe,
        classes=classes,
        voters=tuple(voters),
        calibrations=tuple(calibrate.identity(len(classes)) for _ in voters),
        dimensions=len(voters) if measured else None,
    )
    facts: dict[str, Any] = {"audio": audio, "dimensions": measured.model if measured else None, "gold": None}
    rules, fitted = plain, None
    if gold is not None:
        read = golds.read(gold)
        matched = golds.match(store, read, audio)
        rules, fitted = _with_gold(store, replace(plain, barred=golds.barred(read, matched)), asked, matched)
        facts["gold"] = {
            "location": read.location,
            "hash": read.hash,
            "counts": read.counts(),
            "matched": matched.num_rows,
            "speakers_named": read.speakers_named,
            "splits_named": read.splits_named,
            "calibration_split": fitted.split,
            "calibration_segments": fitted.segments,
            "consensus_ece": fitted.ece,
        }
    facts["notes"] = _notes(rules, fitted)
    if ungated:
        facts["notes"].append("an experiment: students were not asked for their gates before they taught")
    return rules, sources.deal(store, audio, asked), facts


def _with_gold(
    store: Store, rules: judge.Rules, models: list[sources.Stored], matched: pa.Table
) -> tuple[judge.Rules, _Fitted]:
    """Calibrate on gold's split and learn where its classes lie."""
    recipe = rules.recipe
    gold = _gold_scores(store, rules, models, matched)
    there = set(gold.splits)
    split = next((name for name in dict.fromkeys((recipe.calibrate.split, "dev", "train")) if name in there), None)
    truth = np.array([rules.classes.index(name) if name in rules.classes else -1 for name in gold.labels], np.int64)
    use = np.array([name == split for name in gold.splits], bool) & (truth >= 0)
    fits = []
    for voter, table in zip(rules.voters, gold.scores, strict=True):
        mine = use & np.isfinite(table).all(axis=0)
        # What learnt a split by heart is always right on it: any temperature fitted there says "be surer".
        method = "none" if _learnt(voter, split) else recipe.calibrate.method
        fits.append(calibrate.fit(table[:, mine], truth[mine], method))
    # Nothing may be learnt from what is there to judge by.
    learnable = [place for place, name in enumerate(gold.splits) if name in ("train", "cal", "dev")]
    known = replace(
        rules,
        calibrations=tuple(fits),
        ellipses=coherence.ellipses(
            gold.points[:, learnable],
            [gold.labels[place] for place in learnable],
            percentile=recipe.coherence.percentile,
            least=recipe.coherence.least_gold,
        ),
    )
    ece = _consensus_ece(known, [table[:, use] for table in gold.scores], truth[use])
    asked = recipe.calibrate.method != "none"
    spared = tuple(voter.stored.model for voter in rules.voters if asked and _learnt(voter, split))
    return known, _Fitted(split, int(use.sum()), ece, spared)


def _learnt(voter: teachers.Voter, split: str | None) -> bool:
    """Whether a voter is a student that was trained on this split of gold."""
    return voter.student_of is not None and split == "train"


def _refuse_judging(recipe: Recipe) -> None:
    if recipe.calibrate.split in golds.JUDGING:
        raise UsageError(
            "RECIPE_INVALID",
            f"calibrate.split: gold's split {recipe.calibrate.split} is there to judge by, and nothing may be fitted "
            "on it; use cal, dev or train",
        )


def _gold_scores(store: Store, rules: judge.Rules, models: list[sources.Stored], matched: pa.Table) -> _GoldScores:
    storage = store.storage
    owners = matched["recording_id"].combine_chunks().unique()
    parts = [matched.select(["segment_id", "label", "split"]).slice(0, 0)]
    scores: list[list[NDArray[np.float64]]] = [[np.zeros((len(rules.classes), 0))] for _ in rules.voters]
    points = [np.zeros((2, 0))]
    for bucket in sources.deal(store, sources.audio_of(store, rules.recipe.audio), models, owners):
        table = sources.segments(storage, bucket)
        place = places(table["segment_id"], matched["segment_id"])
        mine = pc.is_valid(place)
        table, place = table.filter(mine), place.filter(mine)
        parts.append(matched.take(place).select(["segment_id", "label", "split"]))
        for number, part in enumerate(judge.teacher_scores(storage, rules, bucket, table["segment_id"])):
            scores[number].append(part)
        points.append(judge.dimension_scores(storage, rules, bucket, table["segment_id"])[:2])
    said = pa.concat_tables(parts)
    high, low = words(said["segment_id"])
    order = np.lexsort((low, high))
    said = said.take(pa.array(order))
    return _GoldScores(
        labels=said["label"].to_pylist(),
        splits=said["split"].to_pylist(),
        scores=[np.concatenate(tables, axis=1)[:, order] for tables in scores],
        points=np.concatenate(points, axis=1)[:, order],
    )


def _consensus_ece(rules: judge.Rules, scores: Sequence[NDArray[np.float64]], truth: NDArray[np.int64]) -> float | None:
    parts = [calibrate.apply(fit, table) for fit, table in zip(rules.calibrations, scores, strict=True)]
    voted = agree.consensus(parts, *judge.votes(rules))
    if not voted.known.any():
        return None
    return calibrate.ece(voted.soft[:, voted.known], truth[voted.known])


def _notes(rules: judge.Rules, fitted: _Fitted | None) -> list[str]:
    notes = []
    spared = fitted.spared if fitted else ()
    fits = [
        fit for voter, fit in zip(rules.voters, rules.calibrations, strict=True) if voter.stored.model not in spared
    ]
    calibrated = all(fit.method != "none" for fit in fits)
    which = "calibrated" if calibrated else "uncalibrated"
    if rules.lineages == 1:
        lineage = next(voter.lineage for voter in rules.voters if voter.witness)
        notes.append(f"one teacher lineage ({lineage}): agreement is undefined, {which} confidence decides alone")
    silent = [voter.stored.model for voter in rules.voters if not voter.witness]
    if silent:
        notes.append(f"{', '.join(silent)}: students weigh in the label, agreement is asked of the other teachers")
    if spared:
        notes.append(f"{', '.join(spared)}: not calibrated on gold's split train, which students have learnt")
    if fitted is None:
        notes.append("no gold: confidences are the teachers' own, not calibrated; give --gold to calibrate them")
    elif not calibrated:
        wanted = rules.recipe.calibrate.method != "none"
        why = f"gold has {fitted.segments} segments to calibrate on" if wanted else "the recipe asks for none"
        notes.append(f"not every teacher is calibrated: {why}")
    elif fits and fitted.split != rules.recipe.calibrate.split:
        notes.append(f"gold has no split {rules.recipe.calibrate.split}: calibrated on {fitted.split}")
    if rules.dimensions is None:
        notes.append("no dimensional model: arousal and valence are not compared")
    return notes
