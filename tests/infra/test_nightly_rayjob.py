"""The program that makes the night's RayJob, against an API server that keeps what it is sent."""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT

PROGRAM = runpy.run_path(str(ROOT / "jobs" / "nightly_rayjob.py"))
JOBS = "/apis/ray.io/v1/namespaces/night/rayjobs"


class ApiServer(ThreadingHTTPServer):
    """As much of Kubernetes' API as one kind in one namespace takes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.statuses: list[dict[str, Any]] = []
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = sent["metadata"]["name"]
        if self.path != JOBS or self.headers["Authorization"] != "Bearer secret":
            return self._answer(403, {})
        if name in self.server.objects:
            return self._answer(409, {})
        self.server.objects[name] = sent
        return self._answer(201, sent)

    def do_GET(self) -> None:
        name = self.path.removeprefix(f"{JOBS}/")
        if self.server.refuse:
            self.server.refuse -= 1
            return self._answer(503, {})
        if name not in self.server.objects:
            return self._answer(404, {})
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        return self._answer(200, self.server.objects[name] | {"status": status})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def kubernetes(server: ApiServer, tmp_path: Path) -> Any:
    (tmp_path / "namespace").write_text("night\n")
    (tmp_path / "token").write_text("secret\n")
    return PROGRAM["Kubernetes"](server.url, tmp_path)


RAYJOB = {"metadata": {"name": "serpipe-nightly-2026-11-20"}, "spec": {"entrypoint": "true"}}


def test_a_pod_that_is_replaced_after_midnight_is_for_the_same_night() -> None:
    scheduled, now = datetime(2026, 11, 24, 23, 0, tzinfo=UTC), datetime(2026, 11, 25, 1, 30, tzinfo=UTC)
    minutes = int(scheduled.timestamp()) // 60
    assert PROGRAM["due"](f"serpipe-nightly-{minutes}", now) == scheduled.date()
    assert PROGRAM["due"]("tonight", now) == now.date()


def test_a_night_is_made_once(server: ApiServer, kubernetes: Any) -> None:
    assert kubernetes.create(RAYJOB)
    assert not kubernetes.create(RAYJOB)
    assert server.objects == {"serpipe-nightly-2026-11-20": RAYJOB}


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 3),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}, 3),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, 3),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"}, 3),
    ],
)
def test_its_end_is_waited_for(server: ApiServer, kubernetes: Any, last: dict[str, str], code: int) -> None:
    kubernetes.create(RAYJOB)
    server.refuse = 2
    server.statuses = [{}, {"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Retrying"}, last]
    assert PROGRAM["wait"](kubernetes, "serpipe-nightly-2026-11-20", every_s=0.01) == code
    assert server.statuses == [last]


def test_kubernetes_that_stays_away_is_an_error(server: ApiServer, kubernetes: Any) -> None:
    kubernetes.create(RAYJOB)
    server.refuse = 1000
    with pytest.raises(requests.HTTPError):
        PROGRAM["wait"](kubernetes, "serpipe-nightly-2026-11-20", every_s=0.0)


def test_what_is_forbidden_is_an_error(kubernetes: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of somebody else")
    with pytest.raises(requests.HTTPError, match="403"):
        kubernetes.create(RAYJOB)
