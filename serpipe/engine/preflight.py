"""What a cluster must have before a run starts. Ray would not refuse: it would crawl, one block in ten seconds."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from serpipe.errors import UsageError

STORE_SHARE = 0.5
"""Of the object store, what Ray Data uses (`RAY_DATA_OBJECT_STORE_MEMORY_LIMIT_FRACTION`)."""

RESERVED_SHARE = 0.5
"""Share of that which is split evenly among the operators; the rest floats (ReservationOpResourceAllocator)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a pipeline holds from its first to its last second.

    Attributes:
        cpus: CPUs that its actors reserve.
        gpus: GPUs that they reserve.
        pools: model pools.
        pack_bytes: audio of the largest usual pack.
    """

    cpus: float
    gpus: float
    pools: int
    pack_bytes: int


BUSY_CPUS = 0.9
"""CPUs that an actor reserves for each core it keeps busy; the tenth is where all others find room."""

LIGHT_CPUS = 0.05
"""CPUs that reserves what mostly waits: reads and writes for storage, the actors of a light stage for the busy one."""

LEAST_CPUS = 1
"""CPUs of the smallest cluster: there one actor of each kind shares them, and takes its time."""


RAY_FRACTIONS = 10_000
"""Ray counts a resource in ten-thousandths (`kResourceUnitScaling`), so sums that differ by less are the same to it."""


def busy_actors(light: int, *, cpus: float) -> int:
    """How many actors find a core of their own.

    Args:
        light: actors that reserve `LIGHT_CPUS` beside them.
        cpus: CPUs of the cluster.

    Examples:
        >>> busy_actors(1, cpus=2.0), busy_actors(8, cpus=64.0)
        (2, 70)
    """
    return floor((cpus - LIGHT_CPUS * (light + 2)) / BUSY_CPUS + 1e-9)


def light_actors(busy: int, *, cpus: float) -> int:
    """How many actors that reserve `LIGHT_CPUS` find room beside the busy ones.

    Args:
        busy: actors that keep a core busy.
        cpus: CPUs of the cluster.

    Examples:
        >>> light_actors(2, cpus=2.0), light_actors(22, cpus=20.0), light_actors(3, cpus=2.0)
        (2, 2, 0)
    """
    return max(floor((cpus - BUSY_CPUS * busy) / LIGHT_CPUS + 1e-9) - 2, 0)


def shared_cpus(busy: int, light: int, *, cpus: float) -> float:
    """What each busy actor reserves where there may be fewer cores than one of each kind.

    Args:
        busy: actors that keep a core busy.
        light: actors that reserve `LIGHT_CPUS` beside them.
        cpus: CPUs of the cluster.

    Examples:
        >>> shared_cpus(1, 1, cpus=4.0), shared_cpus(1, 1, cpus=1.0)
        (0.9, 0.85)
    """
    if cpus < LEAST_CPUS or not busy:
        return BUSY_CPUS
    return min(BUSY_CPUS, floor((cpus - LIGHT_CPUS * (light + 2)) / busy * RAY_FRACTIONS + 1e-6) / RAY_FRACTIONS)


def check(need: Need, *, cpus: float, gpus: float, object_store_bytes: float) -> None:
    """Refuse what the cluster cannot carry.

    Args:
        need: what the pipeline holds.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        object_store_bytes: object store of the cluster.

    Raises:
        UsageError: `CLUSTER_TOO_FEW_GPUS`, `CLUSTER_TOO_FEW_CPUS`, `CLUSTER_STORE_TOO_SMALL`.

    Examples:
        >>> need = Need(cpus=1.8, gpus=2.0, pools=2, pack_bytes=20 << 20)
        >>> check(need, cpus=4, gpus=1, object_store_bytes=1 << 30)
        Traceback (most recent call last):
        serpipe.errors.UsageError: CLUSTER_TOO_FEW_GPUS: the model pools hold 2 GPUs and the cluster has 1; use \
one pool, or add GPUs
    """
    if need.gpus > gpus:
        raise UsageError(
            "CLUSTER_TOO_FEW_GPUS",
            f"the model pools hold {need.gpus:g} GPUs and the cluster has {gpus:g}; use one pool, or add GPUs",
        )
    if round((need.cpus + 2 * LIGHT_CPUS) * RAY_FRACTIONS) > round(cpus * RAY_FRACTIONS):
        remedy = (
            "use fewer with --decoders or --pool, or add CPUs"
            if cpus >= LEAST_CPUS
            else f"the least is {LEAST_CPUS}: add CPUs, or let Ray count more than it found (--num-cpus of `ray start`)"
        )
        raise UsageError(
            "CLUSTER_TOO_FEW_CPUS",
            f"decoders and model pools hold {round(need.cpus, 2):g} CPUs, reads and writes {2 * LIGHT_CPUS:g}, "
            f"and the cluster has {cpus:g}; {remedy}",
        )
    operators = 3 + need.pools
    share = object_store_bytes * STORE_SHARE * RESERVED_SHARE / operators
    if need.pack_bytes > share:
        wanted = need.pack_bytes * operators / (STORE_SHARE * RESERVED_SHARE)
        raise UsageError(
            "CLUSTER_STORE_TOO_SMALL",
            f"a pack holds {need.pack_bytes / 2**20:.0f} MiB of audio and a stage may hold {share / 2**20:.0f} MiB of "
            f"the object store; give Ray at least {wanted / 2**20:.0f} MiB (--object-store-memory of `ray start`)",
        )
