"""The store of the ledger benchmark, smaller: the planner finds what a plain look at every entry finds."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from serpipe import plan
from serpipe.store import ledger, plans
from serpipe.store.storage import Storage
from tests.conftest import ROOT

NEW = 50


class Watched(Storage):
    """Remembers every name that was turned into a place."""

    def __init__(self, root: str) -> None:
        self.asked: list[str] = []
        super().__init__(root)

    def path(self, name: str = "") -> str:
        self.asked.append(name)
        return super().path(name)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_ledger", ROOT / "jobs" / "benchmark_ledger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outstanding(entries: pa.Table, ids: list[bytes]) -> set[bytes]:
    """What is not whole, unit by unit."""
    units: dict[bytes, set[int]] = defaultdict(set)
    last: dict[bytes, int] = {}
    columns = (entries[name].to_pylist() for name in ("recording_id", "unit", "final"))
    for recording, unit, final in zip(*columns, strict=True):
        units[recording].add(unit)
        if final:
            last[recording] = unit
    return {i for i in ids if i not in last or units[i] != set(range(last[i] + 1))}


def test_planning_an_increment_reads_the_ledger_alone(tmp_path: Path, benchmark: ModuleType) -> None:
    storage = Watched(str(tmp_path))
    benchmark.make_store(storage, entries=100_000, files=80, new=NEW)
    # No Parquet: whoever opened it would fail.
    for folder in ("predictions/model=embedded/fp=0", "segments/audio=0", "embeddings/model=embedded/fp=0"):
        storage.put(f"{folder}/x.parquet", b"no Parquet")
    ids = [i for part in benchmark.parts(storage) for i in part()["recording_id"].to_pylist()]
    # A few units are lost, so that known recordings are work, too.
    ledger.forget(storage, ledger.load(storage).slice(500, 3))
    expected = outstanding(ledger.load(storage), ids)
    assert NEW < len(expected) < NEW + 20
    for number, compacted in enumerate((0, len(storage.list("ledger/")))):
        assert (ledger.compact(storage) if number else 0) == compacted
        storage.asked.clear()
        todo = plan.make_plan(
            storage, f"R{number}", benchmark.parts(storage),
            audio=benchmark.AUDIO, models={benchmark.MODEL: benchmark.FP}, by_length=False,
        )  # fmt: skip
        assert (todo.left, todo.done) == (len(expected), len(ids) - len(expected))
        assert {i for task in plans.groups(storage, f"R{number}") for i in task["recording_id"].to_pylist()} == expected
        assert {name.split("/")[0] for name in storage.asked} == {"ledger", "quarantine", "runs"}
