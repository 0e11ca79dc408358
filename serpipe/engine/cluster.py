"""The cluster a run works on: joined where there is one, started on this machine where there is none."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray

from serpipe.errors import SerpipeError

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray warns at every start of a pool about restarts that never happen to it (ray#53727).
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # With more actors than cores Ray ends each idle worker after a second, and the next commit's has to import again.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
"""Of a cluster that is started here: silent, no telemetry, and its workers stay."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster has.

    Attributes:
        cpus: CPU cores; where nodes are labelled for decoding, theirs alone.
        gpus: GPUs; where nodes are labelled for labelling, theirs alone.
        object_store_bytes: object store of all nodes.
    """

    cpus: float
    gpus: float
    object_store_bytes: float


def gpus_here() -> float:
    """GPUs of this machine, as a Ray that is started on it counts them."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    count = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    visible = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    return float(count if visible is None else min(count, len(visible)))


CONNECT_S = 20.0
"""Seconds that a cluster has to take a connection."""

STAGE_LABEL = "serpipe-stage"
"""Label of a Ray node that keeps it for a stage: `decode` or `label`."""


def placed(stage: str) -> dict[str, str] | None:
    """The label selector that keeps a stage to the nodes labelled for it; None where no node is.

    Args:
        stage: `decode` or `label`.
    """
    return {STAGE_LABEL: stage} if _labelled(stage) else None


def _labelled(stage: str) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["Labels"].get(STAGE_LABEL) == stage]


def _of(resource: str, nodes: Sequence[dict[str, Any]], every: Mapping[str, float]) -> float:
    """What some nodes have of a resource; the whole cluster where they are none."""
    return float(sum(node["Resources"].get(resource, 0.0) for node in nodes) if nodes else every.get(resource, 0.0))


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keeps what Ray's native part writes at its start off the terminal, unless the start fails."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _look(address: str) -> None:
    """Refuse an address at which nothing listens; Ray would ask there for minutes."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if place.hostname is None or place.port is None:
            return
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise SerpipeError(
            "CLUSTER_UNREACHABLE",
            f"no Ray cluster answers at {address} ({error}); look with `ray status --address "
            f"{address}`, name another with --address or RAY_ADDRESS, or leave both out to work on this machine alone",
        ) from error


@contextmanager
def joined(address: str | None) -> Iterator[Cluster]:
    """Use a cluster for the length of a `with` block.

    Args:
        address: of a running cluster; None joins the one this process is in or `RAY_ADDRESS` names, or starts one
            on this machine and ends it afterwards.

    Raises:
        SerpipeError: `CLUSTER_UNREACHABLE`.
    """
    started = not ray.is_initialized()
    if started:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        address = address or os.environ.get("RAY_ADDRESS")
        # Left to itself Ray joins whatever cluster somebody last started on this machine.
        options = {"address": address} if address else {"address": "local", "include_dashboard": False}
        if address:
            _look(address)
        with _quiet_start():
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    # Ray Data tells its plan and its operators at every run; progress is ours, errors come through.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield Cluster(
            cpus=_of("CPU", _labelled("decode"), resources),
            gpus=_of("GPU", _labelled("label"), resources),
            object_store_bytes=resources.get("object_store_memory", 0.0),
        )
    finally:
        if started:
            ray.shutdown()
