"""Shards: every recording is in exactly one, and what is in none but another may run beside it."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serpipe.errors import UsageError
from serpipe.pack import ID
from serpipe.shard import Shard


@given(ids=st.lists(st.binary(min_size=16, max_size=16)), count=st.integers(1, 64), skip=st.integers(0, 3))
def test_every_recording_is_in_exactly_one_shard(ids: list[bytes], count: int, skip: int) -> None:
    array = pa.chunked_array([pa.array(ids[:skip], ID), pa.array([bytes(16), *ids[skip:]], ID).slice(1)])
    held = np.array([Shard(index, count).holds(array) for index in range(count)])
    assert held.shape == (count, len(ids))
    assert (held.sum(axis=0) == 1).all()
    # Neither order nor company decides.
    assert [Shard(1, 2).holds(pa.array([i], ID))[0] for i in ids] == Shard(1, 2).holds(array).tolist()


def test_shards_are_of_like_size() -> None:
    ids = pa.array([hashlib.blake2b(bytes([i % 256, i // 256]), digest_size=16).digest() for i in range(8000)], ID)
    for index in range(8):
        assert 850 < Shard(index, 8).holds(ids).sum() < 1150


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6))
def test_shards_conflict_where_a_recording_may_be_in_both(index: int, count: int, other: int, others: int) -> None:
    if index >= count or other >= others:
        return
    one, two = Shard(index, count), Shard(other, others)
    assert one.conflicts(two) == two.conflicts(one)
    numbers = np.arange(60)
    ids = pa.array([int(n).to_bytes(8, "little") + bytes(8) for n in numbers], ID)
    if (one.holds(ids) & two.holds(ids)).any():
        assert one.conflicts(two)
    assert one.conflicts(None)


@pytest.mark.parametrize("text", ["", "1", "4/4", "1/0", "-1/4", "0/4 ", "a/b", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SHARD_INVALID"):
        Shard.parse(text)
