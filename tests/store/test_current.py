"""Current rows against a plain reading of the rule."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from serpipe.pack import ID
from serpipe.store import current, schemas

Making = tuple[bytes, str, str, str]

names = st.sampled_from
units = st.tuples(
    names([b"a" * 16, b"b" * 16]),
    names(["m", "n"]),
    names(["f", "g"]),
    names(["x", "y"]),
    st.integers(0, 2),
    st.booleans(),
    names(["labelled", "failed"]),
    names(["R1-1", "R1-2", "R2-1", "R3-1"]),
)


def ledger(rows: list[tuple[bytes, str, str, str, int, bool, str, str]]) -> pa.Table:
    order = ["recording_id", "model", "fp", "audio", "unit", "final", "status", "commit"]
    columns = dict(zip(order, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(order, ())
    counts = {"segments": [1] * len(rows), "rows": [1] * len(rows)}
    return pa.table({field.name: pa.array([*(columns | counts)[field.name]], field.type) for field in schemas.LEDGER})


def recordings(rows: list[tuple[bytes, str, str]]) -> pa.Table:
    table = pa.table(
        {
            "recording_id": pa.array([row[0] for row in rows], ID),
            "uri": pa.array([row[1] for row in rows], pa.string()),
            "run_id": pa.array([row[2] for row in rows], pa.string()),
        }
    )
    return table.append_column("first_seen", pa.nulls(len(rows), schemas.RECORDINGS.field("first_seen").type))


@given(st.lists(units, max_size=14, unique_by=lambda row: row[:5]))
def test_the_newest_sound_labels_of_a_recording_and_model_are_current(
    rows: list[tuple[bytes, str, str, str, int, bool, str, str]],
) -> None:
    held: dict[Making, dict[int, tuple[bool, str, str]]] = defaultdict(dict)
    for *making, unit, final, status, commit in rows:
        held[tuple(making)][unit] = (final, status, commit)  # type: ignore[index]
    best: dict[tuple[bytes, str], tuple[bool, bool, str]] = {}
    worth = {}
    for making, parts in held.items():
        last = max([unit for unit, (final, _, _) in parts.items() if final], default=-1)
        whole = len(parts) == last + 1
        failed = any(final and status == "failed" for final, status, _ in parts.values())
        worth[making] = (whole and not failed, whole, max(commit for _, _, commit in parts.values()))
        best[making[:2]] = max(best.get(making[:2], worth[making]), worth[making])
    found = current.stale(ledger(rows), recordings([]))
    kept = set(held) - {tuple(row.values()) for row in found.labels.to_pylist()}
    assert {making[:2] for making in kept} == set(best)
    assert len(kept) == len(best), "one making of each recording and model"
    for making in kept:
        assert worth[making] == best[making[:2]]
    pairs = {(row["recording_id"], row["audio"]) for row in found.segments.to_pylist()}
    every = {(recording, audio) for recording, _, _, audio in held}
    assert every - pairs == {(recording, audio) for recording, _, _, audio in kept}


def test_of_a_uri_the_version_that_ended_last_is_current() -> None:
    old, new, other = b"o" * 16, b"n" * 16, b"x" * 16
    rows = [(i, "m", "f", "x", 0, True, "labelled", "R1-1") for i in (old, new, other)]
    found = current.stale(
        ledger(rows), recordings([(new, "a.wav", "R2"), (old, "a.wav", "R1"), (other, "b.wav", "R1")])
    )
    assert found.versions.to_pylist() == [old]
    assert found.labels["recording_id"].to_pylist() == [old]
    assert found.segments.to_pylist() == [{"recording_id": old, "audio": "x"}]


def test_an_entry_that_is_there_twice_counts_once() -> None:
    row = (b"a" * 16, "m", "f", "x", 0, True, "labelled", "R1-1")
    assert current.makings(ledger([row, row])).equals(current.makings(ledger([row])))
    assert current.makings(ledger([row]))["whole"].to_pylist() == [True]
