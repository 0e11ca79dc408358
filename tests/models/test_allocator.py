"""What a process frees is there for its next allocation, without page faults, in any of its threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from serpipe.models.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    # What lies between the blocks has to find its place first.
    for _ in range(24):
        torch.ones(1 << 24)
    before = faults()
    for _ in range(8):
        torch.ones(1 << 24)
    print(faults() - before)

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no mallopt")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(how: str) -> int:
    """In a process of their own: the setting is not taken back."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=False, capture_output=True, text=True)
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


def test_large_blocks_are_not_faulted_in_again() -> None:
    assert 4 * faults("keep") < faults("plain")
