"""A run without Ray: the same planner, stages, commits and closing, one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import serpipe
from serpipe import plan
from serpipe.audio import recording
from serpipe.audio.stage import audio_fingerprint
from serpipe.models.registry import resolve
from serpipe.store import closing, commit, plans, runs, version
from serpipe.store.rows import RunFacts, commit_of
from serpipe.store.storage import Storage
from serpipe.testing import write_speech

SEGMENTATION = "window:2/2"

NEVER = 1 << 30
"""No run makes so many changes."""


def short_units(patch: pytest.MonkeyPatch) -> None:
    """Units of four seconds, so that seconds of audio give several of them."""
    patch.setattr(recording, "_UNIT", 4 * 16_000)


def write_archive(folder: Path) -> None:
    """Recordings of one unit and of several, one silent in the middle, one too short to label, one broken."""
    write_speech(folder / "long.wav", seconds=9.0, seed=1)
    write_speech(folder / "other.wav", seconds=5.5, seed=2)
    write_speech(folder / "short.wav", seconds=1.5, seed=3)
    write_speech(folder / "tiny.wav", seconds=0.01, seed=4)
    half, rate = soundfile.read(folder / "other.wav", dtype="float32")
    soundfile.write(folder / "silent.wav", np.concatenate([half[: 4 * rate], np.zeros(3 * rate, np.float32)]), rate)
    (folder / "broken.wav").write_bytes(b"RIFF")


class Killed(BaseException):
    """No handler of the program's own may catch the end of its process."""


class Mortal(Storage):
    """Dies at its nth change: before it, or when the bytes are written but not yet under their name."""

    def __init__(self, root: str, at: int, *, torn: bool = False) -> None:
        super().__init__(root)
        self._left, self._torn = at, torn
        self._lock = Lock()
        self.changes: list[str] = []

    def _change(self, name: str) -> bool:
        # A dead process changes nothing more, in none of its threads.
        with self._lock:
            self.changes.append(name)
            self._left -= 1
            if self._left < -1 or (self._left == -1 and not self._torn):
                raise Killed(name)
            return self._left == -1

    def put(self, name: str, data: bytes) -> None:
        if self._change(name):
            self._beside(self.path(name), data)
            raise Killed(name)
        super().put(name, data)

    def delete(self, name: str) -> None:
        if self.exists(name) and self._change(name):
            raise Killed(name)
        super().delete(name)


class Bench:
    """Labels one archive into any number of stores.

    Args:
        folder: the archive.
        models: their names.
        embeddings: as of `serpipe.Predict`.
    """

    def __init__(self, folder: Path, models: tuple[str, ...], *, embeddings: str = "utterance") -> None:
        self.recordings = serpipe.read_manifest(str(folder))
        references = [resolve(model) for model in models]
        self.models = {model.name: model.fp for model in references}
        self.audio = audio_fingerprint(SEGMENTATION, "mix")
        self._decode = serpipe.Decode(segmentation=SEGMENTATION, speech=False, pack_seconds=4.0, models=self.models)
        self._predict = serpipe.Predict(references, embeddings=embeddings, threads=1)
        self._labelled: dict[str, list[pa.Table]] = {}

    def facts(self, run: str) -> RunFacts:
        return RunFacts(run_id=run, audio=self.audio, models=self.models)

    def packs(self, rows: pa.Table) -> list[pa.Table]:
        """Labelled packs; the same work is done once, for it is the stores that are tested."""
        key = str(rows.drop_columns(["work_s"]).to_pylist() if "work_s" in rows.column_names else rows.to_pylist())
        if key not in self._labelled:
            self._labelled[key] = [self._predict(pack) for pack in self._decode(rows)]
        return self._labelled[key]

    def commits(self, run: str, rows: pa.Table) -> Iterator[commit.Commit]:
        """Two packs a commit."""
        packs = self.packs(rows)
        for start in range(0, len(packs), 2):
            yield commit_of(packs[start : start + 2], self.facts(run))

    def run(self, storage: Storage) -> int:
        """What `serpipe.label` does in a store; the recordings it had to do."""
        version.check(storage)
        closing.close_interrupted(storage)
        run = runs.new_run_id()
        wanted = {"audio": self.audio, "models": self.models}
        todo = plan.make_plan(storage, run, [lambda: self.recordings], **wanted, by_length=False)
        if not todo.left:
            return 0
        record = runs.Run(run_id=run, started=runs.now(), **wanted)
        runs.save(storage, record)
        for ready in self.commits(run, pa.concat_tables(plans.groups(storage, run))):
            commit.write(storage, ready)
        runs.finish(storage, record)
        return todo.left
