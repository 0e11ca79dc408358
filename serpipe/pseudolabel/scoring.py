"""What a stored model says about gold: from predictions to the numbers of `serpipe.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.evaluate import REPLICATES, Answers, Measure, answers_of, by_slice, dimensional, evaluate, measured
from serpipe.labels import CANONICAL
from serpipe.models.results import DIMENSIONS
from serpipe.pack import ID
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel import sources
from serpipe.pseudolabel.arrays import first_known, places
from serpipe.pseudolabel.calibrate import LEAST
from serpipe.store.reading import Store
from serpipe.store.reading import open as open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A model against gold.

    Attributes:
        model: its name and fingerprint.
        answers: one a gold segment whose label the model can name.
        unsupported: gold segments of each label that it cannot name; they are in no figure.
        asked: bool, one an answer: whether the model has labelled the segment, or its recording to the end without it.
    """

    model: sources.Stored
    answers: Answers
    unsupported: dict[str, int]
    asked: NDArray[np.bool_]


def stored(store: Store, audio: str, model: str, fp: str | None = None) -> sources.Stored:
    """A model of the store by name.

    Raises:
        UsageError: `EVALUATE_NO_PREDICTIONS`, or `EVALUATE_AMBIGUOUS` where it has several fingerprints.
    """
    there = sources.stored_models(store, audio)
    found = [one for one in there if one.model == model and fp in (None, one.fp)]
    if not found:
        names = ", ".join(sorted({one.model for one in there})) or "no model"
        raise UsageError(
            "EVALUATE_NO_PREDICTIONS", f"{store.storage.root} has no predictions of {model}; it has those of {names}"
        )
    if len(found) > 1:
        raise UsageError(
            "EVALUATE_AMBIGUOUS",
            f"{model} has labelled {store.storage.root} with several fingerprints; give one of "
            f"{', '.join(one.fp for one in found)} with --fp",
        )
    return found[0]


def scores_of(
    store: Store, audio: str, model: sources.Stored, rows: pa.Table, names: Sequence[str]
) -> NDArray[np.float64]:
    """A model's canonical scores, or dimensions, of chosen segments.

    Args:
        store: the store.
        audio: audio fingerprint.
        model: which model.
        rows: `segment_id` and `recording_id` of each segment.
        names: canonical emotions, or dimensions.

    Returns:
        float (n, names), NaN where the model has not labelled the segment or cannot name it.
    """
    result = np.full((rows.num_rows, len(names)), np.nan)
    for bucket in sources.deal(store, audio, [model], _owners(rows)):
        here = sources.scores(store.storage, bucket, 0, names, rows["segment_id"]).T
        result = np.where(np.isnan(result), here, result)
    return result


def score(
    store: Store,
    audio: str,
    model: sources.Stored,
    gold: pa.Table,
    *,
    by: Sequence[str] = (),
    among: Sequence[str] | None = None,
) -> Scored:
    """Put a model's answers beside gold. An emotion that gold has not is a wrong answer.

    Args:
        store: the store.
        audio: audio fingerprint.
        model: which model.
        gold: rows of `serpipe.pseudolabel.gold.MATCHED`.
        by: the owner's columns to slice by, or `speaker`; one that no recording has is left out.
        among: emotions the model must choose from, all that it can name by default; its scores then add up to one
            within them, so that models of unlike classes are compared by the same question.

    Raises:
        UsageError: `EVALUATE_NOTHING_SHARED`, the model can name none of gold's labels.
    """
    support = [emotion for emotion in CANONICAL if emotion in model.emotions and (among is None or emotion in among)]
    known = pc.is_in(gold["label"], value_set=pa.array(support, pa.string()))
    lost = gold.filter(pc.invert(known)).group_by("label").aggregate([("label", "count")]).to_pylist()
    gold = gold.filter(known)
    if not gold.num_rows:
        raise UsageError(
            "EVALUATE_NOTHING_SHARED", f"{model.model} can name none of gold's labels; it is no judge of these clips"
        )
    classes = [emotion for emotion in CANONICAL if emotion in set(gold["label"].to_pylist())]
    scores = scores_of(store, audio, model, gold, support)
    if among is not None:
        scores = scores / np.maximum(np.nansum(scores, axis=1, keepdims=True), LEAST)
    answered = np.asarray((~np.isnan(scores)).any(axis=1))
    best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    answers = answers_of(
        gold["label"].to_pylist(),
        scores[:, [support.index(name) for name in classes]],
        classes,
        gold["speaker"].to_pylist(),
        predicted=[support[place] if there else None for place, there in zip(best, answered, strict=True)],
        slices=_slices(store, audio, model, gold, by),
    )
    unsupported = {row["label"]: row["label_count"] for row in lost}
    asked = answered | _heard_out(store, audio, model, gold)
    return Scored(model=model, answers=answers, unsupported=unsupported, asked=asked)


def _heard_out(store: Store, audio: str, model: sources.Stored, gold: pa.Table) -> NDArray[np.bool_]:
    """Whether the model has come to the end of each segment's recording; what it lacks there has failed."""
    entries = store.entries
    for name, value in (("model", model.model), ("fp", model.fp), ("audio", audio), ("final", True)):
        entries = entries.filter(pc.equal(entries[name], value))
    ended = entries["recording_id"].combine_chunks().cast(pa.binary())
    there = pc.is_in(gold["recording_id"].combine_chunks().cast(pa.binary()), value_set=ended)
    return np.asarray(there.to_numpy(zero_copy_only=False), np.bool_)


def score_dimensions(
    store: Store, audio: str, model: sources.Stored, gold: pa.Table, *, count: int = REPLICATES
) -> dict[str, dict[str, Measure]]:
    """CCC, MSE, MAE and correlation of each dimension that both the owner's columns and the model give, 0 to 1."""
    if not model.dimensional:
        return {}
    said = scores_of(store, audio, model, gold, DIMENSIONS)
    speakers = np.array(gold["speaker"].to_pylist(), np.str_)
    found = {}
    for place, (name, values) in enumerate(_owners_columns(store, audio, model, gold, DIMENSIONS).items()):
        given = np.array([_number(value) for value in values])
        both = ~np.isnan(given) & ~np.isnan(said[:, place])
        if both.sum() > 1:
            found[name] = measured(dimensional(given[both], said[both, place]), speakers[both], count=count)
    return found


def _number(text: str | None) -> float:
    try:
        return float(text) if text else np.nan
    except ValueError:
        return np.nan


def _slices(
    store: Store, audio: str, model: sources.Stored, gold: pa.Table, by: Sequence[str]
) -> dict[str, Sequence[str]]:
    found = _owners_columns(store, audio, model, gold, [name for name in by if name != "speaker"])
    if "speaker" in by:
        found["speaker"] = gold["speaker"].to_pylist()
    there = {name: values for name, values in found.items() if any(values)}
    return {name: [value or "unknown" for value in values] for name, values in there.items()}


def _owners_columns(
    store: Store, audio: str, model: sources.Stored, gold: pa.Table, names: Sequence[str]
) -> dict[str, list[str | None]]:
    """The owner's columns of gold's segments: the segment's own, else its recording's."""
    found: dict[str, list[str | None]] = {name: [None] * gold.num_rows for name in names}
    for bucket in sources.deal(store, audio, [model], _owners(gold)) if names else ():
        segments = sources.segments(store.storage, bucket).combine_chunks()
        place = places(gold["segment_id"], segments["segment_id"])
        metas = [segments[name].combine_chunks() for name in ("meta", "recording_meta")]
        for name in names:
            here = first_known(metas, [name]).take(place).to_pylist()
            found[name] = [old if old is not None else new for old, new in zip(found[name], here, strict=True)]
    return found


def _owners(rows: pa.Table) -> pa.Array:
    return pa.array(sorted(set(rows["recording_id"].to_pylist())), ID)


def report(
    store: str,
    model: str,
    gold: str,
    *,
    split: str = "test",
    by: Sequence[str] = (),
    fp: str | None = None,
    audio: str | None = None,
    count: int = REPLICATES,
    seed: int = 0,
) -> Iterator[str]:
    """A model's figures on a split of gold, line by line.

    Raises:
        UsageError: what is wrong with the request or with gold; `EVALUATE_NO_GOLD`, the split is empty.
    """
    opened = open_store(store)
    audio = sources.audio_of(opened, audio)
    one = stored(opened, audio, model, fp)
    matched = golden.match(opened, golden.read(gold), audio)
    clips = matched.filter(pc.equal(matched["split"], split))
    if not clips.num_rows:
        there = ", ".join(sorted(set(matched["split"].to_pylist())))
        raise UsageError("EVALUATE_NO_GOLD", f"{gold} has no clip in split {split} that {store} holds; it has {there}")
    speakers = len(set(clips["speaker"].to_pylist()))
    yield f"{model} fp {one.fp} on {clips.num_rows} clips of {speakers} speakers, split {split}"
    if one.emotions:
        found = score(opened, audio, one, clips, by=by)
        for label, lost in sorted(found.unsupported.items()):
            yield f"  {lost} clips of {label} are left out: {model} cannot name it"
        for name, measure in evaluate(found.answers, count=count, seed=seed).items():
            yield f"  {name:<24} {measure}"
        for column in by:
            if column not in found.answers.slices:
                yield f"  no clip has a column {column}"
        for (column, value), figures in by_slice(found.answers, count=count, seed=seed).items():
            for name in ("recall_macro_ua", "accuracy_wa", "f1_macro"):
                yield f"  {column}={value}: {name} {figures[name]}"
    for dimension, figures in score_dimensions(opened, audio, one, clips, count=count).items():
        for name, measure in figures.items():
            yield f"  {dimension}: {name} {measure}"
