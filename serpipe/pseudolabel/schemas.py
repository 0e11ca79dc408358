"""The tables of a generation, column by column, and where they lie. This module is their document."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from serpipe.pack import ID

Kind = Literal["probe", "finetuned"]
"""What a generation can train: a head on stored embeddings, or a whole model."""

VERSION = "1"
"""Of a generation's rows and record; raised when a column changes its meaning."""

LOCAL_STAGES = (
    "teachers",  # every teacher labelled it
    "gold",  # it is no gold clip, nor the same audio as one, nor by a speaker whom gold judges by
    "length",
    "snr",
    "clipping",
    "speech",
    "abstain",  # the teachers' scores lie within the generation's classes
    "agree",  # independent lineages say the same
    "margin",
    "dimensions",  # arousal and valence fit the label
    "text",  # the owner's text emotion does not contradict it
)
"""Stages that look at one segment, in the order that decides the reason."""

RECORDING_STAGES = (
    "overlap",  # a surer segment of its recording and channel shares audio with it
)
"""Stages that weigh a segment against others of its recording, among those that passed so far."""

GLOBAL_STAGES = (
    "threshold",  # confidence, class by class
    "duplicate",  # the same audio is kept once
    "speaker",  # cap per recording, speaker and class
    "feed",  # cap per feed and class
    "balance",  # class by class; and what the caps are shares of is then less
    "budget",
)
"""Stages that weigh a segment against all others."""

STAGES = LOCAL_STAGES + RECORDING_STAGES + GLOBAL_STAGES

PSEUDO_LABELS = pa.schema(
    [
        pa.field("segment_id", ID, nullable=False),  # its segment
        pa.field("recording_id", ID, nullable=False),  # its recording
        pa.field("channel", pa.int32(), nullable=False),  # of the segment
        pa.field("start_s", pa.float64(), nullable=False),  # of the segment
        pa.field("end_s", pa.float64(), nullable=False),  # of the segment
        pa.field("duration_s", pa.float32(), nullable=False),  # of the segment
        pa.field("uri", pa.string()),  # null where the recording did not decode to its end
        pa.field("feed", pa.string()),  # the owner's word, else the folder of the uri
        pa.field("speaker", pa.string()),  # the owner's word; null where there is none
        pa.field("label", pa.string()),  # canonical; null where a teacher is missing
        pa.field("soft_label", pa.list_(pa.float32())),  # consensus, in the order of the record's `classes`
        pa.field("weight", pa.float32(), nullable=False),  # 0 where not kept
        pa.field("kept", pa.bool_(), nullable=False),  # whether it may train a student
        pa.field("reason", pa.string()),  # the first stage that dropped it; null when kept
        # Null where a stage was off or blind, and from RECORDING_STAGES on after a drop.
        pa.field(
            "verdicts", pa.struct([pa.field(stage, pa.bool_()) for stage in STAGES])
        ),  # of each stage: passed or not
        pa.field("split", pa.string()),  # train or dev; null where not kept
        pa.field("confidence", pa.float32()),  # consensus probability of the label
        pa.field("margin", pa.float32()),  # between the two likeliest classes
        pa.field("entropy", pa.float32()),  # of the consensus, as a share of log(classes)
        pa.field("jsd", pa.float32()),  # nats between lineages; null with one
        pa.field("votes", pa.int32()),  # lineages whose likeliest class is the label
        pa.field("abstain", pa.float32()),  # scores outside the classes, mean of the lineages, before calibration
        pa.field("arousal", pa.float32()),  # 0 to 1, of the dimensional model
        pa.field("valence", pa.float32()),  # 0 to 1, of the dimensional model
        pa.field("dominance", pa.float32()),  # 0 to 1, of the dimensional model
        pa.field("audio_key", pa.uint64(), nullable=False),  # equal for equal audio: hash of length, level and SNR
    ]
)
"""One row per segment considered (partition `generation`), kept or not, sorted by `segment_id` within a file."""


def folder(number: int) -> str:
    """Where a generation lies.

    Examples:
        >>> folder(2)
        'pseudo_labels/generation=2/'
    """
    return f"pseudo_labels/generation={number}/"


def part(number: int, place: int) -> str:
    """One file of a generation's rows."""
    return f"{folder(number)}part-{place:05d}.parquet"


def record(number: int) -> str:
    """What a generation was made of and what came out; written last, so that without it there is no generation."""
    return f"{folder(number)}generation.json"


def promotion(number: int, kind: Kind = "probe") -> str:
    """What the gates said of the generation's student of a kind.

    Examples:
        >>> promotion(2, "finetuned")
        'pseudo_labels/generation=2/promotion-finetuned.json'
    """
    return f"{folder(number)}promotion{'' if kind == 'probe' else f'-{kind}'}.json"
