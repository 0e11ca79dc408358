"""Pages that are made from the code are the code's."""

from __future__ import annotations

import runpy

import pytest

from tests.conftest import ROOT

PAGES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_generated_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run `python docs/generate.py`"
