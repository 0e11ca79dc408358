"""The tables of a store, column by column. This module is their document.

Plain Parquet, zstd, explicit types. Rows of every table name the recording; `segment_id` joins segments, predictions
and embeddings. Ids are 16 bytes. Times are seconds from the recording's start, exact multiples of 1/16000.
"""

from __future__ import annotations

import pyarrow as pa

from serpipe.models.results import EMOTION_SCORES, vector
from serpipe.pack import ID, META, TIMESTAMP

SCHEMA_VERSION = "2"
"""Written to every footer; raised when a column changes its meaning."""

RECORDINGS = pa.schema(
    [
        pa.field("recording_id", ID, nullable=False),  # of the uri in this version of its content
        pa.field("uri", pa.string(), nullable=False),  # without query and credentials
        pa.field("size", pa.int64()),  # bytes
        pa.field("etag", pa.string()),  # as the store gave it, without quotes
        pa.field("mtime_ns", pa.int64()),  # local files only
        pa.field("duration_s", pa.float64(), nullable=False),  # what truly decoded
        pa.field("header_s", pa.float64()),  # what the file's header claims
        pa.field("claimed_s", pa.float64()),  # what the manifest claims
        pa.field("container", pa.string(), nullable=False),  # as the codec library calls it
        pa.field("codec", pa.string(), nullable=False),  # as the codec library calls it
        pa.field("sample_rate", pa.int32(), nullable=False),  # Hz, of the file
        pa.field("channels", pa.int32(), nullable=False),  # of the file
        pa.field("verdict", pa.string(), nullable=False),  # whether it holds what was claimed, as below
        pa.field("undecoded_s", pa.float64(), nullable=False),  # seconds no codec could read, kept as silence
        pa.field("codec_messages", pa.int32(), nullable=False),  # lines the codec wrote while decoding
        pa.field("first_seen", TIMESTAMP, nullable=False),  # when it was first decoded
        pa.field("meta", META),  # the owner's columns
        pa.field("run_id", pa.string(), nullable=False),  # that wrote the row; its record is runs/RUN/run.json
    ]
)
"""One row per recording version that decoded to its end."""

SEGMENTS = pa.schema(
    [
        pa.field("segment_id", ID, nullable=False),  # of recording, channel, times and audio fingerprint
        pa.field("recording_id", ID, nullable=False),  # its recording
        pa.field("unit", pa.int32(), nullable=False),  # the ledger's, which it is settled with
        pa.field("channel", pa.int32(), nullable=False),  # from 0; 0 where channels were mixed
        pa.field("start_s", pa.float64(), nullable=False),  # first sample
        pa.field("end_s", pa.float64(), nullable=False),  # behind the last sample
        pa.field("short", pa.bool_(), nullable=False),  # speech shorter than 2.75 s between pauses
        pa.field("rms", pa.float32(), nullable=False),  # root of the mean square; full scale 1.0
        pa.field("peak", pa.float32(), nullable=False),  # largest absolute sample; full scale 1.0
        pa.field("clipping", pa.float32(), nullable=False),  # share of samples at full scale
        pa.field("speech", pa.float32()),  # share of frames with speech; null where detection was off
        pa.field("snr_db", pa.float32()),  # an estimate; null where there is nothing to compare
        pa.field("meta", META),  # the owner's columns of a given segment
        pa.field("run_id", pa.string(), nullable=False),  # that wrote the row; its record is runs/RUN/run.json
    ]
)
"""One row per segment and audio fingerprint (partition `audio`)."""

PREDICTIONS = pa.schema(
    [
        pa.field("segment_id", ID, nullable=False),  # its segment
        pa.field("recording_id", ID, nullable=False),  # its recording
        pa.field("unit", pa.int32(), nullable=False),  # the ledger's, which it is settled with
        pa.field("channel", pa.int32(), nullable=False),  # of the segment
        pa.field("start_s", pa.float64(), nullable=False),  # of the segment
        pa.field("end_s", pa.float64(), nullable=False),  # of the segment
        pa.field("label", pa.string()),  # the model's own word; null for a model without a head
        pa.field("confidence", pa.float32()),  # score of that label
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # in the model's id order
        pa.field("scores", pa.list_(pa.float32()), nullable=False),  # of each label
        pa.field("logits", pa.list_(pa.float32()), nullable=False),  # of each label, as the network gave them
        pa.field("emotion", pa.string()),  # canonical; null outside the model's support
        pa.field("emotion_scores", EMOTION_SCORES),  # canonical; null, never zero, outside the model's support
        pa.field("mapped_mass", pa.float32()),  # share of the scores that has a canonical counterpart
        pa.field("arousal", pa.float32()),  # 0 to 1; null for a categorical model
        pa.field("valence", pa.float32()),  # 0 to 1; null for a categorical model
        pa.field("dominance", pa.float32()),  # 0 to 1; null for a categorical model
        pa.field("run_id", pa.string(), nullable=False),  # that wrote the row; its record is runs/RUN/run.json
    ]
)
"""One row per segment and model fingerprint (partitions `model`, `fp`). A file is its model's commit."""

QUARANTINE = pa.schema(
    [
        pa.field("recording_id", ID, nullable=False),  # its recording; of a row of a manifest a hash of its uri
        pa.field("segment_id", ID),  # null where the whole recording, or the rest of it, failed
        pa.field("unit", pa.int32()),  # the ledger's; null where it is not known
        pa.field("uri", pa.string()),  # without query and credentials
        pa.field("model", pa.string()),  # null where it failed before any model
        pa.field("fp", pa.string()),  # of that model
        pa.field("stage", pa.string(), nullable=False),  # manifest, read, decode, segment, model, run
        pa.field("code", pa.string(), nullable=False),  # as in the reference of errors
        pa.field("message", pa.string(), nullable=False),  # what, where, why
        pa.field("start_s", pa.float64()),  # of a segment
        pa.field("end_s", pa.float64()),  # of a segment; null for the recording's end
        pa.field("transient", pa.bool_(), nullable=False),  # tried again by the next run, unasked
        pa.field("attempt", pa.int32(), nullable=False),  # tries of the recording so far, this one included
        pa.field("run_id", pa.string(), nullable=False),  # that wrote the row; its record is runs/RUN/run.json
        pa.field("time", TIMESTAMP, nullable=False),  # when it failed
    ]
)
"""The log of what failed, a row an event."""

LEDGER = pa.schema(
    [
        pa.field("recording_id", ID, nullable=False),  # its recording
        pa.field("unit", pa.int32(), nullable=False),  # stretch of five minutes x channels + channel
        pa.field("final", pa.bool_(), nullable=False),  # whether it is the recording's last unit
        pa.field("model", pa.string(), nullable=False),  # for which it is settled
        pa.field("fp", pa.string(), nullable=False),  # of that model
        pa.field("audio", pa.string(), nullable=False),  # audio fingerprint
        pa.field("status", pa.string(), nullable=False),  # labelled, empty, failed
        pa.field("segments", pa.int32(), nullable=False),  # in the unit
        pa.field("rows", pa.int32(), nullable=False),  # predictions written
        pa.field("commit", pa.string(), nullable=False),  # stem of the files that hold the unit
    ]
)
"""One row per unit and model fingerprint that is settled; an index over the footers of predictions files."""


def embeddings(width: int) -> pa.Schema:
    """Utterance embeddings of one model: half precision, fixed width.

    Args:
        width: values per embedding.

    Examples:
        >>> str(embeddings(256).field("embedding").type)
        'fixed_size_list<element: halffloat not null>[256]'
    """
    return pa.schema(
        [
            pa.field("segment_id", ID, nullable=False),
            pa.field("recording_id", ID, nullable=False),
            pa.field("embedding", vector(width), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    )


def frames(width: int) -> pa.Schema:
    """Frame embeddings of one model: half precision, one list of fixed-width vectors a segment."""
    return pa.schema(
        [
            pa.field("segment_id", ID, nullable=False),
            pa.field("recording_id", ID, nullable=False),
            pa.field("frames", pa.list_(pa.field("element", vector(width), nullable=False)), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    )
