"""A Ray cluster with a job server on this machine, in a process of its own; run as a program it is one.

Nothing outside of it is touched: its own ports and temporary folder, and it ends with its standard input.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

TOKEN = "the-token-of-the-cluster-in-this-test-and-of-no-other"


def environment(**more: str) -> dict[str, str]:
    """What a process needs that speaks with the cluster, and nothing of a Ray that the tests run beside it."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
    return mine | quiet | {"PATH": path} | more


@contextmanager
def local_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster that asks for a token; give the environment that reaches it."""
    folder = tempfile.mkdtemp(prefix="sp-")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.local_cluster", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, RAY_TMPDIR=folder),
    )
    assert process.stdin
    assert process.stdout
    try:
        said = next((line for line in process.stdout if line.startswith("{")), "")
        assert said, "the cluster did not start; what it wrote says why"
        started: dict[str, str] = json.loads(said)
        yield environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, **started)
    finally:
        process.stdin.close()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def main(folder: str) -> None:
    from ray.cluster_utils import Cluster

    # As the groups of infra/kuberay: one that decodes, one with a GPU, which is pretended.
    head, *agents = _free_ports(3)
    # Where Ray notes the newest cluster of this machine, with the RAY_TMPDIR that this process was given.
    place = os.path.join(folder, "ray")
    os.mkdir(place)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "object_store_memory": 1 << 30,
            "labels": {"serpipe-stage": "decode"},
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": head,
            "dashboard_agent_listen_port": agents[0],
            "temp_dir": place,
        },
    )
    cluster.add_node(
        num_cpus=2,
        num_gpus=1,
        object_store_memory=1 << 30,
        labels={"serpipe-stage": "label"},
        dashboard_agent_listen_port=agents[1],
        temp_dir=place,
    )
    print(json.dumps({"RAY_API_SERVER_ADDRESS": f"http://{cluster.head_node.webui_url}"}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


if __name__ == "__main__":
    main(sys.argv[1])
