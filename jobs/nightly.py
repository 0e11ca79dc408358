"""One night as a cluster job: tonight's manifest, `serpipe label`, the report, one exit code.

MANIFEST may hold the date, as in s3://bucket/manifests/{date}.parquet or …/{date:%Y/%m/%d}.csv; options that are not
the night's own are those of `serpipe label`. The exit code is the night's however often it is tried: 3 where more than
--max-failed of the recordings that its tries together had to do are in quarantine, also where a try was killed in the
middle or found nothing left. So a job that is tried again cannot turn 3 into 0, and a bad night stays its own: the next
one, of the same manifest without anything new, ends with 0.

Example:
    serpipe submit --working-dir . jobs/nightly.py 's3://bucket/manifests/{date}.parquet' s3://bucket/store
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

import click

from serpipe.cli import main
from serpipe.cli.exits import EXIT_BROKEN, EXIT_QUARANTINE, EXIT_USAGE
from serpipe.cli.submit import NIGHT
from serpipe.errors import SerpipeError, UsageError


def dated(manifest: str, night: date) -> str:
    """A night's manifest.

    Examples:
        >>> dated("s3://b/{date:%Y/%m}/{date}.csv", date(2026, 11, 20))
        's3://b/2026/11/2026-11-20.csv'
    """
    try:
        return manifest.format(date=_Night(night.year, night.month, night.day))
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(
            "NIGHT_PATTERN",
            f"manifest {manifest!r} holds braces that are no date; write {{date}} or {{date:%Y/%m/%d}}, and other "
            "braces twice",
        ) from error


class _Night(date):
    """A date that is written as in ISO 8601 unless told otherwise."""

    def __format__(self, form: str) -> str:
        return self.strftime(form or "%Y-%m-%d")


def run(arguments: Sequence[str]) -> int:
    """Run a command of serpipe in this process.

    Returns:
        Its exit code.
    """
    try:
        main(list(arguments), standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_BROKEN if end.code else 0
    return 0


def report(store: str, price: float | None = None) -> int:
    """Write the store's report, with what the labels cost where a price of the machines for an hour is given.

    Returns:
        An exit code.
    """
    from serpipe.report import build

    try:
        click.echo(f"report: {build(store, price=price)}")
    except SerpipeError as error:
        click.echo(f"serpipe: {error}", err=True)
        return EXIT_BROKEN
    return 0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("manifest")
@click.argument("store")
@click.option(
    "--date", "night", type=click.DateTime(["%Y-%m-%d"]), envvar=NIGHT, help="The night  [default: the job's, or today]"
)
@click.option("--max-failed", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="As of label.")
@click.option("--shard", metavar="INDEX/COUNT", help="As of label.")
@click.option("--price", type=float, metavar="AMOUNT", help="As of report: of the machines for an hour.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def nightly(
    context: click.Context,
    manifest: str,
    store: str,
    night: datetime | None,
    max_failed: float,
    shard: str | None,
    price: float | None,
    options: tuple[str, ...],
) -> None:
    """Label one night's MANIFEST into STORE and write the report."""
    due = night.date() if night else date.today()
    try:
        manifest = dated(manifest, due)
    except SerpipeError as error:
        click.echo(f"serpipe: {error}", err=True)
        context.exit(EXIT_USAGE)
    share = [] if shard is None else ["--shard", shard]
    code = run(
        ["label", manifest, store, "--night", due.isoformat(), "--max-failed", str(max_failed), *share, *options]
    )
    if code not in (0, EXIT_QUARANTINE):
        context.exit(code)
    reported = report(store, price)
    context.exit(code or reported)


if __name__ == "__main__":
    nightly()
