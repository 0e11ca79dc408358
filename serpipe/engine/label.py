"""Label an archive: manifest in, committed Parquet out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from serpipe import ids, plan
from serpipe.audio.child import Limits
from serpipe.audio.decode import Channels
from serpipe.audio.segment import parse_segmentation
from serpipe.audio.stage import audio_fingerprint
from serpipe.engine import catalogue
from serpipe.errors import UsageError
from serpipe.manifest import Manifest, open_manifest
from serpipe.models.certificate import best_dtype
from serpipe.models.passport import issue, versions
from serpipe.models.registry import ModelRef, resolve
from serpipe.pack import ID
from serpipe.store import closing, layout, ledger, parquet, runs, schemas, version
from serpipe.store.lease import Lease
from serpipe.store.rows import RunFacts, quarantine_rows
from serpipe.store.storage import Storage

if TYPE_CHECKING:
    from serpipe.engine.cluster import Cluster

Embeddings = Literal["utterance", "frame", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
        run_id: None where there was nothing to do.
        store: where the tables are.
        recordings: recordings this run had to do.
        done_before: recordings of the manifest that needed nothing.
        failed: recordings of this run that are in quarantine, whole or in part.
        unsettled: of these, those the next run tries again unasked.
        segments: segments this run settled.
        predictions: predictions it wrote, all models together.
        audio_s: seconds of audio in its segments' recordings.
        bad_rows: rows of the manifest that were skipped.
        left_out: files of a folder that are no audio by their ending.
        elapsed_s: seconds, Ray's start included.
    """

    run_id: str | None
    store: str
    recordings: int
    done_before: int
    failed: int = 0
    unsettled: int = 0
    segments: int = 0
    predictions: int = 0
    audio_s: float = 0.0
    bad_rows: int = 0
    left_out: int = 0
    elapsed_s: float = 0.0

    @property
    def failed_share(self) -> float:
        """Recordings in quarantine, of all that this run had to do."""
        return self.failed / self.recordings if self.recordings else 0.0


def label(
    manifest: str,
    store: str,
    *,
    models: Sequence[str] = ("embedded",),
    segmentation: str | None = None,
    channels: Channels | None = None,
    embeddings: Embeddings = "utterance",
    speech: bool = True,
    dtype: str = "float32",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
    skip_bad_rows: bool = False,
    address: str | None = None,
    decoders: int | None = None,
    pools: Sequence[str] = (),
    limits: Limits | None = None,
) -> Result:
    """Label what a manifest names and the store does not hold yet.

    Args:
        manifest: a file, folder or glob; see `serpipe.read_manifest`.
        store: directory or fsspec URL of the store.
        models: names, or `NAME=DIRECTORY` for weights that lie elsewhere.
        segmentation: `given`, `whole`, `window:6/3` or `vad`; by default `given` where the manifest has times,
            else `vad`.
        channels: `mix`, `first` or `split`; by default `split` where the manifest names channels, else `mix`.
        embeddings: `utterance`, `frame` (both kinds) or `none`.
        speech: whether each segment's speech share is measured; `vad` always measures it.
        dtype: number format the models compute in; `auto` takes each model's certificate, or float32 without one.
        format: of the manifest, where it is not recognised.
        columns: the manifest's columns by hand, role to name.
        base: folder that relative uris of the manifest start from.
        skip_bad_rows: put rows that cannot be used in quarantine and go on.
        address: of a Ray cluster; by default the one around, else one on this machine for the length of the run.
        decoders: decode actors; as many as the cluster carries by default.
        pools: `NAME` or `NAME:ACTORS` of models that get a pool of their own.
        limits: what one file may cost.

    Returns:
        Counts. Success means that plan and ledger agree but for what is in quarantine.

    Raises:
        SerpipeError: a request that cannot be carried out, a store that is held, a model that must not run.

    Examples:
        >>> import serpipe, tempfile
        >>> from serpipe.testing import write_speech
        >>> archive, store = tempfile.mkdtemp(), tempfile.mkdtemp()
        >>> _ = write_speech(archive + "/a.wav", seconds=8.0)
        >>> result = serpipe.label(archive, store, segmentation="window:4/4")
        >>> result.predictions, serpipe.label(archive, store, segmentation="window:4/4").run_id
        (2, None)
    """
    began = time.monotonic()
    references = _resolved(models, dtype)
    fingerprints = {model.name: model.fp for model in references}
    found = open_manifest(manifest, format=format, columns=columns, base=base)
    storage = Storage(store)
    version.check(storage)
    run_id = runs.new_run_id()
    with Lease(storage, run_id), ExitStack() as stack:
        closing.close_interrupted(storage)
        read = _catalogue(found, storage, run_id, address, stack)
        catalogue.check(read, skip_bad_rows=skip_bad_rows)
        segmentation = str(parse_segmentation(segmentation or _default_segmentation(read)))
        channels = channels or _default_channels(read)
        audio = audio_fingerprint(segmentation, channels)
        facts = RunFacts(run_id=run_id, audio=audio, models=fingerprints)
        _log_bad_rows(storage, read.bad, facts)
        todo = plan.make_plan(
            storage,
            run_id,
            read.parts,
            audio=audio,
            models=fingerprints,
            by_length=segmentation in ("whole", "given"),
            decoders=decoders or 1,
        )
        counts = {
            "store": storage.root,
            "recordings": todo.left,
            "done_before": todo.done,
            "bad_rows": read.bad.num_rows,
            "left_out": sum(found.left_out.values()),
        }
        if todo.tasks:
            facts = replace(facts, passports={model.name: _passport(storage, model) for model in references})
        record = runs.Run(
            run_id=run_id,
            started=runs.now(),
            manifest=found.location,
            audio=audio,
            models=fingerprints,
            asked={
                "segmentation": segmentation,
                "channels": channels,
                "embeddings": embeddings,
                "speech": speech,
                "dtype": dtype,
                "passports": facts.passports,
                "manifest_fingerprint": found.fingerprint,
                "serpipe": metadata.version("serpipe"),
            },
        )
        if not todo.tasks:
            if read.run == run_id:
                # The next run finds the catalogue by this record, and need not read the manifest again.
                runs.finish(storage, record, result=counts)
            return Result(run_id=None, **counts, elapsed_s=time.monotonic() - began)
        runs.save(storage, record)
        from serpipe.engine import pipeline, spread
        from serpipe.engine.sink import StoreSink
        from serpipe.engine.source import PlanSource

        cluster = _cluster(address, stack)
        stages = spread.stages(
            references,
            cluster,
            tasks=len(todo.tasks),
            decoders=decoders,
            own=pools,
            segmentation=segmentation,
            channels=channels,
            speech=speech,
            embeddings=embeddings,
            limits=limits or Limits(),
        )
        with _progress(todo.work_s) as board:
            sink = StoreSink(
                storage.root,
                facts,
                bundle_bytes=spread.bundle_bytes(references, todo, segmentation, embeddings),
                board=board,
            )
            pipeline.execute(PlanSource(storage.root, run_id, todo.tasks, todo.queries), stages, sink, board)
        result = _settle(storage, facts, counts, began)
        runs.finish(storage, record, result=asdict(result))
        return result


def _resolved(models: Sequence[str], dtype: str) -> list[ModelRef]:
    if not models:
        raise UsageError("MODEL_NONE", "no model was asked for; name one with --model, `serpipe models` lists them")
    if dtype == "auto":
        references = [replace(model, dtype=best_dtype(model)[0]) for model in map(resolve, models)]
    else:
        references = [resolve(model, dtype=dtype) for model in models]
    names = [model.name for model in references]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("MODEL_TWICE", f"model {name!r} was asked for twice; name each model once")
    return references


def _passport(storage: Storage, model: ModelRef) -> str:
    """Hash of a model's passport; a model that this store has not seen is loaded and looked at first."""
    name = layout.passport(model.name, model.fp, ids.fingerprint(*sorted(f"{k}={v}" for k, v in versions().items())))
    if not storage.exists(name):
        storage.put(name, issue(model).text().encode())
    return hashlib.sha256(storage.get(name)).hexdigest()


def _catalogue(
    found: Manifest, storage: Storage, run_id: str, address: str | None, stack: ExitStack
) -> catalogue.Catalogue:
    if catalogue.is_small(found):
        return catalogue.read_here(found)
    kept = catalogue.unchanged(storage, found)
    if kept is not None:
        return kept
    _cluster(address, stack)
    return catalogue.read_with_ray(found, storage, run_id)


def _cluster(address: str | None, stack: ExitStack) -> Cluster:
    from serpipe.engine.cluster import joined

    return stack.enter_context(joined(address))


def _default_segmentation(read: catalogue.Catalogue) -> str:
    return (
        "given"
        if any(pc.any(pc.greater(pc.list_value_length(part()["given"]), 0)).as_py() for part in read.parts)
        else "vad"
    )


def _default_channels(read: catalogue.Catalogue) -> Channels:
    for part in read.parts:
        given = part()["given"].combine_chunks().flatten()
        if len(given) > given.field("channel").null_count:
            return "split"
    return "mix"


@contextmanager
def _progress(total_s: float) -> Iterator[Any]:
    from serpipe.engine.progress import Board, Progress

    board = Board()
    with Progress(board, total_s):
        yield board


def _log_bad_rows(storage: Storage, bad: pa.Table, facts: RunFacts) -> None:
    """Put the manifest's bad rows in quarantine, once: not again by every run that meets them."""
    if not bad.num_rows:
        return
    key = ["recording_id", "code", "message"]
    log = parquet.read(storage, storage.list("quarantine/"), schemas.QUARANTINE, key)
    logged = set(zip(*(log[name].to_pylist() for name in key), strict=True))
    rows = quarantine_rows(_bad(bad), facts)
    new = [row not in logged for row in zip(*(rows[name].to_pylist() for name in key), strict=True)]
    rows = rows.filter(pa.array(new))
    if rows.num_rows:
        name = layout.quarantine(layout.of_driver(facts.run_id, "manifest"))
        parquet.write(storage, name, rows, schemas.QUARANTINE, {})


def _settle(storage: Storage, facts: RunFacts, counts: dict[str, Any], began: float) -> Result:
    """Compare plan and ledger, and put what is missing without a reason in quarantine."""
    left = plan.missing(storage, facts.run_id, audio=facts.audio, models=facts.models)
    log = parquet.read(storage, storage.list(f"quarantine/{facts.run_id}-"), schemas.QUARANTINE)
    explained = pc.is_in(
        left["recording_id"].cast(pa.binary()),
        value_set=log["recording_id"].combine_chunks().cast(pa.binary()),
    )
    lost = left.filter(pc.invert(explained))
    if lost.num_rows:
        extra = quarantine_rows(_lost(lost), facts)
        name = layout.quarantine(layout.of_driver(facts.run_id, "lost"))
        parquet.write(storage, name, extra, schemas.QUARANTINE, {})
        log = pa.concat_tables([log, extra])
    mine = ledger.load(storage, run=facts.run_id)
    per_unit = mine.group_by(["recording_id", "unit"]).aggregate([("segments", "max")])
    failed = log.filter(pc.not_equal(log["stage"], "manifest"))["recording_id"].unique()
    return Result(
        run_id=facts.run_id,
        **counts,
        failed=len(failed),
        unsettled=left.num_rows,
        segments=pc.sum(per_unit["segments_max"]).as_py() or 0,
        predictions=pc.sum(mine["rows"]).as_py() or 0,
        audio_s=_audio_s(storage, facts),
        elapsed_s=time.monotonic() - began,
    )


def _lost(left: pa.Table) -> pa.Table:
    count = left.num_rows
    message = "its worker died, or its block was lost, more often than it is tried; the next run tries it again"
    return pa.table(
        {
            "recording_id": left["recording_id"],
            "uri": left["uri"],
            "stage": pa.array(["run"] * count, pa.string()),
            "code": pa.array(["WORK_LOST"] * count, pa.string()),
            "message": pa.array([message] * count, pa.string()),
            "transient": pa.array([True] * count, pa.bool_()),
            "attempt": pc.add(left["attempts"], pa.scalar(1, pa.int32())),
        }
    )


def _bad(rows: pa.Table) -> pa.Table:
    names = [
        ids.recording_id(uri or f"{source}:{row}", "")
        for uri, source, row in zip(
            rows["uri"].to_pylist(), rows["source"].to_pylist(), rows["row"].to_pylist(), strict=True
        )
    ]
    return pa.table(
        {
            "recording_id": pa.array(names, ID),
            "uri": rows["uri"],
            "stage": pa.array(["manifest"] * rows.num_rows, pa.string()),
            "code": rows["error_code"],
            "message": rows["error"],
            "transient": pa.array([False] * rows.num_rows, pa.bool_()),
            "attempt": pa.array([1] * rows.num_rows, pa.int32()),
        }
    )


def _audio_s(storage: Storage, facts: RunFacts) -> float:
    names = storage.list(f"recordings/{facts.run_id}-")
    return float(pc.sum(parquet.read(storage, names, schemas.RECORDINGS, ["duration_s"])["duration_s"]).as_py() or 0.0)
