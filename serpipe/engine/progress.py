"""Progress in audio hours: a bar on a terminal, one logfmt line every half minute in a job log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import ray
from tqdm import tqdm

from serpipe.engine.metrics import Metrics
from serpipe.errors import SerpipeError
from serpipe.store import runs

LINE_EVERY_S = 30.0
"""Seconds between two lines of a log."""

LOOK_EVERY_S = 1.0
"""Seconds between two states of a bar."""


class _Counters:
    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._stopped: SerpipeError | None = None
        self._metrics = Metrics()

    def add(self, counts: dict[str, float]) -> None:
        for name, count in counts.items():
            self._totals[name] = self._totals.get(name, 0.0) + count
        self._metrics.add(counts)
        self._metrics.pad(self._totals)

    def totals(self) -> dict[str, float]:
        return self._totals

    def stop(self, why: SerpipeError) -> None:
        self._stopped = self._stopped or why

    def stopped(self) -> SerpipeError | None:
        return self._stopped


class Board:
    """Where stages tell what they did; for show, and to stop a run early: the ledger is what counts."""

    def __init__(self) -> None:
        self._counters: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Counters).remote()

    def add(self, **counts: float) -> None:
        """Add to the counts, without waiting."""
        self._counters.add.remote(counts)

    def totals(self) -> dict[str, float]:
        """The counts so far."""
        found: dict[str, float] = ray.get(self._counters.totals.remote())
        return found

    def stop(self, why: SerpipeError) -> None:
        """Have no more recordings decoded: the run cannot keep what it makes."""
        ray.get(self._counters.stop.remote(why))

    def stopped(self) -> SerpipeError | None:
        """Why the run is to stop; None while it is not, or where the board itself was lost."""
        try:
            why: SerpipeError | None = ray.get(self._counters.stopped.remote())
        except ray.exceptions.RayError:
            return None
        return why

    def end(self) -> None:
        """End the process that counts, once it has counted what it was told.

        Stages hold the board too, and Ray keeps their code, and with it the process, for as long as the driver lives.
        """
        self._counters.__ray_terminate__.remote()


class Progress:
    """Shows a board while a run lasts.

    Args:
        board: what to show.
        total_s: seconds of audio that the plan expects.
        note: told how far the run is, at its start and as often as a log gets a line.
    """

    def __init__(self, board: Board, total_s: float, note: Callable[[runs.Progress], None]) -> None:
        self._board, self._total_s, self._note = board, total_s, note
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
        self._tell(self.now({}))
        last = time.monotonic()
        while not self._ended.wait(LINE_EVERY_S if bar is None else LOOK_EVERY_S):
            try:
                now = self.now(self._board.totals())
            except ray.exceptions.RayError:
                continue
            if bar is not None:
                bar.n = min(now.audio_s / 3600, bar.total)
                bar.set_postfix_str(_words(now))
            else:
                print(line(now), file=sys.stderr, flush=True)
            if bar is None or time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                self._tell(now)
        if bar is not None:
            bar.close()

    def now(self, totals: dict[str, float]) -> runs.Progress:
        """How far the run is."""
        return runs.Progress(
            at=runs.now(),
            elapsed_s=time.monotonic() - self._started,
            audio_s=totals.get("audio_s", 0.0),
            total_s=self._total_s,
            segments=round(totals.get("segments", 0)),
            quarantined=round(totals.get("quarantined", 0)),
        )

    def _tell(self, now: runs.Progress) -> None:
        try:
            self._note(now)
        except Exception:
            # For show only: a store that is out of reach for a moment must not end the display, let alone the run.
            return


def line(now: runs.Progress) -> str:
    """One logfmt line.

    Examples:
        >>> line(runs.Progress(at="", elapsed_s=10.0, audio_s=3600.0, total_s=7200.0, segments=9, quarantined=1))
        'audio_h=1.00 of_h=2.00 x_realtime=360 left_s=10 segments=9 quarantined=1'
    """
    return (
        f"audio_h={now.audio_s / 3600:.2f} of_h={now.total_s / 3600:.2f} x_realtime={now.x_realtime:.0f} "
        f"left_s={_left(now)} segments={now.segments} quarantined={now.quarantined}"
    )


def _words(now: runs.Progress) -> str:
    return f"{now.x_realtime:.0f} x real time, {_left(now)} s left, {now.quarantined} quarantined"


def _left(now: runs.Progress) -> str:
    return "?" if now.left_s is None else f"{now.left_s:.0f}"
