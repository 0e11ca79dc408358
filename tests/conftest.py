"""What the tests share: one Ray session, real audio where it is at hand, an S3 server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray's workers stand back behind everything else, and beside a busy process of tests they would not come to their turn.
os.environ.setdefault("RAY_worker_niceness", "0")
# The same on every machine: what a sum of floats is depends on how many threads add.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """What tests and examples leave in a folder of their own goes at the end; pytest keeps its own as it does."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    # Short, for a cluster that is started in it has sockets below it, and their paths may have 107 characters.
    folder = tempfile.TemporaryDirectory(prefix="st-", ignore_cleanup_errors=True)
    tempfile.tempdir = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes one has all that runs on Ray, so that a run has one Ray; a module stays together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "ray" if "/engine/" in module or "ray_session" in (ROOT / module).read_text() else module

    return ByModule(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process beside others hands in the crash points that it tried."""
    from tests.faults import crashes

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = [[*key, count] for key, count in crashes.TRIED.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what each process has tried."""
    from tests.faults import crashes

    for where, what, count in getattr(node, "workeroutput", {}).get("tried", ()):
        crashes.TRIED[where, what] += count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many crash points were tried, where."""
    from tests.faults import crashes

    if crashes.TRIED:
        terminalreporter.section("crash points recovered from: 0 rows lost, 0 duplicated, 0 changed")
        for line in crashes.summary():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def real_audio() -> Path:
    """The folder of real recordings, which is not part of the project."""
    folder = Path(os.environ.get("SERPIPE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "formats" / "index.csv").exists():
        pytest.skip(f"no real audio in {folder}; set SERPIPE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of four CPUs and two pretended GPUs on this machine, for the whole test run."""
    import ray

    ray.init(
        "local",
        num_cpus=4,
        num_gpus=2,
        object_store_memory=1 << 30,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def object_store() -> Iterator[dict[str, str]]:
    """A real S3-compatible store on this machine, `infra/object-store`: the environment that reaches it."""
    directory = Path(tempfile.mkdtemp(prefix="serpipe-object-store-"))
    script = ROOT / "infra" / "object-store"
    started = subprocess.run(
        [script / "start", directory, str(_free_ports(5))], capture_output=True, text=True, timeout=280
    )
    if started.returncode:
        pytest.fail(started.stderr)
    lines = (line.removeprefix("export ").partition("=") for line in started.stdout.splitlines())
    try:
        yield {name: value for name, _, value in lines}
    finally:
        subprocess.run([script / "stop", directory], check=True, timeout=60)
        shutil.rmtree(directory)


@pytest.fixture
def real_s3(object_store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket of the real store, `s3://…`; the environment is set to reach it."""
    import fsspec

    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _free_ports(count: int) -> int:
    """The first of several ports in a row that nobody listens on."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        taken = []
        try:
            for port in range(first, first + count):
                taken.append(socket.create_server(("127.0.0.1", port)))
            return first
        except (OSError, OverflowError):
            continue
        finally:
            for server in taken:
                server.close()
