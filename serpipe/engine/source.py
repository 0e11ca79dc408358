"""Read tasks of a frozen plan: each carries the plan's place and which row groups, never a list of uris."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from serpipe.store import plans
from serpipe.store.storage import Storage

if TYPE_CHECKING:
    from serpipe.plan import Plan

_ROW_BYTES = 400
"""About what a recording weighs in a plan; the scheduler only wants the order of magnitude."""


class PlanSource(Datasource):
    """The recordings of a plan, one block a read task.

    Args:
        root: the store.
        run: the run that froze the plan.
        plan: that plan.
        decoders: how many decode at once.
    """

    def __init__(self, root: str, run: str, plan: Plan, *, decoders: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._run, self._plan, self._tasks = root, run, plan, plan.tasks(decoders)
        self.remote = plan.remote

    def __len__(self) -> int:
        """Number of read tasks."""
        return len(self._tasks)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all read blocks."""
        return self._plan.left * _ROW_BYTES

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: Any = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """The read tasks; called several times, so it only counts."""
        return [self._task(groups) for groups in self._tasks]

    def _task(self, groups: range) -> ReadTask:
        rows = sum(self._plan.groups[group] for group in groups)
        return ReadTask(
            _Read(self._root, self._run, groups, self._plan.queries_of(groups)),
            BlockMetadata(num_rows=rows, size_bytes=rows * _ROW_BYTES, input_files=None, exec_stats=None),
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """Reads row groups. A class, for it is pickled by name: a function within another costs ten times the time."""

    root: str
    run: str
    groups: range
    queries: pa.ChunkedArray | None

    def __call__(self) -> Iterable[pa.Table]:
        table = plans.read(Storage(self.root), self.run, self.groups)
        if self.queries is not None:
            table = table.append_column("query", self.queries)
        yield table
