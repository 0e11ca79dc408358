# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""The command line: one function of the library per command, a module per group of them."""

from __future__ import annotations

import sys
from typing import Any

import click

from serpipe import __version__
from serpipe.cli import export, label, mend, models, operate, plan, pseudolabel, report, submit, train
from serpipe.cli.exits import EXIT_BROKEN, EXIT_USAGE
from serpipe.errors import SerpipeError, UsageError


class _Commands(click.Group):
    """Turns serpipe's errors into one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SerpipeError as error:
            click.echo(f"serpipe: {error}", err=True)
            sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_BROKEN)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Label large speech archives with emotion, into Parquet tables you can prove.

    \b
    Example:
      serpipe demo
    """


for command in (
    label.demo,
    label.label,
    plan.plan,
    operate.status,
    operate.failures,
    submit.submit,
    mend.retry,
    mend.verify,
    mend.gc,
    models.models,
    pseudolabel.pseudolabel,
    pseudolabel.generations,
    export.export,
    report.report,
    train.train,
    train.relabel,
    train.evaluate,
    train.promote,
):
    main.add_command(command)
