"""What a process frees is there for its next allocation, without page faults, in any of its threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import numpy as np
from serpipe import allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    # What lies between the blocks has to find its place first.
    for _ in range(24):
        [np.ones(size, np.uint8) for _ in range(count)]
    before = faults()
    for _ in range(8):
        [np.ones(size, np.uint8) for _ in range(count)]
    print(faults() - before)

count, size = int(sys.argv[1]), int(sys.argv[2])
for how in sys.argv[3:]:
    if not getattr(allocator, how)():
        sys.exit("no mallopt")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


ONE_LARGE, LARGE, SEGMENTS = (1, 64 << 20), (4, 24 << 20), (32, 640_000)
"""Blocks that are held together, and the bytes of each; the segments are a unit's."""


def faults(blocks: tuple[int, int], *how: str) -> int:
    """In a process of their own: the setting is not taken back."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *map(str, blocks), *how], check=False, capture_output=True, text=True
    )
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


@pytest.mark.parametrize(("how", "blocks"), [("keep_freed_memory", ONE_LARGE), ("keep_some_freed_memory", SEGMENTS)])
def test_blocks_are_not_faulted_in_again(how: str, blocks: tuple[int, int]) -> None:
    assert 4 * faults(blocks, how) < faults(blocks)


def test_who_keeps_some_gives_the_rest_back() -> None:
    assert faults(LARGE, "keep_some_freed_memory") > faults(LARGE) / 2


@pytest.mark.parametrize("last", ["keep_freed_memory", "keep_some_freed_memory"])
def test_who_keeps_all_keeps_all(last: str) -> None:
    first = ({"keep_freed_memory", "keep_some_freed_memory"} - {last}).pop()
    assert 4 * faults(LARGE, first, last) < faults(LARGE)
