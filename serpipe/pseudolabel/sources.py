"""Where the rows of a generation come from: which files hold which recordings, and their join.

A store's files are named in its ledger, so recordings can be dealt into buckets that fit in memory, with the files
that hold each, before any table is read. Files hold the rows of a few recordings each, so a bucket reads little that
is not its own, and no row is ever shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.models.results import DIMENSIONS
from serpipe.pseudolabel.arrays import by_id, places, words
from serpipe.store import current, layout, schemas
from serpipe.store.reading import Store
from serpipe.store.storage import Storage

BUCKET_ROWS = 200_000
"""Segments of a bucket: with three teachers some 150 MB while it is worked on."""

_SEGMENT_COLUMNS = [name for name in schemas.SEGMENTS.names if name not in ("run_id", "short", "unit")]


@dataclass(frozen=True, slots=True)
class Stored:
    """One model's predictions in the store.

    Attributes:
        model: name.
        fp: model fingerprint.
        emotions: canonical emotions it can name; none for a dimensional model.
        dimensional: whether it gives arousal or valence.
    """

    model: str
    fp: str
    emotions: tuple[str, ...]
    dimensional: bool


@dataclass(frozen=True, slots=True)
class Bucket:
    """Recordings that are worked on together.

    Attributes:
        number: from 0.
        recordings: their ids.
        segments: files of `segments` that may hold them.
        recording_files: files of `recordings`.
        predictions: for each model its files.
    """

    number: int
    recordings: tuple[bytes, ...]
    segments: tuple[str, ...]
    recording_files: tuple[str, ...]
    predictions: tuple[tuple[str, ...], ...]


def current_entries(store: Store) -> pa.Table:
    """The ledger without what newer labels have taken the place of."""
    return current.without(store.entries, store.stale.labels)


def labels_held(store: Store, audio: str, models: Sequence[tuple[str, str]]) -> int:
    """How many labels a store holds of some models, given as name and fingerprint, for one cut of the audio."""
    entries = current_entries(store)
    entries = entries.filter(pc.equal(entries["audio"], audio))
    by_model = entries.group_by(["model", "fp"]).aggregate([("rows", "sum")]).to_pylist()
    return sum(row["rows_sum"] for row in by_model if (row["model"], row["fp"]) in models)


def stored_models(store: Store, audio: str | None = None) -> list[Stored]:
    """What every model in a store can say, for one cut of the audio; looked up in one file of each."""
    entries = current_entries(store)
    entries = entries.filter(pc.greater(entries["rows"], 0))
    if audio is not None:
        entries = entries.filter(pc.equal(entries["audio"], audio))
    firsts = entries.group_by(["model", "fp"]).aggregate([("commit", "min")])
    found = []
    for row in sorted(firsts.to_pylist(), key=lambda row: (row["model"], row["fp"])):
        name = layout.predictions(row["model"], row["fp"], row["commit_min"])
        columns = ["emotion_scores", *DIMENSIONS]
        with store.storage.fs.open(store.storage.path(name), "rb") as file:
            head = pa.Table.from_batches([next(pq.ParquetFile(file).iter_batches(batch_size=1, columns=columns))])
        (said,) = head.to_pylist()
        emotions = [name for name, value in (said["emotion_scores"] or {}).items() if value is not None]
        dimensional = any(said[name] is not None for name in DIMENSIONS)
        found.append(Stored(row["model"], row["fp"], tuple(emotions), dimensional))
    return found


def audio_of(store: Store, wanted: str | None) -> str:
    """The audio fingerprint of what a generation is made of, or a student trained or judged by.

    Raises:
        UsageError: `AUDIO_UNKNOWN`, or `AUDIO_AMBIGUOUS` where recordings were cut several ways and none was asked for.
    """
    there = sorted(current_entries(store)["audio"].unique().to_pylist())
    if wanted is None and len(there) == 1:
        return str(there[0])
    if not there:
        raise UsageError("AUDIO_UNKNOWN", f"{store.storage.shown} holds no predictions yet; `serpipe label` makes some")
    if wanted is None:
        raise UsageError(
            "AUDIO_AMBIGUOUS",
            f"{store.storage.shown} holds recordings cut in several ways; name one of {', '.join(there)} with "
            '--audio-fp, or as audio = "…" in the recipe',
        )
    if wanted not in there:
        raise UsageError(
            "AUDIO_UNKNOWN", f"{store.storage.shown} has no audio fingerprint {wanted}; it has {', '.join(there)}"
        )
    return wanted


def audio_to_train_on(store: Store, record: Mapping[str, Any], wanted: str | None) -> str:
    """The audio fingerprint of what a student learns: its generation's, and of gold alone as `audio_of`.

    Args:
        store: the store.
        record: of the generation; empty for gold alone.
        wanted: the one that was asked for.

    Raises:
        UsageError: `AUDIO_OF_GENERATION`, the generation has another; as `audio_of`.
    """
    made_of = record.get("audio")
    if None not in (made_of, wanted) and made_of != wanted:
        raise UsageError(
            "AUDIO_OF_GENERATION",
            f"generation {record['number']} of {store.storage.shown} is made of audio {made_of}, not of {wanted}; "
            "leave --audio-fp out, or make a generation of that audio",
        )
    return audio_of(store, made_of or wanted)


def deal(store: Store, audio: str, models: Sequence[Stored], only: pa.Array | None = None) -> list[Bucket]:
    """Deal the recordings that any of the models was asked to label into buckets.

    Args:
        store: the store.
        audio: audio fingerprint.
        models: whose predictions are wanted.
        only: ids of the recordings wanted, fixed-size binary (n,); all by default.
    """
    entries = current_entries(store).select(["recording_id", "model", "fp", "audio", "segments", "commit"])
    if only is not None:
        chosen = pc.is_in(entries["recording_id"].cast(pa.binary()), value_set=only.cast(pa.binary()))
        entries = entries.filter(chosen)
    mine = entries.filter(pc.equal(entries["audio"], audio))
    names = [f"{model.model} {model.fp}" for model in models]
    which = pc.index_in(pc.binary_join_element_wise(mine["model"], mine["fp"], " "), value_set=pa.array(names))
    mine = mine.append_column("which", which).filter(pc.is_valid(which))
    if not mine.num_rows:
        return []
    recordings = mine["recording_id"].combine_chunks().dictionary_encode()
    commits = mine["commit"].combine_chunks().dictionary_encode()
    bucket_of, order = _assign(mine, recordings.indices.to_numpy(), commits)
    there = set(store.storage.list("segments/")) | set(store.storage.list("recordings/"))
    files = _files(mine, bucket_of[recordings.indices.to_numpy()], models)
    place = places(entries["recording_id"], pa.chunked_array([recordings.dictionary]))
    around = entries.append_column("place", place).filter(pc.is_valid(place))
    around = around.append_column("bucket", pa.array(bucket_of[around["place"].to_numpy()]))
    pairs = around.group_by(["bucket", "audio", "commit"]).aggregate([]).to_pylist()
    segments: dict[int, set[str]] = {}
    recording_files: dict[int, set[str]] = {}
    for row in pairs:
        if row["audio"] == audio:
            segments.setdefault(row["bucket"], set()).add(layout.segments(audio, row["commit"]))
        recording_files.setdefault(row["bucket"], set()).add(layout.recordings(row["commit"]))
    ends = np.searchsorted(bucket_of[order], np.arange(bucket_of.max() + 2))
    return [
        Bucket(
            number=number,
            recordings=tuple(recordings.dictionary.take(pa.array(order[ends[number] : ends[number + 1]])).to_pylist()),
            segments=tuple(sorted(segments[number] & there)),
            recording_files=tuple(sorted(recording_files[number] & there)),
            predictions=tuple(tuple(sorted(files.get((number, model), ()))) for model in range(len(models))),
        )
        for number in range(len(ends) - 1)
    ]


def _assign(
    entries: pa.Table, recordings: NDArray[np.int32], commits: pa.DictionaryArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each recording's bucket, and the recordings in bucket order; what shares a commit stays together."""
    count = int(recordings.max()) + 1
    which = entries["which"].to_numpy()
    segments = np.zeros((count, int(which.max()) + 1), np.int64)
    np.add.at(segments, (recordings, which), entries["segments"].to_numpy())
    rank = pc.rank(commits.dictionary, tiebreaker="dense").to_numpy().astype(np.int64)[commits.indices.to_numpy()]
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, recordings, rank)
    order = np.argsort(first, kind="stable")
    load = segments.max(axis=1)[order]
    bucket_of = np.zeros(count, np.int64)
    bucket_of[order] = (np.cumsum(load) - load) // BUCKET_ROWS
    _, dense = np.unique(bucket_of, return_inverse=True)
    return dense.astype(np.int64), order


def _files(entries: pa.Table, buckets: NDArray[np.int64], models: Sequence[Stored]) -> dict[tuple[int, int], set[str]]:
    pairs = entries.append_column("bucket", pa.array(buckets)).group_by(["bucket", "which", "commit"]).aggregate([])
    files: dict[tuple[int, int], set[str]] = {}
    for row in pairs.to_pylist():
        model = models[row["which"]]
        name = layout.predictions(model.model, model.fp, row["commit"])
        files.setdefault((row["bucket"], row["which"]), set()).add(name)
    return files


def segments(storage: Storage, bucket: Bucket) -> pa.Table:
    """A bucket's segments, sorted by id, with their recordings' `uri` and `recording_meta` (null where unfinished)."""
    owners = pa.chunked_array([pa.array(bucket.recordings, schemas.SEGMENTS.field("recording_id").type)])
    rows = _once(by_id(_read(storage, bucket.segments, _SEGMENT_COLUMNS, schemas.SEGMENTS, owners)))
    columns = ["recording_id", "uri", "meta"]
    recordings = _read(storage, bucket.recording_files, columns, schemas.RECORDINGS, owners)
    place = places(rows["recording_id"], recordings["recording_id"])
    rows = rows.append_column("uri", recordings["uri"].take(place))
    return rows.append_column("recording_meta", recordings["meta"].take(place))


def _once(rows: pa.Table) -> pa.Table:
    """Sorted rows, each once: an interrupted rewrite leaves some in two files."""
    high, low = words(rows["segment_id"])
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return rows.filter(pa.array(np.concatenate([[True], ~again]))) if again.any() else rows


def scores(
    storage: Storage, bucket: Bucket, model: int, emotions: Sequence[str], wanted: pa.ChunkedArray
) -> NDArray[np.float64]:
    """One model's canonical scores of a bucket.

    Args:
        storage: the store.
        bucket: which recordings.
        model: its place among the models the buckets were dealt for.
        emotions: the canonical emotions wanted, or of the dimensions' names.
        wanted: ids of the segments.

    Returns:
        float64 (emotions, segments); NaN where the model has not labelled the segment.
    """
    leaves = [name if name in DIMENSIONS else f"emotion_scores.{name}" for name in emotions]
    owners = pa.chunked_array([pa.array(bucket.recordings, schemas.SEGMENTS.field("recording_id").type)])
    table = _read(storage, bucket.predictions[model], ["segment_id", "recording_id", *leaves], None, owners)
    if not table.num_rows:
        return np.full((len(emotions), len(wanted)), np.nan)
    table = table.flatten()
    place = places(wanted, table["segment_id"])
    missing = place.is_null().to_numpy(zero_copy_only=False)
    where = pc.fill_null(place, 0).to_numpy()
    result = np.empty((len(emotions), len(wanted)))
    for row, leaf in enumerate(leaves):
        result[row] = table[leaf].to_numpy()[where]
    result[:, missing] = np.nan
    return result


def _read(
    storage: Storage, names: Sequence[str], columns: Sequence[str], schema: pa.Schema | None, owners: pa.ChunkedArray
) -> pa.Table:
    """The rows of some recordings, file by file, so that never more than one file is held beside them."""
    keys = owners.cast(pa.binary()).combine_chunks()
    parts = []
    for name in names:
        with storage.fs.open(storage.path(name), "rb") as file:
            # `columns` may name leaves of a struct; nothing else of the file is read.
            table = pq.ParquetFile(file).read(columns=list(columns), use_threads=False).replace_schema_metadata(None)
        mask = pc.is_in(table["recording_id"].cast(pa.binary()), value_set=keys)
        parts.append(table if pc.all(mask).as_py() else table.filter(mask))
    if schema is not None:
        parts.append(pa.schema([schema.field(name) for name in columns]).empty_table())
    if not parts:
        return pa.table({})
    return pa.concat_tables(parts)
