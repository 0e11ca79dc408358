"""A run's forecast: what is left is planned as a run plans it, a sample rehearsed, and nothing written to the store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from serpipe import forecast, plan, rehearsal, sample
from serpipe.audio.child import Limits
from serpipe.audio.decode import Channels
from serpipe.engine import again, catalogue, outdated, request
from serpipe.engine.label import Embeddings
from serpipe.errors import UsageError
from serpipe.forecast import Forecast, Rehearsal, Work
from serpipe.manifest import open_manifest
from serpipe.models.registry import ModelRef
from serpipe.shard import Shard
from serpipe.store import failing, plans, runs, schemas, streaming, version
from serpipe.store.storage import Storage
from serpipe.store.unwritten import Unwritten

if TYPE_CHECKING:
    from serpipe.engine.pipeline import Pool, Stages

PROBE_S = 15.0
"""Seconds that reading headers may take."""

REHEARSE_S = 120.0
"""Seconds of rehearsal, workers' start not counted."""

SEED = 0
"""Of the sample: a plan made twice rehearses the same recordings."""

ONE_AT_A_TIME = (
    "the rehearsal labels one pack at a time on a GPU and a run two, so that GPU-hours, and what follows, are the most "
    "that they may be"
)

SHORTEST_BATCH_S = 60.0
"""Seconds of audio that are decoded in one go at least, as in a run."""

NOTHING_HEARD = (
    "the rehearsal met nothing to label, so what the models take and write is not known; --rehearse makes it longer"
)
"""Said where a forecast of the models would be a nought that nobody measured."""


def plan_ahead(
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
    decoders: int | None = None,
    pools: Sequence[str] = (),
    limits: Limits | None = None,
    allow_roots: Sequence[str] = (),
    relabel: bool = False,
    recheck: bool = False,
    shard: str | None = None,
    rehearse_s: float = REHEARSE_S,
    cpus: float | None = None,
    gpus: float | None = None,
    price_cpu_hour: float | None = None,
    price_gpu_hour: float | None = None,
) -> Forecast:
    """Say what `serpipe.label` with the same arguments will take. The store is read, never written.

    Args:
        manifest: see `serpipe.label`, as all arguments down to `shard`.
        store: a store, or where one will be made.
        models: names, or `NAME=DIRECTORY`.
        segmentation: `given`, `whole`, `window:6/3` or `vad`.
        channels: `mix`, `first` or `split`.
        embeddings: `utterance`, `frame` or `none`.
        speech: whether each segment's speech share is measured.
        dtype: number format, or `auto`.
        format: of the manifest.
        columns: the manifest's columns by hand, role to name.
        base: folder that relative uris of the manifest start from.
        skip_bad_rows: count rows that cannot be used, and go on.
        decoders: decode actors.
        pools: `NAME` or `NAME:ACTORS` of models that get a pool of their own.
        limits: what one file may cost.
        allow_roots: outside of which the manifest may name nothing.
        relabel: count what other fingerprints have labelled as work.
        recheck: ask the store of each recording whether its content has changed.
        shard: `INDEX/COUNT`: only this share of the recordings.
        rehearse_s: seconds of rehearsal.
        cpus: CPUs that the run will have; this machine's by default.
        gpus: GPUs that it will have; this machine's by default.
        price_cpu_hour: of a CPU for an hour.
        price_gpu_hour: of a GPU for an hour.

    Returns:
        The forecast. What an interrupted run has committed and not yet put into the ledger counts as left.

    Raises:
        SerpipeError: as `serpipe.label` before it starts.

    Examples:
        >>> import tempfile
        >>> from serpipe.testing import write_speech
        >>> archive = tempfile.mkdtemp()
        >>> _ = write_speech(archive + "/a.wav", seconds=8.0)
        >>> told = plan_ahead(archive, archive + "/store", segmentation="window:4/4", rehearse_s=5.0)
        >>> told.work.recordings, round(told.segments.value)
        (1, 2)
    """
    began = time.monotonic()
    share = None if shard is None else Shard.parse(shard)
    references = request.resolved(models, dtype, request.device(gpus=_here().gpus if gpus is None else gpus))
    found = open_manifest(manifest, format=format, columns=columns, base=base, roots=allow_roots)
    with ExitStack() as stack:
        storage = Unwritten(store, stack.enter_context(tempfile.TemporaryDirectory(prefix="serpipe-plan-")))
        version.check(storage)
        run = runs.new_run_id()
        read = request.read(found, storage, run, lambda: _local_ray(stack), into=storage.scratch, recheck=recheck)
        catalogue.check(read, skip_bad_rows=skip_bad_rows)
        cut = request.cut(read, segmentation, channels)
        records = runs.load(storage)
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
            run,
            again.parts(
                storage,
                read.parts,
                records=records,
                cut=cut,
                models=[model.name for model in references],
                roots=allow_roots,
                shard=share,
            ),
            audio=cut.audio,
            models={model.name: model.fp for model in references},
            by_length=cut.by_length,
            relabel=relabel,
            reopened=old.units,
        )
        here = _here()
        cluster = forecast.Cluster(
            cpus=here.cpus if cpus is None else cpus,
            gpus=here.gpus if gpus is None else gpus,
            price_cpu_hour=price_cpu_hour,
            price_gpu_hour=price_gpu_hour,
        )
        counting = time.monotonic()
        failed = len(streaming.afresh(lambda: _failing(storage))["recording_id"].unique())
        # No run counts them before it starts.
        began += time.monotonic() - counting
        work = Work(
            recordings=todo.left,
            done=todo.done,
            failed=failed,
            bad_rows=read.bad.num_rows,
            tasks=0,
            audio_s=forecast.Range(0.0, 0.0, 0.0),
            probed=0,
        )
        if not todo.left:
            return forecast.nothing_left(found.location, storage.shown, work, cluster)
        idle = {model.name for model in references} - todo.models
        references = [model for model in references if model.name not in idle]
        left = sample.gather(_groups(storage, run, todo), seed=SEED)
        before_s = time.monotonic() - began
        sizes = sample.lengths(left, seconds=min(PROBE_S, rehearse_s), seed=SEED)
        asked: dict[str, Any] = {
            "decoders": decoders,
            "own": [pool for pool in pools if pool.partition(":")[0] not in idle],
            "segmentation": cut.segmentation,
            "channels": cut.channels,
            "speech": speech,
            "embeddings": embeddings,
            "limits": limits or Limits(),
        }
        # Before the rehearsal: what the cluster cannot carry needs none.
        stages = _spread(references, cluster, todo, asked)
        tasks = len(todo.tasks(stages.decoders))
        work = replace(work, tasks=tasks, audio_s=sizes.total_s, probed=sizes.probed)
        rehearsed, notes = _rehearsed(
            references, asked, todo, left, sizes, cut, cluster, stages, task_s=work.audio_s.value / tasks,
            seconds=rehearse_s,
        )  # fmt: skip
        if not all(storage.exists(request.passport(model)) for model in references):
            # A run that issues passports loads its models once before it starts Ray.
            before_s += rehearsed.load_s
        return forecast.forecast(
            found.location,
            storage.shown,
            {model.name: model.fp for model in references},
            work,
            rehearsed,
            cluster,
            decoders=stages.decoders,
            pools=[_pool(pool) for pool in stages.pools],
            before_s=before_s,
            notes=[*sizes.doubts, *notes],
        )


def _rehearsed(
    references: Sequence[ModelRef],
    asked: Mapping[str, Any],
    todo: plan.Plan,
    left: sample.Left,
    sizes: sample.Lengths,
    cut: request.Cut,
    cluster: forecast.Cluster,
    wanted: Stages,
    *,
    task_s: float,
    seconds: float,
) -> tuple[Rehearsal, list[str]]:
    """Rehearse with as many workers as the run would have on this machine, or on a part of it as large as the cluster.

    Returns:
        What was measured, and what it leaves open in sentences.
    """
    from serpipe.engine import spread

    here = _here()
    gpus = min(here.gpus, cluster.gpus)
    stages = _part(references, forecast.Cluster(cpus=min(here.cpus, cluster.cpus), gpus=gpus), todo, asked)
    batches = sample.batches(
        left,
        sizes,
        # What travels in one pack: never more than a read task, or than a pack may hold.
        seconds=min(max(task_s, SHORTEST_BATCH_S), stages.pack_seconds),
        by_length=cut.by_length,
    )
    found = rehearsal.rehearse(
        list(batches),
        rehearsal.Company(
            decoders=stages.decoders,
            decode=stages.decode,
            crews=tuple(
                rehearsal.Crew(models=pool.models, actors=pool.actors, threads=max(pool.cores, 1))
                for pool in stages.pools
            ),
            gpu=gpus >= 1,
            embeddings=stages.embeddings,
            audio=cut.audio,
            bundle_bytes=spread.bundle_bytes(references, todo, cut.segmentation, stages.embeddings),
        ),
        seconds=seconds,
        shares=sizes.by_kind,
    )
    if wanted.pack_seconds > stages.pack_seconds:
        # Of a large model where no GPU is: the run's packs are filled further.
        found = replace(found, pack_s=max(found.pack_s, wanted.pack_seconds))
    notes = [] if found.heard else [NOTHING_HEARD]
    if gpus >= 1:
        notes.append(ONE_AT_A_TIME)
    if cluster.gpus < 1 or gpus >= 1:
        return found, notes
    assumed = {model.name: forecast.assumed(model.spec.parameters, model.dtype, found.heard) for model in references}
    note = (
        "no GPU on this machine: GPU-hours, and what follows from them, are assumed from the models' arithmetic, not "
        "rehearsed; plan on a node with a GPU"
    )
    return replace(found, models=assumed), [*notes, note]


def _spread(
    references: Sequence[ModelRef], cluster: forecast.Cluster, todo: plan.Plan, asked: Mapping[str, Any]
) -> Stages:
    """How a run shares a cluster out; of its object store nothing is known beforehand."""
    from serpipe.engine import cluster as ray_cluster
    from serpipe.engine import spread

    return spread.stages(references, ray_cluster.Cluster(cluster.cpus, cluster.gpus, inf), todo, **asked)


def _part(
    references: Sequence[ModelRef], cluster: forecast.Cluster, todo: plan.Plan, asked: Mapping[str, Any]
) -> Stages:
    """How this machine stands in for a part of the cluster that was asked for, where that is larger."""
    names = [pool.partition(":")[0] for pool in asked["own"]]
    # As asked; without its numbers of actors; and with all models in one pool, whose pace is told apart all the same.
    for smaller in ({}, {"decoders": None, "own": names}):
        try:
            return _spread(references, cluster, todo, {**asked, **smaller})
        except UsageError as error:
            if error.code not in {"CLUSTER_TOO_FEW_CPUS", "CLUSTER_TOO_FEW_GPUS"}:
                raise
    return _spread(references, cluster, todo, {**asked, "decoders": None, "own": ()})


def _failing(storage: Storage) -> pa.Table:
    """What of a store is in quarantine now."""
    log = streaming.joined(storage, storage.list("quarantine/"), schemas.QUARANTINE)
    return failing.now(storage, pa.concat_tables([schemas.QUARANTINE.empty_table(), *log]), storage.list("recordings/"))


def _here() -> forecast.Cluster:
    """This machine, as Ray would count it."""
    from ray._private.utils import get_num_cpus

    from serpipe.engine.cluster import gpus_here

    return forecast.Cluster(cpus=float(get_num_cpus()), gpus=gpus_here())


def _groups(storage: Storage, run: str, todo: plan.Plan) -> Iterator[pa.Table]:
    """What is left, as a run would read it, but for what it need not say again of recordings that are known."""
    for place, group in enumerate(plans.groups(storage, run)):
        query = todo.queries.get(place, pa.nulls(group.num_rows, pa.string()))
        known = group.schema.get_field_index("known")
        group = group.set_column(known, group.schema.field(known), pa.array([False] * group.num_rows))
        yield group.append_column("query", query)


def _pool(pool: Pool) -> forecast.Pool:
    return forecast.Pool(
        models=tuple(model.name for model in pool.models), actors=pool.actors, cores=pool.cores, gpus=pool.gpus
    )


def _local_ray(stack: ExitStack) -> None:
    """A Ray on this machine, for a manifest too large for one process; never a cluster that others use."""
    from serpipe.engine.cluster import joined

    stack.enter_context(joined("local"))
