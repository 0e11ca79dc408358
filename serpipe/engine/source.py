"""Read tasks of a frozen plan: each carries the plan's place and a row group, never a list of uris."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from serpipe.store import plans
from serpipe.store.storage import Storage

_ROW_BYTES = 400
"""About what a recording weighs in a plan; the scheduler only wants the order of magnitude."""


class PlanSource(Datasource):
    """The recordings of a plan, one block a row group.

    Args:
        root: the store.
        run: the run that froze the plan.
        tasks: recordings of each row group.
        queries: signed queries of each row group, for those that have any; they live in memory alone.
        remote: whether any of the recordings must be fetched.
    """

    def __init__(
        self, root: str, run: str, tasks: list[int], queries: dict[int, pa.Array], *, remote: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._run, self._tasks, self._queries = root, run, tasks, queries
        self.remote = remote

    def __len__(self) -> int:
        """Number of read tasks."""
        return len(self._tasks)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all read blocks."""
        return sum(self._tasks) * _ROW_BYTES

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: Any = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """One task a row group; called several times, so it only counts."""
        return [
            ReadTask(
                _Read(self._root, self._run, group, self._queries.get(group)),
                BlockMetadata(num_rows=rows, size_bytes=rows * _ROW_BYTES, input_files=None, exec_stats=None),
            )
            for group, rows in enumerate(self._tasks)
        ]


@dataclass(frozen=True, slots=True)
class _Read:
    """Reads a row group. A class, for it is pickled by name: a function within another costs ten times the time."""

    root: str
    run: str
    group: int
    queries: pa.Array | None

    def __call__(self) -> Iterable[pa.Table]:
        table = plans.read_task(Storage(self.root), self.run, self.group)
        if self.queries is not None:
            table = table.append_column("query", self.queries)
        yield table
