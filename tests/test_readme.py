"""What the README shows in Python, runs; `tests/test_docs.py` has the rest of it."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from serpipe.testing import write_speech
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.usefixtures("ray_session")
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_speech(tmp_path / "demo/archive/one.wav", seconds=14.0)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "'label': '" in capsys.readouterr().out
    (query,) = re.findall(r"duckdb\.sql\('''(.*?)'''\)", README, re.DOTALL)
    assert len(duckdb.sql(query).fetchall()) == 4
