"""Runs a command as a job of a Ray cluster: submitted once a night, followed, its exit code passed on."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from serpipe.errors import SerpipeError, UsageError

LOOK_EVERY_S = 2.0
"""Seconds between two questions after a job's state."""

START_S = 120.0
"""Seconds that a cluster which has just started has to take its first job."""

_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Loggers of Ray that tell of every upload and every closed line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job on a cluster.

    Attributes:
        submission_id: its name there.
        state: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`.
        exit_code: of its command; None while it runs, and where the command never came to an end.
        new: whether this call submitted it.
        message: what the cluster says about its state.
    """

    submission_id: str
    state: str
    exit_code: int | None
    new: bool
    message: str


def submission_id(name: str, night: date) -> str:
    """The name under which one night's job is known.

    Examples:
        >>> submission_id("serpipe-label", date(2026, 11, 20))
        'serpipe-label-2026-11-20'
    """
    return f"{name}-{night.isoformat()}"


class Cluster:
    """The job server of a Ray cluster.

    Args:
        address: `http://HEAD:8265`; by default what `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS` names, else the cluster
            on this machine.

    Raises:
        SerpipeError: `CLUSTER_UNREACHABLE`, `CLUSTER_AUTH`.
    """

    def __init__(self, address: str | None = None) -> None:
        if address:
            # Ray lets its environment variables win over an address that is given.
            os.environ["RAY_API_SERVER_ADDRESS"] = address
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._shown = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
        self._client: JobSubmissionClient = self._asked(lambda: JobSubmissionClient(address))

    def submit(
        self, command: Sequence[str], *, submission_id: str, working_dir: str | None = None, env: dict[str, str]
    ) -> Submitted:
        """Submit a night's command, unless it runs or has succeeded.

        A job that failed or was stopped keeps its name, so that its next try is called `…-2`; what it committed
        counts.

        Args:
            command: program and arguments.
            submission_id: the night's name.
            working_dir: folder that travels with the job; none by default, the image has what it needs.
            env: environment variables of the job.

        Returns:
            The job that does this night's work.

        Raises:
            UsageError: `SUBMIT_NAME_TAKEN`, a job of that name does something else.
            SerpipeError: `SUBMIT_REFUSED`, `CLUSTER_UNREACHABLE`, `CLUSTER_AUTH`.
        """
        entrypoint = shlex.join(command)
        runtime_env: dict[str, Any] = {"env_vars": env} if env else {}
        if working_dir:
            runtime_env["working_dir"] = working_dir
        attempt, name = 1, submission_id
        while True:
            known = self._known(name) or self._submit(name, entrypoint, runtime_env)
            if known is None:
                return Submitted(submission_id=name, state="PENDING", exit_code=None, new=True, message="")
            if known.entrypoint != entrypoint:
                raise UsageError(
                    "SUBMIT_NAME_TAKEN",
                    f"job {name} of this cluster is another command ({known.entrypoint}); give this one a name of its "
                    "own with --name",
                )
            if known.status not in (JobStatus.FAILED, JobStatus.STOPPED):
                return _told(name, known, new=False)
            attempt += 1
            name = f"{submission_id}-{attempt}"

    def follow(self, name: str, say: Callable[[str], None]) -> Submitted:
        """Hand on a job's output until it ends.

        Args:
            name: its submission id.
            say: is given the output as it comes, line ends included.
        """
        try:
            asyncio.run(self._tail(name, say))
        except (RuntimeError, OSError, aiohttp.ClientError):
            # The line to the cluster was cut, not the job.
            say(f"[the output of {name} cannot be followed any more; waiting for its end]\n")
        while True:
            known = self._asked(lambda: self._client.get_job_info(name))
            if known.status.is_terminal():
                return _told(name, known, new=True)
            time.sleep(LOOK_EVERY_S)

    async def _tail(self, name: str, say: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(name):
            say(text)

    def _submit(self, name: str, entrypoint: str, runtime_env: dict[str, Any]) -> JobDetails | None:
        """Submit a job; what is known of it where somebody else was faster."""
        patiently = Retrying(
            retry=retry_if_exception_message(match=".*No available agent"),
            wait=wait_fixed(LOOK_EVERY_S),
            stop=stop_after_delay(START_S),
            reraise=True,
        )
        try:
            self._asked(
                lambda: patiently(
                    self._client.submit_job, entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env
                )
            )
        except (RuntimeError, ValueError) as error:
            known = self._known(name)
            if known is not None:
                return known
            raise SerpipeError(
                "SUBMIT_REFUSED", f"the cluster{self._at} does not take job {name}: {_first_line(error)}"
            ) from error
        return None

    def _known(self, name: str) -> JobDetails | None:
        jobs: list[JobDetails] = self._asked(self._client.list_jobs)
        return next((job for job in jobs if job.submission_id == name), None)

    @property
    def _at(self) -> str:
        return f" at {self._shown}" if self._shown else ""

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except AuthenticationError as error:
            raise SerpipeError("CLUSTER_AUTH", f"the cluster{self._at} {_remedy(str(error))}") from error
        except (ConnectionError, OSError) as error:
            raise SerpipeError(
                "CLUSTER_UNREACHABLE",
                f"no Ray job server answers{self._at} ({_first_line(error)}); name it with --address http://HEAD:8265, "
                "or RAY_API_SERVER_ADDRESS: on KubeRay, `kubectl port-forward service/CLUSTER-head-svc 8265` and "
                "http://127.0.0.1:8265",
            ) from error


def _remedy(said: str) -> str:
    """What is wrong with the token, and what to do about it."""
    where = (
        "RAY_AUTH_TOKEN or ~/.ray/auth_token; `ray get-auth-token` on its head prints it, on KubeRay it is in the "
        "secret named like the cluster"
    )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return (
            "asks for a token and Ray sends none, for RAY_AUTH_MODE is not set here; set RAY_AUTH_MODE=token, and put "
            f"the cluster's token in {where}"
        )
    if "Authentication failed" in said:
        return f"refuses the token that RAY_AUTH_MODE=token sends; put this cluster's in {where}"
    return f"is asked with RAY_AUTH_MODE=token and there is no token here; put the cluster's in {where}"


def _told(name: str, known: JobDetails, *, new: bool) -> Submitted:
    return Submitted(
        submission_id=name,
        state=str(known.status.value),
        exit_code=known.driver_exit_code,
        new=new,
        message=known.message or "",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
