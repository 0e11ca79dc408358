"""Parquet in and out of a storage: whole files, explicit schemas, facts in the footer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

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
        facts: goes into the footer under `serpipe.`, with the schema's version.
    """
    sink = io.BytesIO()
    table = table.select(schema.names).cast(schema)
    metadata = {_PREFIX + key.encode(): value.encode() for key, value in facts.items()}
    metadata[_PREFIX + b"schema"] = SCHEMA_VERSION.encode()
    table = table.replace_schema_metadata(metadata)
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        # Hugging Face datasets cannot read a row group without rows.
        if table.num_rows:
            writer.write_table(table)
    storage.put(name, sink.getvalue())


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
    dataset = ds.dataset([storage.path(name) for name in names], schema=schema, format="parquet", filesystem=storage.fs)
    return dataset.to_table(columns=wanted.names).cast(wanted)


def facts(storage: Storage, name: str) -> dict[str, str]:
    """What a file's footer says under `serpipe.`, without reading its rows.

    Raises:
        pyarrow.ArrowInvalid: the object is no whole Parquet file.
    """
    with storage.fs.open(storage.path(name), "rb") as file:
        metadata = pq.read_metadata(file).metadata or {}
    return {
        key.removeprefix(_PREFIX).decode(): value.decode() for key, value in metadata.items() if key.startswith(_PREFIX)
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
