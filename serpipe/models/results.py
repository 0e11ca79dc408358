"""From a model's numbers to the columns of a prediction: its own words first, the canonical ones beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.labels import CANONICAL, canonical, emotion_of
from serpipe.models.contract import ModelSpec, Outputs

EMOTION_SCORES = pa.struct([pa.field(emotion, pa.float32()) for emotion in CANONICAL])
"""Canonical scores; null where the model cannot name the emotion."""

DIMENSIONS = ("arousal", "valence", "dominance")


def vector(width: int) -> pa.DataType:
    """An embedding: half precision, fixed width."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), width)


def result_type(width: int) -> pa.StructType:
    """What a model appends to a pack for each segment it labelled; `segment` is the place in the pack's segments."""
    return pa.struct(
        [
            pa.field("segment", pa.int32()),
            pa.field("label", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
            pa.field("logits", pa.list_(pa.float32())),
            pa.field("emotion", pa.string()),
            pa.field("emotion_scores", EMOTION_SCORES),
            pa.field("mapped_mass", pa.float32()),
            *(pa.field(name, pa.float32()) for name in DIMENSIONS),
            pa.field("embedding", vector(width)),
            pa.field("frames", pa.list_(pa.field("element", vector(width), nullable=False))),
        ]
    )


def results(spec: ModelSpec, segments: Sequence[int], outputs: Outputs, *, embeddings: bool) -> pa.StructArray:
    """Rows of `result_type` for the segments a model has labelled.

    Args:
        spec: the model.
        segments: place of each in the pack.
        outputs: what the model gave, in the same order.
        embeddings: whether utterance embeddings are kept.
    """
    count, kind = len(segments), result_type(spec.embedding_width)
    columns: dict[str, pa.Array] = {
        "segment": pa.array(segments, pa.int32()),
        "labels": pa.array([list(spec.labels)] * count, pa.list_(pa.string())),
        "scores": _lists(outputs.scores),
        "logits": _lists(outputs.logits),
    }
    if spec.kind == "categorical":
        columns |= _categorical(spec, outputs.scores)
    elif spec.kind == "dimensional":
        columns |= {label: pa.array(outputs.scores[:, place], pa.float32()) for place, label in enumerate(spec.labels)}
    if embeddings:
        columns["embedding"] = vectors(outputs.embeddings)
    if outputs.frames is not None:
        ends = np.cumsum([0, *(len(frames) for frames in outputs.frames)])
        values = np.concatenate([*outputs.frames, np.zeros((0, spec.embedding_width), np.float32)])
        columns["frames"] = pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), vectors(values), type=kind.field("frames").type
        )
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _categorical(spec: ModelSpec, scores: NDArray[np.float32]) -> dict[str, pa.Array]:
    best = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
    table, mass = canonical(scores, spec.labels, spec.taxonomy)
    emotions = pa.array([emotion_of(label, spec.taxonomy) for label in spec.labels], pa.string())
    known = [pa.array(column, pa.float32(), from_pandas=True) for column in table.T]
    return {
        "label": pa.array(spec.labels, pa.string()).take(pa.array(best)),
        "confidence": pa.array(scores[np.arange(len(scores)), best], pa.float32()),
        "emotion": emotions.take(pa.array(best)),
        "emotion_scores": pa.StructArray.from_arrays(known, fields=list(EMOTION_SCORES)),
        "mapped_mass": pa.array(mass, pa.float32()),
    }


def vectors(values: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Rows as half-precision vectors; what overflows half precision is kept at its ends."""
    return pa.FixedSizeListArray.from_arrays(pa.array(half(values).ravel()), type=vector(values.shape[1]))


def half(values: NDArray[np.float32] | NDArray[np.float16]) -> NDArray[np.float16]:
    """Values as a store keeps them."""
    if values.dtype == np.float16:
        return np.asarray(values)
    return np.clip(values, -65_504, 65_504).astype(np.float16)


def _lists(values: NDArray[np.float32]) -> pa.ListArray:
    ends = pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(values.ravel(), pa.float32()))
