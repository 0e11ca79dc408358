"""What the processes of a rehearsal are told, and what they tell."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.registry import ModelRef
from serpipe.pack import rows_of

Phase = Literal["cold", "rushing", "calm"]
"""A model's first piece; later ones, while decoders do not wait for models yet, and after that."""

Batch = tuple[str, pa.Table]
"""Recordings of one kind, and what that kind is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The model processes of one pool.

    Attributes:
        models: what each of them hosts.
        actors: how many they are.
        threads: of each of them.
    """

    models: tuple[ModelRef, ...]
    actors: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """The workers of a rehearsal.

    Attributes:
        decoders: decode processes.
        decode: keyword arguments of `serpipe.audio.stage.Decode`.
        crews: model processes, in the order a pack passes them.
        gpu: whether each model process has a GPU of its own.
        embeddings: `utterance`, `frame` or `none`.
        audio: audio fingerprint.
        bundle_bytes: labelled rows that make a commit.
    """

    decoders: int
    decode: Mapping[str, Any]
    crews: tuple[Crew, ...]
    gpu: bool
    embeddings: str
    audio: str
    bundle_bytes: int

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Of all pools."""
        return tuple(model for crew in self.crews for model in crew.models)


@dataclass(slots=True)
class Decoded:
    """One batch that was decoded.

    Attributes:
        kind: of its recordings.
        audio_s: seconds of them.
        busy_s: seconds of work.
        labelled_s: seconds of all their segments.
        segments: number of them.
        packs: that it came in.
        ended: recordings brought to an end.
        failed: of these, those that a run puts in quarantine, whole or in part, unless a network fails on them.
    """

    kind: str
    audio_s: float = 0.0
    busy_s: float = 0.0
    labelled_s: float = 0.0
    segments: int = 0
    packs: int = 0
    ended: int = 0
    failed: int = 0


@dataclass(slots=True)
class Pace:
    """How fast a model was.

    Attributes:
        heard_s: seconds of segments.
        busy_s: seconds of work.
        cpu_s: core-seconds of it.
    """

    heard_s: float = 0.0
    busy_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, other: Pace) -> None:
        """Count another one in."""
        self.heard_s += other.heard_s
        self.busy_s += other.busy_s
        self.cpu_s += other.cpu_s


@dataclass(slots=True)
class Labelled:
    """What a model process did.

    Attributes:
        paces: by model and phase.
        written_s: seconds of segments that were written, in one commit.
        sink_cpu_s: core-seconds of writing them.
        row_bytes: that they took in memory.
        bytes: that they left in each table.
        commit_bytes: of these, what each table has for any commit.
    """

    paces: dict[tuple[str, Phase], Pace] = field(default_factory=lambda: defaultdict(Pace))
    written_s: float = 0.0
    sink_cpu_s: float = 0.0
    row_bytes: int = 0
    bytes: dict[str, float] = field(default_factory=dict)
    commit_bytes: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Clock:
    """What all processes agree on; monotonic seconds are those of the machine.

    Attributes:
        go: set when every process is ready.
        rush_until: until when decoders do not wait for models.
        until: when no new work is begun.
    """

    go: Any
    rush_until: Any
    until: Any

    @property
    def over(self) -> bool:
        """Whether no new work is begun."""
        return time.monotonic() >= float(self.until.value)

    @property
    def rushing(self) -> bool:
        """Whether decoders do not wait for models yet."""
        return time.monotonic() < float(self.rush_until.value)

    @property
    def phase(self) -> Phase:
        """What a model that is warm is in."""
        return "rushing" if self.rushing else "calm"


def heard_s(pack: pa.Table) -> float:
    """Seconds of a pack's segments."""
    return float(rows_of(pack, "segments")["length"].to_numpy().sum()) / SAMPLE_RATE
