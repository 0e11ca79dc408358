"""Who votes: the recipe's teachers, found in the store, with their lineages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serpipe.errors import UsageError
from serpipe.models.registry import families
from serpipe.pseudolabel import student
from serpipe.pseudolabel.recipe import Recipe, Teacher
from serpipe.pseudolabel.schemas import Kind
from serpipe.pseudolabel.sources import Stored
from serpipe.store.storage import Storage

STUDENTS = "students"
"""Lineage of students, where the recipe names none."""


@dataclass(frozen=True, slots=True)
class Voter:
    """A teacher as it was found.

    Attributes:
        stored: its predictions.
        lineage: those of one lineage share one vote.
        witness: whether that vote counts when it is asked how many agree.
        weight: of the vote.
        licence: of the model, as its passport in the store has it; None where there is none.
        student_of: the generation that trained it, 0 for gold alone; None for a model that is no student.
        student_kind: what kind of student it is; None for a model that is none.
    """

    stored: Stored
    lineage: str
    weight: float
    licence: str | None
    student_of: int | None
    student_kind: Kind | None
    witness: bool = True


def resolve(storage: Storage, recipe: Recipe, models: Sequence[Stored], *, ungated: bool = False) -> list[Voter]:
    """Find the recipe's teachers among the models of a store.

    Args:
        storage: the store.
        recipe: whole.
        models: that the store has predictions of.
        ungated: whether students that passed no gates may teach, which only an experiment should ask for.

    Raises:
        UsageError: `TEACHER_WITHOUT_PREDICTIONS`, `TEACHER_AMBIGUOUS`, `TEACHER_NOT_CATEGORICAL`,
            `TEACHER_NOT_PROMOTED`, or `LINEAGES_MISSING`.
    """
    wanted = recipe.teachers or tuple(
        Teacher(model=name)
        for name in sorted({m.model for m in models if m.emotions and student.origin(storage, m.model, m.fp) is None})
    )
    if not wanted:
        raise UsageError(
            "TEACHER_WITHOUT_PREDICTIONS",
            f"no categorical model has labelled anything in {storage.shown}; `serpipe label MANIFEST {storage.shown} "
            "--model …` comes first",
        )
    voters = _witnesses([_voter(storage, teacher, models, ungated=ungated) for teacher in wanted])
    lineages = {voter.lineage for voter in voters if voter.witness}
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


def _voter(storage: Storage, teacher: Teacher, models: Sequence[Stored], *, ungated: bool) -> Voter:
    stored = _find(teacher.model, teacher.fp, models)
    if not stored.emotions:
        raise UsageError(
            "TEACHER_NOT_CATEGORICAL",
            f"teacher {stored.model} gives no canonical emotion; a dimensional model goes under coherence.dimensions",
        )
    origin = student.origin(storage, stored.model, stored.fp)
    generation = None if origin is None else _generation(storage, stored, origin, ungated=ungated)
    lineage = teacher.lineage or (_family(stored.model) if origin is None else STUDENTS)
    kind = None if origin is None else origin.kind
    return Voter(stored, lineage, teacher.weight, _licence(storage, stored), generation, kind)


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


def _generation(storage: Storage, stored: Stored, origin: student.Origin, *, ungated: bool) -> int:
    """The generation for which a student may teach: gold alone, or one whose gates it passed with these weights."""
    if 0 in origin.generations:
        return 0
    why = "has passed no gates of this store"
    for generation in reversed(origin.generations if origin.here else ()):
        said = student.judged(storage, generation, origin.kind) or {}
        if ungated or (said.get("status") == "promoted" and said.get("fp") == stored.fp):
            return generation
        if said.get("fp", stored.fp) != stored.fp:
            why = f"is not the one that was judged for generation {generation}"
        else:
            why = "was refused by its gates" if said.get("status") == "refused" else "has not passed its gates"
    raise UsageError(
        "TEACHER_NOT_PROMOTED",
        f"student {stored.model} {why} and may not teach; `serpipe promote"
        f"{' --finetuned' if origin.kind == 'finetuned' else ''}` says why, or promotes it",
    )


def _witnesses(voters: Sequence[Voter]) -> list[Voter]:
    """Students are no independent witnesses beside models from elsewhere, nor beside each other.

    Each learnt from the same gold, and all but the first from those who vote with it: that a student says the same
    proves nothing. So among models from elsewhere students weigh in the label without making agreement, and by
    themselves they are one lineage.
    """
    elsewhere = {voter.lineage for voter in voters if voter.student_of is None}
    if not elsewhere:
        return [replace(voter, lineage=STUDENTS) for voter in voters]
    return [replace(voter, witness=voter.lineage in elsewhere) for voter in voters]


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
