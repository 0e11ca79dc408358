"""Errors: codes, sentences, and a journey to another process."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

import serpipe
from serpipe.errors import AudioError, ModelError, SerpipeError, StoreError, UsageError

KINDS = (SerpipeError, UsageError, AudioError, ModelError, StoreError)
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transient", [False, True])
def test_an_error_survives_pickling(kind: type[SerpipeError], transient: bool) -> None:
    error = kind("STORE_HELD", "by somebody: wait", transient=transient)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.code, again.message, again.transient) == ("STORE_HELD", "by somebody: wait", transient)
    assert str(again) == "STORE_HELD: by somebody: wait"


def test_every_kind_is_caught_as_one() -> None:
    for kind in KINDS:
        with pytest.raises(SerpipeError):
            raise kind("SOME_CODE", "a sentence")


def _raised() -> list[tuple[str, str, str, int]]:
    """Code, kind, file and line of every error that is made from a literal, read from the source."""
    found = []
    root = Path(serpipe.__file__).parent
    names = {kind.__name__ for kind in KINDS}
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            first = node.args[0]
            if name in names and isinstance(first, ast.Constant):
                found.append((str(first.value), name, str(path.relative_to(root)), node.lineno))
    return found


def test_codes_are_upper_case_words() -> None:
    codes = _raised()
    assert len(codes) > 20
    assert [entry for entry in codes if not CODE.fullmatch(entry[0])] == []


def test_a_code_has_one_kind() -> None:
    """Whether a code is a wrong request or a broken store decides the exit code, so it cannot be both."""
    kinds: dict[str, set[str]] = {}
    for code, kind, *_ in _raised():
        kinds.setdefault(code, set()).add(kind)
    assert {code: found for code, found in kinds.items() if len(found) > 1} == {}


def test_codes_in_tables_are_codes_too() -> None:
    """Failures that never were exceptions carry codes as well."""
    root = Path(serpipe.__file__).parent
    found = {match for path in root.rglob("*.py") for match in re.findall(r'"code": "([^"]+)"', path.read_text())}
    assert {"SEGMENT_TOO_SHORT", "MODEL_NOT_FINITE"} <= found
    assert [code for code in found if not CODE.fullmatch(code)] == []
