"""The record of a generation: what it was made of, how it chose, what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import serpipe
from serpipe.pseudolabel import calibrate, judge, passes, schemas, teachers
from serpipe.pseudolabel.balance import Chosen
from serpipe.store import runs

LOW_PASS = 0.6
"""Share of neutral's pass rate through the quality gates below which a class is said to suffer from them."""


def describe(
    rules: judge.Rules, chosen: Chosen, written: Sequence[passes.Written], facts: dict[str, Any], run: str
) -> dict[str, Any]:
    """The record of a generation, as `generation.json` holds it."""
    shape = (1 + len(schemas.STAGES), len(rules.classes) + 1)
    segments = sum((part.segments for part in written), np.zeros(shape, np.int64))
    hours = sum((part.milliseconds for part in written), np.zeros(shape, np.int64)) / 3_600_000
    notes = facts.pop("notes") + _suffering(rules, segments)
    return {
        "number": rules.number,
        "run_id": run,
        "created": runs.now(),
        "serpipe": serpipe.__version__,
        "schema": schemas.VERSION,
        "classes": list(rules.classes),
        "recipe": rules.recipe.model_dump(mode="json"),
        "recipe_hash": rules.recipe.hash,
        "seed": rules.recipe.seed,
        "teachers": [
            _teacher(voter, fit, facts["audio"]) for voter, fit in zip(rules.voters, rules.calibrations, strict=True)
        ],
        "lineages": rules.lineages,
        "parent": max((voter.student_of or 0 for voter in rules.voters), default=0) or None,
        **facts,
        "thresholds": dict(zip(rules.classes, chosen.thresholds, strict=True)),
        "balance_targets": dict(zip(rules.classes, chosen.targets, strict=True)),
        "feed_limits": dict(zip(rules.classes, chosen.feed_limits, strict=True)) if chosen.feed_limits else None,
        "budget_hours": chosen.budget_hours,
        "considered": {"segments": int(segments.sum()), "hours": float(hours.sum())},
        "kept": {"segments": int(segments[0].sum()), "hours": float(hours[0].sum())},
        "funnel": _funnel(segments, hours),
        "per_class": {
            name: {
                "considered": int(segments[:, place].sum()),
                "kept": int(segments[0, place]),
                "kept_hours": float(hours[0, place]),
            }
            for place, name in enumerate(rules.classes)
        },
        "notes": notes,
    }


def _teacher(voter: teachers.Voter, fit: calibrate.Calibration, audio: str) -> dict[str, Any]:
    return {
        "model": voter.stored.model,
        "fp": voter.stored.fp,
        "audio": audio,
        "lineage": voter.lineage,
        "witness": voter.witness,
        "weight": voter.weight,
        "licence": voter.licence,
        "student_of": voter.student_of,
        "student_kind": voter.student_kind,
        "calibration": fit.to_dict(),
    }


def _funnel(segments: Any, hours: Any) -> list[dict[str, Any]]:
    """What each stage was given, dropped and passed on."""
    left, left_hours = int(segments.sum()), float(hours.sum())
    steps = []
    for place, stage in enumerate(schemas.STAGES, start=1):
        dropped, dropped_hours = int(segments[place].sum()), float(hours[place].sum())
        left, left_hours = left - dropped, left_hours - dropped_hours
        steps.append(
            {
                "stage": stage,
                "dropped": dropped,
                "dropped_hours": dropped_hours,
                "kept": left,
                "kept_hours": max(left_hours, 0.0),
            }
        )
    return steps


def _suffering(rules: judge.Rules, segments: Any) -> list[str]:
    """Classes that the quality gates delete: screaming and crying look like bad audio."""
    if "neutral" not in rules.classes:
        return []
    gates = [1 + schemas.STAGES.index(name) for name in ("length", "snr", "clipping", "speech")]
    before = segments.sum(axis=0) - segments[1 : gates[0]].sum(axis=0)
    passed = 1 - segments[gates].sum(axis=0) / np.maximum(before, 1)
    neutral = passed[rules.classes.index("neutral")]
    return [
        f"the quality gates pass {passed[place]:.0%} of {name} and {neutral:.0%} of neutral"
        for place, name in enumerate(rules.classes)
        if before[place] and passed[place] < LOW_PASS * neutral
    ]
