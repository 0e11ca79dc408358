"""The sink: bundles of labelled packs in, commits out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink

from serpipe.engine.progress import Board
from serpipe.errors import StoreError
from serpipe.store import commit, lease
from serpipe.store.rows import RunFacts, commit_of
from serpipe.store.storage import Storage

MAY_PASS = "STORE_UNREACHABLE"
"""The one trouble of a store that a commit may survive by being tried again; any other ends the run."""


class StoreSink(Datasink[dict[str, int]]):
    """Commits bundles of packs; a task that runs twice commits once.

    Args:
        root: the store.
        run: what its rows have in common.
        bundle_bytes: labelled rows that make a commit.
        board: where progress is told.
        stage: a later pass of the run. The same packs then make another commit, for the first one is closed.
        step: of the lease, while that pass lasts.
    """

    def __init__(
        self, root: str, run: RunFacts, *, bundle_bytes: int, board: Board, stage: str = "", step: int = 0
    ) -> None:
        self._root, self._run, self._bundle_bytes, self._board, self._stage = root, run, bundle_bytes, board, stage
        self._step = step

    def of(self, run: RunFacts, stage: str, step: int) -> StoreSink:
        """The sink of a later pass."""
        return StoreSink(self._root, run, bundle_bytes=self._bundle_bytes, board=self._board, stage=stage, step=step)

    @property
    def min_bytes_per_write(self) -> int:
        """Bytes that Ray gathers before it calls `write`."""
        return self._bundle_bytes

    def write(self, blocks: Iterable[Any], ctx: Any) -> dict[str, int]:  # noqa: ARG002
        """Commit one bundle; a store that cannot be written any more stops the run."""
        packs = []
        for block in blocks:
            table: pa.Table = BlockAccessor.for_block(block).to_arrow()
            packs += [table.slice(row, 1) for row in range(table.num_rows)]
        try:
            return self.commit(packs)
        except StoreError as error:
            if error.code == MAY_PASS:
                raise
            if error.code == lease.LATE:
                # Ray lost sight of this task, and its work is another's by now.
                return {"commits": 0, "quarantined": 0}
            # Raised here it would cost this block alone, and every later one would be labelled for nothing.
            self._board.stop(error)
            return {"commits": 0, "quarantined": 0}

    def commit(self, packs: Sequence[pa.Table]) -> dict[str, int]:
        """Commit labelled packs.

        Args:
            packs: tables of one row each.

        Raises:
            StoreError: the store cannot be written, or is another run's by now.
        """
        ready = commit_of([self._named(pack) for pack in packs], self._run)
        storage = Storage(self._root)
        commit.write(storage, ready, guard=lambda: lease.check(storage, self._run.run_id, self._step))
        quarantined = ready.quarantine.num_rows + sum(part.quarantine.num_rows for part in ready.models)
        self._board.add(quarantined=quarantined)
        return {"commits": 1, "quarantined": quarantined}

    def _named(self, pack: pa.Table) -> pa.Table:
        if not self._stage:
            return pack
        place = pack.schema.get_field_index("pack_id")
        return pack.set_column(place, "pack_id", pa.array([f"{pack['pack_id'][0].as_py()}-{self._stage}"]))
