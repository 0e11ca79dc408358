"""Gold: labels by people, read, checked, split by speaker, and matched to a store's segments."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.ids import ID_BYTES
from serpipe.labels import CANONICAL, TAXONOMIES
from serpipe.manifest import open_manifest
from serpipe.pack import ID
from serpipe.pseudolabel import sources
from serpipe.pseudolabel.arrays import audio_keys, by_id, places, text_key
from serpipe.store import schemas
from serpipe.store.reading import Store

SPLITS = ("train", "cal", "dev", "gate", "test", "final")
"""What gold is for: to train on, to calibrate on, to choose by, to gate with, to judge by, to judge once."""

JUDGING = ("gate", "test", "final")
"""Splits whose speakers may not be trained on, not even with labels of a teacher's. `dev` is none of them: thresholds
and temperatures may be chosen by it, so no student is judged by it."""

COVERED = 0.8
"""Share of a segment that a gold span must cover to be its label: less is half another emotion."""

_ALIASES = {"calibration": "cal", "valid": "dev", "validation": "dev", "training": "train", "eval": "test"}
_LABEL = ("label", "emotion")
_SPEAKER = ("speaker", "speaker_id", "spk")
_DEALT = ("train", "cal", "train", "test", "dev")
"""Splits of the speakers in the order of their hashes, over and over, where gold says none."""

_WORDS = {emotion: emotion for emotion in CANONICAL} | {
    word.rsplit("/", 1)[-1].lower(): emotion
    for taxonomy in TAXONOMIES.values()
    for word, emotion in taxonomy.items()
    if emotion
}

GOLD = pa.schema(
    [
        pa.field("segment_id", ID),  # where gold names segments instead of times
        pa.field("uri", pa.string()),
        pa.field("channel", pa.int32()),
        pa.field("start_s", pa.float64()),  # null: the whole recording
        pa.field("end_s", pa.float64()),
        pa.field("label", pa.string(), nullable=False),  # canonical
        pa.field("speaker", pa.string(), nullable=False),  # the uri where gold names none
        pa.field("split", pa.string(), nullable=False),  # of SPLITS
    ]
)
"""One row of gold."""

MATCHED = pa.schema(
    [
        pa.field("segment_id", ID, nullable=False),
        pa.field("recording_id", ID, nullable=False),
        pa.field("channel", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("audio_key", pa.uint64(), nullable=False),  # equal for equal audio
    ]
)
"""One gold segment of a store, sorted by `segment_id`."""


@dataclass(frozen=True, slots=True)
class Gold:
    """Gold as it was read.

    Attributes:
        location: where from.
        rows: of `GOLD`.
        speakers_named: whether it names speakers.
        splits_named: whether it names splits; else speakers were dealt into them.
    """

    location: str
    rows: pa.Table
    speakers_named: bool
    splits_named: bool

    @property
    def hash(self) -> str:
        """64 hexadecimal digits over its rows, in whatever order and format they were written."""
        rows = self.rows.set_column(0, "segment_id", pc.fill_null(self.rows["segment_id"].cast(pa.binary()), b""))
        lines = sorted(json.dumps([str(value) for value in row.values()]) for row in rows.to_pylist())
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by split and label."""
        pairs = Counter(zip(self.rows["split"].to_pylist(), self.rows["label"].to_pylist(), strict=True))
        found: dict[str, dict[str, int]] = {}
        for (split, label), count in sorted(pairs.items()):
            found.setdefault(split, {})[label] = count
        return found


def emotion_word(text: str) -> str | None:
    """The canonical emotion of a word, in any taxonomy known here; None where it is none.

    Examples:
        >>> emotion_word("Angry"), emotion_word("sadness"), emotion_word("bored")
        ('anger', 'sadness', None)
    """
    return _WORDS.get(text.strip().lower())


def read(location: str) -> Gold:
    r"""Read gold: CSV, TSV, JSONL or Parquet with the columns `uri` (or `segment_id`, hexadecimal), `label`, and where
    known `start`, `end`, `channel`, `speaker`, `split`.

    Without a column `split` speakers are dealt into splits by their names, the same way for every command: a speaker
    who is judged by when a student is promoted must not have been trained on when it was made.

    Args:
        location: local path or fsspec URL; relative uris start from its folder.

    Raises:
        UsageError: `GOLD_NO_LABEL`, `GOLD_UNKNOWN_LABEL`, `GOLD_UNKNOWN_SPLIT`, `GOLD_SPEAKER_LEAK`, `GOLD_BAD_ROW`,
            or what a manifest that cannot be read raises.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "gold.csv")
        >>> _ = path.write_text("uri,label,speaker,split\na.wav,angry,ann,cal\nb.wav,sad,bob,test\n")
        >>> read(str(path)).counts()
        {'cal': {'anger': 1}, 'test': {'sadness': 1}}
    """
    rows = []
    splits: list[str] = []
    speakers = 0
    for raw in _raw_rows(location):
        where = f"{location}, row {raw['row']}"
        if raw["error"]:
            raise UsageError("GOLD_BAD_ROW", f"{where}: {raw['error']}")
        meta = {name.lower(): value for name, value in raw["meta"]}
        speaker = next((meta[name] for name in _SPEAKER if meta.get(name)), None)
        speakers += speaker is not None
        identifier = _identifier(meta.get("segment_id"), where)
        split = meta.get("split", "").strip().lower()
        if split:
            splits.append(_split(split, where))
        rows.append(
            {
                "segment_id": identifier,
                **{name: raw[name] for name in ("uri", "channel", "start_s", "end_s")},
                "label": _label(meta, where),
                "speaker": speaker or raw["uri"],
                "split": splits[-1] if split else "",
            }
        )
    if splits and len(splits) < len(rows):
        raise UsageError("GOLD_UNKNOWN_SPLIT", f"{location}: some rows name a split, some do not; name all or none")
    if not splits:
        _deal(rows)
    _refuse_leaks(rows, location)
    return Gold(location, pa.Table.from_pylist(rows, GOLD), speakers > 0, bool(splits))


def _raw_rows(location: str) -> list[dict[str, Any]]:
    try:
        manifest = open_manifest(location)
    except UsageError as error:
        if error.code != "MANIFEST_NO_URI_COLUMN":
            raise
        # Gold by segment: ids pass through the reader of manifests as if they were keys of a bucket.
        manifest = open_manifest(location, columns={"uri": "segment_id"}, base="s3://segment")
    rows = [row for part in manifest.parts for table in manifest.read(part) for row in table.to_pylist()]
    for row in rows:
        if (row["uri"] or "").startswith("s3://segment/"):
            row["meta"] = [*row["meta"], ("segment_id", row["uri"].rsplit("/", 1)[-1])]
    return rows


def _identifier(text: str | None, where: str) -> bytes | None:
    if not text:
        return None
    try:
        identifier = bytes.fromhex(text)
    except ValueError:
        identifier = b""
    if len(identifier) != ID_BYTES:
        raise UsageError("GOLD_BAD_ROW", f"{where}: segment_id {text!r} is not 32 hexadecimal digits")
    return identifier


def _label(meta: dict[str, str], where: str) -> str:
    word = next((meta[name] for name in _LABEL if meta.get(name)), None)
    if word is None:
        raise UsageError("GOLD_NO_LABEL", f"{where}: there is no label; gold needs a column label or emotion")
    emotion = emotion_word(word)
    if emotion is None:
        known = ", ".join(CANONICAL)
        raise UsageError("GOLD_UNKNOWN_LABEL", f"{where}: {word!r} is no emotion known here; use {known}")
    return emotion


def _split(word: str, where: str) -> str:
    split = _ALIASES.get(word, word)
    if split not in SPLITS:
        raise UsageError("GOLD_UNKNOWN_SPLIT", f"{where}: there is no split {word!r}; use {', '.join(SPLITS)}")
    return split


def _deal(rows: list[dict[str, Any]]) -> None:
    """Deal whole speakers into splits, in an order that only their names decide."""
    speakers = sorted({row["speaker"] for row in rows}, key=lambda name: (text_key(f"0 {name}"), name))
    split_of = {speaker: _DEALT[place % len(_DEALT)] for place, speaker in enumerate(speakers)}
    for row in rows:
        row["split"] = split_of[row["speaker"]]


def _refuse_leaks(rows: list[dict[str, Any]], location: str) -> None:
    found = defaultdict(set)
    for row in rows:
        found[row["speaker"]].add(row["split"])
    leaks = sorted(speaker for speaker, splits in found.items() if len(splits) > 1)
    if leaks:
        splits = " and ".join(sorted(found[leaks[0]]))
        more = f", as are {len(leaks) - 1} more" if len(leaks) > 1 else ""
        raise UsageError(
            "GOLD_SPEAKER_LEAK",
            f"{location}: speaker {leaks[0]!r} is in {splits}{more}; put all of a speaker's rows into one split",
        )


def match(store: Store, gold: Gold, audio: str) -> pa.Table:
    """The store's segments that gold labels.

    A row with a `segment_id` names its segment. One without times labels every segment of its recording; one with
    times those it covers by at least `COVERED`; one with a channel those of that channel alone, and a mix is channel 0.
    Where a uri has several versions, the last one seen counts. Of several rows for one segment those that name a
    speaker say whose it is.

    Returns:
        Rows of `MATCHED`.

    Raises:
        UsageError: `GOLD_NO_MATCH`, `GOLD_CONFLICT` where one segment gets two labels or speakers, or
            `GOLD_SPEAKER_LEAK` where gold names segments, no speakers, and one recording's are in two splits.
    """
    segments = _segments_of(store, gold, audio)
    found: dict[bytes, dict[str, Any]] = {}
    rows_of = defaultdict(list)
    for row in gold.rows.to_pylist():
        rows_of[row["segment_id"] or row["uri"]].append(row)
    for segment in segments.to_pylist():
        rows = rows_of.get(segment["segment_id"], []) + rows_of.get(segment["uri"], [])
        # Rows that name a speaker come first, and say whose the others are.
        for row in sorted((row for row in rows if _covers(row, segment)), key=_nameless):
            said = {name: row[name] for name in ("label", "speaker", "split")}
            if _nameless(row):
                said["speaker"] = found.get(segment["segment_id"], {}).get("speaker") or segment["uri"] or row["uri"]
            before = found.setdefault(segment["segment_id"], {**segment, **said})
            if any(before[name] != said[name] for name in said):
                raise UsageError(
                    "GOLD_CONFLICT",
                    f"{gold.location}: {segment['uri']} from {segment['start_s']:.2f} to {segment['end_s']:.2f} s is "
                    f"{_told(before)} and {_told(said)}; keep one",
                )
    if not found:
        raise UsageError(
            "GOLD_NO_MATCH",
            f"none of the {gold.rows.num_rows} rows of {gold.location} names a segment of {store.storage.shown}; "
            "uris must be those of `recordings`, times and channels must fit the segments",
        )
    _refuse_leaks(list(found.values()), gold.location)
    return by_id(pa.Table.from_pylist(list(found.values()), MATCHED))


def _nameless(row: dict[str, Any]) -> bool:
    return bool(row["speaker"] == row["uri"])


def _told(row: dict[str, Any]) -> str:
    return f"{row['label']} of {row['speaker']} ({row['split']})"


def train_hash(matched: pa.Table) -> str:
    """64 hexadecimal digits over what a student learns from gold: the clips of split `train` and their labels.

    Args:
        matched: rows of `MATCHED`.

    Examples:
        >>> rows = pa.table({"segment_id": [b"1", b"2"], "label": ["anger", "sadness"], "split": ["train", "test"]})
        >>> train_hash(rows) == train_hash(rows.slice(0, 1)), train_hash(rows) == train_hash(rows.slice(1))
        (True, False)
    """
    rows = matched.filter(pc.equal(matched["split"], "train"))
    pairs = zip(rows["segment_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return hashlib.sha256("".join(f"{segment.hex()} {label}\n" for segment, label in pairs).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Barred:
    """What of a store is in no pseudo-labelled training set because of gold.

    Attributes:
        segments: ids of all gold that the store holds.
        audio: uint64, audio keys of these.
        speakers: whom gold judges by, in the store or not; the uris of recordings where it names none.
        recordings: ids of the recordings that hold segments it judges by.
        uris: of the recordings that it judges by, in the store or not.
    """

    segments: pa.Array
    audio: NDArray[np.uint64]
    speakers: tuple[str, ...]
    recordings: pa.Array
    uris: pa.Array

    def of(self, rows: pa.Table, speaker: pa.Array, audio: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows are barred, bool (n,): gold, what sounds the same, and the voices that gold judges by.

        In a recording that gold judges by, a row without a speaker may be that voice, and is barred too.

        Args:
            rows: columns `segment_id`, `recording_id`, `uri`.
            speaker: of each, null where the owner names none.
            audio: uint64 (n,), key of each.
        """
        judging = pa.array(self.speakers, pa.string())
        uris = rows["uri"].combine_chunks()
        judged = pc.or_(_among(rows["recording_id"], self.recordings), pc.is_in(uris, value_set=self.uris))
        parts = (
            _among(rows["segment_id"], self.segments),
            pc.is_in(speaker, value_set=judging),
            pc.is_in(uris, value_set=judging),
            pc.and_(judged, pc.is_null(speaker)),
        )
        found = np.isin(audio, self.audio)
        for part in parts:
            found |= part.to_numpy(zero_copy_only=False)
        return np.asarray(found)


def barred(gold: Gold, matched: pa.Table) -> Barred:
    """What gold keeps out of training sets.

    A speaker whom gold judges by is kept out though the store holds none of those clips yet: once they are labelled,
    they judge students that were trained before.

    Args:
        gold: as it was read.
        matched: its segments, of `MATCHED`.
    """
    judging = [rows.filter(pc.is_in(rows["split"], value_set=pa.array(JUDGING))) for rows in (gold.rows, matched)]
    speakers, uris = (
        sorted({value for rows in judging for value in rows[name].to_pylist() if value is not None})
        for name in ("speaker", "uri")
    )
    return Barred(
        segments=matched["segment_id"].combine_chunks(),
        audio=np.unique(matched["audio_key"].to_numpy()),
        speakers=tuple(speakers),
        recordings=judging[1]["recording_id"].combine_chunks().unique(),
        uris=pa.array(uris, pa.string()),
    )


def _among(wanted: pa.ChunkedArray, some: pa.Array) -> pa.Array:
    return pc.is_valid(places(wanted, pa.chunked_array([some])))


def _covers(row: dict[str, Any], segment: dict[str, Any]) -> bool:
    if row["segment_id"] is not None:
        return True
    if row["channel"] is not None and row["channel"] != segment["channel"]:
        return False
    if row["start_s"] is None:
        return True
    end = row["end_s"] if row["end_s"] is not None else segment["end_s"]
    inside = min(end, segment["end_s"]) - max(row["start_s"], segment["start_s"])
    return bool(inside >= COVERED * (segment["end_s"] - segment["start_s"]))


def _segments_of(store: Store, gold: Gold, audio: str) -> pa.Table:
    """Segments of gold's recordings and the segments it names, with their uris."""
    storage = store.storage
    uris = pc.unique(gold.rows["uri"])
    named = gold.rows.filter(pc.is_valid(gold.rows["segment_id"]))["segment_id"]
    files = [storage.path(name) for name in storage.list("recordings/")]
    recordings = (
        ds.dataset(files, schema=schemas.RECORDINGS, format="parquet", filesystem=storage.fs).to_table(
            columns=["recording_id", "uri", "first_seen"], filter=ds.field("uri").isin(uris)
        )
        if files
        else schemas.RECORDINGS.empty_table().select(["recording_id", "uri", "first_seen"])
    )
    latest = recordings.sort_by([("first_seen", "ascending"), ("recording_id", "ascending")])
    last = {row["uri"]: row["recording_id"] for row in latest.to_pylist()}
    owners = set(last.values())
    if len(named):
        paths = [storage.path(name) for name in storage.list(f"segments/audio={audio}/")]
        there = ds.dataset(paths, schema=schemas.SEGMENTS, format="parquet", filesystem=storage.fs)
        found = there.to_table(columns=["recording_id"], filter=ds.field("segment_id").isin(named))
        owners |= set(found["recording_id"].to_pylist())
    models = sources.stored_models(store, audio)
    buckets = sources.deal(store, audio, models, pa.array(sorted(owners), ID))
    columns = [name for name in MATCHED.names if name in ("uri", "audio_key", *schemas.SEGMENTS.names)]
    tables = [_with_keys(sources.segments(storage, bucket)).select(columns) for bucket in buckets]
    return pa.concat_tables(tables) if tables else pa.schema([MATCHED.field(name) for name in columns]).empty_table()


def _with_keys(rows: pa.Table) -> pa.Table:
    return rows.append_column("audio_key", pa.array(audio_keys(rows)))
