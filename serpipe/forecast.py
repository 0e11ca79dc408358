"""What a run will take, from what is left to do, what a rehearsal measured, and how a cluster is shared out.

Each stage is as fast as its actors together, the run as its slowest stage; and where stages share cores, never faster
than all their work over all cores. Nothing here knows Ray, a store or a clock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, sqrt
from typing import Any

from serpipe.errors import UsageError

RAY_START = 3.5
"""How often a fresh process could import Ray Data until Ray answers; about as long where it must only be joined."""

PIPELINE_START = 3.5
"""The same until Ray Data and its actors have started, on top of what the same stages take without it."""

PACK_CPU_S = 0.03
"""Core-seconds that a pack costs Ray, the driver and the sink's task beside what the stages do with it."""

MOVE_CPU_S = 0.0002
"""Core-seconds that a second of a pack's audio costs on its way from stage to stage through the object store: what ten
hours of utterances and eight of podcasts took on two cores beyond what their stages did (`jobs/benchmark_plan.py`)."""

DRIVER_PACK_S = 0.02
"""Seconds that the driver is busy with a pack: a pipeline that did nothing moved 45 to 49 a second, with 20,000 read
tasks or 600 (`jobs/benchmark_scale.py --tasks`)."""

TASK_START_S = 0.00055
"""Seconds that a run starts later for each read task: 9.7 to 11 more with 20,000 than with 600, in the same runs."""

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
        probed: files whose headers were read for that and state a length.
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
class Written:
    """What comes of a second of audio in the store.

    Attributes:
        cpu_s: core-seconds of writing it.
        commits: share of a commit that it fills.
        bytes: that it leaves in each table.
        commit_bytes: that any commit leaves in each table.
    """

    cpu_s: float
    commits: float
    bytes: Mapping[str, float]
    commit_bytes: Mapping[str, float]

    def of(self, audio_s: float) -> dict[str, float]:
        """Bytes of so much audio in each table.

        Examples:
            >>> Written(cpu_s=0.0, commits=0.01, bytes={"a": 1.0}, commit_bytes={"a": 50.0}).of(150.0)
            {'a': 250.0}
        """
        commits = ceil(audio_s * self.commits - 1e-9)
        return {table: each * audio_s + self.commit_bytes[table] * commits for table, each in self.bytes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a rehearsal measured.

    Attributes:
        took_s: seconds it took.
        recordings: that were brought to an end in it.
        failed: of these, those that a run puts in quarantine, whole or in part.
        audio_s: seconds of audio that were decoded.
        pack_s: seconds of recordings behind a pack.
        decode: the decode stage.
        models: each model's stage, by name.
        written: what comes of it in the store.
        segments: for a second of audio.
        heard: seconds of them for a second of audio.
        ray_s: seconds in which a fresh process imports Ray Data: how fast this machine starts what consists of such.
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
    written: Written
    segments: Range
    heard: float
    ray_s: float
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
        bottleneck: the slowest stage: `decode`, a pool's models, `cores` where all stages share them, or `driver`,
            which hands out the packs.
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


def assumed(parameters: int, dtype: str, heard: float) -> Stage:
    """A GPU's stage for a model that no GPU was there to rehearse, by its arithmetic alone.

    Args:
        parameters: weights of the model.
        dtype: number format.
        heard: seconds of segments in a second of audio.

    Examples:
        >>> round(1 / assumed(316_000_000, "bfloat16", heard=1.0).busy_s)
        4132
    """
    seconds = heard * (STEM_FLOP + FRAMES_FLOP * parameters) / ASSUMED_FLOPS[dtype]
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
    cpu_s = rehearsal.decode.cpu_s + rehearsal.written.cpu_s + PACK_CPU_S / pack_s + MOVE_CPU_S
    cpu_s += sum(rehearsal.models[name].cpu_s for pool in pools for name in pool.models)
    gpu_s = sum(rehearsal.models[name].busy_s for pool in pools if pool.gpus for name in pool.models)
    slowest, busy_s, actors = max(stages, key=lambda stage: stage[1] / stage[2])
    # One pack passes every stage; the others follow as fast as the slowest stage lets them.
    work_s = pack_s * sum(busy for _, busy, _ in stages) + max(audio_s - pack_s, 0.0) * busy_s / actors
    shared_s = audio_s * cpu_s / cluster.cpus
    if shared_s > work_s:
        slowest, work_s = "cores", shared_s
    driver_s = audio_s / pack_s * DRIVER_PACK_S
    start_s = before_s + (RAY_START + PIPELINE_START) * rehearsal.ray_s + TASK_START_S * work.tasks + rehearsal.start_s
    if driver_s > work_s:
        drivers = ceil(driver_s / work_s)
        if driver_s > start_s:
            notes = [
                *notes,
                f"one driver cannot hand out packs that fast; {drivers} drivers could, each with a share of this work "
                "(--shard)",
            ]
        slowest, work_s = "driver", driver_s
    wall_s = start_s + work_s
    # Of what was rehearsed nothing is left to chance.
    unseen = sqrt(max(1 - rehearsal.recordings / work.recordings, 0.0)) if work.recordings else 0.0
    failing = share(rehearsal.failed, rehearsal.recordings).narrowed(unseen)
    prices = [(cluster.cpus, cluster.price_cpu_hour), (cluster.gpus, cluster.price_gpu_hour)]
    told = [held * price * wall_s / 3600 for held, price in prices if price is not None]
    if told and any(held and price is None for held, price in prices):
        left_out, option = (
            ("CPUs", "--price-cpu-hour") if cluster.price_cpu_hour is None else ("GPUs", "--price-gpu-hour")
        )
        notes = [*notes, f"what the {left_out} cost is not in the cost; {option} adds it"]
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
        bottleneck=slowest,
        cpu_hours=audio_s * cpu_s / 3600,
        gpu_hours=audio_s * gpu_s / 3600,
        cores_per_gpu=cpu_s / gpu_s if gpu_s else None,
        cost=sum(told) if told else None,
        bytes=rehearsal.written.of(audio_s),
        quarantined=failing.times(work.recordings),
        notes=tuple(notes),
    )


def read(path: str) -> dict[str, Any]:
    """A forecast that `serpipe plan --out` wrote.

    Raises:
        UsageError: `FORECAST_UNREADABLE`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        # What `serpipe.store.runs.compared` reads when the run is over, and what it is of.
        ranges = [found["work"]["audio_s"], found["segments"], found["quarantined"]]
        figures = [found["wall_s"], *(each["value"] for each in ranges), *found["bytes"].values()]
        figures.append(found["work"]["recordings"])
        _ = found["manifest"], found["store"], [*found["models"]]
        if found.get("cost") is not None:
            figures += [found["cost"], 1 / found["wall_s"]]
        if not all(isinstance(figure, int | float) for figure in figures):
            raise TypeError("not all of its figures are numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UsageError(
            "FORECAST_UNREADABLE",
            f"{path} is no forecast ({type(error).__name__}: {error}); `serpipe plan ... --out {path}` writes one",
        ) from error
    return found


def refuse_another(path: str, told: Mapping[str, Any], *, manifest: str, store: str, models: Collection[str]) -> None:
    """A forecast must be of what is about to run, or the comparison would be of two things.

    Args:
        path: where it lies.
        told: the forecast, as `read` gives it.
        manifest: where the manifest lies.
        store: where the store lies, as messages show it.
        models: names of those that label; a forecast leaves out what has nothing to do.

    Raises:
        UsageError: `FORECAST_OF_ANOTHER`.

    Examples:
        >>> told = {"manifest": "a.csv", "store": "s", "models": {"embedded": "f"}}
        >>> refuse_another("f.json", told, manifest="a.csv", store="s", models=["embedded", "probe-1"])
        >>> refuse_another("f.json", told, manifest="b.csv", store="s", models=["embedded"])
        Traceback (most recent call last):
        ...
        serpipe.errors.UsageError: FORECAST_OF_ANOTHER: f.json forecasts the manifest a.csv, and this run has ...
    """
    pairs = {
        "the manifest": (told["manifest"], manifest),
        "the store": (told["store"], store),
        "the models": (", ".join(sorted(told["models"])), ", ".join(sorted(set(models) & {*told["models"]}))),
    }
    for what, (before, now) in pairs.items():
        if before != now:
            raise UsageError(
                "FORECAST_OF_ANOTHER",
                f"{path} forecasts {what} {before}, and this run has {now or 'others'}; "
                f"`serpipe plan ... --out {path}` with this run's manifest, store and models makes its own",
            )


def _product(one: Range, other: Range) -> Range:
    """The product of two figures that are not sure, each for its own reasons."""
    value = one.value * other.value
    spread = [
        sqrt(sum((abs(edge - each.value) / each.value) ** 2 for each, edge in edges if each.value))
        for edges in (((one, one.low), (other, other.low)), ((one, one.high), (other, other.high)))
    ]
    return Range(value, value * max(1 - spread[0], 0.0), value * (1 + spread[1]))
