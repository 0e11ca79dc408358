"""A run in a storm records nothing as done that was not, and the next one finishes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import serpipe
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.bench import Bench, short_units
from tests.storage_faults.proxy import Fault, Proxy, Request, cut, reset, slow_down
from tests.tables import assert_same

STRUCK = {"2.wav": slow_down, "4.wav": reset, "7.wav": cut}


@pytest.fixture
def archive(direct: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    short_units(monkeypatch)
    for number in range(8):
        path = write_speech(tmp_path / "speech.wav", seconds=2.5 + number, seed=number)
        direct.upload_file(path, "calls", f"night/{number}.wav")
    return "s3://calls/night"


def strike(request: Request) -> Fault | None:
    if request.command != "GET":
        return None
    return STRUCK.get(request.path.rsplit("/", 1)[1])


def test_nothing_transient_is_recorded_as_done(proxy: Proxy, archive: str, impatient: None, tmp_path: Path) -> None:
    calm, stormy = str(tmp_path / "calm"), str(tmp_path / "stormy")
    assert Bench(archive, ("embedded",)).run(Storage(calm)) == 8
    bench = Bench(archive, ("embedded",))
    proxy.storm(strike)
    assert bench.run(Storage(stormy)) == 8
    proxy.calm()
    store = serpipe.open(stormy)
    failed = store.quarantine().to_pylist()
    assert Counter(row["uri"] for row in failed) == {f"{archive}/{name}": 1 for name in STRUCK}
    assert {(row["code"], row["transient"]) for row in failed} == {("RECORDING_UNREACHABLE", True)}
    assert not {row["recording_id"] for row in failed} & set(store.entries["recording_id"].to_pylist())
    assert bench.run(Storage(stormy)) == len(STRUCK)
    assert bench.run(Storage(stormy)) == 0
    assert_same(calm, stormy, but_for=("quarantine",))
    assert serpipe.open(stormy).failing().num_rows == 0
