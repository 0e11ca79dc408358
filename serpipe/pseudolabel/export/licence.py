"""What may be done with an export: the strictest licence among those who labelled it and those who recorded it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serpipe.models.contract import LICENCE_NOT_KNOWN
from serpipe.models.registry import specs
from serpipe.pseudolabel import generation
from serpipe.store.storage import Storage

_FREE = re.compile(r"\b(cc0|public domain|unlicense|pddl|0bsd)\b")
_ATTRIBUTION = re.compile(r"\b(cc-by|mit|apache|bsd|isc|odc-by|etalab|ogl)\b")
_SHARE_ALIKE = re.compile(r"\b(sa|gpl|lgpl|agpl|odbl|mpl)\b")
_NO_DERIVATIVES = re.compile(r"\bnd\b|no[- ]?derivatives")
_NON_COMMERCIAL = re.compile(r"\bnc\b|non[- ]?commercial|research[- ](use|only|purposes)|academic")


@dataclass(frozen=True, slots=True)
class Licences:
    """The licences behind an export.

    Attributes:
        teachers: of each model that labelled, students' teachers included; None where it is not known.
        audio: recordings in use by licence; None for those whose owner names none.
    """

    teachers: Mapping[str, str | None]
    audio: Mapping[str | None, int]

    @property
    def known(self) -> list[str]:
        """Every licence that is known, the strictest first."""
        found = {licence for licence in (*self.teachers.values(), *self.audio) if licence is not None}
        return sorted(found, key=lambda licence: (-strictness(licence), licence))

    @property
    def strictest(self) -> str | None:
        """Of those that are known."""
        return next(iter(self.known), None)

    @property
    def complete(self) -> bool:
        """Whether every licence is known."""
        return None not in self.audio and None not in self.teachers.values()

    @property
    def tainting(self) -> dict[str, str]:
        """Teachers whose licence forbids commercial use, and with it that of their labels."""
        return {model: licence for model, licence in self.teachers.items() if licence and non_commercial(licence)}


def read(storage: Storage, record: Mapping[str, Any], audio: Mapping[str | None, int]) -> Licences:
    """The licences behind a generation."""
    return Licences(dict(sorted(_teachers(storage, record).items())), audio)


def _teachers(storage: Storage, record: Mapping[str, Any]) -> dict[str, str | None]:
    known = specs()
    found: dict[str, str | None] = {}
    for teacher in record["teachers"]:
        name, student_of = teacher["model"], teacher["student_of"]
        if student_of:
            # What a student says, its own teachers taught it.
            found |= _teachers(storage, generation.load(storage, student_of))
        licence = teacher["licence"] or (known[name].licence if name in known else None)
        if licence == LICENCE_NOT_KNOWN:
            found[name] = None
        elif licence or not student_of:
            found[name] = licence
    return found


def strictness(licence: str) -> int:
    """How little a licence allows, 0 to 5; one that cannot be judged by its name is stricter than share-alike.

    Examples:
        >>> [strictness(name) for name in ("CC0-1.0", "Apache-2.0", "CC-BY-SA-4.0", "model-license", "CC-BY-NC-SA-4.0")]
        [0, 1, 2, 3, 5]
    """
    name = licence.lower().replace("_", "-")
    for pattern, rank in ((_NON_COMMERCIAL, 5), (_NO_DERIVATIVES, 4), (_SHARE_ALIKE, 2), (_FREE, 0), (_ATTRIBUTION, 1)):
        if pattern.search(name):
            return rank
    return 3


def non_commercial(licence: str) -> bool:
    """Whether a licence forbids commercial use, by its name.

    Examples:
        >>> non_commercial("CC-BY-NC-4.0"), non_commercial("CC-BY-4.0")
        (True, False)
    """
    return strictness(licence) == 5
