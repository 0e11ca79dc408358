"""What is measured on: clips as long as utterances are, and checkpoints of full size with random weights."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks import voice
from serpipe.models.contract import SAMPLE_RATE
from serpipe.testing import make_checkpoint

SHORTEST_S, LONGEST_S = 1.5, 11.0
"""Of an utterance, in seconds."""

_MEDIAN_S, _SPREAD = 4.0, 0.55


def kept() -> Path:
    """Folder of what takes long to make, kept from one benchmark to the next."""
    return Path(tempfile.gettempdir()) / f"serpipe-benchmark-{os.getuid()}"


Size = Literal["tiny", "full"]


def checkpoint(name: str, size: Size = "full") -> str:
    """A checkpoint with random weights, as `NAME=DIRECTORY`; made at the first time of asking."""
    folder = kept() / ("checkpoints" if size == "full" else f"checkpoints-{size}") / name
    if not (folder / "RANDOM_WEIGHTS").exists():
        # It writes its mark last: a folder without one was left half-way.
        make_checkpoint(name, folder, size=size)
    return f"{name}={folder}"


def lengths(seconds: float, *, seed: int = 0) -> list[float]:
    """Lengths of utterances in seconds: log-normal, cut off at `SHORTEST_S` and `LONGEST_S`, together `seconds`.

    Examples:
        >>> round(sum(lengths(60.0)), 6), len(lengths(60.0))
        (60.0, 13)
    """
    noise = np.random.default_rng(seed)
    drawn: list[float] = []
    while sum(drawn) < seconds:
        drawn.append(float(np.clip(np.exp(noise.normal(np.log(_MEDIAN_S), _SPREAD)), SHORTEST_S, LONGEST_S)))
    scale = seconds / sum(drawn)
    return [length * scale for length in drawn]


def write_clips(folder: Path, seconds: float, *, seed: int = 0) -> None:
    """Write utterances as WAV files of 16 kHz, together `seconds` long."""
    for number, length in enumerate(lengths(seconds, seed=seed)):
        voice.write(folder / f"{seed}-{number:05}.wav", length, rate=SAMPLE_RATE, seed=1000 * seed + number)


EVEN_S = (2.0, 4.0, 5.0, 10.0)
"""Lengths that each divide a pack of `PACK_S`, so that what labels like lengths together has packs of equal length."""

PACK_S = 20.0
"""Seconds of audio of a pack for a large network on a CPU: `LARGE_PACK_S` of the engine, which some machines lack."""

SET_S = PACK_S * len(EVEN_S)
"""A pack of each length: 21 utterances."""


def write_even_clips(folder: Path, seconds: float) -> float:
    """Write utterances of `EVEN_S` as WAV files of 16 kHz, in no order: whole sets of `SET_S`, then a part of one.

    Returns:
        Seconds written: so many, or up to an utterance more.
    """
    drawn = [length for length in EVEN_S for _ in range(round(PACK_S / length))] * ceil(seconds / SET_S)
    np.random.default_rng(0).shuffle(drawn)
    written = 0.0
    for number, length in enumerate(drawn):
        if written < seconds:
            voice.write(folder / f"{number:05}.wav", length, rate=SAMPLE_RATE, seed=number)
            written += length
    return written


def write_manifest(folder: Path) -> Path:
    """Write beside a folder what is in it, and how long: a run cuts its read tasks by that, not by a guess."""
    import soundfile  # Not at the top: a machine that measures models alone has no codec.

    manifest = folder.with_suffix(".jsonl")
    rows = [
        {"audio_filepath": str(path), "duration": soundfile.info(path).duration} for path in sorted(folder.iterdir())
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def podcast(seconds: float = 300.0) -> Path:
    """One Opus file of as many Hz as the voice has; made at the first time of asking."""
    path = kept() / f"podcast-{voice.heard.name}-{seconds:.0f}.opus"
    if not path.exists():
        # Renamed when it is whole: one that was left half-way would be copied for ever.
        unfinished = path.with_stem(f"{path.stem}-unfinished")
        voice.write(unfinished, seconds, rate=voice.heard.rate, seed=0)
        unfinished.rename(path)
    return path


def write_podcasts(folder: Path, count: int, *, seconds: float = 300.0) -> float:
    """Put one Opus file under many names, as a feed of episodes; the seconds of all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shutil.copyfile(podcast(seconds), folder / f"{number:05}.opus")
    return count * seconds
