"""Read tasks: each row group of a plan once, with its queries, and small enough that twenty thousand weigh nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from ray import cloudpickle

from serpipe.engine.source import PlanSource
from serpipe.plan import Plan
from serpipe.store import plans
from serpipe.store.storage import Storage


def test_every_task_reads_its_recordings_and_is_small_on_its_way(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = [
        {
            "recording_id": number.to_bytes(16),
            "uri": f"s3://archive/{number}.mp3",
            "query": f"sig={number}" if number == 3 else None,
            "work_s": 30.0,
        }
        for number in range(5)
    ]
    writer = plans.Writer(storage, "R1")
    writer.add(pa.Table.from_pylist(rows, schema=plans.WORK), [2, 1, 1, 1])
    writer.end()
    todo = Plan(groups=writer.groups, work_s=writer.work_s, queries=writer.queries, left=5, done=0)
    source = PlanSource(storage.root, "R1", todo, decoders=1)
    # A minute each: the third and the fourth row group are read together.
    assert len(source) == 3
    # Called several times by Ray, and sent to other machines.
    tasks = [cloudpickle.loads(cloudpickle.dumps(task)) for _ in range(2) for task in source.get_read_tasks(1)]
    tables = [table for task in tasks for table in task()]
    assert [table["uri"].to_pylist() for table in tables] == 2 * [
        [row["uri"] for row in rows[:2]], [row["uri"] for row in rows[2:4]], [rows[4]["uri"]]
    ]  # fmt: skip
    assert [table["query"].to_pylist() for table in tables if "query" in table.column_names] == 2 * [[None, "sig=3"]]
    assert max(len(cloudpickle.dumps(task)) for task in source.get_read_tasks(1)[::2]) < 600
    assert [task.metadata.num_rows for task in source.get_read_tasks(1)] == [2, 2, 1]
