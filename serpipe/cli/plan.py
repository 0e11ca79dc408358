# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""`serpipe plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from serpipe.cli.asked import asked, roles_of


@click.command()
@asked
@click.option(
    "--rehearse",
    "rehearse_s",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long a sample is decoded and labelled.",
)
@click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="Of the run  [default: this machine's]")
@click.option("--gpus", type=click.FloatRange(min=0), help="Of the run  [default: this machine's]")
@click.option("--price-cpu-hour", type=click.FloatRange(min=0), metavar="PRICE", help="Of a CPU for an hour.")
@click.option("--price-gpu-hour", type=click.FloatRange(min=0), metavar="PRICE", help="Of a GPU for an hour.")
@click.option("--out", type=click.Path(dir_okay=False), help="Keep the forecast for `serpipe label --forecast`.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(
    manifest: str,
    store: str,
    columns: tuple[str, ...],
    format_: str | None,
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What `serpipe label` with the same options will take: hours, machines, time, cost, bytes.

    STORE is read and never written; it need not be there yet. Headers of files are read where MANIFEST makes no claim
    of their length, a sample is decoded and labelled on this machine, and the rest is arithmetic for the cluster that
    --cpus and --gpus describe. Without a GPU here, what GPUs would take is assumed, and said to be.

    \b
    Example:
      serpipe plan demo/archive demo/store --rehearse 5 --relabel --segment window:6/2
    """
    from serpipe import forecast
    from serpipe.engine.planning import plan_ahead

    told = plan_ahead(manifest, store, format=format_, columns=roles_of(columns), **options)
    if out is not None:
        Path(out).write_text(told.text())
    if as_json:
        click.echo(told.text())
        return
    for line in forecast.lines(told):
        click.echo(line)
    if out is not None:
        click.echo(f"forecast: {out}")
