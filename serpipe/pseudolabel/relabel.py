"""A student's predictions from stored embeddings: no audio is read, and the store's own commits hold them.

Each commit of the backbone becomes one of the student, with the units it settles and the failures it logs, so that the
ledger, `serpipe.open` and resuming know no difference to a labelled archive.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe import ids
from serpipe.errors import ModelError, StoreError, UsageError
from serpipe.models import probe
from serpipe.models.contract import Outputs
from serpipe.models.passport import Passport, versions
from serpipe.models.probe_head import Head, answer, read_head
from serpipe.models.registry import ModelRef
from serpipe.models.results import results
from serpipe.pseudolabel import student as students
from serpipe.store import closing, commit, layout, lease, ledger, parquet, runs, schemas
from serpipe.store.storage import Storage

_HEARD = 1000
"""Stored segments of which a head must tell some apart before it labels anything."""

_KEYS = ["segment_id", "recording_id", "unit", "channel", "start_s", "end_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelled:
    """What a relabelling did.

    Attributes:
        model: the student's name in the store.
        fp: its model fingerprint.
        segments: predictions it wrote.
        done_before: units that needed nothing.
        elapsed_s: seconds.
    """

    model: str
    fp: str
    segments: int
    done_before: int
    elapsed_s: float


def relabel(store: str, student: str, *, name: str) -> Relabelled:
    """Commit a student's predictions for every segment whose embedding is stored.

    Args:
        store: directory or fsspec URL.
        student: the student's folder.
        name: what the student is called in the store.

    Raises:
        UsageError: `RELABEL_NO_EMBEDDINGS`, the store has none of the student's backbone, or not for all it labelled.
        ModelError: the folder holds no student, or its head is damaged or deaf.
        StoreError: the store is held by another run.
    """
    began = time.monotonic()
    folder = students.localised(student)
    config = probe.read_config(folder)
    job = _Job(
        storage=Storage(store),
        model=students.at(student, name),
        head=read_head(folder, model=name),
        backbone=config.backbone,
    )
    theirs = job.entries_of(config.backbone.model, config.backbone.fp)
    _refuse_missing(job, theirs)
    _register(job, student)
    done = [job.one_audio(audio) for audio in sorted(theirs["audio"].unique().to_pylist())]
    return Relabelled(
        model=name,
        fp=job.model.fp,
        segments=sum(segments for segments, _ in done),
        done_before=sum(before for _, before in done),
        elapsed_s=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    storage: Storage
    model: ModelRef
    head: Head
    backbone: probe.Backbone

    def entries_of(self, model: str, fp: str) -> pa.Table:
        entries = ledger.load(self.storage)
        return entries.filter(pc.and_(pc.equal(entries["model"], model), pc.equal(entries["fp"], fp)))

    def one_audio(self, audio: str) -> tuple[int, int]:
        """Settle what is left of one audio fingerprint, as a run of its own; predictions written, units done before."""
        storage, name = self.storage, self.model.name
        run_id = runs.new_run_id()
        with lease.Lease(storage, run_id):
            closing.close_interrupted(storage)
            theirs = self.entries_of(self.backbone.model, self.backbone.fp)
            theirs = theirs.filter(pc.equal(theirs["audio"], audio))
            mine = self.entries_of(name, self.model.fp)
            left = _left(theirs, mine)
            if not left.num_rows:
                return 0, theirs.num_rows
            record = runs.Run(
                run_id=run_id,
                started=runs.now(),
                manifest=storage.shown,
                audio=audio,
                models={name: self.model.fp},
                asked={"relabel": name, "backbone": self.backbone.model},
            )
            runs.save(storage, record)
            written = 0
            passport = self.passport(left)
            for theirs_name in sorted(left["commit"].unique().to_pylist()):
                ready = self.commit_of(run_id, audio, theirs_name, left, passport)
                commit.write(storage, ready, guard=lambda: lease.check(storage, run_id))
                written += ready.models[0].predictions.num_rows
            runs.finish(storage, record, result={"predictions": written})
            return written, theirs.num_rows - left.num_rows

    def commit_of(self, run_id: str, audio: str, theirs: str, left: pa.Table, passport: str) -> commit.Commit:
        """The student's counterpart of one commit of the backbone."""
        name, units = layout.commit_name(run_id, [theirs]), left.filter(pc.equal(left["commit"], theirs))
        file = layout.quarantine(theirs, self.backbone.model)
        failures = parquet.read(self.storage, [file] if self.storage.exists(file) else [], schemas.QUARANTINE)
        facts = {"model": self.model.name, "fp": self.model.fp}
        part = commit.ModelRows(
            model=self.model.name,
            fp=self.model.fp,
            predictions=_with(self.predictions(theirs, units), {"run_id": run_id}),
            embeddings=None,
            frames=None,
            width=self.model.spec.embedding_width,
            passport=passport,
            quarantine=_with(_of_units(failures, units), {**facts, "run_id": run_id}),
            settled=_with(units, {**facts, "commit": name}),
        )
        return commit.Commit(
            name=name,
            audio=audio,
            recordings=schemas.RECORDINGS.empty_table(),
            segments=schemas.SEGMENTS.empty_table(),
            quarantine=schemas.QUARANTINE.empty_table(),
            models=[part],
        )

    def predictions(self, theirs: str, units: pa.Table) -> pa.Table:
        """The student's rows for the segments of one commit."""
        if not pc.sum(units["rows"]).as_py():
            return schemas.PREDICTIONS.empty_table()
        file = layout.predictions(self.backbone.model, self.backbone.fp, theirs)
        keys = _of_units(parquet.read(self.storage, [file], schemas.PREDICTIONS, _KEYS), units)
        embeddings = self._embeddings(theirs, keys["segment_id"])
        logits, scores = answer(self.head, embeddings)
        rows = results(
            self.model.spec, range(keys.num_rows), Outputs(logits, scores, logits[:, :0], None), embeddings=False
        )
        for field in rows.type:
            if field.name in schemas.PREDICTIONS.names:
                keys = keys.append_column(field.name, rows.field(field.name))
        return keys.append_column("run_id", pa.nulls(keys.num_rows, pa.string()))

    def passport(self, left: pa.Table) -> str:
        """Hash of the student's passport; before it is written the head must tell some stored segments apart."""
        name = layout.passport(self.model.name, self.model.fp, _libraries())
        if not self.storage.exists(name):
            spec = self.model.spec
            passport = Passport(
                model=spec.name,
                family=self.model.family,
                hub_id=None,
                revision=None,
                licence=spec.licence,
                location=self.model.location,
                labels=spec.labels,
                dtype=self.model.dtype,
                weights_sha256=self.model.weights_sha256,
                adapter_epoch=spec.adapter_epoch,
                fp=self.model.fp,
                checks=self._listen(left),
                versions=versions(),
            )
            self.storage.put(name, passport.text().encode())
        return hashlib.sha256(self.storage.get(name)).hexdigest()

    def _listen(self, left: pa.Table) -> dict[str, float]:
        some = left.filter(pc.greater(left["rows"], 0)).slice(0, 1)
        if not some.num_rows:
            return {}
        vectors = self._vectors(some["commit"][0].as_py())
        logits, scores = answer(self.head, _values(vectors["embedding"].slice(0, _HEARD)))
        # Not by the scores: one that is sure of all of them rounds them to the same.
        if len(logits) > 1 and not np.ptp(logits, axis=0).any():
            raise ModelError(
                "MODEL_DEAF", f"{self.model.name} gives the same answer to every embedding; train it again"
            )
        return {"change": float(np.ptp(scores, axis=0).max())}

    def _vectors(self, theirs: str) -> pa.Table:
        file = layout.embeddings(self.backbone.model, self.backbone.fp, theirs)
        schema = schemas.embeddings(self.backbone.embedding_width)
        return parquet.read(self.storage, [file], schema, ["segment_id", "embedding"]).combine_chunks()

    def _embeddings(self, theirs: str, segments: pa.ChunkedArray) -> NDArray[np.float16]:
        vectors = self._vectors(theirs)
        place = pc.index_in(_plain(segments), value_set=_plain(vectors["segment_id"]))
        if place.null_count:
            raise StoreError(
                "STORE_EMBEDDINGS_LACKING",
                f"commit {theirs} of {self.storage.root} keeps no embedding of {place.null_count} of its segments; "
                f"label with {self.model.name} from audio",
            )
        values, rows = _values(vectors["embedding"]), place.to_numpy()
        # A commit's files hold its segments in one order; another one costs a copy.
        return values if np.array_equal(rows, np.arange(len(values))) else np.asarray(values[rows])


def _register(job: _Job, student: str) -> None:
    """Remember that this is a student, under whatever name it labels."""
    place = Storage(student)
    try:
        generation = json.loads(place.get(students.TRAINING)).get("generation")
    except (FileNotFoundError, ValueError):
        generation = None
    inside = place.root.startswith(f"{job.storage.root}/students/")
    students.register(job.storage, job.model.weights_sha256, generation, here=inside)


def _left(theirs: pa.Table, mine: pa.Table) -> pa.Table:
    """The backbone's entries whose units the student has not settled."""
    keys = ["recording_id", "unit", "audio"]
    left = theirs.join(mine.select(keys), keys=keys, join_type="left anti")
    return left.select(schemas.LEDGER.names).cast(schemas.LEDGER)


def _refuse_missing(job: _Job, theirs: pa.Table) -> None:
    backbone, name, root = job.backbone, job.model.name, job.storage.root
    if not theirs.num_rows:
        raise UsageError(
            "RELABEL_NO_EMBEDDINGS",
            f"{root} holds nothing of {backbone.model} with fingerprint {backbone.fp}, which {name} hears; "
            "label with that model first",
        )
    wanted = set(theirs.filter(pc.greater(theirs["rows"], 0))["commit"].to_pylist())
    folder = layout.embeddings(backbone.model, backbone.fp, "").removesuffix(".parquet")
    there = {layout.stem(file) for file in job.storage.list(folder)}
    if wanted - there:
        raise UsageError(
            "RELABEL_NO_EMBEDDINGS",
            f"{len(wanted - there)} of {len(wanted)} commits of {backbone.model} in {root} keep no embeddings; "
            f"label again with --embeddings utterance into a new store, or label with {name} from audio",
        )


def _libraries() -> str:
    return ids.fingerprint(*sorted(f"{name}={version}" for name, version in versions().items()))


def _values(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """Stored vectors as float16 (n, width)."""
    values = column.combine_chunks()
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))


def _of_units(rows: pa.Table, units: pa.Table) -> pa.Table:
    """The rows of these units; a commit has others where the student labelled a part of it from audio."""
    recordings = _plain(units["recording_id"])
    place = pc.index_in(_plain(rows["recording_id"]), value_set=pc.unique(recordings))
    number = pc.index_in(recordings, value_set=pc.unique(recordings)).to_numpy()
    # A recording has far fewer than 2^31 units.
    wanted = (number.astype(np.int64) << 32) + units["unit"].to_numpy()
    found = (pc.fill_null(place, -1).to_numpy().astype(np.int64) << 32) + pc.fill_null(rows["unit"], -1).to_numpy()
    return rows.filter(pa.array(np.isin(found, wanted)))


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Ids as variable binary, which is what lookups take."""
    plain = values.cast(pa.binary())
    return plain.combine_chunks() if isinstance(plain, pa.ChunkedArray) else plain


def _with(table: pa.Table, values: dict[str, str]) -> pa.Table:
    for name, value in values.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.repeat(pa.scalar(value), table.num_rows))
    return table
