"""Stores without audio: made-up segments and predictions, committed as `serpipe label` commits real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.ids import recording_id
from serpipe.labels import TAXONOMIES, canonical, emotion_of
from serpipe.models.results import EMOTION_SCORES
from serpipe.pack import ID, META
from serpipe.store import commit, schemas, version
from serpipe.store.storage import Storage

AUDIO = "00000000000000aa"
"""Audio fingerprint of every made-up store."""

_SECONDS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpModel:
    """A model whose predictions are made up.

    Attributes:
        name: its name in the store.
        taxonomy: key of `serpipe.labels.TAXONOMIES`; `dimensions` gives arousal, dominance and valence.
        skill: how much its logits know of the truth; 0 is noise.
        heat: what its logits are divided by; below 1 it is overconfident.
        fp: model fingerprint.
    """

    name: str
    taxonomy: str = "ekman"
    skill: float = 3.0
    heat: float = 1.0
    fp: str = "00000000000000ff"


@dataclass(frozen=True, slots=True)
class MadeUp:
    """What a made-up store holds that no table says.

    Attributes:
        segment_ids: 16 bytes each.
        uris: of their recordings.
        starts: seconds.
        speakers: of their recordings.
        truth: canonical emotion of each.
    """

    segment_ids: list[bytes]
    uris: list[str]
    starts: list[float]
    speakers: list[str]
    truth: list[str]


def write_labelled_store(
    root: str,
    models: Sequence[MadeUpModel],
    *,
    recordings: int = 20,
    segments: int = 50,
    feeds: int = 4,
    emotions: Sequence[str] = ("anger", "happiness", "sadness", "neutral"),
    per_commit: int = 4,
    seed: int = 0,
    keep: bool = True,
) -> MadeUp:
    """Write a store of made-up predictions.

    Every second recording belongs to the next of `feeds` feeds, each recording has a speaker of its own, and the
    models' runs bundle the recordings differently.

    Args:
        root: an empty directory.
        models: whose predictions it holds, each from a run of its own.
        recordings: how many.
        segments: of each recording, 4 s long.
        feeds: feeds they come from.
        emotions: what is truly felt; the last one as often as all others together.
        per_commit: recordings of a commit of the first model.
        seed: of the numbers.
        keep: whether to return the truth; else everything returned is empty.

    Examples:
        >>> import serpipe, tempfile
        >>> root = tempfile.mkdtemp()
        >>> made = write_labelled_store(root, [MadeUpModel(name="a")], recordings=2, segments=3)
        >>> serpipe.open(root).predictions("a").num_rows, len(made.truth)
        (6, 6)
    """
    storage = Storage(root)
    version.check(storage)
    made = MadeUp([], [], [], [], [])
    for place, model in enumerate(models):
        size = per_commit + place
        for number, first in enumerate(range(0, recordings, size)):
            batch = range(first, min(first + size, recordings))
            name = f"20300101T0000{place:02d}000000Z-0000000{place}-{number:016x}"
            table, truth = _segments(batch, segments, feeds, emotions, seed)
            ready = _commit(name, table, truth, batch, model, seed, first=place == 0, segments=segments, feeds=feeds)
            commit.write(storage, ready)
            if keep and place == 0:
                made.segment_ids.extend(table["segment_id"].to_pylist())
                made.uris.extend(_uri(recording, feeds) for recording in batch for _ in range(segments))
                made.speakers.extend(f"speaker {recording}" for recording in batch for _ in range(segments))
                made.starts.extend(table["start_s"].to_pylist())
                made.truth.extend(emotions[place] for place in truth)
    return made


def _uri(recording: int, feeds: int) -> str:
    return f"/archive/feed-{recording // 2 % feeds}/{recording:08d}.wav"


def _segments(
    batch: range, segments: int, feeds: int, emotions: Sequence[str], seed: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Segments of a few recordings, and the truth; the same however recordings are bundled."""
    parts, truths = [], []
    for recording in batch:
        random = np.random.default_rng([seed, recording])
        starts = np.arange(segments) * _SECONDS
        owner = recording_id(_uri(recording, feeds), "")
        weights = np.array([1.0] * (len(emotions) - 1) + [len(emotions) - 1.0])
        truths.append(random.choice(len(emotions), segments, p=weights / weights.sum()))
        parts.append(
            pa.table(
                {
                    "segment_id": pa.array(np.frombuffer(random.bytes(16 * segments), "V16").tolist(), ID),
                    "recording_id": pa.array([owner] * segments, ID),
                    "channel": pa.array(np.zeros(segments, np.int32)),
                    "start_s": starts,
                    "end_s": starts + _SECONDS,
                    "unit": pa.array(np.zeros(segments, np.int32)),
                    "short": pa.array(np.zeros(segments, bool)),
                    "rms": random.uniform(0.01, 0.2, segments).astype(np.float32),
                    "peak": random.uniform(0.3, 0.99, segments).astype(np.float32),
                    "clipping": np.where(random.random(segments) < 0.03, 0.05, 0.0).astype(np.float32),
                    "speech": random.uniform(0.45, 1.0, segments).astype(np.float32),
                    "snr_db": random.uniform(5.0, 45.0, segments).astype(np.float32),
                    "meta": pa.nulls(segments, META),
                    "run_id": pa.array(["R"] * segments),
                },
                schema=schemas.SEGMENTS,
            )
        )
    return pa.concat_tables(parts), np.concatenate(truths)


def _commit(
    name: str,
    table: pa.Table,
    truth: NDArray[np.int64],
    batch: range,
    model: MadeUpModel,
    seed: int,
    *,
    first: bool,
    segments: int,
    feeds: int,
) -> commit.Commit:
    count = len(batch)
    owners = table["recording_id"].combine_chunks().unique()
    settled = {
        "recording_id": owners,
        "unit": pa.array(np.zeros(count, np.int32)),
        "final": pa.array(np.ones(count, bool)),
        "model": pa.array([model.name] * count),
        "fp": pa.array([model.fp] * count),
        "audio": pa.array([AUDIO] * count),
        "status": pa.array(["labelled"] * count),
        "segments": pa.array([segments] * count, pa.int32()),
        "rows": pa.array([segments] * count, pa.int32()),
        "commit": pa.array([name] * count),
    }
    part = commit.ModelRows(
        model=model.name,
        fp=model.fp,
        predictions=_predictions(table, truth, batch, model, seed),
        embeddings=None,
        frames=None,
        width=1,
        passport="",
        quarantine=schemas.QUARANTINE.empty_table(),
        settled=pa.table(settled, schema=schemas.LEDGER),
    )
    return commit.Commit(
        name=name,
        audio=AUDIO,
        recordings=_recordings(batch, owners, segments, feeds) if first else schemas.RECORDINGS.empty_table(),
        segments=table if first else schemas.SEGMENTS.empty_table(),
        quarantine=schemas.QUARANTINE.empty_table(),
        models=[part],
    )


def _recordings(batch: range, owners: pa.Array, segments: int, feeds: int) -> pa.Table:
    count = len(batch)
    columns: Mapping[str, object] = {
        "recording_id": owners,
        "uri": [_uri(recording, feeds) for recording in batch],
        "duration_s": [segments * _SECONDS] * count,
        "container": ["wav"] * count,
        "codec": ["pcm_s16le"] * count,
        "sample_rate": [16_000] * count,
        "channels": [1] * count,
        "verdict": ["sound"] * count,
        "undecoded_s": [0.0] * count,
        "codec_messages": [0] * count,
        "first_seen": [datetime(2030, 1, 1, tzinfo=UTC)] * count,
        "meta": [[("speaker", f"speaker {recording}")] for recording in batch],
        "run_id": ["R"] * count,
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in schemas.RECORDINGS
    ]
    return pa.Table.from_arrays(arrays, schema=schemas.RECORDINGS)


_DIMENSIONS = {
    "anger": (0.8, 0.6, 0.2),
    "happiness": (0.7, 0.6, 0.8),
    "sadness": (0.2, 0.3, 0.2),
    "neutral": (0.4, 0.5, 0.5),
}


def _predictions(table: pa.Table, truth: NDArray[np.int64], batch: range, model: MadeUpModel, seed: int) -> pa.Table:
    emotions = ("anger", "happiness", "sadness", "neutral")
    count, each = table.num_rows, table.num_rows // len(batch)
    labels = list(TAXONOMIES.get(model.taxonomy, {"arousal": None, "dominance": None, "valence": None}))
    noise = np.concatenate(
        [
            np.random.default_rng([seed, recording, *model.name.encode()]).normal(size=(each, len(labels)))
            for recording in batch
        ]
    )
    columns: dict[str, object] = {
        name: table[name] for name in ("segment_id", "recording_id", "channel", "start_s", "end_s")
    }
    if model.taxonomy in TAXONOMIES:
        said = [emotion_of(label, model.taxonomy) for label in labels]
        column_of = np.array([said.index(emotion) for emotion in emotions])
        noise[np.arange(count), column_of[truth]] += model.skill
        logits = (noise / model.heat).astype(np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        known, mass = canonical(scores, labels, model.taxonomy)
        columns |= {
            "label": pa.array(labels).take(pa.array(best)),
            "confidence": scores[np.arange(count), best],
            "emotion": pa.array(said, pa.string()).take(pa.array(best)),
            "emotion_scores": pa.StructArray.from_arrays(
                [pa.array(column, pa.float32(), from_pandas=True) for column in known.T], fields=list(EMOTION_SCORES)
            ),
            "mapped_mass": mass,
        }
    else:
        centres = np.array([_DIMENSIONS[emotion] for emotion in emotions])[truth]
        logits = scores = np.clip(centres + 0.1 * noise, 0, 1).astype(np.float32)
        columns |= dict(zip(("arousal", "dominance", "valence"), scores.T, strict=True))
    ends = pa.array(np.arange(count + 1) * len(labels), pa.int32())
    columns |= {
        "labels": pa.array(labels).take(pa.array(np.tile(np.arange(len(labels)), count))),
        "scores": scores.ravel(),
        "logits": logits.ravel(),
    }
    for name in ("labels", "scores", "logits"):
        columns[name] = pa.ListArray.from_arrays(ends, pa.array(columns[name]))
    columns |= {"unit": np.zeros(count, np.int32), "run_id": pa.array(["R"] * count)}
    arrays = [
        _typed(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in schemas.PREDICTIONS
    ]
    return pa.Table.from_arrays(arrays, schema=schemas.PREDICTIONS)


def _typed(values: object, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values.cast(kind) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
