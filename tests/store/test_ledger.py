"""The ledger: every entry once whatever a compaction left behind, entries forgotten, whole recordings told apart."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serpipe.errors import StoreError
from serpipe.store import commit, coverage, ledger, parquet, schemas
from serpipe.store.storage import Storage
from tests.bench import NEVER, Killed, Mortal

RUNS = ["20300101T000000000000Z-aaaaaaaa", "20300102T000000000000Z-bbbbbbbb"]
KEYS = ["recording_id", "unit", "model", "fp", "audio"]


def entries(run: str, commits: int, *, first: int = 0, each: int = 3) -> list[pa.Table]:
    """Of each commit some units of one recording."""
    tables = []
    for number in range(first, first + commits):
        rows = [
            {
                "recording_id": number.to_bytes(16, "big"),
                "unit": unit,
                "final": unit == each - 1,
                "model": "m",
                "fp": "f1",
                "audio": "a1",
                "status": "labelled",
                "segments": 5,
                "rows": 4,
                "commit": f"{run}-{number:016x}",
            }
            for unit in range(each)
        ]
        tables.append(pa.Table.from_pylist(rows, schema=schemas.LEDGER))
    return tables


def write(storage: Storage, tables: Sequence[pa.Table]) -> None:
    for table in tables:
        commit.index(storage, table["commit"][0].as_py(), [table])


def rows_of(table: pa.Table) -> list[str]:
    return sorted(map(str, table.to_pylist()))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are full with ten entries, and three parts are many."""
    monkeypatch.setattr(ledger, "FULL_ROWS", 10)
    monkeypatch.setattr(ledger, "MANY_PARTS", 2)


@pytest.mark.usefixtures("small")
def test_compaction_changes_nothing_that_is_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    older, newer = entries(RUNS[0], 7), entries(RUNS[1], 5, first=7)
    write(storage, older)
    assert ledger.compact(storage) == 7
    # Four commits fill an object; three are left for the next time.
    assert len(storage.list("ledger/")) == 2
    write(storage, newer[:2])
    assert ledger.compact(storage) == 0
    write(storage, newer[2:])
    for _ in range(2):
        assert rows_of(ledger.load(storage)) == rows_of(pa.concat_tables([*older, *newer]))
        assert rows_of(ledger.load(storage, run=RUNS[0])) == rows_of(pa.concat_tables(older))
        assert rows_of(ledger.load(storage, run=RUNS[1])) == rows_of(pa.concat_tables(newer))
        assert ledger.load(storage, columns=["rows", "unit"], run=RUNS[1]).column_names == ["rows", "unit"]
        full = storage.list("ledger/")[-2] if len(storage.list("ledger/")) < 4 else None
        ledger.compact(storage)
    assert full in storage.list("ledger/"), "a full object is joined again"
    wanted = pa.concat_tables([older[3], newer[0]])
    assert rows_of(ledger.of(storage, wanted["recording_id"])) == rows_of(wanted)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("torn", [False, True])
def test_a_compaction_that_dies_loses_and_doubles_nothing(tmp_path: Path, torn: bool) -> None:
    whole = entries(RUNS[0], 9)

    def store(at: int) -> Mortal:
        folder = tmp_path / f"{at}"
        write(Storage(str(folder)), whole[:7])
        ledger.compact(Storage(str(folder)))
        write(Storage(str(folder)), whole[7:])
        write(Storage(str(folder)), entries(RUNS[1], 1, first=9))
        return Mortal(str(folder), at, torn=torn)

    calm = store(NEVER)
    ledger.compact(calm)
    expected = rows_of(ledger.load(calm))
    for at in range(len(calm.changes)):
        storage = store(at)
        with pytest.raises(Killed):
            ledger.compact(storage)
        alive = Storage(storage.root)
        assert rows_of(ledger.load(alive)) == expected
        ledger.compact(alive)
        assert rows_of(ledger.load(alive)) == expected
        # A reader that knows nothing of compaction, too, meets each entry once.
        assert rows_of(parquet.read(alive, alive.list("ledger/"), schemas.LEDGER)) == expected


@pytest.mark.usefixtures("small")
def test_a_part_written_again_behind_a_compaction_counts_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    tables = entries(RUNS[0], 5)
    write(storage, tables)
    ledger.compact(storage)
    write(storage, tables[1:2])
    assert rows_of(ledger.load(storage)) == rows_of(pa.concat_tables(tables))
    ledger.compact(storage)
    assert not [name for name in storage.list("ledger/") if RUNS[0] in name]


@pytest.mark.usefixtures("small")
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_forget_takes_out_what_it_is_told(data: st.DataObject) -> None:
    tables = entries(RUNS[0], 6)
    everything = pa.concat_tables(tables)
    other = everything.set_column(4, "fp", pa.array(["f2"] * everything.num_rows))
    doomed = sorted(data.draw(st.sets(st.sampled_from(range(everything.num_rows)))))
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        write(storage, tables)
        if data.draw(st.booleans()):
            ledger.compact(storage)
        units = pa.concat_tables(
            [everything.take(pa.array(doomed, pa.int64())), other.slice(0, 3).cast(schemas.LEDGER)]
        ).select(KEYS)
        at = data.draw(st.integers(0, 6))
        try:
            ledger.forget(Mortal(folder, at, torn=data.draw(st.booleans())), units)
        except Killed:
            ledger.forget(storage, units)
        left = [place for place in range(everything.num_rows) if place not in doomed]
        assert rows_of(ledger.load(storage)) == rows_of(everything.take(pa.array(left, pa.int64())))
        assert ledger.forget(storage, units) == 0


@pytest.mark.usefixtures("small")
def test_what_is_forgotten_stays_so_when_a_compaction_had_died(tmp_path: Path) -> None:
    """Parts that a compacted object replaced are still there; none of them may speak once that object is gone."""
    whole = entries(RUNS[0], 3)
    write(Storage(str(tmp_path)), whole)
    with pytest.raises(Killed):
        ledger.compact(Mortal(str(tmp_path), 1))
    storage = Storage(str(tmp_path))
    assert len(storage.list("ledger/")) == 4
    assert ledger.forget(storage, pa.concat_tables(whole).select(KEYS)) == 9
    assert ledger.load(storage).num_rows == 0
    assert storage.list("ledger/") == []


@pytest.mark.usefixtures("small")
def test_a_reader_that_a_compaction_overtakes_reads_again(tmp_path: Path) -> None:
    write(Storage(str(tmp_path)), entries(RUNS[0], 4))

    class Overtaken(Storage):
        compacted = False

        def get(self, name: str) -> bytes:
            if not self.compacted:
                self.compacted = True
                ledger.compact(Storage(self.root))
            return super().get(name)

    assert rows_of(ledger.load(Overtaken(str(tmp_path)))) == rows_of(pa.concat_tables(entries(RUNS[0], 4)))


@pytest.mark.usefixtures("small")
def test_the_same_on_s3(bucket: str) -> None:
    storage = Storage(f"{bucket}/ledger-test")
    tables = entries(RUNS[0], 7)
    write(storage, tables)
    assert ledger.compact(storage) == 7
    assert len(storage.list("ledger/")) == 2
    assert rows_of(ledger.load(storage)) == rows_of(pa.concat_tables(tables))
    assert ledger.forget(storage, tables[2].select(KEYS)) == 3
    assert rows_of(ledger.load(storage)) == rows_of(pa.concat_tables([*tables[:2], *tables[3:]]))


def test_a_damaged_object_is_told(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write(storage, entries(RUNS[0], 2))
    name = storage.list("ledger/")[1]
    storage.put(name, storage.get(name)[:-7])
    with pytest.raises(StoreError) as told:
        ledger.load(storage)
    assert told.value.code == "STORE_DAMAGED"


ALIKE = [b"the same" + bytes([number]) * 8 for number in range(4)] + [bytes([number]) * 16 for number in range(3)]
"""Ids of which some share the half by which they are sorted."""


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whole_is_a_final_unit_and_every_unit_before_it(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.sampled_from([1, 2, 64, 65, 130]), min_size=7, max_size=7))
    held = {
        number: data.draw(st.sets(st.integers(0, length - 1)) | st.just(set(range(length))))
        for number, length in enumerate(lengths)
    }
    rows = [(number, unit) for number, units in held.items() for unit in units]
    rows += data.draw(st.lists(st.sampled_from(rows))) if rows else []
    rows = data.draw(st.permutations(rows))
    table = pa.table(
        {
            "recording_id": pa.array([ALIKE[number] for number, _ in rows], schemas.ID),
            "unit": pa.array([unit for _, unit in rows], pa.int32()),
            "final": pa.array([unit == lengths[number] - 1 for number, unit in rows], pa.bool_()),
            **{key: pa.repeat(key, len(rows)) for key in coverage.KEY},
        }
    )
    step = data.draw(st.integers(10, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "_FOLD_ROWS", data.draw(st.sampled_from([1, 50, 1000])))
        found = coverage.whole((table.slice(start, step) for start in range(0, len(rows), step)), {"model"})
    expected = [len(held[number]) == length for number, length in enumerate(lengths)]
    asked = pa.array([*ALIKE, b"the same" + b"\xff" * 8, b"\xff" * 16], schemas.ID)
    if not rows:
        assert found == {}
    else:
        (ids,) = found.values()
        assert ids.holds(asked).tolist() == [*expected, False, False]
        assert ids.holds(asked.slice(2, 3)).tolist() == expected[2:5]
        assert ids.holds(asked.slice(0, 0)).dtype == np.bool_
