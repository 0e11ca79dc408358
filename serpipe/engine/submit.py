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
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import Retrying, retry_if_exception_message, retry_if_exception_type, stop_after_delay, wait_fixed

from serpipe.errors import SerpipeError, UsageError

LOOK_EVERY_S = 2.0
"""Seconds between two questions after a job's state."""

START_S = 120.0
"""Seconds that a cluster which has just started has to take its first job."""

PATIENCE_S = 300.0
"""Seconds that the job server of a followed job may be away: a head that is restarted, a port forward that ended."""

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
        UsageError: `CLUSTER_ADDRESS`, the address is no URL of a job server.
        SerpipeError: `CLUSTER_UNREACHABLE`, `CLUSTER_AUTH`.
    """

    def __init__(self, address: str | None = None) -> None:
        # Ray lets its environment variables win over an address that is given.
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS")
        if given and not given.startswith(("http://", "https://")):
            named = f"--address {given}" if address else f"RAY_API_SERVER_ADDRESS {given}"
            raise UsageError("CLUSTER_ADDRESS", f"{named} is no URL of a job server; {_url(given)}")
        if address:
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

        Raises:
            SerpipeError: `CLUSTER_LOST`, the job server was away for longer than `PATIENCE_S`; the job may go on.
        """
        output, cut = _Output(say), False
        while True:
            try:
                asyncio.run(self._tail(name, output))
            except (RuntimeError, OSError, aiohttp.ClientError):
                # The line to the cluster was cut, not the job.
                if not cut:
                    say(f"[the line to {name} was cut; the job goes on, and its output when the cluster answers]\n")
                cut = True
            known = self._looked_at(name)
            if known.status.is_terminal():
                return _told(name, known, new=True)
            time.sleep(LOOK_EVERY_S)

    async def _tail(self, name: str, output: _Output) -> None:
        output.again()
        async for text in self._client.tail_job_logs(name):
            output.take(text)

    def _looked_at(self, name: str) -> JobDetails:
        """A job as it is, asked for until the server answers."""
        patiently = Retrying(
            retry=retry_if_exception_type((OSError, RuntimeError)),
            wait=wait_fixed(LOOK_EVERY_S),
            stop=stop_after_delay(PATIENCE_S),
            reraise=True,
        )
        try:
            known: JobDetails = self._asked(lambda: patiently(self._client.get_job_info, name))
        except SerpipeError as error:
            if error.code != "CLUSTER_UNREACHABLE":
                raise
            raise SerpipeError(
                "CLUSTER_LOST",
                f"the job server{self._at} has not answered for {PATIENCE_S:.0f} s and {name} may still run; "
                f"`ray job logs --follow {name}` shows it once the cluster answers, and the same submit again finds it",
            ) from error
        return known

    def _submit(self, name: str, entrypoint: str, runtime_env: dict[str, Any]) -> JobDetails | None:
        """Submit a job; what is known of it where somebody else was faster."""
        patiently = Retrying(
            retry=retry_if_exception_message(match=".*No available agent"),
            wait=wait_fixed(LOOK_EVERY_S),
            stop=stop_after_delay(START_S),
            reraise=True,
        )

        def refusal() -> Exception | None:
            try:
                patiently(self._client.submit_job, entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env)
            except (RuntimeError, ValueError) as error:
                return error
            return None

        error = self._asked(refusal)
        if error is not None:
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
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise SerpipeError(
                "CLUSTER_UNREACHABLE",
                f"no Ray job server answers{self._at} ({_first_line(error)}); name it with --address http://HEAD:8265, "
                "or RAY_API_SERVER_ADDRESS: on KubeRay, `kubectl port-forward service/CLUSTER-head-svc 8265` and "
                "http://127.0.0.1:8265",
            ) from error


class _Output:
    """Hands on what a job prints once, though every new line to the cluster begins with its first word."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said, self._seen = say, 0, 0

    def again(self) -> None:
        """The output begins anew."""
        self._seen = 0

    def take(self, text: str) -> None:
        """Say what was not said before."""
        new = text[max(0, self._said - self._seen) :]
        self._seen += len(text)
        self._said = max(self._said, self._seen)
        if new:
            self._say(new)


def _url(given: str) -> str:
    """What to write instead of an address that is no URL."""
    if given.startswith("ray://"):
        return "that is the address of Ray's client; jobs go to the dashboard, http://HEAD:8265"
    if "://" in given:
        return "write http://HEAD:8265"
    return f"write http://{given}" + ("" if ":" in given else ":8265")


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
