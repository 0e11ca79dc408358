"""What should be in a store: a few lines over dictionaries that know nothing of files, commits or runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from serpipe import ids
from tests.faults.world import SECOND, Recording, World, numbers, refuses

Key = tuple[bytes, int, str, str, str]
"""Recording, unit, model, model fingerprint, audio fingerprint."""


@dataclass(frozen=True, slots=True)
class Settled:
    """How a unit ended.

    Attributes:
        status: labelled, empty, failed.
        final: whether it is the recording's last.
        starts: of its segments, seconds.
        uri: of its recording.
    """

    status: str
    final: bool
    starts: tuple[int, ...]
    uri: str


@dataclass(slots=True)
class Expected:
    """The settled units; all tables follow from them."""

    units: dict[Key, Settled] = field(default_factory=dict)

    def copy(self) -> Expected:
        return replace(self, units=dict(self.units))

    def label(self, world: World, *, relabel: bool = False) -> int:
        """What a run adds.

        Returns:
            Recordings it has to do.
        """
        left = 0
        for recording in world.recordings.values():
            todo = [
                (model, fp)
                for model, fp in world.models.items()
                if not self.whole(recording.id, model, fp, world.audio)
                and (relabel or not self._otherwise(recording.id, model, fp, world.audio))
            ]
            left += bool(todo)
            for model, fp in todo:
                for number, settled in enumerate(units_of(recording)):
                    self.units.setdefault((recording.id, number, model, fp, world.audio), settled)
        return left

    def whole(self, recording: bytes, model: str, fp: str, audio: str) -> bool:
        mine = {
            key[1]: value for key, value in self.units.items() if (key[0], *key[2:]) == (recording, model, fp, audio)
        }
        return any(value.final for value in mine.values()) and len(mine) == max(mine) + 1

    def _otherwise(self, recording: bytes, model: str, fp: str, audio: str) -> bool:
        """Whether the same model has labelled it whole with other weights, or other segments."""
        others = {key[3:] for key in self.units if key[0] == recording and key[2] == model} - {(fp, audio)}
        return any(self.whole(recording, model, *other) for other in others)

    def forget(self, keys: Iterable[Key]) -> None:
        for key in list(keys):
            self.units.pop(key, None)

    def failed(self) -> list[Key]:
        """Units that hold something that failed for good."""
        return [key for key, unit in self.units.items() if unit.status == "failed" or any(self._refused(key, unit))]

    def predictions(self) -> dict[tuple[str, str, bytes], list[float]]:
        """Logits by model, fingerprint and segment."""
        return {
            (model, fp, name): numbers(model, fp, name)
            for (recording, _, model, fp, audio), unit in self.units.items()
            for name in segments_of(recording, unit, audio)
            if not refuses(model, name)
        }

    def segments(self) -> set[bytes]:
        return {name for key, unit in self.units.items() for name in segments_of(key[0], unit, key[4])}

    def recordings(self) -> set[bytes]:
        """Those that were decoded to their end."""
        return {key[0] for key, unit in self.units.items() if unit.final and unit.status != "failed"}

    def failing(self) -> set[tuple[Any, ...]]:
        """Recording, segment and model of what failed for good."""
        refused = {
            (key[0], name, key[2], key[3]) for key, unit in self.units.items() for name in self._refused(key, unit)
        }
        return refused | {(key[0], None, None, None) for key, unit in self.units.items() if unit.status == "failed"}

    def _refused(self, key: Key, unit: Settled) -> Iterator[bytes]:
        return (name for name in segments_of(key[0], unit, key[4]) if refuses(key[2], name))


def units_of(recording: Recording) -> list[Settled]:
    """What a run settles of a recording."""
    last = len(recording.units) - 1
    units = [
        Settled(
            "labelled" if count else "empty",
            recording.ends == "well" and number == last,
            tuple(number * 300 + place for place in range(count)),
            recording.uri,
        )
        for number, count in enumerate(recording.units)
    ]
    return units + [Settled("failed", True, (), recording.uri)] * (recording.ends == "failed")


def segments_of(recording: bytes, unit: Settled, audio: str) -> list[bytes]:
    return [ids.segment_id(recording, 0, start * SECOND, (start + 1) * SECOND, audio) for start in unit.starts]
