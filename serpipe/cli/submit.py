# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""`serpipe submit`: any other command, as a job of a Ray cluster."""

from __future__ import annotations

import os
import sys
from datetime import date, datetime

import click

from serpipe.cli.exits import EXIT_BROKEN
from serpipe.errors import UsageError

NIGHT = "SERPIPE_NIGHT"
"""Environment variable of a job: the night that it is for, as in ISO 8601."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", metavar="URL", help="Of the job server, http://HEAD:8265  [default: Ray's own variables]")
@click.option("--name", help="Of the job, before the date  [default: serpipe-COMMAND]")
@click.option(
    "--date",
    "night",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The night that the job is for; a script of nightly jobs finds it in SERPIPE_NIGHT  [default: today]",
)
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False),
    help="Folder that travels with the job; needed for a script, or code that the cluster lacks.",
)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Environment variable of the job.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job's output.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def submit(
    context: click.Context,
    command: tuple[str, ...],
    address: str | None,
    name: str | None,
    night: datetime | None,
    working_dir: str | None,
    variables: tuple[str, ...],
    no_wait: bool,
) -> None:
    """Run COMMAND, any of serpipe's or a script, as tonight's job of a Ray cluster.

    The job is named after the command and the date. A second submit of the same night does nothing while the first
    runs or when it has succeeded, and exits with 0; where it failed or was stopped, it is tried again. The job's output
    is followed and its exit code is this command's; Ctrl-C ends the following, not the job.

    \b
    Example:
      serpipe submit --address http://127.0.0.1:8265 label s3://bucket/archive s3://bucket/store --segment vad
    """
    words = _checked(context, command, working_dir)
    due = night.date() if night else date.today()
    # Who runs the job may have another date by then, or live in another time zone.
    env = {NIGHT: due.isoformat()} | dict(_variable(variable) for variable in variables)
    name = name or f"serpipe-{os.path.basename(command[0]).removesuffix('.py')}"
    from serpipe.engine.submit import Cluster, submission_id

    cluster = Cluster(address)
    wanted = submission_id(name, due)
    job = cluster.submit(words, submission_id=wanted, working_dir=working_dir, env=env)
    if not job.new:
        state = "has succeeded" if job.state == "SUCCEEDED" else "runs"
        click.echo(
            f"nothing to submit: {job.submission_id} {state} already; `ray job logs --follow {job.submission_id}` "
            "shows its output, --name makes another job"
        )
        return
    click.echo(f"submitted: {job.submission_id}")
    if no_wait:
        return
    try:
        ended = cluster.follow(job.submission_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"serpipe: no longer following; {job.submission_id} goes on: `ray job logs --follow {job.submission_id}` "
            f"shows it, `ray job stop {job.submission_id}` ends it",
            err=True,
        )
        sys.exit(EXIT_BROKEN)
    click.echo(f"{ended.submission_id}: {ended.state.lower()}, exit code {ended.exit_code}")
    if ended.state != "SUCCEEDED":
        if ended.exit_code is None:
            click.echo(f"serpipe: {ended.message}", err=True)
        sys.exit(ended.exit_code or EXIT_BROKEN)


def _checked(context: click.Context, command: tuple[str, ...], working_dir: str | None) -> list[str]:
    """Refuse here what the cluster would refuse after minutes; give the words of the job."""
    first, rest = command[0], list(command[1:])
    if first.endswith(".py"):
        if working_dir is None or not os.path.exists(os.path.join(working_dir, first)):
            raise UsageError(
                "SUBMIT_NO_SCRIPT",
                f"{first} is not in the job's folder; give the folder it lies in with --working-dir, and its path from "
                "there",
            )
        return ["python", first, *rest]
    main = context.find_root().command
    known = main.get_command(context, first) if isinstance(main, click.Group) else None
    if known is None or known.name == "submit":
        raise UsageError(
            "SUBMIT_UNKNOWN", f"{first!r} is no command that a job can run; `serpipe --help` lists them, label is one"
        )
    known.make_context(first, rest, parent=context.find_root())
    return ["python", "-m", "serpipe", first, *command[1:]]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(
            "SUBMIT_VARIABLE", f"--env {text!r} is not NAME=VALUE; write it as AWS_DEFAULT_REGION=us-east-1"
        )
    return name, value
