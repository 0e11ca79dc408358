"""How long recordings are by their headers, of many files, before a run: each read in part and on its own.

Remote files are read by ranges, several at once. Codecs run in a child process: a header that crashes or hangs one
costs itself, and what was read before it counts.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from importlib import import_module
from typing import Any

from serpipe.audio.backends import Undecodable, backends_for, open_track
from serpipe.audio.child import end_with
from serpipe.audio.ranges import Remote, write_header
from serpipe.audio.source import is_remote, local_copy

AT_ONCE = 8
"""Files that are read side by side: what is waited for is mostly a store's answer."""

HANGS_S = 5.0
"""Seconds after which a codec does not come back from a header."""

_START_S = 20.0
"""Seconds that a child takes to start at most; they do not count."""


def stated_seconds(rows: Sequence[dict[str, Any]], *, seconds: float) -> dict[int, float | None]:
    """Seconds that headers state.

    Args:
        rows: `uri`, `query`, `size` and `etag` of recordings.
        seconds: after which no more are read.

    Returns:
        For the places of those there was time for; None where a file is not there or states nothing.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> stated_seconds([{"uri": write_speech(seconds=2.0)}, {"uri": "/nowhere.wav"}], seconds=30.0)
        {0: 2.0, 1: None}
    """
    found: dict[int, float | None] = {}
    left = [*enumerate(rows)]
    with tempfile.TemporaryDirectory(prefix="serpipe-") as scratch:
        while left and seconds > 0:
            more, took_s = _by_one_child(left, seconds, scratch)
            if not more:
                break
            found |= more
            seconds -= took_s
            left = [one for one in left if one[0] not in found]
    return dict(sorted(found.items()))


def _by_one_child(
    rows: list[tuple[int, dict[str, Any]]], seconds: float, scratch: str
) -> tuple[dict[int, float | None], float]:
    """What one child finds out until it is through, dies, hangs, or the time is over, and the seconds it took.

    The header that it dies of or hangs at states nothing.
    """
    found: dict[int, float | None] = {}
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(os.getpid(), rows, scratch, its), daemon=True)
    child.start()
    its.close()
    at: int | None = None
    began = time.monotonic()
    try:
        if mine.poll(_START_S):
            mine.recv()
            began = time.monotonic()
        # A word of what is at work, and one of what came of it.
        while len(found) < len(rows):
            patience = max(seconds - (time.monotonic() - began), 0.0)
            if not mine.poll(patience if at is None else min(patience, HANGS_S)):
                break
            place, at_work, stated = mine.recv()
            at = place if at_work else None
            if not at_work:
                found[place] = stated
    except EOFError:
        pass
    finally:
        child.kill()
        child.join()
        mine.close()
    took_s = time.monotonic() - began
    if at is not None and took_s < seconds:
        found[at] = None
    return found, took_s


def _child(parent: int, rows: list[tuple[int, dict[str, Any]]], scratch: str, tell: Any) -> None:
    end_with(parent)
    # Here, for they would count as a header's time.
    for codecs in ("av", "soundfile"):
        import_module(codecs)
    tell.send(None)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for place, path in _at_hand(rows, scratch, pool):
            tell.send((place, True, None))
            tell.send((place, False, None if path is None else _stated(path)))


def _at_hand(
    rows: Sequence[tuple[int, dict[str, Any]]], scratch: str, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, str | None]]:
    """Files to read headers from as they come, twice as many on their way as are fetched at once."""
    waiting = iter(rows)
    coming: dict[Future[str | None], tuple[int, str]] = {}

    def more() -> bool:
        if (one := next(waiting, None)) is None:
            return False
        place, row = one
        path = os.path.join(scratch, str(place))
        coming[pool.submit(_fetched, row, path)] = (place, path)
        return True

    while len(coming) < 2 * AT_ONCE and more():
        pass
    while coming:
        for future in wait(coming, return_when=FIRST_COMPLETED).done:
            place, path = coming.pop(future)
            yield place, future.result()
            with suppress(FileNotFoundError):
                os.unlink(path)
            more()


def _fetched(row: dict[str, Any], path: str) -> str | None:
    """Where a codec finds a recording's header; None where it cannot be had."""
    try:
        if is_remote(row["uri"]):
            write_header(Remote(row["uri"], query=row.get("query"), size=row.get("size")), path)
            return path
        with local_copy(row["uri"], size=row.get("size")) as there:
            return there
    except Exception:
        # What is wrong with it is told by the run, which reads all of it.
        return None


def _stated(path: str) -> float | None:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError:
        return None
    for backend in backends_for(magic):
        try:
            return open_track(path, backend).expected_s
        except (Undecodable, OSError):
            continue
    return None
