"""A small real store with a generation, for the tests of exports: six voices and the samples that were labelled."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

import serpipe
from serpipe.pack import rows_of, samples_of
from serpipe.pseudolabel import generation
from serpipe.pseudolabel.export.run import Audio, Exported, export
from serpipe.pseudolabel.recipe import Agree, Balance, Budget, Caps, Export, Quality, Recipe, Select, Split
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.bench import SEGMENTATION, Bench

TAINTED = "CC-BY-NC-SA-4.0"
"""Licence of the teacher."""

KEEP_ALL = Recipe(
    quality=Quality(min_s=0.1, snr_db=-100, clipping=1, speech=0),
    agree=Agree(abstain=1),
    select=Select(margin=0, low=0, high=0, floor=0),
    balance=Balance(alpha=0, neutral_share=1),
    caps=Caps(per_speaker=0, feed_share=1),
    budget=Budget(first=1),
    split=Split(dev=0.4),
    export=Export(format="kaldi"),
)

VOICES = ("anna", "Bo-1", "Bo", "Çelik Ö.", "dee", "")
"""Speakers of the recordings; the last one has none."""


@dataclass(frozen=True, slots=True)
class World:
    """A store and what its segments truly hold.

    Attributes:
        root: of the store.
        folder: where exports may go.
        samples: float32 of each kept segment, by its key, as they were labelled.
        rows: the generation's kept rows.
        record: of the generation.
    """

    root: str
    folder: Path
    samples: dict[str, NDArray[np.float32]]
    rows: dict[str, dict[str, Any]]
    record: dict[str, Any]

    def export(self, form: str, audio: Audio | None = None, **options: Any) -> tuple[Path, Exported]:
        """Export once, and give the same folder to every test that asks."""
        place = self.folder / f"{form}-{audio}"
        if not place.exists():
            _MADE[place] = export(self.root, 1, form, str(place), audio=audio, **options)
        return place, _MADE[place]

    def of(self, split: str) -> dict[str, dict[str, Any]]:
        """Rows of one split."""
        return {key: row for key, row in self.rows.items() if row["split"] == split}


_MADE: dict[Path, Exported] = {}
_WORLDS: list[World] = []


def shared(factory: pytest.TempPathFactory) -> World:
    """One world for all tests; whoever changes it puts it back."""
    if not _WORLDS:
        _WORLDS.append(make(factory.mktemp("export")))
    return _WORLDS[0]


def make(folder: Path) -> World:
    """Six recordings, one of them at another rate, labelled by the model that ships, all of it kept."""
    for number, name in enumerate(("a.wav", "b.wav", "c.wav", "d.flac", "e e.wav", "f.wav")):
        rate = 22_050 if name == "c.wav" else 16_000
        write_speech(folder / "archive" / name, seconds=2.0 + number % 3, seed=number, sample_rate=rate)
    manifest = folder / "archive.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "speaker", "licence", "text", "language"])
        for place, voice in zip(sorted((folder / "archive").iterdir()), VOICES, strict=True):
            licence = "CC-BY-4.0" if voice else ""
            writer.writerow([place, voice, licence, f"words of {voice}", "en"])
    root = str(folder / "store")
    bench = Bench(manifest, ("embedded",))
    bench.run(Storage(root))
    # The passport of a model that forbids commercial use.
    passport = {"licence": TAINTED, "weights_sha256": "0" * 64}
    Storage(root).put(f"passports/embedded-{bench.models['embedded']}-0.json", json.dumps(passport).encode())
    record = generation.make(root, KEEP_ALL)
    rows = {row["segment_id"].hex(): row for row in generation.rows(Storage(root), 1, kept=True).to_pylist()}
    return World(root, folder, heard(bench.recordings), rows, record)


def heard(recordings: pa.Table) -> dict[str, NDArray[np.float32]]:
    """The samples that a decoding stage hands to the models, by segment."""
    found = {}
    for pack in serpipe.Decode(segmentation=SEGMENTATION, speech=False)(recordings):
        for row in rows_of(pack, "segments").to_pylist():
            found[row["segment_id"].hex()] = samples_of(pack)[row["offset"] : row["offset"] + row["length"]].copy()
    return found
