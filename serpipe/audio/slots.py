"""Samples on their way to another process: gathered in memory that both share, handed on by a word in a pipe."""

from __future__ import annotations

import mmap
import struct
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.backends import Frames, as_float

AUDIO, FREE = b"PCM ", b"FREE"
"""Before what is said of samples in a slot; said back once they were read."""

SLOTS = 4
SLOT_BYTES = 1 << 20
"""Samples lie in memory that both share, in slots used in turn: a pipe would copy them twice more."""

GATHERED = 131_072
"""Samples per channel, 8 s, that a slot holds before it is handed on: between two lie a pipe, a wait and the segmenter,
which cost more than moving the samples does."""

HELD_S = 1.0
"""Seconds for which samples are usually held back at most."""

_PIECE = struct.Struct("<cxxxI")
"""Behind `AUDIO`: the samples' type, as NumPy has it, and how many each channel has."""


class Slots:
    """Samples on their way from one process to the other, in slots of shared memory that are used in turn.

    Args:
        descriptor: an anonymous file of `SLOTS * SLOT_BYTES`, which both processes have open.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
        self._turn = 0

    def next(self, dtype: np.dtype[Any], channels: int) -> Frames:
        """The next slot as an array (channels, as many as it may hold)."""
        start = self._turn * SLOT_BYTES
        self._turn = (self._turn + 1) % SLOTS
        longest = min(SLOT_BYTES // dtype.itemsize // channels, GATHERED)
        return np.frombuffer(self._memory, dtype, channels * longest, start).reshape(channels, longest)


class Sender:
    """Gathers samples in a slot, and hands it on when it is full.

    Args:
        pipe: to whom takes them.
        slots: this side's.
        channels: of the samples.
        held_s: seconds for which samples are held back at most while more are coming; 0 holds nothing back.
    """

    def __init__(self, pipe: Connection, slots: Slots, channels: int, *, held_s: float) -> None:
        self._pipe, self._slots, self._channels, self._held_s = pipe, slots, channels, held_s
        self._free = SLOTS
        self._slot: Frames | None = None
        self._held = 0
        self._handed_on = time.monotonic()

    def add(self, block: Frames) -> None:
        """Take a block (channels, n), for as many slots as it fills."""
        if self._slot is not None and self._slot.dtype != block.dtype:
            self.flush()
        while block.shape[1]:
            if self._slot is None:
                self._slot = self._next(block.dtype)
            piece = block[:, : self._slot.shape[1] - self._held]
            self._slot[:, self._held : self._held + piece.shape[1]] = piece
            self._held += piece.shape[1]
            block = block[:, piece.shape[1] :]
            if self._held == self._slot.shape[1]:
                self.flush()
        # Of a file that is slow to come nothing waits here: who asked gives a child up that hands nothing on.
        if time.monotonic() - self._handed_on >= self._held_s:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held."""
        if self._slot is not None:
            self._pipe.send_bytes(AUDIO + _PIECE.pack(self._slot.dtype.char.encode(), self._held))
            self._handed_on = time.monotonic()
        self._slot, self._held = None, 0

    def _next(self, dtype: np.dtype[Any]) -> Frames:
        while not self._free:
            self._free += self._pipe.recv_bytes() == FREE
        self._free -= 1
        return self._slots.next(dtype, self._channels)


def taken(pipe: Connection, slots: Slots, body: memoryview, channels: int) -> NDArray[np.float32]:
    """The samples of a message, float32 (channels, n), out of the shared memory, which is free from here on.

    Args:
        pipe: to whom sent them.
        slots: this side's.
        body: of the message, behind `AUDIO`.
        channels: of the samples.
    """
    kind, length = _PIECE.unpack(body)
    shared = slots.next(np.dtype(kind.decode()), channels)[:, :length]
    samples = as_float(shared if shared.dtype == np.int16 else shared.copy())
    with suppress(ConnectionError):
        # A child that died is noticed where its next message is missing.
        pipe.send_bytes(FREE)
    return samples
