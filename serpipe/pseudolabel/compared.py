"""Who is compared when a student is judged: that each is there, has labelled the store, and learnt what it should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel import sources, student
from serpipe.pseudolabel.schemas import Kind
from serpipe.store import runs
from serpipe.store.reading import Store

Which = tuple[int, Kind]
"""A student: of which generation, 0 for gold alone, and of what kind."""


def parent_of(record: Mapping[str, Any], kind: Kind) -> Which | None:
    """The student that taught a generation, None where none did; of two kinds of one round the kind that is judged.

    Args:
        record: of the generation.
        kind: of the student that is judged.

    Examples:
        >>> teachers = [{"student_of": None}, {"student_of": 1, "student_kind": "finetuned"}]
        >>> parent_of({"parent": 1, "teachers": teachers}, "probe")
        (1, 'finetuned')
    """
    if record["parent"] is None:
        return None
    # Records of before a whole model could be judged name no kind: probes alone taught.
    kinds: list[Kind] = [
        teacher.get("student_kind", "probe")
        for teacher in record["teachers"]
        if teacher["student_of"] == record["parent"]
    ]
    return record["parent"], kind if kind in kinds else kinds[0]


def find(store: Store, audio: str, which: Which) -> sources.Stored:
    """A student that has labelled the store, with the weights that it has now.

    Args:
        store: the store.
        audio: audio fingerprint of the segments that it must have labelled.
        which: the student.

    Raises:
        UsageError: `PROMOTE_NO_STUDENT`, `PROMOTE_NOT_RELABELLED`.
    """
    storage, name = store.storage, student.name(*which)
    try:
        weights_sha256 = student.weights_of(storage, *which)
    except FileNotFoundError:
        raise UsageError(
            "PROMOTE_NO_STUDENT",
            f"{storage.root} has no student {name}; `{_training(store, which)} --gold …` makes it",
        ) from None
    for one in sources.stored_models(store, audio):
        if one.model == name and weights_sha256 in student.weights_behind(storage, name, one.fp):
            return one
    raise UsageError(
        "PROMOTE_NOT_RELABELLED", f"{name} has not labelled {storage.root}; `{_labelling(store, audio, which)}` does"
    )


def refuse_unheard(
    store: Store, audio: str, names: Mapping[str, Which], asked: Mapping[str, NDArray[np.bool_]]
) -> None:
    """All must have been asked of the clips that judge: what one of them never was would count as its mistake.

    Args:
        store: the store.
        audio: audio fingerprint of the clips.
        names: what each is compared as.
        asked: of each, by clip, whether it has labelled it, or failed to.

    Raises:
        UsageError: `PROMOTE_NOT_RELABELLED`.
    """
    known = np.any(list(asked.values()), axis=0)
    for what, which in names.items():
        lacks = int(np.count_nonzero(known & ~asked[what]))
        if lacks:
            raise UsageError(
                "PROMOTE_NOT_RELABELLED",
                f"{student.name(*which)} has not labelled {lacks} of the {len(known)} clips that judge, which another "
                f"has that it is compared with; `{_labelling(store, audio, which)}` labels what was added",
            )


def _training(store: Store, which: Which) -> str:
    """The command that trains a student, but for its gold."""
    number, kind = which
    whole = " --finetune MODEL" if kind == "finetuned" else ""
    return f"serpipe train {store.storage.root} --generation {number}{whole}"


def _labelling(store: Store, audio: str, which: Which) -> str:
    """The command by which a student labels its store: a whole model hears the recordings, cut as they were before."""
    root, (number, kind) = store.storage.root, which
    if kind == "probe":
        return f"serpipe relabel {root} --student {number}"
    manifest, cut = "MANIFEST", ""
    for run in runs.load(store.storage):
        if run.audio == audio and "segmentation" in run.asked:
            manifest, cut = run.manifest, f" --segment {run.asked['segmentation']} --channels {run.asked['channels']}"
    folder = student.training(store.storage, number, kind)["folder"]
    # What the name labelled with other weights is made again.
    return f"serpipe label {manifest} {root}{cut} --model {student.name(number, kind)}={folder} --relabel"


def refuse_unlike(store: Store, audio: str, names: Mapping[str, Which], gold: golden.Gold) -> None:
    """All must have learnt this gold, and the student and the gold-only one must differ in the pseudo-labels alone.

    Args:
        store: the store.
        audio: audio fingerprint of what is judged.
        names: what each is compared as: `student`, `gold-only`, `parent`.
        gold: by which is judged.

    Raises:
        UsageError: `PROMOTE_OTHER_GOLD`, `PROMOTE_UNLIKE`.
    """
    trained = {what: student.training(store.storage, *which) for what, which in names.items()}
    for what, which in names.items():
        if trained[what]["gold"]["hash"] != gold.hash:
            raise UsageError(
                "PROMOTE_OTHER_GOLD",
                f"{student.name(*which)} was trained with other gold than {gold.location} and may have learnt what it "
                f"would be judged by; `{_training(store, which)} --gold {gold.location}` and "
                f"`{_labelling(store, audio, which)}` make it again",
            )
    if "gold-only" not in names:
        return
    mine, alone = trained["student"], trained["gold-only"]
    pairs = {
        "another backbone": [_backbone(one) for one in (mine, alone)],
        "other settings": [one["settings"] for one in (mine, alone)],
        # Of one file, but the store may have held fewer of its clips when one of them was trained.
        "other gold clips": [one["gold"].get("train_hash") for one in (mine, alone)],
    }
    unlike = [what for what, (first, second) in pairs.items() if first != second]
    if unlike:
        raise UsageError(
            "PROMOTE_UNLIKE",
            f"{student.name(*names['student'])} and {student.name(*names['gold-only'])} were trained with "
            f"{unlike[0]}, so that their difference says nothing of the pseudo-labels; `serpipe train` both again "
            "with the same options",
        )


def _backbone(training: Mapping[str, Any]) -> tuple[str, ...]:
    """What a student began with; a whole model is known by its weights, whatever it was called."""
    backbone = training["backbone"]
    return (backbone["weights_sha256"],) if "weights_sha256" in backbone else (backbone["model"], backbone["fp"])
