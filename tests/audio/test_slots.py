"""Whatever blocks samples come in, they arrive as they were and in order, in no more messages than they need."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.audio.backends import Frames, as_float
from serpipe.audio.slots import AUDIO, FREE, GATHERED, SLOT_BYTES, SLOTS, Sender, Slots, taken


def arrived(blocks: list[Frames], channels: int, *, held_s: float = math.inf) -> list[NDArray[np.float32]]:
    """What each message brings to the other end, kept until the last one."""
    with sending(lambda sender: [sender.add(block) for block in blocks], channels, held_s=held_s) as (ours, mine):
        return [taken(ours, mine, memoryview(message)[4:], channels) for message in messages(ours)]


@contextmanager
def sending(
    send: Callable[[Sender], object], channels: int, *, held_s: float = math.inf
) -> Iterator[tuple[Connection, Slots]]:
    memory = os.memfd_create("test")
    os.ftruncate(memory, SLOTS * SLOT_BYTES)
    ours, theirs = Pipe()

    def run() -> None:
        sender = Sender(theirs, Slots(memory), channels, held_s=held_s)
        with suppress(BrokenPipeError, EOFError, ConnectionError), theirs:
            try:
                send(sender)
                sender.flush()
            finally:
                theirs.send_bytes(b"DONE")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield ours, Slots(memory)
    finally:
        ours.close()
        thread.join()
        os.close(memory)


def messages(pipe: Connection) -> Iterator[bytes]:
    while (message := pipe.recv_bytes()) != b"DONE":
        assert message[:4] == AUDIO
        yield message


LENGTHS = st.lists(st.integers(0, 5_000) | st.integers(GATHERED - 2, 3 * GATHERED), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    LENGTHS.flatmap(lambda lengths: st.tuples(st.just(lengths), st.lists(st.booleans(), min_size=12, max_size=12))),
    st.sampled_from([1, 2, 7]),
)
def test_samples_arrive_as_they_were(drawn: tuple[list[int], list[bool]], channels: int) -> None:
    lengths, whole_numbers = drawn
    noise = np.random.default_rng(0)
    blocks: list[Frames] = [
        noise.integers(-32_768, 32_767, (channels, length), np.int16, endpoint=True)
        if whole
        else noise.standard_normal((channels, length), np.float32)
        for length, whole in zip(lengths, whole_numbers, strict=False)
    ]
    pieces = arrived(blocks, channels)
    wanted = np.concatenate([np.zeros((channels, 0), np.float32), *map(as_float, blocks)], axis=1)
    np.testing.assert_array_equal(np.concatenate([wanted[:, :0], *pieces], axis=1), wanted)
    assert all(0 < piece.shape[1] <= GATHERED and piece.flags.c_contiguous for piece in pieces)


def test_small_blocks_are_handed_on_together() -> None:
    pieces = arrived([np.zeros((1, 1_000), np.float32)] * 300, channels=1)
    assert [piece.shape[1] for piece in pieces] == [GATHERED, GATHERED, 300_000 - 2 * GATHERED]


def test_nothing_waits_where_nothing_is_to_be_held() -> None:
    pieces = arrived([np.zeros((1, 1_000), np.int16)] * 5, channels=1, held_s=0.0)
    assert [piece.shape[1] for piece in pieces] == [1_000] * 5


def test_a_slot_is_written_again_only_once_it_was_read() -> None:
    many = [np.full((1, GATHERED), number, np.float32) for number in range(SLOTS + 2)]
    ahead = threading.Event()

    def send(sender: Sender) -> None:
        for block in many[:SLOTS]:
            sender.add(block)
        ahead.set()
        for block in many[SLOTS:]:
            sender.add(block)

    with sending(send, channels=1) as (ours, mine):
        assert ahead.wait(30)
        assert all(ours.recv_bytes()[:4] == AUDIO for _ in range(SLOTS))
        assert not ours.poll(0.2)
        held = [mine.next(np.dtype(np.float32), 1)[0, 0] for _ in range(SLOTS)]
        assert held == list(range(SLOTS))
        for _ in range(SLOTS):
            ours.send_bytes(FREE)
        assert len(list(messages(ours))) == 2
