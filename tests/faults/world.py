"""Archives, models and runs without audio, networks or Ray: what stands between them and a store is the real code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from serpipe import ids, plan
from serpipe.audio.decode import Outcome
from serpipe.audio.packing import PackBuilder
from serpipe.audio.quality import Quality
from serpipe.audio.recording import Unit
from serpipe.audio.segment import Segment
from serpipe.audio.stage import _Job
from serpipe.engine.catalogue import of_shard
from serpipe.errors import AudioError
from serpipe.manifest.schemas import RECORDINGS as CATALOGUE
from serpipe.models.contract import ModelSpec, Outputs
from serpipe.models.results import results
from serpipe.models.stage import MODEL_FAILURE
from serpipe.pack import rows_of
from serpipe.shard import Shard
from serpipe.store import closing, commit, ledger, mend, plans, rewrite, runs, version
from serpipe.store.lease import Lease
from serpipe.store.rows import RunFacts, commit_of
from serpipe.store.storage import Storage

SECOND = 16_000
WIDTH = 4

Ends = Literal["well", "failed", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One version of a file.

    Attributes:
        uri: where.
        version: its etag; another content has another.
        units: number of segments of each unit, a second each.
        ends: decoded to its end, or broken behind its units for good, or for now.
    """

    uri: str
    version: int = 1
    units: tuple[int, ...] = (2,)
    ends: Ends = "well"

    @property
    def id(self) -> bytes:
        return ids.recording_id(self.uri, str(self.version))


@dataclass(slots=True)
class World:
    """What there is to label and with what.

    Attributes:
        recordings: by uri.
        models: name to fingerprint.
        audio: audio fingerprint.
        per_pack: units of a pack.
        per_commit: packs of a commit.
        frames: whether frame embeddings are kept.
    """

    recordings: dict[str, Recording] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=lambda: {"m1": "f1"})
    audio: str = "a1"
    per_pack: int = 2
    per_commit: int = 2
    frames: bool = False

    def add(self, *recordings: Recording) -> World:
        self.recordings |= {recording.uri: recording for recording in recordings}
        return self

    def catalogue(self) -> pa.Table:
        rows = [
            {"recording_id": r.id, "uri": r.uri, "etag": str(r.version), "size": 10, "meta": [], "given": []}
            for r in self.recordings.values()
        ]
        return pa.Table.from_pylist(rows, schema=CATALOGUE)

    def label(self, storage: Storage, *, shard: Shard | None = None, **options: Any) -> plan.Plan:
        """A run, as `serpipe.label` goes about it."""
        version.check(storage)
        run = runs.new_run_id()
        with Lease(storage, run, shard=shard) as lease:
            closing.close_interrupted(storage, shard)
            if shard is None:
                mend.mend(storage)
            todo = plan.make_plan(
                storage,
                run,
                [self.catalogue if shard is None else of_shard(self.catalogue, shard)],
                audio=self.audio,
                models=self.models,
                by_length=False,
                **options,
            )
            if not todo.left:
                return todo
            models = {model: fp for model, fp in self.models.items() if model in todo.models}
            told = "" if shard is None else str(shard)
            record = runs.Run(run_id=run, started=runs.now(), shard=told, audio=self.audio, models=models)
            runs.save(storage, record)
            rows = pa.concat_tables(plans.groups(storage, run))
            for ready in self.commits(RunFacts(run_id=run, audio=self.audio, models=models), rows):
                commit.write(storage, ready, guard=lease.check)
            assert not self.lost(plan.missing(storage, run, audio=self.audio, models=models))
            runs.finish(storage, record)
            if shard is None:
                ledger.compact(storage)
        return todo

    def lost(self, missing: pa.Table) -> list[str]:
        """Recordings that a run should have brought to an end."""
        return [uri for uri in missing["uri"].to_pylist() if self.recordings[uri].ends != "open"]

    def commits(self, facts: RunFacts, rows: pa.Table) -> Iterator[commit.Commit]:
        packs = list(self.packs(facts, rows))
        for start in range(0, len(packs), self.per_commit):
            yield commit_of(packs[start : start + self.per_commit], facts)

    def packs(self, facts: RunFacts, rows: pa.Table) -> Iterator[pa.Table]:
        builder, gathered = PackBuilder(1e9), 0
        for row in rows.to_pylist():
            for final in self._decoded(facts, row, builder):
                gathered += 1
                # The last unit waits: its recording's row travels with it.
                if gathered >= self.per_pack and not final:
                    yield from (labelled(facts, pack, frames=self.frames) for pack in builder.flush())
                    gathered = 0
        yield from (labelled(facts, pack, frames=self.frames) for pack in builder.flush())

    def _decoded(self, facts: RunFacts, row: dict[str, Any], builder: PackBuilder) -> Iterator[bool]:
        recording = self.recordings[row["uri"]]
        assert row["etag"] == str(recording.version)
        job = _Job(row, facts.models, self.audio)
        last = len(recording.units) - 1
        for number, count in enumerate(recording.units):
            unit = Unit(number, 0, final=number == last and recording.ends == "well")
            for place in range(count):
                start = (number * 300 + place) * SECOND
                samples = np.full(SECOND, 0.5, np.float32)
                unit.add(Segment(start, start + SECOND), samples, Quality(0.5, 0.5, 0.0, None, 20.0))
            job.unit(builder, unit)
            if not unit.final:
                yield False
        if recording.ends == "well":
            seconds = (last + 1) * 300.0
            decoding = SimpleNamespace(
                outcome=Outcome(samples=int(seconds * SECOND)),
                header=SimpleNamespace(claimed_s=seconds, container="wav", codec="pcm", sample_rate=16000, channels=1),
            )
            job.end(builder, decoding, {}, 0, in_part=False)  # type: ignore[arg-type]
        else:
            transient = recording.ends == "open"
            job.failed(builder, AudioError("READ_FAILED", "it breaks off here", transient=transient))
        yield True


def labelled(facts: RunFacts, pack: pa.Table, *, frames: bool = False) -> pa.Table:
    """A pack with what each model makes of it."""
    segments, units = rows_of(pack, "segments"), rows_of(pack, "units")
    for model, fp in facts.models.items():
        wanted = [not todo or model in todo for todo in units["todo"].to_pylist()]
        rows = [
            (place, name)
            for place, (name, unit) in enumerate(
                zip(segments["segment_id"].to_pylist(), segments["unit"].to_pylist(), strict=True)
            )
            if wanted[unit]
        ]
        answered = [(place, name) for place, name in rows if not refuses(model, name)]
        failures = [
            {"segment": place, "code": "MODEL_FAILED", "message": "it fails on it"}
            for place, name in rows
            if refuses(model, name)
        ]
        logits = np.array([numbers(model, fp, name) for _, name in answered], np.float32)
        logits = logits.reshape(len(answered), WIDTH)
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        outputs = Outputs(logits, scores, logits, [row[None] for row in logits] if frames else None)
        values = results(spec(model), [place for place, _ in answered], outputs, embeddings=True)
        for name, array in (("results", values), ("failures", pa.array(failures, MODEL_FAILURE))):
            one = pa.ListArray.from_arrays(pa.array([0, len(array)], pa.int32()), array)
            pack = pack.append_column(f"{name}:{model}", one)
    return pack.drop_columns(["audio"])


@contextmanager
def held(storage: Storage) -> Iterator[None]:
    """What every command that changes a store begins with."""
    with Lease(storage, runs.new_run_id()):
        closing.close_interrupted(storage)
        yield


class RunIds:
    """Run ids that are the same whenever a test is: names of commits, and so their order, follow from them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        return f"20300101T000000{self.count:06d}Z-0badcafe"


RUN_IDS = RunIds()


def forget_failed(storage: Storage) -> None:
    """Take out every unit that holds something that failed for good, by the ledger alone."""
    with held(storage):
        entries = ledger.load(storage)
        doomed = pc.or_(pc.equal(entries["status"], "failed"), pc.less(entries["rows"], entries["segments"]))
        rewrite.forget(storage, entries.filter(doomed))


def compact(storage: Storage) -> None:
    """Join the ledger's parts, however few."""
    with held(storage), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "MANY_PARTS", 0)
        ledger.compact(storage)


def refuses(model: str, segment: bytes) -> bool:
    """Whether a model fails on a segment: about one in eight."""
    return hashlib.blake2b(model.encode() + segment).digest()[0] < 32


def numbers(model: str, fp: str, segment: bytes) -> list[float]:
    """What a model makes of a segment."""
    digest = hashlib.blake2b(f"{model}/{fp}".encode() + segment, digest_size=WIDTH).digest()
    return [byte / 64 for byte in digest]


def spec(model: str) -> ModelSpec:
    return ModelSpec(
        name=model,
        hub_id=None,
        revision=None,
        licence="none",
        labels=("neu", "hap", "ang", "sad"),
        taxonomy="iemocap4",
        parameters=0,
        min_seconds=0.1,
        max_seconds=30.0,
        embedding_width=WIDTH,
        frame_rate=None,
        adapter_epoch=1,
    )
