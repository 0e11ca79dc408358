"""Who votes: the recipe's teachers, found in the store, with their lineages."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serpipe.errors import UsageError
from serpipe.models.registry import families
from serpipe.pseudolabel import schemas
from serpipe.pseudolabel.recipe import Recipe, Teacher
from serpipe.pseudolabel.sources import Stored
from serpipe.store.storage import Storage

_STUDENT = re.compile(r"probe-(\d+)")


@dataclass(frozen=True, slots=True)
class Voter:
    """A teacher as it was found.

    Attributes:
        stored: its predictions.
        lineage: those of one lineage share one vote.
        weight: of the vote.
        licence: of the model, as its passport in the store has it; None where there is none.
        student_of: the generation that trained it; None for a model from elsewhere.
    """

    stored: Stored
    lineage: str
    weight: float
    licence: str | None
    student_of: int | None


def resolve(storage: Storage, recipe: Recipe, models: Sequence[Stored]) -> list[Voter]:
    """Find the recipe's teachers among the models of a store.

    Raises:
        UsageError: `TEACHER_WITHOUT_PREDICTIONS`, `TEACHER_AMBIGUOUS`, `TEACHER_NOT_CATEGORICAL`,
            `TEACHER_NOT_PROMOTED`, or `LINEAGES_MISSING`.
    """
    wanted = recipe.teachers or tuple(
        Teacher(model=name) for name in sorted({m.model for m in models if m.emotions and not student_of(m.model)})
    )
    if not wanted:
        raise UsageError(
            "TEACHER_WITHOUT_PREDICTIONS",
            f"no categorical model has labelled anything in {storage.shown}; `serpipe label MANIFEST {storage.shown} "
            "--model …` comes first",
        )
    voters = _related(storage, [_voter(storage, teacher, models) for teacher in wanted])
    lineages = {voter.lineage for voter in voters}
    if 1 < len(lineages) < recipe.agree.lineages:
        raise UsageError(
            "LINEAGES_MISSING",
            f"agree.lineages wants {recipe.agree.lineages}, the teachers have {len(lineages)} "
            f"({', '.join(sorted(lineages))}); name more teachers or a smaller number",
        )
    return voters


def dimensional(recipe: Recipe, models: Sequence[Stored]) -> Stored | None:
    """The model whose arousal and valence are compared; None where the store has none, or several and none is named.

    Raises:
        UsageError: `TEACHER_WITHOUT_PREDICTIONS` or `TEACHER_AMBIGUOUS`.
    """
    there = [model for model in models if model.dimensional]
    name = recipe.coherence.dimensions
    if name is None:
        return there[0] if len(there) == 1 else None
    return _find(name, None, there)


def student_of(model: str) -> int | None:
    """The generation that a student was trained on.

    Examples:
        >>> student_of("probe-3"), student_of("odyssey-categorical")
        (3, None)
    """
    found = _STUDENT.fullmatch(model)
    return int(found[1]) if found else None


def _voter(storage: Storage, teacher: Teacher, models: Sequence[Stored]) -> Voter:
    stored = _find(teacher.model, teacher.fp, models)
    if not stored.emotions:
        raise UsageError(
            "TEACHER_NOT_CATEGORICAL",
            f"teacher {stored.model} gives no canonical emotion; a dimensional model goes under coherence.dimensions",
        )
    generation = student_of(stored.model)
    if generation is not None:
        _refuse_unpromoted(storage, stored.model, generation)
    lineage = teacher.lineage or _family(stored.model)
    return Voter(stored, lineage, teacher.weight, _licence(storage, stored), generation)


def _find(name: str, fp: str | None, models: Sequence[Stored]) -> Stored:
    mine = [model for model in models if model.model == name and fp in (None, model.fp)]
    if len(mine) == 1:
        return mine[0]
    if mine:
        fps = ", ".join(model.fp for model in mine)
        raise UsageError("TEACHER_AMBIGUOUS", f"{name} has predictions under several fingerprints ({fps}); name its fp")
    there = sorted({model.model for model in models})
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has those of {', '.join(there) or 'no model'}"
    which = f"{name} fp {fp}" if fp else name
    raise UsageError("TEACHER_WITHOUT_PREDICTIONS", f"the store has no predictions of teacher {which}; {hint}")


def _refuse_unpromoted(storage: Storage, name: str, generation: int) -> None:
    try:
        status = json.loads(storage.get(schemas.promotion(generation))).get("status")
    except FileNotFoundError:
        status = None
    if status != "promoted":
        why = "was refused by its gates" if status == "refused" else "has not passed its gates"
        raise UsageError(
            "TEACHER_NOT_PROMOTED",
            f"student {name} {why} and may not teach; `serpipe promote` says why, or promotes it",
        )


def _related(storage: Storage, voters: list[Voter]) -> list[Voter]:
    """A student is no independent witness beside those who taught it: they share one lineage."""
    for student in [voter for voter in voters if voter.student_of is not None]:
        record = json.loads(storage.get(schemas.record(student.student_of or 0)))
        taught_by = {teacher["lineage"] for teacher in record["teachers"]} | {student.lineage}
        one = min(taught_by)
        voters = [replace(voter, lineage=one) if voter.lineage in taught_by else voter for voter in voters]
    return voters


def _family(model: str) -> str:
    for module, family in families().items():
        if any(spec.name == model for spec in family.SPECS):
            return module.rsplit(".", 1)[-1]
    return model


def _licence(storage: Storage, stored: Stored) -> str | None:
    for name in storage.list(f"passports/{stored.model}-{stored.fp}-"):
        licence = json.loads(storage.get(name)).get("licence")
        if licence:
            return str(licence)
    return None
