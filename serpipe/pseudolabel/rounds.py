"""Rounds: a student trained on gold alone, then generation after generation, until one is refused or gains nothing.

Every step leaves something in the store that says it is done, so a run that was ended goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serpipe.pseudolabel import gate, generation, student
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.gold import read as read_gold
from serpipe.pseudolabel.promote import lines, promote
from serpipe.pseudolabel.recipe import Recipe, Teacher
from serpipe.pseudolabel.relabel import relabel
from serpipe.pseudolabel.train import train
from serpipe.store.storage import Storage

ANCHOR = 0.2
"""Weight of the student trained on gold alone beside the last promoted one: it never moves, so not both can drift."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How rounds ended.

    Attributes:
        rounds: generations that were made, in order.
        promoted: the last generation whose student passed its gates; None if none did.
        why: one sentence.
    """

    rounds: tuple[int, ...]
    promoted: int | None
    why: str


def run(
    store: str,
    gold: str,
    *,
    recipe: Recipe | None = None,
    backbone: str | None = None,
    settings: Settings | None = None,
    limits: gate.Limits | None = None,
    most: int = 3,
    say: Say = lambda _: None,
) -> Ended:
    """Make generations of a labelled store until one is refused, gains nothing or is the last that is asked for.

    Args:
        store: directory or fsspec URL; it holds the backbone's embeddings and the recipe's teachers' predictions.
        gold: labels by people with splits `train` and one of `gate`, `test`, `dev`.
        recipe: of every generation; its teachers vote in each. Without any, the student trained on gold alone
            teaches the first generation, and later ones are taught by the last promoted student beside it.
        backbone: as of `serpipe.pseudolabel.train.train`.
        settings: of every student.
        limits: of the gates.
        most: generations at most; published gains stop after two or three.
        say: receives a line at a time.

    Raises:
        SerpipeError: what a step raises.
    """
    recipe, storage = recipe or Recipe(), Storage(store)
    _student(storage, 0, gold, backbone, settings, say)
    done: list[int] = []
    promoted: int | None = None
    for number in range(1, most + 1):
        if number not in generation.numbers(storage):
            record = generation.make(store, _taught(recipe, promoted), gold=gold, say=say)
            kept, considered = record["kept"]["segments"], record["considered"]["segments"]
            say(f"generation {number}: {kept} of {considered} segments kept")
        done.append(number)
        _student(storage, number, gold, backbone, settings, say)
        made = promote(store, number, gold, limits=limits)
        for line in lines(made):
            say(line)
        gain = made.gain["recall_macro_ua"]
        say(
            f"UA {made.figures['recall_macro_ua']}, {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on gold alone"
        )
        if made.status == "refused":
            return Ended(rounds=tuple(done), promoted=promoted, why=f"{student.name(number)} was refused by its gates")
        promoted = number
        if made.step["recall_macro_ua"].low <= 0:
            why = f"the interval of what {student.name(number)} gains includes zero"
            return Ended(rounds=tuple(done), promoted=promoted, why=why)
    return Ended(rounds=tuple(done), promoted=promoted, why=f"{most} rounds were asked for")


def _student(
    storage: Storage, number: int, gold: str, backbone: str | None, settings: Settings | None, say: Say
) -> None:
    """Train and relabel, unless this was done with the same gold."""
    where, name = student.folder(number), student.name(number)
    wanted = read_gold(gold).hash
    if not (storage.exists(f"{where}probe.json") and student.training(storage, number)["gold"]["hash"] == wanted):
        made = train(storage.root, number, gold, backbone=backbone, settings=settings)
        ua = made.training["left_out"]["recall_macro_ua"]
        say(f"{name}: UA {ua['value']:.3f} on gold voices it did not hear")
    done = relabel(storage.root, f"{storage.root}/{where}", name=name)
    if done.segments:
        say(f"{name}: {done.segments} segments relabelled in {done.elapsed_s:.1f} s")


def _taught(recipe: Recipe, promoted: int | None) -> Recipe:
    """The recipe with the students that teach this round."""
    gold_only = Teacher(model=student.name(0), lineage="students")
    if promoted is None:
        return recipe if recipe.teachers else recipe.model_copy(update={"teachers": (gold_only,)})
    students: Sequence[Teacher] = (
        gold_only.model_copy(update={"weight": ANCHOR}),
        Teacher(model=student.name(promoted), lineage="students", weight=1 - ANCHOR),
    )
    return recipe.model_copy(update={"teachers": (*recipe.teachers, *students)})
