"""A store's tables as Ray Datasets: read by the workers, a piece each, and only what the ledger vouches for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from serpipe.engine.pipeline import TASK_RETRIES
from serpipe.store.parts import File, Parts
from serpipe.store.reading import Store
from serpipe.store.storage import Storage

FILES_PER_TASK = 16
"""A commit's files are a few MB to tens of MB."""


def dataset(store: Store, table: str, model: str | None = None, generation: int | None = None) -> ray.data.Dataset:
    """One of a store's tables as a Ray Dataset.

    Args:
        store: the store; its ledger is read here and now, its rows later, by the workers.
        table: one of `serpipe.store.reading.TABLES`.
        model: the only one wanted, of the tables that belong to models.
        generation: the only one wanted, of `pseudo_labels`.
    """
    parts = store.parts(table, model, generation)
    if parts is None or not parts.files:
        return ray.data.from_arrow(store.arrow(table, model, generation=generation))
    with warnings.catch_warnings():
        # The bounded retries have no other name in Ray 2.60.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        made: ray.data.Dataset = ray.data.read_datasource(
            _Source(store.storage.root, parts), ray_remote_args={"max_retries": TASK_RETRIES}
        )
    return made


class _Source(Datasource):
    """The files of a table, some of them a task."""

    def __init__(self, root: str, parts: Parts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._parts = root, parts

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known without opening the files."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: Any = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """One task for every few files."""
        files = self._parts.files
        # What is stale may be many rows, so it is put into the object store once.
        rest = ray.put(replace(self._parts, files=()))
        return [
            ReadTask(
                _reader(self._root, rest, files[start : start + FILES_PER_TASK]),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for start in range(0, len(files), FILES_PER_TASK)
        ]


def _reader(root: str, parts: ray.ObjectRef[Parts], files: tuple[File, ...]) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterable[pa.Table]:
        yield replace(ray.get(parts), files=files).read_later(Storage(root))

    return read
