"""Micro-batches side by side on a GPU: while one computes, the next is padded, pinned and copied.

Each lane is a thread with a CUDA stream of its own, so its copies need not wait for the other's kernels; PyTorch's
allocator keeps the memory of streams apart. On a CPU the cores are busy already, and there is one lane, the caller.
Not verified on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

CUDA_LANES = 2
"""One computes, one gets ready."""

Item = TypeVar("Item")
Made = TypeVar("Made")


class Lanes:
    """What works on micro-batches.

    Args:
        count: how many at once; 1 is the caller's own thread.
        begin: run once in each lane.

    Examples:
        >>> list(Lanes(2).map(abs, [-1, 2, -3]))
        [1, 2, 3]
    """

    def __init__(self, count: int = 1, *, begin: Callable[[], None] | None = None) -> None:
        self._pool = ThreadPoolExecutor(count, initializer=begin) if count > 1 else None

    def map(self, work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
        """Like the built-in: results in the order of the items, the first error raised.

        Whoever gets an error, or stops asking, gets it once every lane is at rest: what comes next has the device, and
        its memory, to itself.
        """
        return map(work, items) if self._pool is None else self._side_by_side(self._pool, work, items)

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


def for_device(device: str) -> Lanes:
    """The lanes of a device whose models are loaded."""
    if not device.startswith("cuda"):
        return Lanes()
    import torch

    # The weights were copied on a stream that no lane waits for.
    torch.cuda.synchronize(device)
    return Lanes(CUDA_LANES, begin=lambda: torch.cuda.set_stream(torch.cuda.Stream(device)))  # type: ignore[no-untyped-call]
