"""Micro-batches side by side on a GPU: while one computes, the next is padded, pinned and copied.

Each lane is a thread with a CUDA stream of its own, so its copies need not wait for the other's kernels; PyTorch's
allocator keeps the memory of streams apart. On a CPU the cores are busy already, and there is one lane, the caller.
Calls that overlap share the lanes: what one has left over the other takes, and no more is on the device than before.
Not verified on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from threading import Condition, Lock
from typing import TypeVar

CUDA_LANES = 2
"""One computes, one gets ready."""

CUDA_CALLS = 2
"""Packs that are labelled at once: the lanes have work while one of them is unpacked, or its results are packed."""

Item = TypeVar("Item")
Made = TypeVar("Made")


class Meter:
    """Seconds that the work of one call kept its lanes busy.

    Time in which several micro-batches run is shared among them, so that the seconds of calls that overlap add up to
    those that passed.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0


class Lanes:
    """What works on micro-batches, for any number of callers.

    Args:
        count: how many at once; 1 is the caller's own thread.
        begin: run once in each lane.
        clock: seconds that pass.

    Examples:
        >>> list(Lanes(2).map(abs, [-1, 2, -3]))
        [1, 2, 3]
    """

    def __init__(
        self,
        count: int = 1,
        *,
        begin: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pool = ThreadPoolExecutor(count, initializer=begin) if count > 1 else None
        self._clock = clock
        self._alone = Lock()
        self._turn = Condition()
        self._held = False
        self._working = 0
        # What each of those that work has had of the time until `_looked`, counted since the first began.
        self._share_s = self._looked = 0.0

    def map(self, work: Callable[[Item], Made], items: Iterable[Item], *, meter: Meter | None = None) -> Iterator[Made]:
        """Like the built-in: results in the order of the items, the first error raised.

        Whoever gets an error, or stops asking, gets it once none of its items is worked on any more.

        Args:
            work: what is done, in any lane.
            items: to what.
            meter: is told how long that took.
        """
        measured = partial(self._measured, work, meter or Meter())
        return map(measured, items) if self._pool is None else self._side_by_side(self._pool, measured, items)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No lane works for the length of a `with` block: whoever enters has the device, and its memory, to itself."""
        with self._alone:
            with self._turn:
                self._held = True
                self._turn.wait_for(lambda: not self._working)
            try:
                yield
            finally:
                with self._turn:
                    self._held = False
                    self._turn.notify_all()

    def _side_by_side(
        self, pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item]
    ) -> Iterator[Made]:
        begun = [pool.submit(work, item) for item in items]
        try:
            for one in begun:
                yield one.result()
        finally:
            for one in begun:
                one.cancel()
            wait(begun)

    def _measured(self, work: Callable[[Item], Made], meter: Meter, item: Item) -> Made:
        with self._turn:
            self._turn.wait_for(lambda: not self._held)
            began = self._passed(1)
        try:
            return work(item)
        finally:
            with self._turn:
                meter.busy_s += self._passed(-1) - began
                self._turn.notify_all()

    def _passed(self, more: int) -> float:
        """The share of the time until now; from now on `more` than before share it."""
        now = self._clock()
        if self._working:
            self._share_s += (now - self._looked) / self._working
        self._looked = now
        self._working += more
        return self._share_s


def for_device(device: str) -> Lanes:
    """The lanes of a device whose models are loaded."""
    if not device.startswith("cuda"):
        return Lanes()
    import torch

    # The weights were copied on a stream that no lane waits for.
    torch.cuda.synchronize(device)
    return Lanes(CUDA_LANES, begin=lambda: torch.cuda.set_stream(torch.cuda.Stream(device)))  # type: ignore[no-untyped-call]
