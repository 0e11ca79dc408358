"""An export from beginning to end."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.audio.decode import Channels
from serpipe.errors import UsageError
from serpipe.pseudolabel import student
from serpipe.pseudolabel.export import card, croissant, licence, shards
from serpipe.pseudolabel.export.audio import Samples, cut, flac
from serpipe.pseudolabel.export.clips import Clip, Kept, read, sure_of
from serpipe.pseudolabel.export.formats import FORMATS, Format
from serpipe.pseudolabel.export.texts import Texts
from serpipe.store.reading import open as open_store
from serpipe.store.storage import Storage

Audio = Literal["reference", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
        destination: where.
        form: key of `FORMATS`.
        audio: `reference` or `cut`.
        clips: of each split and label.
        hours: of each split.
        lost: kept segments that are missing, by reason.
        non_commercial: teachers that forbid commercial use of the labels.
    """

    destination: str
    form: str
    audio: str
    clips: dict[str, dict[str, int]]
    hours: dict[str, float]
    lost: dict[str, int]
    non_commercial: tuple[str, ...]


def export(
    store: str,
    number: int,
    form: str | None,
    destination: str,
    *,
    audio: Audio | None = None,
    shard_bytes: int = shards.BYTES,
) -> Exported:
    """Write the kept rows of a generation as a training set; the same generation gives the same bytes.

    Args:
        store: directory or fsspec URL.
        number: of the generation.
        form: key of `FORMATS`; what the generation's recipe says when None.
        destination: an empty or new directory, or an fsspec URL.
        audio: by `reference` to the recordings, or `cut` out of them; by default what the recipe says, else the first
            where the format can.
        shard_bytes: audio of one shard.

    Raises:
        UsageError: `EXPORT_NOT_EMPTY`, `EXPORT_NEEDS_CUT`, `EXPORT_NOTHING`, `EXPORT_OTHER_DECODER`,
            `EXPORT_CHANNELS_UNKNOWN`, or `GENERATION_UNKNOWN`.
        SerpipeError: `EXPORT_SPEAKERS_LEAK`.
        AudioError: what may pass, of a recording that cannot be reached now.
    """
    opened = open_store(store)
    kept = read(opened, number)
    said = kept.record["recipe"]["export"]
    form = form or str(said["format"])
    chosen = FORMATS[form]
    way: Audio = audio or said["audio"] or ("reference" if chosen.references else "cut")
    channels = sure_of(kept.channels, kept.rows["channels"])
    if way == "reference":
        _refuse_references(kept, form, channels)
    there = _Destination(destination)
    writer = _Writer(there, chosen, kept, way, shard_bytes)
    lost: Counter[str] = Counter()
    for place, clip, samples in _clips(kept, chosen, there.storage.shown, way, channels, lost):
        writer.add(place, clip, samples)
    if kept.lost:
        lost["the store does not know their recording's end, or it has another content today"] = kept.lost
    facts = card.Facts(
        form=form,
        root=there.storage.shown,
        cut=way == "cut",
        record=kept.record,
        promotions=student.promotions(opened.storage, number),
        licences=licence.read(opened.storage, kept.record, kept.licences),
        clips={split: dict(counts) for split, counts in writer.clips.items()},
        hours=writer.hours,
        lost=lost,
        clipped=writer.clipped,
    )
    writer.close(facts)
    return Exported(
        destination=there.storage.shown,
        form=form,
        audio=way,
        clips={split: dict(counts) for split, counts in writer.clips.items()},
        hours=writer.hours,
        lost=dict(lost),
        non_commercial=tuple(facts.licences.tainting),
    )


class _Destination:
    """Where an export goes, and what was put there."""

    def __init__(self, root: str) -> None:
        self.storage = Storage(root)
        self.files: dict[str, tuple[int, str]] = {}
        if self.storage.list(""):
            raise UsageError(
                "EXPORT_NOT_EMPTY", f"{self.storage.shown} holds files already; empty it, or name another place"
            )

    def put(self, name: str, content: bytes, *, listed: bool = True) -> None:
        self.storage.put(name, content)
        if listed:
            self.files[name] = (len(content), hashlib.sha256(content).hexdigest())


class _Writer:
    """Clips into the files of a format."""

    def __init__(self, there: _Destination, form: Format, kept: Kept, way: Audio, shard_bytes: int) -> None:
        self._there, self._form, self._kept, self._bytes = there, form, kept, shard_bytes
        texts = form.texts if way == "reference" or form.cut_texts is None else form.cut_texts
        self._texts = Texts(form, texts, kept.classes)
        self._shard: list[shards.Item] = []
        self._filled, self._split = 0, ""
        self._numbers: Counter[str] = Counter()
        self._places: list[int] = []
        self._files: list[str | None] = []
        self.clips: dict[str, Counter[str]] = {"train": Counter(), "dev": Counter()}
        self.hours = {"train": 0.0, "dev": 0.0}
        self.clipped = 0

    def add(self, place: int, clip: Clip, samples: Samples | None) -> None:
        """One clip, with its audio where that is cut."""
        self._texts.add(clip)
        if samples is not None:
            self.clipped += bool(np.max(np.abs(samples), initial=0.0) > 1.0)
            content = flac(samples)
            if clip.file is None:
                self._into_shard(clip, content, len(samples))
            else:
                self._there.put(clip.file, content, listed=False)
        self._places.append(place)
        self._files.append(clip.file)
        self.clips[clip.split][clip.label] += 1
        self.hours[clip.split] += clip.duration_s / 3600

    def close(self, facts: card.Facts) -> None:
        """What is left, then the cards: README.md last, so that an export without it was not finished."""
        self._flush()
        for name, content in (*self._texts.files(), *self._form.fixed(self._kept.classes).items()):
            self._there.put(name, content)
        labels = _labels(self._kept, self._places, self._files)
        file = io.BytesIO()
        pq.write_table(labels, file)
        self._there.put(croissant.LABELS, file.getvalue())
        self._there.put("croissant.json", croissant.write(facts, self._there.files, labels.schema), listed=False)
        self._there.put("README.md", card.write(facts), listed=False)

    def _into_shard(self, clip: Clip, audio: bytes, samples: int) -> None:
        split = self._form.splits[clip.split]
        if split != self._split or self._filled + len(audio) > self._bytes:
            self._flush()
        self._split = split
        beside = {name: say(clip, self._kept.classes) for name, say in self._form.beside.items()}
        self._shard.append(shards.Item(clip.key, beside, audio, samples))
        self._filled += len(audio)

    def _flush(self) -> None:
        if not self._shard:
            return
        assert self._form.shard is not None
        number = self._numbers[self._split]
        for name, content in self._form.shard(self._split, number, self._shard, self._kept.classes).items():
            self._there.put(name, content)
        self._numbers[self._split] += 1
        self._shard, self._filled = [], 0


def _clips(
    kept: Kept, form: Format, root: str, way: Audio, channels: Channels, lost: Counter[str]
) -> Iterator[tuple[int, Clip, Samples | None]]:
    if way == "reference":
        for place, clip in kept.clips(root, cut=False):
            yield place, clip, None
        return
    pattern = form.audio

    def file_of(split: str, key: str) -> str:
        return str(pattern).format(split=form.splits[split], start=key[:2], key=key)

    yield from cut(kept.clips(root, cut=True, file_of=file_of if pattern else None), channels, lost)


def _refuse_references(kept: Kept, form: str, channels: Channels) -> None:
    chosen = FORMATS[form]
    if not chosen.references:
        raise UsageError("EXPORT_NEEDS_CUT", f"{form} cannot name a stretch of a recording; leave --audio out, or cut")
    several = sum(count > 1 for count in kept.rows["channels"].to_pylist())
    if several and (channels == "mix" or not chosen.channels):
        what = "their mix" if channels == "mix" else "one of their channels"
        raise UsageError(
            "EXPORT_NEEDS_CUT",
            f"{several} clips are of recordings with several channels, and {form} cannot name {what}; add --audio cut",
        )
    # Kaldi's readers take off blanks, and run what then begins or ends so.
    names = (uri.strip() for uri in set(kept.rows["uri"].to_pylist()))
    commands = sum("|" in (name[:1], name[-1:]) for name in names) if form == "kaldi" else 0
    if commands:
        raise UsageError(
            "EXPORT_NEEDS_CUT",
            f"the names of {commands} recordings begin or end with |, and whoever reads {form} folders would run them "
            "as commands; add --audio cut",
        )


def _labels(kept: Kept, places: list[int], files: list[str | None]) -> pa.Table:
    """The exported rows as one flat table, which every export has."""
    rows = kept.rows.take(pa.array(places, pa.int64()))
    soft = rows["soft_label"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    soft = soft.reshape(rows.num_rows, len(kept.classes))
    plain = ["uri", "start_s", "end_s", "split", "label", "weight", "confidence"]
    said = ["arousal", "valence", "dominance", "speaker", "feed"]
    return pa.table(
        {
            "key": pa.array([key.hex() for key in rows["segment_id"].to_pylist()]),
            "audio": pa.array(files, pa.string()),
            **{name: rows[name] for name in plain},
            **{f"soft_{name}": pa.array(soft[:, place]) for place, name in enumerate(kept.classes)},
            **{name: rows[name] for name in said},
        }
    )
