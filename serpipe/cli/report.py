# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""What a person looks at: `serpipe report`."""

from __future__ import annotations

import click


@click.command()
@click.argument("store")
@click.option("--run", help="Only what this run committed.  [default: all current labels]")
@click.option("--generation", type=int, metavar="N", help="Whose funnel and gates to show.  [default: the newest]")
@click.option("--out", metavar="FILE", help="Where to write it.  [default: beside the last run's record in STORE]")
@click.option("--price", type=float, metavar="AMOUNT", help="Of the machines for an hour; the cost is told from it.")
def report(store: str, run: str | None, generation: int | None, out: str | None, price: float | None) -> None:
    """Write the report of STORE: one HTML file with figures and clips to play, which opens without a network.

    Clips are cut out of the recordings, so these should be within reach; where they are not, the report says so.

    \b
    Example:
      serpipe report demo/store --out report.html
    """
    from serpipe.report import build

    click.echo(build(store, out, run=run, generation=generation, price=price))
