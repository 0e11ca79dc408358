"""How a run is spread over a cluster: decoders, model pools, packs, bundles."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
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

CORES_PER_SMALL = 4
"""Cores whose decoders one actor of small models keeps up with."""

CORES_PER_DECODER = 8
"""Cores whose large models one decoder keeps up with."""

LARGE_PACK_S = 20.0
"""Audio of a pack of large models on CPU cores: some seconds of work, so that all cores end at about the same time."""

SPEECH_SEGMENT_S = 5.0
"""Seconds of a usual segment of speech between pauses."""


def stages(
    models: Sequence[ModelRef],
    cluster: Cluster,
    todo: Plan,
    *,
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
        todo: what is left; no more decoders are started than read tasks can be made of it, no more actors of a pool
            than packs.
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
    groups = [(tuple(m for m in models if m.name == name), actors) for name, actors in wanted.items()]
    if shared:
        groups.append((shared, None))
    gpu = cluster.gpus >= 1
    small = all(model.spec.parameters < SMALL_PARAMETERS for model in models)
    pack_seconds = float(UNIT_S) if gpu or small else LARGE_PACK_S
    # A read task ends its last pack, however short.
    packs = max(len(todo.groups), ceil(todo.total_s / pack_seconds))
    share_out = _decoding if gpu or small else _labelling
    decoders, counts = share_out(groups, cluster, decoders, tasks=len(todo.groups), packs=packs)
    light, busy = (0 if gpu else sum(counts), decoders) if gpu or small else (decoders, sum(counts))
    busy_cpus = preflight.BUSY_CPUS
    if decoders == 1 and set(counts) == {1}:
        busy_cpus = preflight.shared_cpus(busy, light, cpus=cluster.cpus)
    decoder_cpus, pool_cpus = (busy_cpus, preflight.LIGHT_CPUS) if gpu or small else (preflight.LIGHT_CPUS, busy_cpus)
    pools = tuple(
        Pool(models=hosted, actors=actors, cores=0, cpus=0.0, gpus=1.0)
        if gpu
        else Pool(models=hosted, actors=actors, cores=1, cpus=pool_cpus, gpus=0.0)
        for (hosted, _), actors in zip(groups, counts, strict=True)
    )
    need = preflight.Need(
        cpus=decoders * decoder_cpus + sum(pool.actors * pool.cpus for pool in pools),
        gpus=sum(pool.actors * pool.gpus for pool in pools),
        pools=len(pools),
        # A pack is closed at its budget, and a unit is never split.
        pack_bytes=round(max(pack_seconds, UNIT_S)) * SAMPLE_RATE * 4,
    )
    preflight.check(need, cpus=cluster.cpus, gpus=cluster.gpus, object_store_bytes=cluster.object_store_bytes)
    return Stages(
        decoders=decoders,
        decoder_cpus=decoder_cpus,
        pools=pools,
        segmentation=segmentation,
        channels=channels,
        speech=speech,
        embeddings=embeddings,
        pack_seconds=pack_seconds,
        limits=limits,
    )


Groups = Sequence[tuple[tuple[ModelRef, ...], int | None]]
"""Models that share a pool, and how many actors of it were asked for."""


def _decoding(
    groups: Groups, cluster: Cluster, decoders: int | None, *, tasks: int, packs: int
) -> tuple[int, list[int]]:
    """Decoders and actors of each group where decoding keeps the cores busy: beside GPUs, or with small models."""
    if cluster.gpus >= 1:
        devices = int(cluster.gpus)
    else:
        devices = int(cluster.cpus) // CORES_PER_SMALL
        if decoders is not None:
            devices = min(devices, preflight.light_actors(decoders, cpus=cluster.cpus))
    counts = _shares(groups, devices, packs)
    if decoders is None:
        light = 0 if cluster.gpus >= 1 else sum(counts)
        decoders = max(1, min(int(cluster.cpus), preflight.busy_actors(light, cpus=cluster.cpus), tasks))
    return decoders, counts


def _labelling(
    groups: Groups, cluster: Cluster, decoders: int | None, *, tasks: int, packs: int
) -> tuple[int, list[int]]:
    """Decoders and actors of each group where networks keep the cores busy."""
    cores = int(cluster.cpus)
    if decoders is None:
        asked = sum(actors or 0 for _, actors in groups)
        beside = preflight.light_actors(asked, cpus=cluster.cpus)
        decoders = max(1, min(cores // CORES_PER_DECODER, beside, tasks))
    return decoders, _shares(groups, min(cores, preflight.busy_actors(decoders, cpus=cluster.cpus)), packs)


def _shares(groups: Groups, devices: int, packs: int) -> list[int]:
    """Actors of each group: as many as were asked for, the others what is left in equal parts."""
    spare = devices - sum(actors or 0 for _, actors in groups)
    undecided = sum(1 for _, actors in groups if actors is None)
    return [min(max(1, spare // undecided), packs) if actors is None else actors for _, actors in groups]


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
        each = length = max(todo.total_s / max(todo.left, 1), 1.0)
    least = min(max(1800 / each, 100), 600)
    most = max(5 * 3600 / each, least)
    segments = min(max(todo.total_s / each / 50, least), most)
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
