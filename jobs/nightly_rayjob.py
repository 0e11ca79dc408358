"""Makes the night's RayJob on Kubernetes and waits for its end; what `infra/kuberay/nightly.yaml` runs every night.

The RayJob is named after the night it was due, so a pod that is replaced, or a second one, finds the first one's RayJob
and waits for that. Exit code 0 is a night that is labelled, 3 one that failed; any other is this program's own.

Example:
    python jobs/nightly_rayjob.py infra/kuberay/rayjob.yaml
"""

from __future__ import annotations

import os
import re
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import requests
import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts a pod's token, its namespace and the certificate of the API server."""

LOOK_EVERY_S = 30.0
LOOKS_LOST = 20
"""Questions in a row that may go unanswered: an upgrade of the control plane takes minutes."""

EXIT_BROKEN, EXIT_NIGHT_FAILED = 1, 3


def due(job_name: str, now: datetime) -> date:
    """The night a CronJob's Job is for: Kubernetes ends its name with the minutes since 1970 at which it was due.

    Examples:
        >>> due("serpipe-nightly-29924700", datetime(2026, 11, 25, tzinfo=UTC))
        datetime.date(2026, 11, 24)
        >>> due("by-hand", datetime(2026, 11, 25, tzinfo=UTC))
        datetime.date(2026, 11, 25)
    """
    found = re.search(r"-(\d{8,})$", job_name)
    return (datetime.fromtimestamp(int(found[1]) * 60, UTC) if found else now).date()


def tonight(template: dict[str, Any], night: date) -> dict[str, Any]:
    """A night's RayJob from the template: its name and its command hold the date."""
    name = f"serpipe-nightly-{night.isoformat()}"
    return {
        **template,
        "metadata": {**template["metadata"], "name": name},
        "spec": {**template["spec"], "entrypoint": f"{template['spec']['entrypoint']} --date {night.isoformat()}"},
    }


class Kubernetes:
    """RayJobs of this pod's namespace.

    Args:
        server: url of the API server.
        account: folder of the pod's service account.
    """

    def __init__(self, server: str, account: Path = ACCOUNT) -> None:
        namespace = (account / "namespace").read_text().strip()
        self._jobs = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._account = account

    def create(self, rayjob: dict[str, Any]) -> bool:
        """Create a RayJob; False where one of its name exists."""
        answer = self._ask("POST", self._jobs, json=rayjob)
        if answer.status_code == requests.codes.conflict:
            return False
        answer.raise_for_status()
        return True

    def status(self, name: str) -> dict[str, Any]:
        """A RayJob's status, empty at first."""
        answer = self._ask("GET", f"{self._jobs}/{name}")
        answer.raise_for_status()
        status: dict[str, Any] = answer.json().get("status", {})
        return status

    def _ask(self, method: str, url: str, **options: Any) -> requests.Response:
        # Kubernetes renews the token while the pod waits.
        token = (self._account / "token").read_text().strip()
        return requests.request(
            method,
            url,
            headers={"Authorization": f"Bearer {token}"},
            verify=str(self._account / "ca.crt"),
            timeout=60,
            **options,
        )


def wait(kubernetes: Kubernetes, name: str, every_s: float = LOOK_EVERY_S) -> int:
    """Wait for a RayJob's end.

    Returns:
        The exit code that says how it ended.
    """
    lost, shown = 0, ""
    while True:
        try:
            status = kubernetes.status(name)
            lost = 0
        except requests.RequestException as error:
            lost += 1
            if lost == LOOKS_LOST:
                raise
            print(f"{name}: Kubernetes does not answer ({error})", flush=True)
            status = {}
        state = status.get("jobDeploymentStatus", "")
        if state and state != shown:
            print(f"{name}: {state.lower()}", flush=True)
            shown = state
        # A night that was stopped by hand ends as complete too.
        if state == "Complete" and status.get("jobStatus") == "SUCCEEDED":
            return 0
        # Of a RayJob that its validation refuses the operator says so and nothing more.
        if state in ("Complete", "Failed", "ValidationFailed"):
            print(
                f"{name}: {status.get('jobStatus')} {status.get('reason', '')} {status.get('message', '')}", flush=True
            )
            return EXIT_NIGHT_FAILED
        time.sleep(every_s)


def main(template: str) -> int:
    """Make tonight's RayJob and wait for its end."""
    night = due(os.environ.get("JOB_NAME", ""), datetime.now(UTC))
    rayjob = tonight(yaml.safe_load(Path(template).read_text()), night)
    name = rayjob["metadata"]["name"]
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT_HTTPS"]
    kubernetes = Kubernetes(f"https://{host}:{port}")
    try:
        print(f"{name}: {'created' if kubernetes.create(rayjob) else 'is there already'}", flush=True)
        return wait(kubernetes, name)
    except requests.RequestException as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
