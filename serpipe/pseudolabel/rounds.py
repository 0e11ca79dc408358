"""Rounds: a student trained on gold alone, then generation after generation, until one is refused or gains nothing.

Every step leaves something in the store that says it is done, so a run that was ended goes on where it stopped. What
was done with another recipe, gold, backbone or other settings, before the teachers had labelled all that they have by
now, or with fewer of gold's clips than the store holds by now, is not taken for it, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from serpipe.models.registry import resolve
from serpipe.pseudolabel import gate, generation, sources, student
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.gold import match, train_hash
from serpipe.pseudolabel.gold import read as read_gold
from serpipe.pseudolabel.promote import lines, promote
from serpipe.pseudolabel.recipe import Recipe, Teacher
from serpipe.pseudolabel.relabel import relabel
from serpipe.pseudolabel.teachers import STUDENTS
from serpipe.pseudolabel.train import only_backbone, train
from serpipe.store.reading import open as open_store
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
        gold: labels by people with splits `train` and one of `gate`, `test`.
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
    _student(storage, 0, gold, backbone, settings, recipe.audio, say)
    done: list[int] = []
    promoted: int | None = None
    for _ in range(most):
        taught = _taught(storage, recipe, promoted)
        number = _made(storage, taught, gold, after=promoted or 0)
        if number is None:
            record = generation.make(store, taught, gold=gold, say=say)
            number, kept, considered = record["number"], record["kept"]["segments"], record["considered"]["segments"]
            say(f"generation {number}: {kept} of {considered} segments kept")
        done.append(number)
        _student(storage, number, gold, backbone, settings, recipe.audio, say)
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
    storage: Storage,
    number: int,
    gold: str,
    backbone: str | None,
    settings: Settings | None,
    audio: str | None,
    say: Say,
) -> None:
    """Train and relabel, unless this was done with the same gold, backbone and settings."""
    if not _trained(storage, number, gold, backbone, settings, audio):
        made = train(storage.root, number, gold, backbone=backbone, settings=settings, audio=audio)
        ua = made.training["left_out"]["recall_macro_ua"]
        say(f"{made.name}: UA {ua['value']:.3f} on gold voices it did not hear")
    name = student.name(number)
    done = relabel(storage.root, f"{storage.root}/{student.folder(number)}", name=name)
    if done.segments:
        say(f"{name}: {done.segments} segments relabelled in {done.elapsed_s:.1f} s")


def _trained(
    storage: Storage, number: int, gold: str, backbone: str | None, settings: Settings | None, audio: str | None
) -> bool:
    if not storage.exists(f"{student.folder(number)}probe.json"):
        return False
    facts, opened = student.training(storage, number), open_store(storage.root)
    record = generation.load(storage, number) if number else {}
    heard = resolve(backbone or only_backbone(opened))
    read = read_gold(gold)
    matched = match(opened, read, sources.audio_to_train_on(opened, record, audio))
    return bool(
        facts["gold"]["hash"] == read.hash
        and facts["gold"].get("train_hash") == train_hash(matched)
        and facts["settings"] == asdict(settings or Settings())
        and (facts["backbone"]["model"], facts["backbone"]["fp"]) == (heard.name, heard.fp)
        and facts["recipe_hash"] == record.get("recipe_hash")
    )


def _made(storage: Storage, recipe: Recipe, gold: str, *, after: int) -> int | None:
    """The first generation after another that this recipe and gold made of what there is to label from.

    Its teachers' weights are in the recipe.
    """
    wanted = recipe.hash, read_gold(gold).hash
    store = open_store(storage.root)
    for number in generation.numbers(storage):
        record = generation.load(storage, number)
        same = (record["recipe_hash"], (record["gold"] or {}).get("hash")) == wanted
        if number > after and same and not generation.outgrown(store, record):
            return number
    return None


def _taught(storage: Storage, recipe: Recipe, promoted: int | None) -> Recipe:
    """The recipe with the students that teach this round, by their weights: another training is another teacher."""
    gold_only = Teacher(model=student.name(0), fp=student.ref(storage, 0).fp, lineage=STUDENTS)
    if promoted is None:
        return recipe if recipe.teachers else recipe.model_copy(update={"teachers": (gold_only,)})
    students: Sequence[Teacher] = (
        gold_only.model_copy(update={"weight": ANCHOR}),
        gold_only.model_copy(
            update={
                "model": student.name(promoted),
                "fp": student.ref(storage, promoted).fp,
                "weight": 1 - ANCHOR,
            }
        ),
    )
    # A recipe may name a student itself; what this round gives it to say counts then.
    named = {teacher.model for teacher in students}
    others = (teacher for teacher in recipe.teachers if teacher.model not in named)
    return recipe.model_copy(update={"teachers": (*others, *students)})
