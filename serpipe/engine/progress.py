"""Progress in audio hours: a bar on a terminal, one logfmt line every half minute in a job log."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Self

import ray
from tqdm import tqdm

LINE_EVERY_S = 30.0
"""Seconds between two lines of a log."""

_LOOK_EVERY_S = 1.0


class _Counters:
    def __init__(self) -> None:
        self._totals: dict[str, float] = {}

    def add(self, counts: dict[str, float]) -> None:
        for name, count in counts.items():
            self._totals[name] = self._totals.get(name, 0.0) + count

    def totals(self) -> dict[str, float]:
        return self._totals


class Board:
    """Where commits tell what they wrote; for show only, the ledger is what counts."""

    def __init__(self) -> None:
        self._counters: Any = ray.remote(num_cpus=0)(_Counters).remote()

    def add(self, **counts: float) -> None:
        """Add to the counts, without waiting."""
        self._counters.add.remote(counts)

    def totals(self) -> dict[str, float]:
        """The counts so far."""
        found: dict[str, float] = ray.get(self._counters.totals.remote())
        return found


class Progress:
    """Shows a board while a run lasts.

    Args:
        board: what to show.
        total_s: seconds of audio that the plan expects.
    """

    def __init__(self, board: Board, total_s: float) -> None:
        self._board, self._total_s = board, total_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        bar = None
        if sys.stderr.isatty():
            bar = tqdm(
                total=round(self._total_s / 3600, 3),
                unit="h",
                bar_format="{l_bar}{bar}| {n:.2f}/{total:.2f} h {postfix}",
            )
        last = time.monotonic()
        while not self._ended.wait(_LOOK_EVERY_S):
            try:
                totals = self._board.totals()
            except ray.exceptions.RayError:
                continue
            if bar is not None:
                bar.n = min(totals.get("audio_s", 0.0) / 3600, bar.total)
                bar.set_postfix_str(self._words(totals))
            elif time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                print(self.line(totals), file=sys.stderr, flush=True)
        if bar is not None:
            bar.close()

    def line(self, totals: dict[str, float]) -> str:
        """One logfmt line."""
        audio_s, elapsed = totals.get("audio_s", 0.0), time.monotonic() - self._started
        return (
            f"audio_h={audio_s / 3600:.2f} of_h={self._total_s / 3600:.2f} x_realtime={audio_s / elapsed:.0f} "
            f"left_s={self._left(audio_s, elapsed)} segments={totals.get('segments', 0):.0f} "
            f"quarantined={totals.get('quarantined', 0):.0f}"
        )

    def _words(self, totals: dict[str, float]) -> str:
        audio_s, elapsed = totals.get("audio_s", 0.0), time.monotonic() - self._started
        return (
            f"{audio_s / elapsed:.0f} x real time, {self._left(audio_s, elapsed)} s left, "
            f"{totals.get('quarantined', 0):.0f} quarantined"
        )

    def _left(self, audio_s: float, elapsed: float) -> str:
        if not audio_s or audio_s > self._total_s:
            # Without claimed durations the total is a guess from file sizes, and this one was too low.
            return "?"
        return f"{max(self._total_s - audio_s, 0.0) * elapsed / audio_s:.0f}"
