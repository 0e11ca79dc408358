"""Ending Ray's workers of this process, and of no other."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

STAGES = ("ray::MapWorker", "ray::Read", "ray::Write", "ray::_Worker")
"""How Ray titles the processes that carry a run, among its own."""


def workers(titles: tuple[str, ...] = STAGES) -> list[psutil.Process]:
    """Worker processes of the cluster that this process started; by default those that host a stage."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.Error):
            # One that has just ended has no words left.
            if " ".join(process.cmdline()).startswith(titles):
                found.append(process)
    return found


@contextmanager
def killing(progress: Callable[[], int], *, every_s: float, most: int, seed: int = 0) -> Iterator[list[str]]:
    """Kill a worker at random every few seconds, as long as something gets done in between.

    Args:
        progress: grows with what is done; nobody is killed before it has grown. A machine on which a worker takes
            longer to start than until the next kill would never finish anything.
        every_s: seconds between two kills, at least.
        most: kills.
        seed: decides who.

    Yields:
        The titles of the killed, growing.
    """
    killed: list[str] = []
    ended = threading.Event()
    rng = random.Random(seed)

    def work() -> None:
        done = 0
        while len(killed) < most and not ended.wait(0.02):
            alive = workers() if progress() > done else []
            if not alive:
                continue
            done = progress()
            victim = rng.choice(alive)
            with suppress(psutil.Error):
                title = " ".join(victim.cmdline())
                victim.kill()
                killed.append(title)
            ended.wait(every_s)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
