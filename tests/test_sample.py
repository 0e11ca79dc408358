"""Samples of a plan: their lengths, and that every beginning of them stands for the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serpipe import sample
from serpipe.manifest import claim_seconds
from serpipe.testing import write_speech

COLUMNS = {"uri": pa.string(), "size": pa.int64(), "claimed_s": pa.float64(), "etag": pa.string(), "query": pa.string()}


def task(rows: list[dict[str, object]]) -> pa.Table:
    table = pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()})
    return table.append_column("work_s", pa.array(claim_seconds(table)))


def test_claims_are_believed_and_nothing_is_read() -> None:
    rows = [{"uri": f"/nowhere/{i}.mp3", "claimed_s": 10.0 + i} for i in range(50)]
    left = sample.gather([task(rows[:20]), task(rows[20:])], seed=0)
    sizes = sample.lengths(left, seconds=1.0, seed=0)
    total = sum(10.0 + i for i in range(50))
    assert (sizes.total_s.value, sizes.total_s.low, sizes.total_s.high, sizes.probed) == (total, total, total, 0)


def test_headers_correct_what_sizes_promise(tmp_path: Path) -> None:
    """WAV files of half the bytes a second that the guess has, one that is broken, one that is gone."""
    rows: list[dict[str, object]] = []
    for number in range(6):
        path = Path(write_speech(tmp_path / f"{number}.wav", seconds=2.0 + number))
        rows.append({"uri": str(path), "size": path.stat().st_size})
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows += [{"uri": str(tmp_path / "broken.wav"), "size": 4}, {"uri": str(tmp_path / "gone.wav"), "size": 10}]
    sizes = sample.lengths(sample.gather([task(rows)], seed=0), seconds=30.0, seed=0)
    assert sizes.total_s.value == pytest.approx(sum(2.0 + number for number in range(6)), rel=0.01)
    assert sizes.total_s.low <= sizes.total_s.value <= sizes.total_s.high
    assert (sizes.probed, sizes.unclaimed) == (6, 8)
    assert sizes.doubts == ["the manifest states no length of 8 recordings: theirs rests on 6 headers"]


def test_without_headers_sizes_are_doubted() -> None:
    rows = [{"uri": f"/nowhere/{i}.mp3", "size": 120_000} for i in range(5)]
    rows += [{"uri": f"/nowhere/{i}.wav", "claimed_s": 50.0} for i in range(2)]
    sizes = sample.lengths(sample.gather([task(rows)], seed=0), seconds=30.0, seed=0)
    assert (sizes.total_s.value, sizes.probed, sizes.unclaimed) == (150.0, 0, 5)
    assert sizes.total_s.low < 130.0
    assert sizes.total_s.high > 250.0
    (note,) = sizes.doubts
    assert "of 5 recordings, and of none could the header be read" in note


def test_every_header_leaves_nothing_to_chance(tmp_path: Path) -> None:
    path = Path(write_speech(tmp_path / "a.wav", seconds=3.0))
    rows: list[dict[str, object]] = [{"uri": str(path), "size": path.stat().st_size}]
    sizes = sample.lengths(sample.gather([task(rows)], seed=0), seconds=30.0, seed=0)
    assert sizes.total_s.low == sizes.total_s.value == sizes.total_s.high == pytest.approx(3.0)
    assert sizes.doubts == []


def test_a_sample_of_many_rows_is_drawn_evenly() -> None:
    rows = [{"uri": f"/a/{i}.{'wav' if i % 4 else 'opus'}", "claimed_s": 1.0} for i in range(4000)]
    left = sample.gather([task(rows[i : i + 100]) for i in range(0, 4000, 100)], seed=1, most=400)
    assert left.rows.num_rows == 400
    assert {ending: kind.count for ending, kind in left.kinds.items()} == {"wav": 3000, "opus": 1000}
    places = np.array([int(uri.split("/")[2].split(".")[0]) for uri in left.rows["uri"].to_pylist()])
    assert abs(places.mean() - 2000) < 300
    assert 0.15 < np.mean([uri.endswith("opus") for uri in left.rows["uri"].to_pylist()]) < 0.35


def test_an_ending_of_which_nothing_was_drawn_is_left_out() -> None:
    rows = [{"uri": f"/a/{i}.{'wav' if i else 'opus'}", "claimed_s": 1.0} for i in range(300)]
    left = next(
        left
        for seed in range(99)
        if "opus" not in (left := sample.gather([task(rows)], seed=seed, most=20)).rows["ending"].to_pylist()
    )
    assert set(left.kinds) == {"wav", "opus"}
    sizes = sample.lengths(left, seconds=1.0, seed=0)
    batches = list(sample.batches(left, sizes, seconds=5.0, by_length=True))
    assert {kind for kind, _ in batches} == {"wav"}
    assert sum(rows.num_rows for _, rows in batches) == 20


@pytest.mark.parametrize("by_length", [False, True])
def test_every_beginning_of_the_batches_stands_for_the_whole(by_length: bool) -> None:
    random = np.random.default_rng(0)
    rows = [
        {"uri": f"/a/{i}.{'opus' if i % 5 == 0 else 'wav'}", "claimed_s": float(random.lognormal(2, 0.5))}
        for i in range(2000)
    ]
    left = sample.gather([task(rows)], seed=0)
    sizes = sample.lengths(left, seconds=1.0, seed=0)
    batches = list(sample.batches(left, sizes, seconds=60.0, by_length=by_length))
    assert sum(rows.num_rows for _, rows in batches) == 2000
    share = sizes.by_kind["opus"] / sizes.total_s.value
    mean = np.mean([row["claimed_s"] for row in rows])
    for some in (len(batches) // 4, len(batches) // 2):
        seconds = dict.fromkeys(sizes.by_kind, 0.0)
        count = 0
        for kind, table in batches[:some]:
            seconds[kind] += sum(table["work_s"].to_pylist())
            count += table.num_rows
        assert seconds["opus"] / sum(seconds.values()) == pytest.approx(share, abs=0.05)
        assert sum(seconds.values()) / count == pytest.approx(mean, rel=0.1)
