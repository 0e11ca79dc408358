"""What is left to do: against a plain reference, in any order, and frozen without secrets."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serpipe
from serpipe import plan
from serpipe.engine import settle
from serpipe.manifest.schemas import RECORDINGS
from serpipe.store import commit, layout, parquet, plans, schemas, streaming
from serpipe.store.rows import RunFacts, quarantine_rows
from serpipe.store.storage import Storage
from serpipe.testing import write_speech

AUDIO, OTHER_AUDIO = "aaaa", "bbbb"
NAMES = [bytes([number]) * 16 for number in range(6)]
UNITS = 4


@dataclass(frozen=True)
class Entry:
    recording: int
    unit: int
    model: str
    fp: str
    audio: str
    status: str
    final: bool


@st.composite
def ledgers(draw: st.DrawFn) -> list[Entry]:
    """What runs can leave: for each recording, model, fingerprint and audio some of its units, in any order."""
    entries = []
    for recording in range(len(NAMES)):
        length = draw(st.integers(1, UNITS))
        for model, fp, audio in draw(
            st.lists(
                st.tuples(st.sampled_from("mn"), st.sampled_from(["f1", "f2"]), st.sampled_from([AUDIO, OTHER_AUDIO])),
                unique=True,
                max_size=4,
            )
        ):
            # A recording that breaks in the middle ends there, with a failed unit.
            end = draw(st.integers(1, length)) if draw(st.booleans()) else None
            units = range(end or length)
            for unit in draw(st.lists(st.sampled_from(units), unique=True)):
                last = unit == len(units) - 1
                status = "failed" if last and end else draw(st.sampled_from(["labelled", "empty"]))
                entries.append(Entry(recording, unit, model, fp, audio, status, last))
    return draw(st.permutations(entries))


def table_of(entries: Sequence[Entry]) -> pa.Table:
    rows = [
        {
            "recording_id": NAMES[entry.recording],
            "unit": entry.unit,
            "final": entry.final,
            "model": entry.model,
            "fp": entry.fp,
            "audio": entry.audio,
            "status": entry.status,
            "segments": 1,
            "rows": 1,
            "commit": "R1-0",
        }
        for entry in entries
    ]
    return pa.Table.from_pylist(rows, schema=schemas.LEDGER)


def recordings_of(
    numbers: Sequence[int], *, claims: Sequence[float] = (), queries: Sequence[str | None] = ()
) -> pa.Table:
    rows = [
        {
            "recording_id": NAMES[number],
            "uri": f"s3://b/{number}.wav",
            "query": queries[place] if queries else None,
            "claimed_s": claims[place] if claims else 10.0,
            "meta": [("owner", "x")],
            "given": [],
        }
        for place, number in enumerate(numbers)
    ]
    return pa.Table.from_pylist(rows, schema=RECORDINGS)


def is_whole(entries: Sequence[Entry], recording: int, model: str, fp: str, audio: str) -> bool:
    units = {
        entry.unit: entry
        for entry in entries
        if (entry.recording, entry.model, entry.fp, entry.audio) == (recording, model, fp, audio)
    }
    finals = [unit for unit, entry in units.items() if entry.final]
    return bool(finals) and all(unit in units for unit in range(max(finals) + 1))


wanted_models = st.dictionaries(st.sampled_from("mno"), st.sampled_from(["f1", "f2"]), min_size=1)


@settings(max_examples=30, deadline=None)
@given(entries=ledgers(), models=wanted_models, relabel=st.booleans(), data=st.data())
def test_the_plan_knows_what_the_ledger_knows(
    entries: list[Entry], models: dict[str, str], relabel: bool, data: st.DataObject
) -> None:
    numbers = data.draw(st.permutations(range(6)))
    shuffled = data.draw(st.permutations(entries))
    cut = data.draw(st.integers(0, 6))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PLANNED_AT_ONCE", data.draw(st.sampled_from([1, 4, 100])))
        patch.setattr(streaming, "JOINED_ROWS", data.draw(st.sampled_from([1, 100])))
        storage = Storage(folder)
        for place, part in enumerate((shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :])):
            commit.index(storage, f"R1-{place}", [table_of(part)])
        parts = [recordings_of(numbers[:cut]), recordings_of(numbers[cut:])]
        todo = plan.make_plan(
            storage, "R2", [lambda part=part: part for part in parts],
            audio=AUDIO, models=models, by_length=False, relabel=relabel,
        )  # fmt: skip
        kept = {n: [] if relabel else sorted(kept_models(entries, n, models)) for n in range(6)}
        left = [
            n
            for n in range(6)
            if not all(m in kept[n] or is_whole(entries, n, m, fp, AUDIO) for m, fp in models.items())
        ]
        assert (todo.left, todo.done) == (len(left), 6 - len(left))
        for model, fp in models.items():
            keys = [key for key in todo.superseded if key[0] == model]
            assert all((fp, AUDIO) != key[1:] for key in keys)
            assert sum(todo.superseded[key] for key in keys) == sum(model in names for names in kept.values())
        if not left:
            assert todo.groups == todo.tasks(decoders=4) == []
            assert storage.list("runs/") == []
            return
        rows = [row for group in plans.groups(storage, "R2") for row in group.to_pylist()]
        assert [group.num_rows for group in plans.groups(storage, "R2")] == todo.groups
        assert sorted(row["recording_id"] for row in rows) == [NAMES[number] for number in left]
        assert todo.total_s == pytest.approx(10.0 * len(left))
        for row in rows:
            mine = [entry for entry in entries if NAMES[entry.recording] == row["recording_id"]]
            settled = {(e.unit, e.model, e.fp, e.status) for e in mine if e.audio == AUDIO}
            got = [(s["unit"], s["model"], s["fp"], s["status"]) for s in row["settled"]]
            assert sorted(got) == sorted(settled)
            assert row["known"] == any(entry.final and entry.status != "failed" for entry in mine)
            assert row["attempts"] == 0
            assert sorted(row["kept"]) == kept[NAMES.index(row["recording_id"])]
        # Nothing has been labelled since, so all of it is missing.
        gone = plan.missing(storage, "R2", audio=AUDIO, models=models)
        assert sorted(gone["recording_id"].to_pylist()) == [NAMES[number] for number in left]


def kept_models(entries: Sequence[Entry], recording: int, models: dict[str, str]) -> set[str]:
    """Models that hold a recording under another fingerprint alone."""
    others = {(e.model, e.fp, e.audio) for e in entries if e.recording == recording}
    return {
        model
        for model, fp in models.items()
        if not is_whole(entries, recording, model, fp, AUDIO)
        and any(key[0] == model and is_whole(entries, recording, *key) for key in others)
    }


def test_what_keeps_old_labels_is_not_missing(tmp_path: Path) -> None:
    """A model is added to a store whose first model has new weights: only the added one is asked for, and ends it."""
    storage = Storage(str(tmp_path))
    commit.index(storage, "R1-0", [table_of([Entry(n, 0, "m", "old", AUDIO, "labelled", True) for n in (0, 1)])])
    models = {"m": "new", "n": "f1"}
    wanted = {"audio": AUDIO, "models": models}
    todo = plan.make_plan(storage, "R2", [lambda: recordings_of([0, 1])], **wanted, by_length=False)
    assert (todo.left, todo.superseded) == (2, {("m", "old", AUDIO): 2})
    commit.index(storage, "R2-0", [table_of([Entry(0, 0, "n", "f1", AUDIO, "labelled", True)])])
    assert plan.missing(storage, "R2", **wanted)["uri"].to_pylist() == ["s3://b/1.wav"]


def test_decoding_asks_nothing_of_a_model_that_keeps_its_labels(tmp_path: Path) -> None:
    write_speech(tmp_path / "a.wav", seconds=4.0)
    row = serpipe.read_manifest(str(tmp_path)).append_column("kept", pa.array([["m"]]))
    decode = serpipe.Decode(segmentation="window:2/2", speech=False, models={"m": "new", "n": "f1"})
    (pack,) = decode(row)
    assert [unit["todo"] for unit in pack["units"][0].as_py()] == [["n"]]


def test_a_large_plan_is_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "GROUPS_PER_PIECE", 2)
    storage = Storage(str(tmp_path))
    todo = _make(storage, recordings_of([0, 1, 2, 3, 4], claims=[100.0] * 5))
    assert todo.groups == [1] * 5
    assert storage.list("runs/R2/plan") == [layout.plan("R2", 1), layout.plan("R2", 2), layout.plan("R2")]
    expected = [NAMES[number] for number in range(5)]
    for start in range(5):
        for end in range(start + 1, 6):
            ids = plans.read(storage, "R2", range(start, end))["recording_id"]
            assert ids.to_pylist() == expected[start:end]
    assert [group["recording_id"][0].as_py() for group in plans.groups(storage, "R2")] == expected
    left = plan.missing(storage, "R2", audio=AUDIO, models={"m": "f1"})
    assert left["recording_id"].to_pylist() == expected


def test_attempts_are_the_most_that_were_logged(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    facts = RunFacts(run_id="R1", audio=AUDIO, models={"m": "f1"})
    events = [(NAMES[0], 1), (NAMES[0], 3), (NAMES[0], 2), (NAMES[2], 1)]
    rows = pa.table(
        {
            "recording_id": pa.array([name for name, _ in events], schemas.ID),
            "stage": ["read"] * 4,
            "code": ["RECORDING_GONE"] * 4,
            "message": ["gone"] * 4,
            "transient": [True] * 4,
            "attempt": pa.array([attempt for _, attempt in events], pa.int32()),
        }
    )
    parquet.write(storage, layout.quarantine("R1-0"), quarantine_rows(rows, facts), schemas.QUARANTINE, {})
    _make(storage, recordings_of([0, 1, 2]))
    frozen = pq.read_table(storage.path(layout.plan("R2")))
    assert dict(zip(frozen["recording_id"].to_pylist(), frozen["attempts"].to_pylist(), strict=True)) == {
        NAMES[0]: 3,
        NAMES[1]: 0,
        NAMES[2]: 1,
    }


class Tidied(Storage):
    """Another shard's run takes away what an interrupted one left, as soon as it was listed."""

    def list(self, prefix: str) -> list[str]:
        names = super().list(prefix)
        for name in names:
            if "/R0-" in name:
                self.delete(name)
        return names


def test_what_is_taken_away_while_failures_are_read_is_no_failure(tmp_path: Path) -> None:
    storage = Tidied(str(tmp_path))
    facts = RunFacts(run_id="R1", audio=AUDIO, models={"m": "f1"})
    rows = pa.table(
        {
            "recording_id": pa.array(NAMES[:1], schemas.ID),
            "stage": ["read"],
            "code": ["RECORDING_GONE"],
            "message": ["gone"],
            "transient": [False],
            "attempt": pa.array([2], pa.int32()),
        }
    )
    logged = quarantine_rows(rows, facts)
    for attempt in ("R0-0", "R1-0"):
        parquet.write(storage, layout.quarantine(attempt), logged, schemas.QUARANTINE, {})
    _make(storage, recordings_of([0]))
    assert pq.read_table(storage.path(layout.plan("R2")))["attempts"].to_pylist() == [2]
    parquet.write(storage, layout.quarantine("R0-0"), logged, schemas.QUARANTINE, {})
    mine = pa.table({"recording_id": rows["recording_id"], "status": ["failed"]})
    reasons = settle._reasons(storage, schemas.QUARANTINE.empty_table(), mine)
    assert reasons["code"].to_pylist() == ["RECORDING_GONE"]


def _make(storage: Storage, *parts: pa.Table, by_length: bool = False, decoders: int = 1) -> plan.Plan:
    return plan.make_plan(
        storage, "R2", [lambda part=part: part for part in parts],
        audio=AUDIO, models={"m": "f1"}, by_length=by_length,
    )  # fmt: skip


def test_a_signed_query_stays_in_memory(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    claims, queries = [40.0, 40.0, 40.0, 10.0], [None, "X-Amz-Signature=TOPSECRET1", None, "X-Amz-Signature=TOPSECRET3"]
    todo = _make(storage, recordings_of([0, 1, 2, 3], claims=claims, queries=queries))
    assert todo.groups == [1, 1, 2]
    assert {group: array.to_pylist() for group, array in todo.queries.items()} == {
        1: [queries[1]],
        2: [None, queries[3]],
    }
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"TOPSECRET" not in path.read_bytes()
    assert "query" not in pq.read_schema(storage.path(layout.plan("R2"))).names


def test_queries_follow_their_recordings_when_sorted_by_length(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    recordings = recordings_of([0, 1, 2], claims=[5.0, 500.0, 50.0], queries=["zero", "one", "two"])
    todo = _make(storage, recordings, by_length=True)
    frozen = pq.read_table(storage.path(layout.plan("R2")))
    uris = frozen["uri"].to_pylist()
    assert uris == ["s3://b/1.wav", "s3://b/2.wav", "s3://b/0.wav"]
    assert [query for group in sorted(todo.queries) for query in todo.queries[group].to_pylist()] == [
        "one",
        "two",
        "zero",
    ]


def test_in_order_of_uri_or_longest_first(tmp_path: Path) -> None:
    for by_length, expected in ((False, [0, 1, 2, 3]), (True, [2, 0, 3, 1])):
        storage = Storage(str(tmp_path / str(by_length)))
        _make(storage, recordings_of([3, 1, 0, 2], claims=[20.0, 10.0, 30.0, 40.0]), by_length=by_length)
        frozen = pq.read_table(storage.path(layout.plan("R2")))
        assert frozen["recording_id"].to_pylist() == [NAMES[number] for number in expected]


def test_missing_is_what_a_run_did_not_bring_to_an_end(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    _make(storage, recordings_of([0, 1, 2]))
    done = Entry(1, 0, "m", "f1", AUDIO, "labelled", True)
    half = Entry(2, 0, "m", "f1", AUDIO, "labelled", False)
    commit.index(storage, "R2-0", [table_of([done, half])])
    left = plan.missing(storage, "R2", audio=AUDIO, models={"m": "f1"})
    assert left["uri"].to_pylist() == ["s3://b/0.wav", "s3://b/2.wav"]


def test_nothing_to_plan(tmp_path: Path) -> None:
    todo = _make(Storage(str(tmp_path)), RECORDINGS.empty_table())
    assert (todo.groups, todo.left, todo.done, todo.total_s) == ([], 0, 0, 0.0)
    assert list(tmp_path.iterdir()) == []


WORK = st.lists(st.floats(0, 1e5, allow_nan=False), max_size=60)


@given(work=WORK, share=st.floats(1.0, 1e6))
def test_every_length_is_cut_into_a_piece_in_order(work: list[float], share: float) -> None:
    pieces = plan.cut(np.array(work), share)
    assert sum(pieces) == len(work)
    assert all(count > 0 for count in pieces)
    start = 0
    for count in pieces:
        piece = work[start : start + count]
        assert count == 1 or sum(piece) <= share * (1 + 1e-9)
        # A piece ends only because the next length would make it too long.
        if start + count < len(work):
            assert sum(piece) + work[start + count] > share * (1 - 1e-9)
        start += count


@given(work=WORK, decoders=st.integers(1, 1000))
def test_every_row_group_is_read_by_one_task_in_order(work: list[float], decoders: int) -> None:
    todo = plan.Plan(groups=[1] * len(work), work_s=work, queries={}, left=len(work), done=0)
    tasks = todo.tasks(decoders)
    assert [group for task in tasks for group in task] == list(range(len(work)))
    share = float(np.clip(sum(work) / (plan.TASKS_PER_DECODER * decoders), plan.SHORTEST_TASK_S, plan.LONGEST_TASK_S))
    for task in tasks:
        assert len(task) == 1 or sum(work[task.start : task.stop]) <= share * (1 + 1e-9)


@pytest.mark.parametrize("decoders", [1, 4, 30])
@pytest.mark.parametrize("length", [5.0, 60.0, 400.0])
def test_one_plan_feeds_however_many_decoders_there_are(length: float, decoders: int, tmp_path: Path) -> None:
    """How many there are is known only when the plan is frozen; each gets its share, and not in crumbs."""
    total = 3600.0 * decoders
    rows = [
        {"recording_id": i.to_bytes(16), "uri": f"/{i:06d}.wav", "claimed_s": length, "meta": [], "given": []}
        for i in range(round(total / length))
    ]
    todo = _make(Storage(str(tmp_path)), pa.Table.from_pylist(rows, schema=RECORDINGS))
    tasks = todo.tasks(decoders)
    assert len(tasks) >= plan.TASKS_PER_DECODER * decoders
    seconds = [sum(todo.work_s[group] for group in task) for task in tasks]
    assert sum(seconds) == pytest.approx(todo.total_s) == pytest.approx(total)
    # Of 450 s each: what is left out of one is less than a row group.
    assert min(seconds[:-1]) > 450 - max(length, plan.SHORTEST_TASK_S)


def test_a_run_has_a_bounded_number_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task for each hour would be more than a scheduler holds; parts that are still to come count already."""
    monkeypatch.setattr(plan, "PLANNED_AT_ONCE", 100)
    monkeypatch.setattr(plan, "MOST_TASKS", 50)

    def part(number: int) -> pa.Table:
        rows = [
            {"recording_id": (number * 100 + i).to_bytes(16), "uri": f"/{number}/{i}.wav", "claimed_s": 3600.0}
            for i in range(100)
        ]
        return pa.Table.from_pylist([row | {"meta": [], "given": []} for row in rows], schema=RECORDINGS)

    todo = plan.make_plan(
        Storage(str(tmp_path)), "R1", [lambda number=number: part(number) for number in range(10)],
        audio=AUDIO, models={"m": "f"}, by_length=False,
    )  # fmt: skip
    assert sum(todo.groups) == todo.left == 1000
    assert 25 < len(todo.groups) <= 60
    assert max(todo.groups) <= 20


def test_why_a_recording_is_left_holds_no_credential() -> None:
    """The words are those of whatever raised, a client of a store too."""
    left = pa.table({"recording_id": [b"a", b"b"], "uri": ["a.wav", "b.wav"], "attempts": pa.array([0, 1], pa.int32())})
    why = {b"a": "OSError: https://h.org/m.bin?X-Amz-Signature=4711 is gone\nand more"}
    said, silent = settle._lost(left, why)["message"].to_pylist()
    assert said == f"{silent} (alone: OSError: https://h.org/m.bin?… is gone)"
