"""Label an archive: manifest in, committed Parquet out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from serpipe import ids, plan
from serpipe.audio.child import Limits
from serpipe.audio.decode import Channels
from serpipe.audio.stage import audio_facts
from serpipe.engine import again, catalogue, invalidation, outdated, request, settle, tries
from serpipe.engine.stopping import RunStopped, sigterm_stops
from serpipe.errors import SerpipeError
from serpipe.forecast import read as read_forecast
from serpipe.forecast import refuse_another
from serpipe.manifest import open_manifest
from serpipe.models.passport import issue
from serpipe.models.registry import ModelRef
from serpipe.pack import ID
from serpipe.shard import Shard
from serpipe.store import closing, failing, ledger, mend, rewrite, runs, version
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
        codes: of the failed recordings, how many each code is a reason for, most first.
        kept: sentences about labels that were left as they are, though the same model or audio would be another
            today; `relabel` asks for them again.
        mended: units that were labelled and are work again, for `serpipe verify` had found them damaged.
        segments: segments this run settled.
        predictions: predictions it wrote, all models together.
        audio_s: seconds of audio in its segments' recordings.
        bad_rows: rows of the manifest that were skipped.
        left_out: files of a folder that are no audio by their ending.
        elapsed_s: seconds, Ray's start included.
        tried: recordings that this run and the tries before it had to do together; 0 where it is the only one.
        tried_failed: of these, those that are in quarantine now.
        twice: units that two of its workers labelled, and that stand twice until `serpipe verify` has marked them and
            the same command labels them again.
    """

    run_id: str | None
    store: str
    recordings: int
    done_before: int
    failed: int = 0
    unsettled: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    mended: int = 0
    segments: int = 0
    predictions: int = 0
    audio_s: float = 0.0
    bad_rows: int = 0
    left_out: int = 0
    elapsed_s: float = 0.0
    tried: int = 0
    tried_failed: int = 0
    twice: int = 0

    @property
    def labelled(self) -> int:
        """Recordings of this run of which nothing is in quarantine."""
        return self.recordings - self.failed

    @property
    def failed_share(self) -> float:
        """Recordings in quarantine, of all that this run and the tries before it had to do.

        Tries of the same work are the runs on the same manifest and shard since the last one that came to its end,
        and those of the same night.

        Examples:
            >>> Result(run_id="R2", store="s", recordings=40, done_before=20, tried=100, tried_failed=40).failed_share
            0.4
        """
        if self.tried:
            return self.tried_failed / self.tried
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
    allow_roots: Sequence[str] = (),
    relabel: bool = False,
    recheck: bool = False,
    forecast: str | None = None,
    shard: str | None = None,
    night: str | None = None,
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
        allow_roots: folders, buckets or prefixes outside of which the manifest may name nothing; anywhere by default.
        relabel: label again what the same models labelled with other weights, another adapter, number format,
            decoder, segmentation or treatment of channels.
        recheck: ask the store of each recording whether its content has changed, also where the manifest gives an etag
            or where a long one is the same as last time.
        forecast: file that `serpipe plan --out` wrote; the run's record sets what it took beside it.
        shard: `INDEX/COUNT`, indices from 0: only this share of the recordings, beside runs of the other shares.
        night: a name, such as a date, that tries of the same work have in common; `Result.failed_share` is then of all
            of them, also after one that came to its end.

    Returns:
        Counts. Success means that plan and ledger agree but for what is in quarantine.

    Raises:
        SerpipeError: a request that cannot be carried out, a store that is held, a model that must not run.
        RunStopped: Ctrl-C or SIGTERM; what is committed counts, and the text says how much that is.

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
    share = None if shard is None else Shard.parse(shard)
    expected = read_forecast(forecast) if forecast else {}
    references = request.resolved(models, dtype, request.device(address))
    fingerprints = {model.name: model.fp for model in references}
    found = open_manifest(manifest, format=format, columns=columns, base=base, roots=allow_roots)
    storage = Storage(store)
    if forecast:
        refuse_another(forecast, expected, manifest=found.location, store=storage.shown, models=fingerprints)
    version.check(storage)
    run_id = runs.new_run_id()
    with sigterm_stops(), Lease(storage, run_id, shard=share) as held, ExitStack() as stack:
        closing.close_interrupted(storage, share)
        asked_of = "" if share is None else str(share)
        records = runs.load(storage)
        earlier = tries.before(records, manifest=found.location, shard=asked_of, night=night)
        mended = None
        if share is None:
            mended = mend.mend(storage)
            # A run that was killed leaves one object a commit; planning would read them all.
            ledger.compact(storage)
        read = request.read(found, storage, run_id, lambda: _cluster(address, stack), recheck=recheck)
        catalogue.check(read, skip_bad_rows=skip_bad_rows)
        cut = request.cut(read, segmentation, channels)
        segmentation, channels, audio = cut.segmentation, cut.channels, cut.audio
        facts = RunFacts(run_id=run_id, audio=audio, models=fingerprints)
        failing.log_manifest(storage, run_id, found.location, quarantine_rows(_bad(read.bad), facts))
        old = outdated.find(
            storage,
            records,
            catalogue.of_share(read.parts, share),
            cut=cut,
            models=references,
            embeddings=embeddings,
            relabel=relabel,
            whole=share is None,
        )
        todo = plan.make_plan(
            storage,
            run_id,
            again.parts(
                storage, read.parts, records=records, cut=cut, models=fingerprints, roots=allow_roots, shard=share
            ),
            audio=audio,
            models=fingerprints,
            by_length=cut.by_length,
            relabel=relabel,
            reopened=old.units,
        )
        asked = {
            **audio_facts(segmentation, channels),
            "embeddings": embeddings,
            "speech": speech,
            "dtype": dtype,
            "relabel": relabel,
            "manifest_fingerprint": found.fingerprint,
            "serpipe": metadata.version("serpipe"),
            **({} if night is None else {"night": night}),
        }
        counts = {
            "store": storage.shown,
            "recordings": todo.left,
            "done_before": todo.done,
            "mended": mended.units if mended else 0,
            "kept": (
                *invalidation.sentences(storage, todo.superseded, references, audio=audio, asked=asked),
                *old.sentences,
            ),
            "bad_rows": read.bad.num_rows,
            "left_out": sum(found.left_out.values()),
        }
        record = runs.Run(
            run_id=run_id,
            started=runs.now(),
            shard=asked_of,
            manifest=found.location,
            audio=audio,
            models=fingerprints,
            asked=asked,
            forecast=expected,
        )
        if not todo.left:
            counts |= _tried(storage, earlier)
            if read.run == run_id or earlier:
                # The next run finds the catalogue by this record, and need not read the manifest again; and what was
                # interrupted before has been answered for.
                runs.finish(storage, record, result=counts)
            return Result(run_id=None, **counts, elapsed_s=time.monotonic() - began)
        # A model that has labelled everything is neither loaded nor asked again.
        idle = set(fingerprints) - todo.models
        references = [model for model in references if model.name in todo.models]
        fingerprints = {model.name: model.fp for model in references}
        passports = {model.name: _passport(storage, model) for model in references}
        facts = replace(facts, models=fingerprints, passports=passports)
        from serpipe.engine import careful, pipeline, spread
        from serpipe.engine.sink import StoreSink
        from serpipe.engine.source import PlanSource

        cluster = _cluster(address, stack)
        stages = spread.stages(
            references,
            cluster,
            todo,
            decoders=decoders,
            own=[pool for pool in pools if pool.partition(":")[0] not in idle],
            segmentation=segmentation,
            channels=channels,
            speech=speech,
            embeddings=embeddings,
            limits=limits or Limits(),
        )
        if old.units.num_rows:
            # Under the same fingerprints they would stand beside the new ones; once nothing of the request can be
            # refused any more. A run that dies behind this is gone on with by the next one, asked or not.
            rewrite.forget(storage, old.units)
        record = replace(record, models=fingerprints, asked=asked | {"passports": passports})
        with _recorded(storage, record), _progress(storage, run_id, todo.total_s) as board:
            sink = StoreSink(
                storage.root,
                facts,
                bundle_bytes=spread.bundle_bytes(references, todo, segmentation, embeddings),
                board=board,
            )
            source = PlanSource(storage.root, run_id, todo, decoders=stages.decoders)
            pipeline.execute(source, stages, sink, board)
            why = careful.finish(storage, facts, stages, sink, board, todo.queries, held=held, relabel=relabel)
            held.check()
            ended = settle.settle(storage, facts, why)
        counts |= _tried(storage, [*earlier, run_id] if earlier else [])
        result = Result(run_id=run_id, **counts, **asdict(ended), elapsed_s=time.monotonic() - began)
        sizes = {"bytes": runs.written(storage, run_id)} if expected else {}
        runs.finish(storage, record, result=asdict(result) | sizes)
        held.check()
        if share is None:
            ledger.compact(storage)
        return result


def _tried(storage: Storage, runs_of_it: Sequence[str]) -> dict[str, int]:
    together = tries.together(storage, runs_of_it)
    return {"tried": together.recordings, "tried_failed": together.failed}


@contextmanager
def _recorded(storage: Storage, record: runs.Run) -> Iterator[None]:
    """Keep a run's record while it lasts; a run that is stopped says so in it, and what it has committed."""
    runs.save(storage, record)
    try:
        yield
    except BaseException as error:
        why = error.code if isinstance(error, SerpipeError) else type(error).__name__
        # A store that is the reason cannot be told; the next run finds the record as it is.
        with suppress(OSError, SerpipeError):
            runs.finish(storage, record, state="stopped", result={"stopped": why})
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise RunStopped(_so_far(storage, record.run_id)) from None
        raise


def _so_far(storage: Storage, run_id: str) -> str:
    try:
        predictions, recordings = settle.committed(storage, run_id)
    except (OSError, SerpipeError):
        return "the run was stopped; the same command goes on from what is committed"
    return (
        f"the run was stopped; {predictions:,} predictions of {recordings:,} recordings are committed, and the same "
        "command goes on from there"
    )


def _passport(storage: Storage, model: ModelRef) -> str:
    """Hash of a model's passport; a model that this store has not seen is loaded and looked at first."""
    name = request.passport(model)
    if not storage.exists(name):
        text = issue(model).text().encode()
        # Of two shards that look at a model at the same time, the first one's word stays, for its labels name the hash.
        if storage.exclusive:
            storage.create(name, text)
        elif not storage.exists(name):
            # Two that put it in the same moment may both count as first here: where their measurements differ, `verify`
            # misses the passport of one. Nothing in such a store could tell which.
            storage.put(name, text)
    return hashlib.sha256(storage.get(name)).hexdigest()


def _cluster(address: str | None, stack: ExitStack) -> Cluster:
    from serpipe.engine.cluster import joined

    cluster = stack.enter_context(joined(address))
    stack.enter_context(sigterm_stops())
    return cluster


@contextmanager
def _progress(storage: Storage, run_id: str, total_s: float) -> Iterator[Any]:
    from serpipe.engine.progress import Board, Progress

    board = Board()
    try:
        with Progress(board, total_s, lambda now: runs.save_progress(storage, run_id, now)):
            yield board
    finally:
        board.end()


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
