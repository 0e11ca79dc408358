"""The benchmark of the models alone: every family's bare network runs, and the command writes its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serpipe.models.registry import resolve
from serpipe.testing import make_checkpoint
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "jobs"))

from benchmarks import models

WITHOUT = ("ray", "pyarrow", "soundfile", "av", "duckdb", "click", "onnxruntime", "tenacity", "funasr")
"""What a bare GPU machine may lack."""


@pytest.mark.parametrize("name", ["hubert-base-superb-er", "odyssey-categorical", "exhubert", "embedded"])
def test_the_bare_network_takes_rows_of_equal_length(name: str, tmp_path: Path) -> None:
    reference = name if name == "embedded" else f"{name}={make_checkpoint(name, tmp_path)}"
    adapter = resolve(reference).load("cpu")
    with torch.inference_mode():
        assert models.packed(adapter, 2, "cpu", "float32")() is not None
    assert models.repeated(models.packed(adapter, 1, "cpu", "float32"), 1, "cpu")() > 0


def test_it_imports_on_a_machine_with_little_more_than_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'jobs')!r}); "
        f"sys.modules.update(dict.fromkeys({WITHOUT})); import benchmark_models"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    command = ["jobs/benchmark_models.py", "--model", "embedded", "--dtype", "float32", "--quick"]
    subprocess.run([sys.executable, *command, "--json", str(tmp_path / "f.json")], check=True, cwd=ROOT)
    (row,) = json.loads((tmp_path / "f.json").read_text())
    assert row["name"] == "adapter/model:embedded:float32"
    assert row["ratio"] > 0 < row["median"]
