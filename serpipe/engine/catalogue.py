"""The catalogue: the recordings of a manifest, in parts that each fit in memory.

A small manifest is read where the run starts, and Ray is not needed. A large one is a Ray Data job: its rows are
shuffled by uri into parts, so that neither the manifest nor the recordings must fit into the driver. A manifest that
has not changed since the last run is not read again. Signed queries are never stored: they stay in the driver's
memory, and a manifest that holds any is read by every run.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.errors import SerpipeError
from serpipe.manifest import (
    ROWS,
    Listings,
    Manifest,
    Part,
    bad_rows_error,
    collapse,
    mark_duplicates,
    read_rows,
)
from serpipe.manifest.schemas import RECORDINGS
from serpipe.shard import Shard
from serpipe.store import parquet, runs
from serpipe.store.storage import Storage

IN_PROCESS_BYTES = 64 << 20
"""Bytes of a manifest's text up to which it is read without Ray: some half a million rows, a gigabyte of memory."""

PART_BYTES = 16 << 20
"""Bytes of text behind one part of a catalogue made by Ray."""

TEXT_OF_PARQUET = 6
"""About how often larger the text of a Parquet file is."""

READ_CPUS = 0.5
"""CPUs that a task reserves which reads or sorts a manifest: work for a core, beside which the shuffle finds room."""

MOST_PARTITIONS = 200
"""Of the shuffle; Ray's own default, of which a small catalogue would leave most empty."""

STORED = pa.schema([field for field in RECORDINGS if field.name != "query"])
"""A part of a catalogue in the store."""

_SIGNED = pa.schema([RECORDINGS.field("recording_id"), RECORDINGS.field("query")])


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The recordings of a manifest.

    Attributes:
        parts: read one part each, a table of `serpipe.manifest.schemas.RECORDINGS`.
        bad: rows that cannot be used, of `ROWS`.
        run: the run that stored it; None where it was read here.
    """

    parts: tuple[Callable[[], pa.Table], ...]
    bad: pa.Table
    run: str | None = None


def is_small(manifest: Manifest) -> bool:
    """Whether a manifest is read in this process."""
    if manifest.format in ("folder", "glob"):
        return True
    return _text_bytes(manifest) <= IN_PROCESS_BYTES


def _text_bytes(manifest: Manifest) -> int:
    size = sum(part.size or 0 for part in manifest.parts)
    return size * TEXT_OF_PARQUET if manifest.format == "parquet" else size


def read_here(manifest: Manifest, *, recheck: bool = False) -> Catalogue:
    """Read a small manifest in this process."""
    rows = mark_duplicates(read_rows(manifest, recheck=recheck))
    bad = rows.filter(pc.is_valid(rows["error"]))
    recordings = collapse(rows)
    return Catalogue((lambda: recordings,), bad)


def unchanged(storage: Storage, manifest: Manifest) -> Catalogue | None:
    """The catalogue that an earlier run made of the very same manifest; None where there is none.

    What its rows do not say of their files is as that run found it: a file that was replaced since is seen by a run
    that rechecks.
    """
    if manifest.fingerprint is None:
        return None
    for run in reversed(runs.load(storage)):
        if run.asked.get("manifest_fingerprint") == manifest.fingerprint:
            names = _parts(storage, run.run_id)
            if names and not any(parquet.facts(storage, name)["signed"] == "yes" for name in names):
                return _stored(storage, run.run_id, _SIGNED.empty_table())
    return None


def read_with_ray(manifest: Manifest, storage: Storage, run: str, *, recheck: bool = False) -> Catalogue:
    """Read a large manifest with Ray Data; the parts go to `runs/RUN/catalogue/`. Ray must be running.

    Raises:
        SerpipeError: `RUN_BROKEN`, a part killed its worker on every try; what reading a part raises.
    """
    import ray.data

    from serpipe.engine.pipeline import TASK_RETRIES

    buckets = max(2, _text_bytes(manifest) // PART_BYTES)
    with warnings.catch_warnings():
        # The bounded retries have no other name in Ray 2.60.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = ray.data.read_datasource(
            _source(manifest, buckets, recheck),
            num_cpus=READ_CPUS,
            override_num_blocks=len(manifest.parts),
            ray_remote_args={"max_retries": TASK_RETRIES},
        )
    root = storage.root
    folded = dataset.groupby("bucket", num_partitions=min(buckets, MOST_PARTITIONS)).map_groups(
        lambda rows: _fold(rows, root, run), batch_format="pyarrow", num_cpus=READ_CPUS, max_retries=TASK_RETRIES
    )
    try:
        signed = [_SIGNED.empty_table(), *folded.iter_batches(batch_size=None, batch_format="pyarrow")]
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        cause = str(error).strip().splitlines()[0]
        raise SerpipeError(
            "RUN_BROKEN",
            f"Ray gave the reading of {manifest.location} up, for its workers died again and again ({cause}); run the "
            "same command again, and on nodes with more memory where that does not help",
        ) from error
    except Exception as error:
        told = _told_by_a_task(error)
        if told is None:
            raise
        # Ray's own text is the task's traceback, with whatever a client library has put into its errors.
        raise told from None
    return _stored(storage, run, pa.concat_tables([table.cast(_SIGNED) for table in signed]))


def _told_by_a_task(error: BaseException | None) -> SerpipeError | None:
    """What a task of ours has raised, behind what Ray makes of it."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SerpipeError):
            return cause
        error = error.__cause__
    return None


def of_share(parts: Sequence[Callable[[], pa.Table]], shard: Shard | None) -> list[Callable[[], pa.Table]]:
    """The parts of a catalogue without the recordings of other shards; all of it where there are none."""
    return list(parts) if shard is None else [of_shard(part, shard) for part in parts]


def of_shard(part: Callable[[], pa.Table], shard: Shard) -> Callable[[], pa.Table]:
    """A part of a catalogue without the recordings of other shards."""

    def read() -> pa.Table:
        recordings = part()
        return recordings.filter(pa.array(shard.holds(recordings["recording_id"])))

    return read


def check(catalogue: Catalogue, *, skip_bad_rows: bool) -> None:
    """Refuse a manifest with rows that cannot be used, before any work starts.

    Raises:
        UsageError: naming the first rows and what is wrong with them.
    """
    if catalogue.bad.num_rows and not skip_bad_rows:
        raise bad_rows_error(catalogue.bad)


def _source(manifest: Manifest, buckets: int, recheck: bool) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class ManifestSource(Datasource):
        def estimate_inmemory_data_size(self) -> int:
            return sum(part.size or 0 for part in manifest.parts)

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            return [
                ReadTask(
                    _reader(manifest, part, buckets, recheck),
                    BlockMetadata(num_rows=None, size_bytes=part.size, input_files=None, exec_stats=None),
                )
                for part in manifest.parts
            ]

    return ManifestSource()  # type: ignore[no-untyped-call]


def _reader(manifest: Manifest, part: Part, buckets: int, recheck: bool) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        listings = Listings(recheck=recheck)
        for rows in manifest.read(part):
            keys = [zlib.crc32(uri.encode()) % buckets if uri else 0 for uri in rows["uri"].to_pylist()]
            yield listings.stat(rows).append_column("bucket", pa.array(keys, pa.int32()))

    return read


def _fold(rows: pa.Table, root: str, run: str) -> pa.Table:
    """Store the recordings of one bucket; give back the queries of those that have one."""
    bucket = rows["bucket"][0].as_py()
    marked = mark_duplicates(rows.select(ROWS.names).cast(ROWS))
    bad = marked.filter(pc.is_valid(marked["error"]))
    recordings = collapse(marked)
    signed = recordings.filter(pc.is_valid(recordings["query"])).select(_SIGNED.names)
    facts = {"signed": "yes" if signed.num_rows else "no"}
    storage = Storage(root)
    # Named by their bucket, so that a task that runs twice writes the same objects.
    parquet.write(storage, f"runs/{run}/catalogue/{bucket:05d}.parquet", recordings, STORED, facts)
    if bad.num_rows:
        place = ROWS.get_field_index("query")
        bad = bad.set_column(place, ROWS.field(place), pa.nulls(bad.num_rows, pa.string()))
        parquet.write(storage, f"runs/{run}/bad-rows/{bucket:05d}.parquet", bad, ROWS, {})
    return signed


def _parts(storage: Storage, run: str) -> list[str]:
    return storage.list(f"runs/{run}/catalogue/")


def _stored(storage: Storage, run: str, signed: pa.Table) -> Catalogue:
    keys = signed["recording_id"].cast(pa.binary()).combine_chunks()
    queries = signed["query"].combine_chunks()

    def reader(name: str) -> Callable[[], pa.Table]:
        def read() -> pa.Table:
            rows = parquet.read(storage, [name], STORED)
            place = pc.index_in(rows["recording_id"].cast(pa.binary()), value_set=keys)
            return rows.append_column("query", queries.take(place.combine_chunks())).select(RECORDINGS.names)

        return read

    bad = parquet.read(storage, storage.list(f"runs/{run}/bad-rows/"), ROWS)
    return Catalogue(tuple(reader(name) for name in _parts(storage, run)), bad, run)
