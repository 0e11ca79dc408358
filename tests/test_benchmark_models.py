"""The benchmark of the models alone: it runs where torch and transformers are, and writes what it has as it goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serpipe.errors import ModelError
from serpipe.models.registry import resolve
from serpipe.testing import make_checkpoint
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "jobs"))

import benchmark_models
from benchmarks import models, peers
from benchmarks.figures import Figure

BARE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""What Python runs at its start: nothing is found of what a machine with torch and transformers alone does not have."""


def needed(*names: str) -> set[str]:
    """Distributions and what they require."""
    found: set[str] = set()
    left = [*names]
    while left:
        name = canonical(left.pop())
        if name in found:
            continue
        try:
            requires = metadata.requires(name)
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        left += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires or () if "extra ==" not in line]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hidden() -> list[str]:
    """Every package that is installed here and not on such a machine."""
    there = needed("torch", "transformers")
    owners = metadata.packages_distributions()
    return sorted(name for name, by in owners.items() if name != "serpipe" and not there & {*map(canonical, by)})


def bare(tmp_path: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """What the command prints and writes on a machine with little more than torch."""
    (tmp_path / "sitecustomize.py").write_text(BARE.format(hidden=hidden()))
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "jobs" / "benchmark_models.py"), "--size", "tiny", "--quick", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--json", str(out)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        preexec_fn=one_core,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def one_core() -> None:
    """Threads that wait for each other make a tiny network slow where others are at work."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def test_what_is_hidden_is_what_such_a_machine_lacks() -> None:
    lacking = {"ray", "pyarrow", "scipy", "soundfile", "soxr", "av", "duckdb", "funasr", "onnxruntime", "pandas"}
    assert lacking <= set(hidden())
    assert not {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"} & set(hidden())


def test_it_runs_on_a_machine_with_little_more_than_torch(tmp_path: Path) -> None:
    """FunASR's models are left out with a word on why, and do not keep the others from being measured."""
    asked = ("emotion2vec-plus-base", "hubert-base-superb-er")
    said, rows = bare(tmp_path, "--dtype", "float32", *(word for name in asked for word in ("--model", name)))
    assert "emotion2vec-plus-base in float32: left out, MODEL_BACKEND_UNUSABLE: FunASR cannot be imported" in said
    assert next(row["name"] for row in rows) == "adapter/model:hubert-base-superb-er:float32"
    assert all(row["ratio"] > 0 < row["median"] for row in rows)
    assert "wanted 0.95" in said


@pytest.mark.long
def test_it_holds_itself_against_the_peers_that_are_there(tmp_path: Path) -> None:
    """Transformers is; certificates are made without a codec."""
    said, rows = bare(tmp_path, "--dtype", "float32", "--model", "embedded", "--peers")
    assert "peer funasr: left out" in said
    assert {row["name"] for row in rows} >= {"peer/transformers", "peer/transformers:float32"}
    assert list((tmp_path / f"serpipe-benchmark-{os.getuid()}" / "cache" / "certificates").iterdir())


def test_figures_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second of two models ends the command, the first one's figures stand."""
    out = tmp_path / "figures.json"
    row = Figure(name="adapter/model:embedded:float32", ratio=0.9, median=3.0, spread=0.1, unit="audio s/s")

    def measured(name: str, *_: object, **__: object) -> list[Figure]:
        if name == "exhubert":
            raise ModelError("MODEL_WEIGHTS_MISMATCH", "damaged")
        return [row]

    monkeypatch.setattr(models, "figures_of", measured)
    monkeypatch.setattr(
        sys, "argv", ["benchmark_models.py", "--dtype", "float32", "--json", str(out), "--model", "embedded"]
    )
    sys.argv += ["--model", "exhubert"]
    with pytest.raises(ModelError):
        benchmark_models.main()
    assert [one["name"] for one in json.loads(out.read_text())] == [row.name]


@pytest.mark.parametrize(
    "error", [ModelError("MODEL_BACKEND_UNUSABLE", "gone"), torch.OutOfMemoryError("20 GiB\nmore")]
)
def test_what_a_machine_has_not_the_means_for_is_left_out(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> list[Figure]:
        raise error

    assert benchmark_models.tried("exhubert in float32", measure) == []
    assert capsys.readouterr().out in (
        "exhubert in float32: left out, MODEL_BACKEND_UNUSABLE: gone\n",
        "exhubert in float32: left out, 20 GiB\n",
    )


def test_what_is_wanted_on_a_gpu_is_held_there(capsys: pytest.CaptureFixture[str]) -> None:
    row = Figure(name="model/peak:exhubert:bfloat16", ratio=0.4, median=3.0, spread=0.1, unit="FLOP/s")
    assert benchmark_models.line(row, "cuda").endswith("wanted 0.5, missed")
    assert benchmark_models.wanted("peer/funasr", "cuda") == 10.0
    assert benchmark_models.wanted("peer/funasr", "cpu") == 2.5
    assert benchmark_models.wanted("adapter/model:exhubert:float16", "cuda") == 0.95
    assert set(benchmark_models.LARGE) <= set(models.MODELS)


@pytest.mark.parametrize("name", ["hubert-base-superb-er", "odyssey-categorical", "exhubert", "embedded"])
def test_the_bare_network_takes_rows_of_equal_length(name: str, tmp_path: Path) -> None:
    reference = name if name == "embedded" else f"{name}={make_checkpoint(name, tmp_path)}"
    adapter = resolve(reference).load("cpu")
    with torch.inference_mode():
        assert models.packed(adapter, 2, "cpu", "float32")() is not None
    arm = models.repeated(models.packed(adapter, 1, "cpu", "float32"), 1, "cpu", measure_s=0.05)
    assert arm() > 0 < arm()


def test_a_measurement_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first, which finds out how many batches a measurement has."""
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    arm = models.repeated(lambda: events.append("run"), 1, "cuda", measure_s=0.0005)
    arm()
    batches = events.count("run")
    assert events == ["run", "wait"] * batches + ["wait"]
    events.clear()
    arm()
    assert events == ["run"] * batches + ["wait"]


@pytest.mark.parametrize("sought_s", [0.0, 30.0])
def test_sizes_are_sought_before_anything_is_measured(sought_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.WARM_S, "cpu", sought_s)
    adapter = resolve("embedded").load("cpu")
    clips = [np.full(16_000 * (1 + place % 5), 0.01, np.float32) for place in range(60)]
    used: list[float] = []
    honest = models.batching.run

    def run(*given: Any, **named: Any) -> Any:
        used.append(named["budget_s"])
        return honest(*given, **named)

    monkeypatch.setattr(models.batching, "run", run)
    arm = models.labelling(adapter, clips, "cpu")
    sought = len(used)
    assert (len(set(used)) >= 2) == bool(sought_s)
    for _ in range(4):
        assert arm() > 0
    assert len(set(used[sought:])) == 1


def test_a_gpu_is_tried_with_batches_that_fill_it() -> None:
    """Several of the largest, of which each takes as long as utterances of some four seconds are together."""
    for quick in (True, False):
        most = max(peers.BATCH_SIZES["cuda"][not quick])
        assert most == 64
        assert peers.SECONDS["cuda"][not quick] > 4 * most * 4.0
