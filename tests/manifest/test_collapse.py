"""Rows fold into recordings in any order, in pieces of any size, and in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_corpus import plain

from serpipe.errors import UsageError
from serpipe.manifest import (
    RECORDINGS,
    ROWS,
    claim_seconds,
    collapse,
    mark_duplicates,
    open_manifest,
    read_rows,
)

_ROW = st.fixed_dictionaries(
    {
        "uri": st.sampled_from(["/a.wav", "/b.wav", "s3://c/d.wav"]),
        "query": st.sampled_from([None, "x=1", "x=2"]),
        "start_s": st.sampled_from([None, 0.0, 1.0]),
        "end_s": st.sampled_from([None, 2.0, 3.0]),
        "channel": st.sampled_from([None, 0, 1]),
        "duration_s": st.sampled_from([None, 5.0]),
        "etag": st.sampled_from([None, "x", "x", "x", "x", "y"]),
        "meta": st.sampled_from([[], [("k", "v")], [("k", "w")]]),
        "error": st.sampled_from([None, None, None, "broken"]),
    }
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    numbered = [dict.fromkeys(ROWS.names) | {"row": i, "source": "/m", **row} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(numbered, schema=ROWS)


def tidy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A whole recording has neither end nor channel of its own."""
    whole = {"end_s": None, "channel": None}
    return [{**row, **whole} if row["start_s"] is None else row for row in rows]


@settings(deadline=None)
@given(st.lists(_ROW, max_size=14).map(tidy), st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_and_pieces_do_not_count(rows, random, size: int) -> None:  # type: ignore[no-untyped-def]
    marked = mark_duplicates(table(rows))
    first = collapse(marked)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = table([rows[i] for i in order])
    pieces = pa.concat_tables([shuffled.slice(i, size) for i in range(0, len(rows), size)] or [shuffled])
    again = mark_duplicates(pieces)
    assert collapse(again).equals(first)
    assert first.schema.equals(RECORDINGS)
    first.validate(full=True)
    codes = sorted(filter(None, marked["error_code"].to_pylist()))
    assert sorted(filter(None, again["error_code"].to_pylist())) == codes


@settings(deadline=None)
@given(st.lists(_ROW, max_size=14).map(tidy))
def test_every_good_row_is_in_the_recordings_once(rows: list[dict[str, Any]]) -> None:
    marked = mark_duplicates(table(rows))
    good = [row for row in marked.to_pylist() if row["error"] is None]
    found = collapse(marked).to_pylist()
    assert {one["uri"] for one in found} == {row["uri"] for row in good}
    segments = [(one["uri"], s["start_s"], s["end_s"], s["channel"], s["meta"]) for one in found for s in one["given"]]
    given_rows = [
        (r["uri"], r["start_s"], r["end_s"], r["channel"], r["meta"]) for r in good if r["start_s"] is not None
    ]
    assert sorted(map(repr, segments)) == sorted(map(repr, given_rows))
    for one in found:
        whole = [row["meta"] for row in good if row["uri"] == one["uri"] and row["start_s"] is None]
        assert [one["meta"]] == (whole or [[]])
        key = [
            (
                s["start_s"],
                np.inf if s["end_s"] is None else s["end_s"],
                -1 if s["channel"] is None else s["channel"],
            )
            for s in one["given"]
        ]
        assert key == sorted(key)
        assert len(set(key)) == len(key)


def test_duplicates_do_not_slip_into_recordings() -> None:
    row = {"uri": "/a.wav", "meta": []}
    with pytest.raises(UsageError, match=r"MANIFEST_DUPLICATE_URI: 1 row cannot .*\n  /m, row 1: .* /m, row 0 already"):
        collapse(table([row, row]))


def test_a_whole_row_describes_what_its_segments_are_cut_from() -> None:
    whole = {"uri": "/a.wav", "duration_s": 9.0, "meta": [("k", "v")]}
    segment = {"uri": "/a.wav", "start_s": 1.0, "meta": []}
    one = plain(collapse(table([segment, whole])))[0]
    assert (one["claimed_s"], one["meta"], len(one["given"])) == (9.0, {"k": "v"}, 1)


def test_claims_are_never_missing() -> None:
    uris = ["/a.wav", "/a.FLAC", "s3://b.c/d", "/x.opus", "/y.mp3", "/z.mp3"]
    facts = {
        "uri": uris,
        "size": [128_000, 100_000, 32_000, 12_000, None, 5],
        "claimed_s": [None] * 5 + [7.0],
    }
    assert claim_seconds(pa.table(facts)).tolist() == [2.0, 2.0, 2.0, 2.0, 60.0, 7.0]
    assert claim_seconds(RECORDINGS.empty_table()).shape == (0,)


_READ = """
import resource, sys
from serpipe.manifest import open_manifest
manifest = open_manifest(sys.argv[1])
seen, early = 0, 0
for rows in manifest.read(manifest.parts[0], batch_rows=10_000):
    seen += rows.num_rows
    if seen == 30_000:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seen, early * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_a_manifest(tmp_path: Path) -> None:
    rows, words = 200_000, "so it goes " * 30
    with (tmp_path / "m.csv").open("w") as stream:
        stream.write("path,start,end,text\n")
        stream.writelines(f"/archive/{i // 10}.wav,{i % 10},{i % 10 + 1},{words}{i}\n" for i in range(rows))
    done = subprocess.run([sys.executable, "-c", _READ, tmp_path / "m.csv"], capture_output=True, text=True, check=True)
    seen, early, peak = map(int, done.stdout.split())
    assert seen == rows
    assert peak - early < (tmp_path / "m.csv").stat().st_size / 3


def test_many_rows_fold_as_a_plain_loop_does(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    recordings, starts = generator.integers(0, 5_000, 60_000), generator.integers(0, 10_000, 60_000)
    wanted: dict[str, set[float]] = {}
    with (tmp_path / "m.csv").open("w") as stream:
        stream.write("uri,start,duration,etag\n")
        for recording, start in zip(recordings.tolist(), starts.tolist(), strict=True):
            stream.write(f"s3://b/{recording}.wav,{start / 8},1,{recording}\n")
            wanted.setdefault(f"s3://b/{recording}.wav", set()).add(start / 8)
    rows = mark_duplicates(read_rows(open_manifest(str(tmp_path / "m.csv"))))
    assert pc.is_valid(rows["error"]).to_pylist().count(True) == 60_000 - sum(map(len, wanted.values()))
    found = {one["uri"]: [s["start_s"] for s in one["given"]] for one in collapse(rows).to_pylist()}
    assert found == {uri: sorted(times) for uri, times in wanted.items()}
