"""Memory that a network frees stays with the process, on a CPU.

glibc gives every block of some megabytes back to the kernel as it is freed, and each forward pass then faults in and
clears thousands of pages again: measured, a tenth of the time of emotion2vec.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_LARGEST_INT = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for its next allocation; what it once needed at most stays with it.

    Returns:
        Whether the C library knows how.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    # The arenas of other threads are too small for such blocks, and would map them all the same.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST_INT}
    return all(mallopt(what, value) for what, value in settings.items())
