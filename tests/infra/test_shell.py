"""Every shell script is linted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = [
    path
    for folder in ("infra", ".ci")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and path.read_bytes()[:64].split(b"\n")[0].endswith((b"bash", b"/sh"))
]


def test_the_scripts_are_found() -> None:
    assert {"start", "stop", "run"} <= {path.name for path in SCRIPTS}


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck on the path; make test-all installs it")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    found = subprocess.run(["shellcheck", "--external-sources", script], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
