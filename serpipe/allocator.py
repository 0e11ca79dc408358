"""Memory that a process frees stays with it, for its next allocation.

glibc gives every block of some megabytes back to the kernel as it is freed, and whoever allocates next faults in and
clears thousands of pages again: measured, a tenth of the time of emotion2vec on a CPU, and a third of what segments and
packs cost a decoder.
"""

from __future__ import annotations

import ctypes
from functools import cache

SOME_BYTES = 64 << 20
"""What a process keeps about of what it frees where it keeps some: the segments of a unit, and what measures them."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # of malloc.h
_LARGEST_INT = 2**31 - 1
_LARGEST_THRESHOLD = 32 << 20
"""Above which malloc takes no block for one of its own."""


@cache
def keep_freed_memory() -> bool:
    """Have this process keep what it frees, all of it: what it once needed at most stays with it.

    Returns:
        Whether the C library knows how.
    """
    library = _library()
    if library is None:
        return False
    library.malloc_trim(0)
    # The arenas of other threads are too small for such blocks, and would map them all the same.
    return _set(library, {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST_INT})


@cache
def keep_some_freed_memory() -> bool:
    """Have this process keep about `SOME_BYTES` of what it frees, in blocks of up to 32 MiB; who keeps all does still.

    Returns:
        Whether the C library knows how.
    """
    if keep_freed_memory.cache_info().currsize:
        return keep_freed_memory()
    library = _library()
    return library is not None and _set(
        library, {_ARENA_MAX: 1, _MMAP_THRESHOLD: _LARGEST_THRESHOLD, _TRIM_THRESHOLD: SOME_BYTES}
    )


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        _ = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return library


def _set(library: ctypes.CDLL, settings: dict[int, int]) -> bool:
    return all(library.mallopt(what, value) for what, value in settings.items())
