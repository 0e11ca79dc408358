"""Segments of a training set and their audio: in the order of their recordings, cut by what labelled them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.audio.child import ChildDecoder
from serpipe.audio.decode import Channels
from serpipe.audio.source import local_copy
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE
from serpipe.pseudolabel.arrays import floats, places, words
from serpipe.pseudolabel.export.audio import pieces
from serpipe.store.reading import Store

SEGMENT = ("segment_id", "recording_id", "channel", "start_s", "end_s")
"""Columns that say where the audio of a row lies."""

LONGEST_S = 15.0
"""Seconds of a segment that are heard in training."""

_FILE = ("uri", "size", "etag", "channels")


@dataclass(frozen=True, slots=True)
class _Stretch:
    channel: int
    first: int
    last: int


def located(store: Store, rows: pa.Table) -> pa.Table:
    """Rows whose recording is known to its end and lies there still, one recording after the other and each in time.

    A recording is then decoded about once where neighbours are cut together. Its id is a hash, so neighbouring ones
    come from anywhere in the archive.

    Args:
        store: the store.
        rows: the columns of `SEGMENT` and any others.

    Returns:
        The rows with `uri`, `size`, `etag` of their files and `file_channels`.
    """
    versions = store.recordings()
    place = places(rows["recording_id"], versions["recording_id"])
    known = pc.is_valid(place)
    rows, place = rows.filter(known), place.filter(known)
    for name in _FILE:
        column = versions[name].take(place)
        rows = rows.append_column("file_channels" if name == "channels" else name, column)
    high, low = words(rows["recording_id"])
    return rows.take(pa.array(np.lexsort((rows["channel"].to_numpy(), floats(rows["start_s"]), low, high))))


def digest(parts: Sequence[pa.Table]) -> str:
    """Hash of what is learnt from rows: which segments, what they are said to be, and how much they weigh.

    Args:
        parts: with the columns `segment_id`, `soft` and `weight`.
    """
    found = hashlib.sha256()
    for part in parts:
        soft = part["soft"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for values in (*words(part["segment_id"]), soft, part["weight"].to_numpy()):
            found.update(f"{values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def cut(rows: pa.Table, channels: Channels) -> pa.Table:
    """Segments with their audio; what will not be read later either is left out.

    Args:
        rows: as `located` gives them, or a part of that.
        channels: how the channels of the recordings were treated when they were labelled.

    Returns:
        `soft`, `weight` and `waveform`, float32 at 16 kHz, of at most `LONGEST_S`.

    Raises:
        AudioError: what may pass: a recording cannot be reached now.
    """
    wanted = rows.select(["recording_id", "uri", "size", "etag", "channel", "start_s", "end_s"]).to_pylist()
    waveforms: list[NDArray[np.float32]] = []
    kept: list[int] = []
    with ChildDecoder() as decoder:
        for _, group in groupby(enumerate(wanted), key=lambda one: one[1]["recording_id"]):
            mine = list(group)
            row = mine[0][1]
            waiting = deque((place, _stretch(one)) for place, one in mine)
            try:
                with local_copy(row["uri"], size=row["size"], etag=row["etag"]) as path:
                    for place, _, samples in pieces(decoder.decode(path, channels), waiting):
                        waveforms.append(samples)
                        kept.append(place)
            except AudioError as error:
                if error.transient and error.code != "RECORDING_CHANGED":
                    raise
    table = rows.select(["soft", "weight"]).take(pa.array(kept, pa.int64()))
    return table.append_column("waveform", pa.array(waveforms, pa.list_(pa.float32())))


def _stretch(row: dict[str, float]) -> _Stretch:
    first, last = round(row["start_s"] * SAMPLE_RATE), round(row["end_s"] * SAMPLE_RATE)
    return _Stretch(int(row["channel"]), first, min(last, first + round(LONGEST_S * SAMPLE_RATE)))
