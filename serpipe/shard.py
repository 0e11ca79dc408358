"""Shards: a manifest's recordings shared out among runs that write one store side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.errors import UsageError


@dataclass(frozen=True, slots=True)
class Shard:
    """One of so many shares; a recording's id alone says which one it is in.

    Attributes:
        index: from 0.
        count: how many there are.

    Examples:
        >>> Shard.parse("0/4").conflicts(Shard.parse("1/4")), Shard.parse("0/4").conflicts(Shard.parse("1/2"))
        (False, True)
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `INDEX/COUNT`.

        Raises:
            UsageError: `SHARD_INVALID`.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or int(found[1]) >= int(found[2]):
            raise UsageError(
                "SHARD_INVALID",
                f"shard {text!r} is not INDEX/COUNT; indices begin at 0, so of four shards the last is 3/4",
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def conflicts(self, other: Shard | None) -> bool:
        """Whether some recording may be in both; None stands for all recordings."""
        return other is None or self.count != other.count or self.index == other.index

    def holds(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which recordings are in the shard.

        Args:
            ids: of recordings, 16 bytes each.

        Returns:
            Bool (ids,).

        Examples:
            >>> ids = pa.array([bytes([7]) + bytes(15), bytes(16)], pa.binary(16))
            >>> Shard(1, 2).holds(ids).tolist(), Shard(0, 2).holds(ids).tolist()
            ([True, False], [False, True])
        """
        array = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) and ids.num_chunks else ids
        if not len(array):
            return np.zeros(0, np.bool_)
        # Ids are hashes, so any eight bytes of them are as even as all.
        halves = np.frombuffer(array.buffers()[1], "<u8", 2 * len(array), array.offset * 16)[::2]
        mine: NDArray[np.bool_] = halves % np.uint64(self.count) == np.uint64(self.index)
        return mine
