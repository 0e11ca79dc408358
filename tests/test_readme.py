"""What the README shows, runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import duckdb
import pytest

from serpipe.cli import main
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
    (query,) = re.findall(r'duckdb\.sql\(\\"(.*?)\\"\)', README, re.DOTALL)
    assert len(duckdb.sql(query).fetchall()) == 4


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^\$ (serpipe .*)$", README, re.MULTILINE))))
def test_commands_are_spelled_right(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    found = main.commands[command]
    with click.Context(found) as context:
        found.parse_args(context, arguments)
