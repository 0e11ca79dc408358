"""The Dockerfile, without an engine to build it: what it installs, and that all it copies is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from tests.conftest import ROOT

FILE = ROOT / "infra" / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def stages() -> dict[str, list[dict[str, Any]]]:
    """Instructions of each stage, by its name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step in DockerfileParser(str(FILE)).structure:
        if step["instruction"] == "FROM":
            name = step["value"].rpartition(" AS ")[2]
            found[name] = []
        elif step["instruction"] != "COMMENT":
            found[name].append(step)
    return found


def values(steps: list[dict[str, Any]], instruction: str) -> list[str]:
    return [step["value"] for step in steps if step["instruction"] == instruction]


def test_there_is_one_image_for_cores_and_one_for_gpus(stages: dict[str, Any]) -> None:
    assert stages.keys() == {"base", "cpu", "cuda"}
    python = re.search(r"FROM python:(\d+\.\d+)-", FILE.read_text())
    assert python
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == f">={python[1]}"


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_every_package_is_pinned(stages: dict[str, Any], stage: str) -> None:
    installs = [run for run in values(stages[stage], "RUN") if "pip install" in run]
    assert installs
    for run in installs:
        assert "--constraint infra/constraints.txt" in run
    pinned = re.search(r"^(torch==\S+)$", (ROOT / "infra" / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert installs[0].endswith(pinned[1])


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_no_image_runs_as_root(stages: dict[str, Any], stage: str) -> None:
    assert stages[stage][-1]["instruction"] == "USER"
    assert stages[stage][-1]["value"] == "1000"


def test_what_is_copied_exists_and_is_let_into_the_build(stages: dict[str, Any]) -> None:
    lines = (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {source for steps in stages.values() for copy in values(steps, "COPY") for source in copy.split()[:-1]}
    assert copied == let_in
    for source in copied:
        assert (ROOT / source).exists()


@pytest.mark.skipif(not shutil.which("hadolint"), reason="no hadolint on the path")
def test_hadolint_finds_nothing() -> None:
    found = subprocess.run(["hadolint", "--no-color", str(FILE)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
