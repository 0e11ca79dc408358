"""Gathering units into packs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.audio.recording import Unit
from serpipe.models.contract import SAMPLE_RATE
from serpipe.pack import MOST_BYTES, PACK, binary


class PackBuilder:
    """Gathers units until a pack is full.

    Args:
        seconds: audio after which a pack is closed; a unit is never split.
    """

    def __init__(self, seconds: float) -> None:
        self._budget = min(int(seconds * SAMPLE_RATE), MOST_BYTES // 4)
        self._clear()

    def _clear(self) -> None:
        self._audio: list[NDArray[np.float32]] = []
        self._samples = 0
        self._rows: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("units", "segments", "recordings", "failures")
        }

    def add_unit(
        self, row: dict[str, Any], unit: Unit | None = None, segments: list[dict[str, Any]] | None = None
    ) -> None:
        """Append a unit and, where it has any, its audio and segments (without `unit` and `offset`)."""
        place = len(self._rows["units"])
        self._rows["units"].append(row)
        if unit is None or not segments:
            return
        for clip, segment in zip(unit.clips, segments, strict=True):
            segment |= {"unit": place, "offset": self._samples + clip.offset, "length": clip.length}
        self._rows["segments"].extend(segments)
        self._audio.extend(unit.audio)
        # The pack's from here on: whoever still holds the unit would hold its audio a second time.
        unit.audio.clear()
        self._samples += unit.samples

    def add_recording(self, row: dict[str, Any]) -> None:
        """Append a recording that decoded to its end."""
        self._rows["recordings"].append(row)

    def add_failure(self, row: dict[str, Any]) -> None:
        """Append something that failed before any model."""
        self._rows["failures"].append(row)

    @property
    def full(self) -> bool:
        """Whether the pack should travel now."""
        return self._samples >= self._budget

    def would_burst(self, unit: Unit) -> bool:
        """Whether a unit's audio would make the pack larger than any may be."""
        return self._samples > 0 and (self._samples + unit.samples) * 4 > MOST_BYTES

    def flush(self) -> Iterator[pa.Table]:
        """The pack, if there is anything in it; the builder is empty afterwards."""
        if not any(self._rows.values()):
            return
        # Arrow's allocator gives large pieces back to the system; malloc keeps a few for ever.
        audio = np.frombuffer(pa.allocate_buffer(self._samples * 4), np.float32)
        filled = 0
        while self._audio:
            # Each piece is let go as soon as it is copied, so that a pack is in memory once, not twice.
            piece = self._audio.pop(0)
            audio[filled : filled + len(piece)] = piece
            filled += len(piece)
            del piece
        rows = self._rows
        self._clear()
        identity = hashlib.blake2b(digest_size=12)
        for row in rows["units"]:
            identity.update(row["recording_id"] + row["unit"].to_bytes(4, "little"))
        columns = {
            "pack_id": pa.array([identity.hexdigest()]),
            "audio": binary(audio),
            **{name: pa.array([rows[name]], PACK.field(name).type) for name in rows},
        }
        yield pa.Table.from_pydict(columns, schema=PACK)
