"""From what the processes of a rehearsal tell to what a second of audio takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serpipe.forecast import Range, Stage, Written
from serpipe.rehearsal.company import Decoded, Labelled, Pace, Phase

LEAST_S = 60.0
"""Seconds of segments below which a pace says little."""

_BOOTSTRAPS = 400


def stage_of(labelled: Sequence[Labelled], model: str, heard: float, *, waited: bool, where: str) -> Stage:
    """What a model takes for a second of audio.

    Args:
        labelled: what the processes did.
        model: its name.
        heard: seconds of segments in a second of audio.
        waited: whether decoders had to wait for the models. A run's decoders then wait for nearly all of it, so what
            was measured beside decoders at full speed is left out.
        where: `cpu` or `cuda`.
    """
    cold, warm, calm = (_together(labelled, model, phases) for phases in (("cold",), ("rushing", "calm"), ("calm",)))
    pace = calm if waited and calm.heard_s >= LEAST_S else warm if warm.heard_s else cold
    known = max(pace.heard_s, 1e-9)
    return Stage(busy_s=pace.busy_s / known * heard, cpu_s=pace.cpu_s / known * heard, where=where)


def _together(labelled: Sequence[Labelled], model: str, phases: Sequence[Phase]) -> Pace:
    total = Pace()
    for each in labelled:
        for phase in phases:
            total.add(each.paces.get((model, phase), Pace()))
    return total


def mixed(decoded: Sequence[Decoded], shares: Mapping[str, float], name: str) -> float:
    """So much of something for a second of audio: each kind by its share of all, not of what was rehearsed.

    Examples:
        >>> wav, mp3 = Decoded("wav", audio_s=90.0, segments=9), Decoded("mp3", audio_s=10.0, segments=3)
        >>> mixed([wav, mp3], {"wav": 1.0, "mp3": 1.0}, "segments")
        0.2
    """
    sums: dict[str, tuple[float, float]] = {}
    for batch in decoded:
        value, audio_s = sums.get(batch.kind, (0.0, 0.0))
        sums[batch.kind] = (value + float(getattr(batch, name)), audio_s + batch.audio_s)
    known = {kind: value / audio_s for kind, (value, audio_s) in sums.items() if audio_s}
    weight = sum(shares.get(kind, 0.0) for kind in known)
    return sum(rate * shares.get(kind, 0.0) for kind, rate in known.items()) / weight if weight else 0.0


def segments_of(decoded: Sequence[Decoded], shares: Mapping[str, float]) -> Range:
    """Segments of a second of audio, and how far another sample could be from it."""
    value = mixed(decoded, shares, "segments")
    random = np.random.default_rng(0)
    drawn = [
        mixed([decoded[i] for i in random.integers(0, len(decoded), len(decoded))], shares, "segments")
        for _ in range(_BOOTSTRAPS if len(decoded) > 1 else 0)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return Range(value, min(float(low), value), max(float(high), value))


def written(labelled: Sequence[Labelled], heard: float, *, bundle_bytes: int) -> Written:
    """What writing the rows of a second of audio takes, and leaves.

    Args:
        labelled: what the processes did.
        heard: seconds of segments in a second of audio.
        bundle_bytes: rows that make a commit.
    """
    some = [each for each in labelled if each.written_s]
    per = heard / max(sum(each.written_s for each in some), 1e-9)
    once = {table: sum(each.commit_bytes.get(table, 0.0) for each in some) for table in _tables(some)}
    return Written(
        cpu_s=sum(each.sink_cpu_s for each in some) * per,
        commits=sum(each.row_bytes for each in some) * per / max(bundle_bytes, 1),
        bytes={
            table: sum(each.bytes.get(table, 0.0) - each.commit_bytes.get(table, 0.0) for each in some) * per
            for table in once
        },
        commit_bytes={table: count / max(len(some), 1) for table, count in once.items()},
    )


def _tables(labelled: Sequence[Labelled]) -> list[str]:
    return sorted({table for each in labelled for table in each.bytes})
