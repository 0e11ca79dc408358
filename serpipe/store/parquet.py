"""Parquet in and out of a storage: whole files, explicit schemas, facts in the footer."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.errors import StoreError
from serpipe.store import seal
from serpipe.store.schemas import SCHEMA_VERSION
from serpipe.store.storage import Storage

_PREFIX = b"serpipe."


def write(storage: Storage, name: str, table: pa.Table, schema: pa.Schema, facts: Mapping[str, str]) -> None:
    """Put a table as one Parquet object.

    Args:
        storage: where to.
        name: the object's name.
        table: columns of `schema`, in any order.
        schema: the types that are written.
        facts: goes into the footer under `serpipe.`, with the schema's version, the object's name and its digest.
    """
    sink = io.BytesIO()
    table = table.select(schema.names).cast(schema).replace_schema_metadata(None)
    written = {**facts, "schema": SCHEMA_VERSION, "name": name}
    metadata = {_PREFIX + key.encode(): value.encode() for key, value in written.items()}
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        # Hugging Face datasets cannot read a row group without rows.
        if table.num_rows:
            writer.write_table(table)
        # As the table's own metadata they would be in the file twice.
        writer.add_key_value_metadata(metadata | {seal.KEY: seal.EMPTY})
    storage.put(name, seal.seal(sink))


def read(storage: Storage, names: Sequence[str], schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read several objects of one schema as one table.

    Args:
        storage: where from.
        names: objects; none gives an empty table.
        schema: what they hold.
        columns: the columns wanted; all by default.
    """
    import pyarrow.dataset as ds

    wanted = schema if columns is None else pa.schema([schema.field(column) for column in columns])
    if not names:
        return wanted.empty_table()
    paths = [storage.path(name) for name in names]

    def rows() -> pa.Table:
        with damage_told(storage):
            dataset = ds.dataset(paths, schema=schema, format="parquet", filesystem=storage.arrow)
            return dataset.to_table(columns=wanted.names).cast(wanted)

    return storage.carefully(names[0], rows)


@contextmanager
def damage_told(storage: Storage, name: str = "") -> Iterator[None]:
    """Say what to do about a file that Arrow cannot read.

    Args:
        storage: the store.
        name: of the file, where it is known.

    Raises:
        StoreError: `STORE_DAMAGED`.
    """
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and not any(word in said for word in ("ZSTD", "thrift", "Corrupt")):
            # The store is out of reach, not damaged.
            raise
        what = storage.path(name) if name else f"a file of {storage.shown}"
        raise StoreError(
            "STORE_DAMAGED",
            f"{what} cannot be read ({said}); `serpipe verify {storage.shown}` finds what is "
            "damaged, and the next `serpipe label` without --shard makes it again",
        ) from None


def facts(storage: Storage, name: str) -> dict[str, str]:
    """What a file's footer says under `serpipe.`, without reading its rows.

    Raises:
        StoreError: `STORE_DAMAGED`, the object is no whole Parquet file.
    """

    def footer() -> pq.FileMetaData:
        with storage.fs.open(storage.path(name), "rb") as file, damage_told(storage, name):
            return pq.read_metadata(file)

    return facts_of(storage.carefully(name, footer))


def facts_of(metadata: pq.FileMetaData) -> dict[str, str]:
    """What a footer says under `serpipe.`."""
    return {
        key.removeprefix(_PREFIX).decode(): value.decode()
        for key, value in (metadata.metadata or {}).items()
        if key.startswith(_PREFIX)
    }


def pack_table(table: pa.Table) -> str:
    """A small table as text for a footer: Arrow IPC, zstd, base64 (footers must be UTF-8 for other readers).

    Examples:
        >>> unpack_table(pack_table(pa.table({"unit": [1, 2]}))).to_pydict()
        {'unit': [1, 2]}
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def unpack_table(text: str) -> pa.Table:
    """The table that `pack_table` made text of."""
    with pa.ipc.open_stream(base64.b64decode(text)) as reader:
        return reader.read_all()
