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
        decoders: decode actors, one core each.
        pools: for each model pool its actors and the cores and GPUs of one.
        pack_bytes: audio of the largest usual pack.
        actor_cpus: CPUs that an actor reserves for each core it uses.
    """

    decoders: int
    pools: tuple[tuple[int, float, float], ...]
    pack_bytes: int
    actor_cpus: float

    @property
    def cpus(self) -> float:
        """CPUs held by actors."""
        return self.actor_cpus * (self.decoders + sum(actors * cores for actors, cores, _ in self.pools))

    @property
    def gpus(self) -> float:
        """GPUs held by actors."""
        return sum(actors * gpus for actors, _, gpus in self.pools)


ACTOR_CPUS = 0.9
"""CPUs that an actor reserves for each core it uses; the tenth is where reads and writes find room."""

LEAST_CPUS = 1
"""CPUs of the smallest cluster: there one actor of each kind shares them, and takes its time."""

LIGHT_CPUS = 0.05
"""CPUs that a read or write task reserves: it waits for storage."""


def actor_cpus(cores: int, *, cpus: float) -> float:
    """What one actor of each kind reserves for each core, where there may be fewer cores than actors.

    Args:
        cores: that the actors use together.
        cpus: CPUs of the cluster.

    Examples:
        >>> actor_cpus(2, cpus=4.0), actor_cpus(2, cpus=1.0)
        (0.9, 0.45)
    """
    if cpus < LEAST_CPUS:
        return ACTOR_CPUS
    # Ray counts in ten-thousandths.
    return min(ACTOR_CPUS, floor((cpus - 2 * LIGHT_CPUS) / cores * 10_000) / 10_000)


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
        >>> need = Need(decoders=2, pools=((1, 0.0, 1.0), (1, 0.0, 1.0)), pack_bytes=20 << 20, actor_cpus=ACTOR_CPUS)
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
    if need.cpus + 2 * LIGHT_CPUS > cpus:
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
    operators = 3 + len(need.pools)
    share = object_store_bytes * STORE_SHARE * RESERVED_SHARE / operators
    if need.pack_bytes > share:
        wanted = need.pack_bytes * operators / (STORE_SHARE * RESERVED_SHARE)
        raise UsageError(
            "CLUSTER_STORE_TOO_SMALL",
            f"a pack holds {need.pack_bytes / 2**20:.0f} MiB of audio and a stage may hold {share / 2**20:.0f} MiB of "
            f"the object store; give Ray at least {wanted / 2**20:.0f} MiB (--object-store-memory of `ray start`)",
        )
