"""The Arrow tables that manifests become: rows as they were written, and recordings as serpipe knows them."""

from __future__ import annotations

import pyarrow as pa

from serpipe.ids import ID_BYTES

META = pa.map_(pa.string(), pa.string())
"""The owner's columns: name to text, sorted by name, without empty values."""

ROWS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # line (text) or row (Parquet, folders), from 1
        pa.field("source", pa.string(), nullable=False),  # the part the row stands in
        pa.field("uri", pa.string()),  # canonical, without query; null only beside an error
        pa.field("query", pa.string()),  # needed to open a signed uri, never stored
        pa.field("start_s", pa.float64()),  # null: the row is a whole recording
        pa.field("end_s", pa.float64()),  # null beside a start: to the end of the recording
        pa.field("channel", pa.int32()),  # from 0; null: the mix of all
        pa.field("duration_s", pa.float64()),  # what the row claims for the whole recording
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("meta", META, nullable=False),
        pa.field("error", pa.string()),  # why the row cannot be used; null: it can
        pa.field("error_code", pa.string()),
    ]
)
"""One row of a manifest, usable or not."""

GIVEN = pa.struct(
    [
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64()),
        pa.field("channel", pa.int32()),
        pa.field("meta", META, nullable=False),
    ]
)
"""A segment that the manifest prescribes."""

RECORDINGS = pa.schema(
    [
        pa.field("recording_id", pa.binary(ID_BYTES), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("query", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("claimed_s", pa.float64()),
        pa.field("meta", META, nullable=False),
        pa.field("given", pa.list_(GIVEN), nullable=False),
    ]
)
"""One recording in one version of its content, sorted by id; `given` is sorted by start, end, channel."""
