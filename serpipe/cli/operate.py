# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""What the operator of a store asks and does: `serpipe status`, `serpipe failures`."""

from __future__ import annotations

import click


@click.command()
@click.argument("store")
def status(store: str) -> None:
    """What a store holds: recordings, segments, predictions by model, what fails, the last runs.

    \b
    Example:
      serpipe status demo/store
    """
    from serpipe.store.reading import open as open_store
    from serpipe.store.summary import status as lines

    for line in lines(open_store(store)):
        click.echo(line)


@click.command()
@click.argument("store")
@click.option("--code", help="Only this error code.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Examples to show.")
def failures(store: str, code: str | None, limit: int) -> None:
    """What fails now, by code, with examples.

    \b
    Example:
      serpipe failures demo/store
    """
    from serpipe.store.reading import open as open_store
    from serpipe.store.summary import failures as lines

    for line in lines(open_store(store), code=code, limit=limit):
        click.echo(line)
