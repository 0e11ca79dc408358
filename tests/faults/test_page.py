"""The page of the guarantee names what is there: every operation that was noted, and tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from tests.conftest import ROOT
from tests.faults.crashes import Pass
from tests.faults.points import CHANGES
from tests.faults.scenarios import SCENARIOS

PAGE = (ROOT / "docs" / "guarantee.md").read_text(encoding="utf-8")

ROWS = [line for line in PAGE.partition("## Every point")[2].splitlines() if line.startswith("| ")]


def test_every_test_it_names_exists() -> None:
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 10
    assert named <= tests, named - tests
    assert all("`test_" in row.split("|")[4] for row in ROWS[1:])


def test_every_operation_stands_in_the_table(passed: Callable[[str], Pass]) -> None:
    """And the table names none that does not happen."""
    kinds = {point.kind for name in SCENARIOS for point in passed(name).points}
    written = set(re.findall(r"`((?:put|create|delete) [\w./]+)`", "\n".join(row.split("|")[1] for row in ROWS)))
    assert {kind for kind in kinds if kind.split()[0] in CHANGES} == written
    looks = {kind.split()[0] for kind in kinds} - set(CHANGES)
    assert looks <= set(re.findall(r"`(\w+)`", ROWS[1].split("|")[1]))
