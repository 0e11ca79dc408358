"""The sink: bundles of labelled packs in, commits out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink

from serpipe.engine.progress import Board
from serpipe.store import commit, lease
from serpipe.store.rows import RunFacts, commit_of
from serpipe.store.storage import Storage


class StoreSink(Datasink[dict[str, int]]):
    """Commits bundles of packs; a task that runs twice commits once.

    Args:
        root: the store.
        run: what its rows have in common.
        bundle_bytes: labelled rows that make a commit.
        board: where progress is told.
    """

    def __init__(self, root: str, run: RunFacts, *, bundle_bytes: int, board: Board) -> None:
        self._root, self._run, self._bundle_bytes, self._board = root, run, bundle_bytes, board

    @property
    def min_bytes_per_write(self) -> int:
        """Bytes that Ray gathers before it calls `write`."""
        return self._bundle_bytes

    def write(self, blocks: Iterable[Any], ctx: Any) -> dict[str, int]:  # noqa: ARG002
        """Commit one bundle."""
        packs = []
        for block in blocks:
            table: pa.Table = BlockAccessor.for_block(block).to_arrow()
            packs += [table.slice(row, 1) for row in range(table.num_rows)]
        ready = commit_of(packs, self._run)
        storage = Storage(self._root)
        commit.write(storage, ready, guard=lambda: lease.check(storage, self._run.run_id))
        quarantined = ready.quarantine.num_rows + sum(part.quarantine.num_rows for part in ready.models)
        self._board.add(quarantined=quarantined)
        return {"commits": 1, "quarantined": quarantined}
