"""What a cluster must have: refused in a sentence with the numbers, at the very edge and not before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serpipe.engine.preflight import BUSY_CPUS, Need, check
from serpipe.errors import UsageError

GIB = 1 << 30
PLENTY = {"cpus": 1000.0, "gpus": 100.0, "object_store_bytes": 1000.0 * GIB}


def need(decoders: int = 2, pools: tuple[tuple[int, float, float], ...] = ((1, 1.0, 0.0),), pack_mib: int = 1) -> Need:
    """Pools are actors, cores and GPUs of each; every core is busy."""
    cpus = BUSY_CPUS * (decoders + sum(actors * cores for actors, cores, _ in pools))
    gpus = sum(actors * gpus for actors, _, gpus in pools)
    return Need(cpus=cpus, gpus=gpus, pools=len(pools), pack_bytes=pack_mib << 20)


def test_too_few_gpus() -> None:
    two = need(pools=((1, 0.0, 1.0), (2, 0.0, 1.0)))
    check(two, **PLENTY | {"gpus": 3.0})
    with pytest.raises(UsageError) as caught:
        check(two, **PLENTY | {"gpus": 2.0})
    assert str(caught.value) == (
        "CLUSTER_TOO_FEW_GPUS: the model pools hold 3 GPUs and the cluster has 2; use one pool, or add GPUs"
    )


def test_too_few_cpus() -> None:
    """Five actors of 0.9 and a tenth for reads and writes are 4.6."""
    five = need(decoders=3, pools=((2, 1.0, 0.0),))
    check(five, **PLENTY | {"cpus": 5.0})
    with pytest.raises(UsageError) as caught:
        check(five, **PLENTY | {"cpus": 4.0})
    assert str(caught.value) == (
        "CLUSTER_TOO_FEW_CPUS: decoders and model pools hold 4.5 CPUs, reads and writes 0.1, and the cluster has 4; "
        "use fewer with --decoders or --pool, or add CPUs"
    )


def test_too_few_cpus_whatever_is_asked() -> None:
    with pytest.raises(UsageError, match=r"and the cluster has 0.5; the least is 1: add CPUs, or let Ray count more"):
        check(need(decoders=1), **PLENTY | {"cpus": 0.5})


def test_many_cpus_are_written_out() -> None:
    with pytest.raises(UsageError, match=r"hold 108 CPUs, reads and writes 0\.1, and the cluster has 96"):
        check(need(decoders=119), **PLENTY | {"cpus": 96.0})


def test_a_small_object_store() -> None:
    """A quarter of the store is shared by four operators, so a pack of 16 MiB takes 256."""
    pack = need(pack_mib=16)
    check(pack, **PLENTY | {"object_store_bytes": float(256 << 20)})
    with pytest.raises(UsageError) as caught:
        check(pack, **PLENTY | {"object_store_bytes": float(128 << 20)})
    assert str(caught.value) == (
        "CLUSTER_STORE_TOO_SMALL: a pack holds 16 MiB of audio and a stage may hold 8 MiB of the object store; give "
        "Ray at least 256 MiB (--object-store-memory of `ray start`)"
    )


@given(
    decoders=st.integers(1, 64),
    pools=st.lists(st.tuples(st.integers(1, 8), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1),
    pack_mib=st.integers(1, 256),
)
def test_what_a_message_asks_for_is_enough(decoders: int, pools: list[tuple[int, float, float]], pack_mib: int) -> None:
    wants = need(decoders, tuple(pools), pack_mib)
    assert wants.gpus == sum(actors * gpus for actors, _, gpus in pools)
    edge = wants.pack_bytes * (3 + len(pools)) * 4
    check(wants, cpus=wants.cpus + 0.1 + 1e-9, gpus=wants.gpus, object_store_bytes=edge)
    for less in ({"cpus": wants.cpus}, {"gpus": wants.gpus - 1}, {"object_store_bytes": edge * 0.99}):
        with pytest.raises(UsageError):
            check(wants, **PLENTY | less)
