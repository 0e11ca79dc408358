"""What an export can say of a kept segment, and which segments there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from serpipe.audio.decode import DECODER_EPOCH, Channels
from serpipe.errors import SerpipeError, UsageError
from serpipe.models.contract import SAMPLE_RATE
from serpipe.pseudolabel import generation
from serpipe.pseudolabel.arrays import floats, places, words
from serpipe.store import runs, schemas
from serpipe.store.reading import Store

BATCH = 4096
"""Rows that are Python objects at once."""

LICENCE = ("licence", "license")
LANGUAGE = ("language", "lang")
TEXT = ("text", "transcript", "sentence")
GENDER = ("gender", "sex")
"""The owner's columns that formats have a place for, the likeliest name first."""

_KEPT = [
    "segment_id", "recording_id", "channel", "start_s", "end_s", "label", "soft_label", "weight", "confidence", "split",
    "speaker", "feed", "arousal", "valence", "dominance",
]  # fmt: skip
_RECORDING = ("uri", "size", "etag", "sample_rate", "channels", "duration_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One kept segment.

    Attributes:
        key: its segment id, 32 hexadecimal digits.
        recording: id of its recording, likewise.
        uri: of its recording.
        size: bytes of that recording when it was labelled.
        etag: and its entity tag.
        sample_rate: Hz, of the recording's file.
        channels: of the recording's file.
        recording_s: seconds of the recording.
        channel: as in the store.
        start_s: seconds from the recording's start.
        end_s: likewise.
        label: canonical emotion.
        soft: probabilities in the order of the generation's classes.
        weight: for training.
        confidence: probability of the label.
        split: train or dev.
        speaker: the owner's word; None where there is none.
        feed: likewise.
        arousal: 0 to 1; None without a dimensional model.
        valence: likewise.
        dominance: likewise.
        meta: the owner's columns.
        cut: whether its audio is cut out, else the recording is referred to.
        file: where its audio lies below the destination; None by reference and in shards.
        path: what opens its audio; of no use in shards.
    """

    key: str
    recording: str
    uri: str
    size: int | None
    etag: str | None
    sample_rate: int
    channels: int
    recording_s: float
    channel: int
    start_s: float
    end_s: float
    label: str
    soft: tuple[float, ...]
    weight: float
    confidence: float
    split: str
    speaker: str | None
    feed: str | None
    arousal: float | None
    valence: float | None
    dominance: float | None
    meta: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    file: str | None = None
    path: str = ""

    @property
    def first(self) -> int:
        """First sample of the recording at 16 kHz."""
        return round(self.start_s * SAMPLE_RATE)

    @property
    def last(self) -> int:
        """The sample after the last."""
        return round(self.end_s * SAMPLE_RATE)

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return (self.last - self.first) / SAMPLE_RATE

    @property
    def offset_s(self) -> float:
        """Seconds from the start of what `path` opens."""
        return 0.0 if self.cut else self.start_s

    @property
    def rate(self) -> int:
        """Hz, of what `path` opens."""
        return SAMPLE_RATE if self.cut else self.sample_rate

    @property
    def voice(self) -> str:
        """Whose clip it is: its speaker, or its recording where the owner names none."""
        return self.speaker or self.recording

    def said(self, names: Sequence[str]) -> str | None:
        """The first of the owner's columns that says something."""
        return next((self.meta[name] for name in names if self.meta.get(name)), None)


@dataclass(frozen=True)
class Kept:
    """The kept rows of a generation, in the order they are exported: by split, recording and time.

    A recording's id is a hash, so neighbours in an export come from anywhere in the archive.

    Attributes:
        record: of the generation.
        rows: of the generation, with the recordings' facts.
        lost: kept rows whose recording did not decode to its end, or has another content today.
        channels: how the channels of a recording were treated; None where the store does not say.
    """

    record: Mapping[str, Any]
    rows: pa.Table
    lost: int
    channels: Channels | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The generation's, in the order of the soft labels."""
        return tuple(self.record["classes"])

    @cached_property
    def licences(self) -> dict[str | None, int]:
        """The owner's licence of each recording in use, and how many have it; None for those without one."""
        first = self.rows.group_by("recording_id").aggregate([("place", "min")])["place_min"].to_pylist()
        found: dict[str | None, int] = {}
        for meta in self.rows["meta"].take(pa.array(sorted(first), pa.int64())).to_pylist():
            said = dict(meta or ())
            licence = next((said[name].strip() for name in LICENCE if said.get(name, "").strip()), None)
            found[licence] = found.get(licence, 0) + 1
        return found

    def clips(
        self, root: str, *, cut: bool, file_of: Callable[[str, str], str] | None = None
    ) -> Iterator[tuple[int, Clip]]:
        """Each row's place and clip.

        Args:
            root: the destination.
            cut: whether the audio is cut out.
            file_of: where the audio of a split's key lies below the destination; None by reference and in shards.
        """
        for start in range(0, self.rows.num_rows, BATCH):
            for number, row in enumerate(self.rows.slice(start, BATCH).to_pylist(), start):
                key = row.pop("segment_id").hex()
                file = file_of(row["split"], key) if file_of else None
                meta = dict(row.pop("meta") or ()) | dict(row.pop("segment_meta") or ())
                soft = tuple(round(value, 6) for value in row.pop("soft_label"))
                recording = row.pop("recording_id").hex()
                path = f"{root}/{file}" if file else row["uri"]
                del row["place"]
                about = {"key": key, "recording": recording, "soft": soft, "meta": meta, "path": path}
                yield number, Clip(**about, **row, cut=cut, file=file)


def read(store: Store, number: int) -> Kept:
    """The kept rows of a generation, with what the store knows of their recordings.

    Raises:
        UsageError: `GENERATION_UNKNOWN`; `EXPORT_NOTHING`, nothing was kept.
        SerpipeError: `EXPORT_SPEAKERS_LEAK`.
    """
    record = generation.load(store.storage, number)
    rows = generation.rows(store.storage, number, kept=True, columns=_KEPT)
    kept = rows.num_rows
    # A version that another has taken the place of lies nowhere any more.
    versions = store.recordings()
    place = places(rows["recording_id"], versions["recording_id"])
    known = pc.is_valid(place)
    rows, place = rows.filter(known), place.filter(known)
    if not rows.num_rows:
        raise UsageError(
            "EXPORT_NOTHING",
            f"generation {number} of {store.storage.shown} keeps nothing whose recording is known; `serpipe "
            f"generations funnel {store.storage.shown} --generation {number}` says what was dropped",
        )
    _refuse_leaks(rows, number)
    for name in _RECORDING:
        column = "recording_s" if name == "duration_s" else name
        rows = rows.append_column(column, versions[name].take(place))
    rows = rows.append_column("meta", versions["meta"].take(place))
    rows = rows.append_column("segment_meta", _segment_meta(store, str(record["audio"]), rows["segment_id"]))
    rows = _ordered(rows)
    rows = rows.append_column("place", pa.array(np.arange(rows.num_rows)))
    return Kept(record, rows, kept - rows.num_rows, channels_of(store, str(record["audio"])))


def _ordered(rows: pa.Table) -> pa.Table:
    high, low = words(rows["recording_id"])
    dev = pc.equal(rows["split"], "dev").to_numpy()
    return rows.take(pa.array(np.lexsort((rows["channel"].to_numpy(), floats(rows["start_s"]), low, high, dev))))


def _refuse_leaks(rows: pa.Table, number: int) -> None:
    """A student must be judged on voices it has not heard."""
    named = pc.is_valid(rows["speaker"])
    for whose, part in (("speaker", rows.filter(named)), ("recording_id", rows.filter(pc.invert(named)))):
        counts = part.group_by(whose).aggregate([("split", "count_distinct")])
        torn = counts.filter(pc.greater(counts["split_count_distinct"], 1))[whose].to_pylist()
        if torn:
            one = torn[0].hex() if isinstance(torn[0], bytes) else torn[0]
            what = "speaker" if whose == "speaker" else "recording"
            raise SerpipeError(
                "EXPORT_SPEAKERS_LEAK",
                f"generation {number} has {what} {one} in several splits, with {len(torn) - 1} others; make the "
                "generation again",
            )


def _segment_meta(store: Store, audio: str, wanted: pa.ChunkedArray) -> pa.Array:
    """The owner's columns of given segments."""
    names = [store.storage.path(name) for name in store.storage.list(f"segments/audio={audio}/")]
    there = ds.dataset(names, schema=schemas.SEGMENTS, format="parquet", filesystem=store.storage.arrow)
    rows = there.to_table(columns=["segment_id", "meta"], filter=ds.field("meta").is_valid())
    return rows["meta"].take(places(wanted, rows["segment_id"]))


def channels_of(store: Store, audio: str) -> Channels | None:
    """How the runs that cut this audio treated channels; None where none says so.

    Raises:
        UsageError: `EXPORT_OTHER_DECODER`, today's decoder would not give the samples that were labelled.
    """
    for run in runs.load(store.storage):
        if run.audio != audio or "channels" not in run.asked:
            continue
        if run.asked.get("decoder_epoch", DECODER_EPOCH) != DECODER_EPOCH:
            raise UsageError(
                "EXPORT_OTHER_DECODER",
                f"the recordings were labelled by another decoder (epoch {run.asked['decoder_epoch']}, this serpipe "
                f"has {DECODER_EPOCH}); label them with this one (--relabel), or use that serpipe here",
            )
        channels: Channels = run.asked["channels"]
        return channels
    return None


def sure_of(channels: Channels | None, files: pa.ChunkedArray) -> Channels:
    """How channels were treated, for recordings whose files have so many.

    Raises:
        UsageError: `EXPORT_CHANNELS_UNKNOWN`.
    """
    if channels is not None:
        return channels
    if (pc.max(files).as_py() or 0) > 1:
        raise UsageError(
            "EXPORT_CHANNELS_UNKNOWN",
            "no run of the store says how the channels of its recordings were treated, and some have several; label "
            "them again with --relabel and --channels",
        )
    return "mix"
