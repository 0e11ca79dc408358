"""How a run is spread over a cluster: decoders, model pools, packs, bundles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serpipe.audio.child import Limits
from serpipe.audio.decode import Channels
from serpipe.audio.recording import UNIT_S
from serpipe.audio.segment import parse_segmentation
from serpipe.engine import preflight
from serpipe.engine.cluster import Cluster
from serpipe.engine.pipeline import Pool, Stages
from serpipe.errors import UsageError
from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.registry import ModelRef

if TYPE_CHECKING:
    from serpipe.plan import Plan

SMALL_PARAMETERS = 10_000_000
"""Below this a model labels faster than a core decodes."""

SPEECH_SEGMENT_S = 5.0
"""Seconds of a usual segment of speech between pauses."""


def stages(
    models: Sequence[ModelRef],
    cluster: Cluster,
    *,
    tasks: int,
    decoders: int | None,
    own: Sequence[str],
    segmentation: str,
    channels: Channels,
    speech: bool,
    embeddings: str,
    limits: Limits,
) -> Stages:
    """Spread a run over a cluster, and make sure that the cluster carries it.

    Args:
        models: what is run; those without a pool of their own share one.
        cluster: what there is.
        tasks: read tasks of the plan; no more actors than these are started.
        decoders: decode actors; chosen when None.
        own: `NAME` or `NAME:ACTORS` of models with a pool of their own.
        segmentation: how recordings are cut.
        channels: which channels are labelled.
        speech: whether each segment's speech share is measured.
        embeddings: `utterance`, `frame` or `none`.
        limits: what one file may cost.

    Raises:
        UsageError: `POOL_UNKNOWN`, and what `preflight.check` refuses.
    """
    wanted = _own_pools(models, own)
    shared = tuple(model for model in models if model.name not in wanted)
    gpu = cluster.gpus >= 1
    cores = int(cluster.cpus)
    small = all(model.spec.parameters < SMALL_PARAMETERS for model in models)
    groups = [(tuple(m for m in models if m.name == name), actors) for name, actors in wanted.items()]
    if shared:
        groups.append((shared, None))
    held = sum(actors or 1 for _, actors in groups)
    if decoders is None:
        # Beside GPUs every core decodes; without, a small model labels as fast as its decoder, a large one far slower.
        share = cores if gpu else min(cores - held, cores // 2 if small else cores // 8)
        decoders = max(1, min(share, tasks))
    devices = int(cluster.gpus) if gpu else max(cores - decoders, 1)
    spare = devices - sum(actors or 0 for _, actors in groups)
    undecided = sum(1 for _, actors in groups if actors is None)
    pools = []
    for hosted, actors in groups:
        if actors is None:
            actors = min(max(1, spare // undecided), tasks)
        pools.append(Pool(models=hosted, actors=actors, cores=0 if gpu else 1, gpus=1.0 if gpu else 0.0))
    pack_seconds = float(UNIT_S) if gpu or small else 60.0
    actor_cpus = preflight.ACTOR_CPUS
    if decoders == 1 and all(pool.actors == 1 for pool in pools):
        actor_cpus = preflight.actor_cpus(1 + sum(pool.cores for pool in pools), cpus=cluster.cpus)
    need = preflight.Need(
        decoders=decoders,
        pools=tuple((pool.actors, pool.cores, pool.gpus) for pool in pools),
        # A pack is closed at its budget, and a unit is never split.
        pack_bytes=round(max(pack_seconds, UNIT_S)) * SAMPLE_RATE * 4,
        actor_cpus=actor_cpus,
    )
    preflight.check(need, cpus=cluster.cpus, gpus=cluster.gpus, object_store_bytes=cluster.object_store_bytes)
    return Stages(
        decoders=decoders,
        pools=tuple(pools),
        segmentation=segmentation,
        channels=channels,
        speech=speech,
        embeddings=embeddings,
        pack_seconds=pack_seconds,
        limits=limits,
        actor_cpus=actor_cpus,
    )


def _own_pools(models: Sequence[ModelRef], own: Sequence[str]) -> dict[str, int | None]:
    wanted: dict[str, int | None] = {}
    names = [model.name for model in models]
    for text in own:
        name, _, actors = text.partition(":")
        if name not in names or (actors and not (actors.isdigit() and int(actors))):
            raise UsageError(
                "POOL_UNKNOWN",
                f"--pool {text!r} names no model of this run; use NAME or NAME:ACTORS with one of {', '.join(names)}",
            )
        wanted[name] = int(actors) if actors else None
    return wanted


def bundle_bytes(models: Sequence[ModelRef], todo: Plan, segmentation: str, embeddings: str) -> int:
    """Bytes of labelled packs that make one commit.

    A fiftieth of the run, so that a crash costs about 2 %; never so few segments that the store drowns in small files
    (half an hour of audio, at least 100 and at most 600 segments), never more than five hours.
    """
    cut = parse_segmentation(segmentation)
    if cut.kind == "window":
        each, length = cut.hop / SAMPLE_RATE, cut.length / SAMPLE_RATE
    elif cut.kind == "vad":
        each = length = SPEECH_SEGMENT_S
    else:
        each = length = max(todo.work_s / max(todo.left, 1), 1.0)
    least = min(max(1800 / each, 100), 600)
    most = max(5 * 3600 / each, least)
    segments = min(max(todo.work_s / each / 50, least), most)
    return round(segments * (SEGMENT_BYTES + sum(_row_bytes(model, length, embeddings) for model in models)))


SEGMENT_BYTES = 105
"""About what a segment weighs in a pack without its audio: ids, times, measures."""


def _row_bytes(model: ModelRef, seconds: float, embeddings: str) -> float:
    """About what a model adds for each segment: labels, scores, canonical columns, embeddings."""
    spec = model.spec
    # Arrow keeps the place of a fixed-width vector also where it is null.
    vector = 2 * spec.embedding_width
    size: float = 100 + 20 * len(spec.labels) + vector
    if embeddings == "frame" and spec.frame_rate:
        size += vector * spec.frame_rate * seconds
    return size
