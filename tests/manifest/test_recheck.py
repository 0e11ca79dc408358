"""Whether a file's content has changed is asked of its store, whatever a list says, where that can be told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from serpipe.manifest import ROWS, Listings
from serpipe.manifest.stat import _changed
from tests.audio.web import served


def rows(*told: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"row": 1, "source": "m", "meta": []} | row for row in told], schema=ROWS)


def facts(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("size", "etag", "mtime_ns")) for row in table.to_pylist()]


def test_a_local_file_is_looked_at_though_the_list_says_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"content")
    stat = path.stat()
    right = {"uri": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    listed = rows(right, right | {"size": 3}, right | {"mtime_ns": 1}, {"uri": str(tmp_path / "gone"), "etag": "e"})
    assert facts(Listings().stat(listed)) == facts(listed)
    now = (7, None, stat.st_mtime_ns)
    assert facts(Listings(recheck=True).stat(listed)) == [now, now, now, (None, "e", None)]
    os.utime(path, ns=(5, 5))
    assert facts(Listings(recheck=True).stat(rows(right))) == [(7, None, 5)]


def test_a_web_server_is_asked_about_what_there_is_something_to_compare(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"content")
    etag = str(path.stat().st_mtime_ns)
    with served(tmp_path) as site:
        uri = f"{site.url}/a.wav"
        listed = rows(
            {"uri": uri, "etag": f'W/"{etag}"'},
            {"uri": uri, "etag": "old"},
            {"uri": uri},
            {"uri": uri, "etag": "old", "query": "X-Amz-Signature=1"},
        )
        same, changed, unknown, signed = facts(Listings(recheck=True).stat(listed))
        assert (same, unknown, signed) == ((None, f'W/"{etag}"', None), (None, None, None), (None, "old", None))
        assert changed[1] == etag
        site.asked.clear()
        assert facts(Listings().stat(listed)) == facts(listed)
        assert site.asked == []


@pytest.mark.parametrize(
    ("said", "found", "changed"),
    [
        ({"etag": "a"}, ("a", None, None), False),
        ({"etag": '"a"'}, ("a", 9, 9), False),
        ({"etag": "a"}, ("b", None, None), True),
        ({"etag": "a"}, (None, 9, 9), False),
        ({"size": 9, "mtime_ns": 1}, ("a", 9, 2), False),
        ({"size": 9, "mtime_ns": 1}, ("a", 8, 1), True),
        ({"size": 9, "mtime_ns": 1}, (None, 9, 2), True),
        ({"etag": "a", "size": 9}, (None, 9, 2), False),
    ],
)
def test_like_is_compared_with_like(said: dict[str, Any], found: tuple[Any, ...], changed: bool) -> None:
    kinds = {"etag": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64()}
    now = {name: pa.array([value], kind) for (name, kind), value in zip(kinds.items(), found, strict=True)}
    assert _changed(rows({"uri": "s3://b/a.wav"} | said), now).to_pylist() == [changed]
