"""Packs: units that travel together, one row of Arrow.

Rows of equal size are what a scheduler can budget; that is why a row is a pack and not a segment. Everything a
segment needs on its way to the store is in the row, the audio once, as float32 in one binary value.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.ids import ID_BYTES

ID = pa.binary(ID_BYTES)
META = pa.map_(pa.string(), pa.string())
TIMESTAMP = pa.timestamp("us", tz="UTC")

MOST_BYTES = 256 << 20
"""Audio of one pack. A scheduler cannot split a row."""

SEGMENT = pa.struct(
    [
        pa.field("segment_id", ID),
        pa.field("recording_id", ID),
        pa.field("unit", pa.int32()),  # index into the pack's units
        pa.field("channel", pa.int32()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("short", pa.bool_()),
        pa.field("rms", pa.float32()),
        pa.field("peak", pa.float32()),
        pa.field("clipping", pa.float32()),
        pa.field("speech", pa.float32()),
        pa.field("snr_db", pa.float32()),
        pa.field("meta", META),
        pa.field("offset", pa.int64()),  # first sample within the pack's audio
        pa.field("length", pa.int64()),  # samples
    ]
)

UNIT = pa.struct(
    [
        pa.field("recording_id", ID),
        pa.field("uri", pa.string()),
        pa.field("unit", pa.int32()),
        pa.field("final", pa.bool_()),
        pa.field("status", pa.string()),  # labelled, empty, failed, or open: failed for now, not settled
        pa.field("new", pa.bool_()),  # its segments are not in the store yet
        pa.field("todo", pa.list_(pa.string())),  # models that have not settled it
        pa.field("attempt", pa.int32()),
    ]
)

RECORDING = pa.struct(
    [
        pa.field("recording_id", ID),
        pa.field("uri", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("duration_s", pa.float64()),
        pa.field("header_s", pa.float64()),
        pa.field("claimed_s", pa.float64()),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("verdict", pa.string()),
        pa.field("undecoded_s", pa.float64()),
        pa.field("codec_messages", pa.int32()),
        pa.field("first_seen", TIMESTAMP),
        pa.field("meta", META),
    ]
)

FAILURE = pa.struct(
    [
        pa.field("recording_id", ID),
        pa.field("segment_id", ID),
        pa.field("unit", pa.int32()),  # its number, where one is meant
        pa.field("uri", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("transient", pa.bool_()),
        pa.field("attempt", pa.int32()),
    ]
)

PACK = pa.schema(
    [
        pa.field("pack_id", pa.string()),
        pa.field("audio", pa.large_binary()),
        pa.field("units", pa.list_(UNIT)),
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("recordings", pa.list_(RECORDING)),
        pa.field("failures", pa.list_(FAILURE)),
    ]
)
"""One pack, one row."""


def binary(samples: NDArray[np.float32]) -> pa.LargeBinaryArray:
    """Samples as one binary value, without a copy."""
    offsets = pa.py_buffer(np.array([0, samples.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(samples)])


def samples_of(pack: pa.Table) -> NDArray[np.float32]:
    """The audio of a pack of one row, as a read-only view."""
    (column,) = (chunk for chunk in pack["audio"].chunks if len(chunk))
    _, ends, values = column.buffers()
    start, end = np.frombuffer(ends, np.int64)[column.offset : column.offset + 2]
    # A scalar's own buffer would be a copy.
    samples = np.frombuffer(values, np.float32, (end - start) // 4, start)
    samples.flags.writeable = False
    return samples


def rows_of(pack: pa.Table, column: str) -> pa.Table:
    """One of a pack's lists as a table, with the columns of its struct."""
    values = pack[column].combine_chunks().flatten()
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return pa.Table.from_struct_array(values)
