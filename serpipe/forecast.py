"""What a run will take, from what is left to do, what a rehearsal measured, and how a cluster is shared out.

Each stage is as fast as its actors together, the run as its slowest stage; and where stages share cores, never faster
than all their work over all cores. Nothing here knows Ray, a store or a clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Any

from serpipe.errors import UsageError

RAY_START_S = 4.0
"""Seconds until Ray answers on one machine, and its workers have imported it."""

END_S = 1.5
"""Seconds from the last commit to the run's record: plan against ledger, and the counts."""

PACK_CPU_S = 0.03
"""Core-seconds that a pack costs Ray, the driver and the sink's task beside what the stages do with it."""

FRAMES_FLOP, STEM_FLOP = 100.0, 4.7e9
"""Operations for a second of audio: of each weight at 50 frames a second, and of the convolutions before them."""

ASSUMED_FLOPS = {"float32": 20e12, "bfloat16": 150e12, "float16": 150e12}
"""Operations a second that a data-centre GPU sustains, by number format; used only where none was rehearsed on."""

_SURE = 1.96


@dataclass(frozen=True, slots=True)
class Range:
    """A figure and the interval that holds it 19 times in 20."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Range:
        """The same of so many."""
        return Range(self.value * factor, self.low * factor, self.high * factor)

    def narrowed(self, factor: float) -> Range:
        """The same with an interval of so much the width."""
        low, high = ((edge - self.value) * factor for edge in (self.low, self.high))
        return Range(self.value, self.value + low, self.value + high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a plan leaves to do.

    Attributes:
        recordings: with work left.
        done: of the manifest, that need nothing.
        failed: of the store, that are in quarantine now; they are tried again only where the reason may pass.
        bad_rows: of the manifest, that cannot be used.
        tasks: read tasks.
        audio_s: seconds of audio left.
        probed: files whose headers were read for that.
    """

    recordings: int
    done: int
    failed: int
    bad_rows: int
    tasks: int
    audio_s: Range
    probed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one actor of a stage needs for a second of audio of the recordings.

    Attributes:
        busy_s: seconds.
        cpu_s: core-seconds, of child processes too.
        where: `cpu` or `cuda`, where it was rehearsed; `assumed` for a GPU that no rehearsal had.
    """

    busy_s: float
    cpu_s: float
    where: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a rehearsal measured.

    Attributes:
        took_s: seconds it took.
        recordings: that were brought to an end in it.
        failed: of these, those that gave an error.
        audio_s: seconds of audio that were decoded.
        pack_s: seconds of recordings behind a pack.
        decode: the decode stage.
        models: each model's stage, by name.
        sink_cpu_s: core-seconds for writing what comes of a second of audio.
        segments: for a second of audio.
        bytes: that a second of audio leaves in each table of the store.
        start_s: seconds until every worker was ready, models loaded.
        load_s: seconds until the first model worker was ready.
    """

    took_s: float
    recordings: int
    failed: int
    audio_s: float
    pack_s: float
    decode: Stage
    models: Mapping[str, Stage]
    sink_cpu_s: float
    segments: Range
    bytes: Mapping[str, float]
    start_s: float
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool of model actors: which models, how many actors, and what each of them holds."""

    models: tuple[str, ...]
    actors: int
    cores: int
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a run would have, and what an hour of it costs in any currency; None where no price is known."""

    cpus: float
    gpus: float
    price_cpu_hour: float | None = None
    price_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will take.

    Attributes:
        manifest: what was planned.
        store: where to.
        models: name to fingerprint, of those with work left.
        work: what is left.
        cluster: what the run would have.
        decoders: decode actors on it.
        pools: model pools on it.
        rehearsal: what the rest rests on; None where nothing is left.
        segments: that the run will label.
        wall_s: from its start to its end.
        start_s: of these, until the first pack is decoded.
        bottleneck: the slowest stage: `decode`, a pool's models, or `cores` where all stages share them.
        cpu_hours: core-hours of work.
        gpu_hours: GPU-hours of work; the GPUs are held for the whole of `wall_s`.
        cores_per_gpu: that keep one GPU busy; None without GPUs.
        cost: of the cluster for `wall_s`; None without a price.
        bytes: that the store will grow by, by table.
        quarantined: recordings that will fail.
        notes: what the figures leave open, in sentences.
    """

    manifest: str
    store: str
    models: Mapping[str, str]
    work: Work
    cluster: Cluster
    decoders: int = 0
    pools: tuple[Pool, ...] = ()
    rehearsal: Rehearsal | None = None
    segments: Range = Range(0.0, 0.0, 0.0)
    wall_s: float = 0.0
    start_s: float = 0.0
    bottleneck: str = ""
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    cores_per_gpu: float | None = None
    cost: float | None = None
    bytes: Mapping[str, float] = field(default_factory=dict)
    quarantined: Range = Range(0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The forecast as JSON, for `serpipe label --forecast`."""
        return json.dumps(asdict(self), indent=1)


def share(count: int, of: int) -> Range:
    """A share with Wilson's interval, which holds where nothing was counted too.

    Examples:
        >>> share(0, 0)
        Range(value=0.0, low=0.0, high=1.0)
        >>> share(5, 100).low < 0.05 < share(5, 100).high
        True
    """
    if not of:
        return Range(0.0, 0.0, 1.0)
    p, z2 = count / of, _SURE**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = _SURE / (1 + z2 / of) * sqrt(p * (1 - p) / of + z2 / (4 * of**2))
    return Range(p, max(middle - half, 0.0), min(middle + half, 1.0))


def assumed(parameters: int, dtype: str) -> Stage:
    """A GPU's stage for a model that no GPU was there to rehearse, by its arithmetic alone.

    Args:
        parameters: weights of the model.
        dtype: number format.

    Examples:
        >>> round(1 / assumed(316_000_000, "bfloat16").busy_s)
        4132
    """
    seconds = (STEM_FLOP + FRAMES_FLOP * parameters) / ASSUMED_FLOPS[dtype]
    return Stage(busy_s=seconds, cpu_s=seconds, where="assumed")


def nothing_left(manifest: str, store: str, work: Work, cluster: Cluster) -> Forecast:
    """The forecast of a run that would only look and say so."""
    return Forecast(manifest=manifest, store=store, models={}, work=work, cluster=cluster)


def forecast(
    manifest: str,
    store: str,
    models: Mapping[str, str],
    work: Work,
    rehearsal: Rehearsal,
    cluster: Cluster,
    *,
    decoders: int,
    pools: Sequence[Pool],
    before_s: float,
    notes: Sequence[str] = (),
) -> Forecast:
    """Say what a run will take.

    Args:
        manifest: what is labelled.
        store: where to.
        models: name to fingerprint, of those with work left.
        work: what is left.
        rehearsal: what each stage takes; models of `pools` by name.
        cluster: what the run has.
        decoders: decode actors.
        pools: model pools, in the order a pack passes them.
        before_s: seconds a run takes before it starts Ray: the manifest, the ledger, the plan, new passports.
        notes: what the figures leave open.
    """
    audio_s = work.audio_s.value
    pack_s = max(min(rehearsal.pack_s, audio_s / max(work.tasks, 1)), 1e-3)
    stages = [("decode", rehearsal.decode.busy_s, decoders)]
    stages += [
        (", ".join(pool.models), sum(rehearsal.models[name].busy_s for name in pool.models), pool.actors)
        for pool in pools
    ]
    cpu_s = rehearsal.decode.cpu_s + rehearsal.sink_cpu_s + PACK_CPU_S / pack_s
    cpu_s += sum(rehearsal.models[name].cpu_s for pool in pools for name in pool.models)
    gpu_s = sum(rehearsal.models[name].busy_s for pool in pools if pool.gpus for name in pool.models)
    slowest = max(range(len(stages)), key=lambda place: stages[place][1] / stages[place][2])
    name, busy_s, actors = stages[slowest]
    steady_s = audio_s * busy_s / actors
    # The first pack on its way to the slowest stage, and the last one on its way from it.
    way_s = pack_s * sum(busy for place, (_, busy, _) in enumerate(stages) if place != slowest)
    shared_s = audio_s * cpu_s / cluster.cpus
    if shared_s > steady_s:
        name, steady_s = "cores", shared_s
    start_s = before_s + RAY_START_S + rehearsal.start_s
    wall_s = start_s + way_s + steady_s + END_S
    # Of what was rehearsed nothing is left to chance.
    unseen = sqrt(max(1 - rehearsal.recordings / work.recordings, 0.0)) if work.recordings else 0.0
    failing = share(rehearsal.failed, rehearsal.recordings).narrowed(unseen)
    prices = [(cluster.cpus, cluster.price_cpu_hour), (cluster.gpus, cluster.price_gpu_hour)]
    told = [held * price * wall_s / 3600 for held, price in prices if price is not None]
    return Forecast(
        manifest=manifest,
        store=store,
        models=models,
        work=work,
        cluster=cluster,
        decoders=decoders,
        pools=tuple(pools),
        rehearsal=rehearsal,
        segments=_product(work.audio_s, rehearsal.segments.narrowed(unseen)),
        wall_s=wall_s,
        start_s=start_s,
        bottleneck=name,
        cpu_hours=audio_s * cpu_s / 3600,
        gpu_hours=audio_s * gpu_s / 3600,
        cores_per_gpu=cpu_s / gpu_s if gpu_s else None,
        cost=sum(told) if told else None,
        bytes={table: each * audio_s for table, each in rehearsal.bytes.items()},
        quarantined=failing.times(work.recordings),
        notes=tuple(notes),
    )


def lines(told: Forecast) -> Iterator[str]:
    """A forecast for people."""
    work, found = told.work, told.rehearsal
    if found is None:
        yield f"nothing new: {work.done:,} recordings are labelled already in {told.store}"
        return
    hours = work.audio_s.times(1 / 3600)
    probed = f", headers of {work.probed:,} files read" if work.probed else ""
    yield f"left to do: {work.recordings:,} recordings, {_range(hours, '.2f')} h of audio{probed}"
    yield f"done already: {work.done:,} recordings; in quarantine now: {work.failed:,}"
    yield f"rehearsed: {found.recordings:,} recordings, {found.audio_s / 3600:.2f} h of audio, in {found.took_s:.0f} s"
    yield f"  decode: {1 / max(found.decode.busy_s, 1e-9):,.0f} x real time an actor"
    for name, stage in found.models.items():
        where = {"cuda": "a GPU", "assumed": "a GPU, assumed"}.get(stage.where, "an actor on CPU")
        yield f"  {name}: {1 / max(stage.busy_s, 1e-9):,.0f} x real time {where}"
    pools = "; ".join(f"{', '.join(pool.models)}: {pool.actors} actors" for pool in told.pools)
    yield f"on {told.cluster.cpus:g} CPUs and {told.cluster.gpus:g} GPUs: {told.decoders} decoders; {pools}"
    yield (
        f"wall time {clock(told.wall_s)}, of which {told.start_s:.0f} s to start; slowest: {told.bottleneck}; "
        f"{told.cpu_hours:,.2f} CPU-hours and {told.gpu_hours:,.2f} GPU-hours of work"
    )
    if told.cores_per_gpu is not None:
        yield f"cores that keep one GPU busy: {told.cores_per_gpu:.1f}"
    if told.cost is not None:
        each = told.cost / max(hours.value, 1e-9) * 1000
        yield f"cost {told.cost:,.2f} for the cluster's time, {each:,.2f} for 1,000 h of audio"
    tables = ", ".join(f"{table} {size(count)}" for table, count in told.bytes.items())
    yield f"segments {_range(told.segments, ',.0f')}; the store grows by {size(sum(told.bytes.values()))} ({tables})"
    yield f"quarantine {_range(told.quarantined, ',.0f')} recordings"
    yield from told.notes


def read(path: str) -> dict[str, Any]:
    """A forecast that `serpipe plan --out` wrote.

    Raises:
        UsageError: `FORECAST_UNREADABLE`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        for name in ("wall_s", "work", "segments", "bytes", "quarantined"):
            found[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "FORECAST_UNREADABLE",
            f"{path} is no forecast ({type(error).__name__}: {error}); `serpipe plan ... --out {path}` writes one",
        ) from error
    return found


def clock(seconds: float) -> str:
    """A length of time for people.

    Examples:
        >>> clock(59.6), clock(4000), clock(500_000)
        ('60 s', '1 h 07 min', '138 h 53 min')
    """
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def size(count: float) -> str:
    """Bytes for people.

    Examples:
        >>> size(900), size(1_500_000), size(2e12)
        ('900 B', '1.5 MB', '2.0 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _product(one: Range, other: Range) -> Range:
    """The product of two figures that are not sure, each for its own reasons."""
    value = one.value * other.value
    spread = [
        sqrt(sum((abs(edge - each.value) / each.value) ** 2 for each, edge in edges if each.value))
        for edges in (((one, one.low), (other, other.low)), ((one, one.high), (other, other.high)))
    ]
    return Range(value, value * max(1 - spread[0], 0.0), value * (1 + spread[1]))


def _range(figure: Range, form: str) -> str:
    said = [format(each, form) for each in (figure.value, figure.low, figure.high)]
    return said[0] if said[1] == said[2] else f"{said[0]} ({said[1]} to {said[2]})"
