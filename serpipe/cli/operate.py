# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""What the operator of a store asks: `serpipe status`, `serpipe failures`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(store: str, as_json: bool) -> None:
    """What a store holds: what is done, left and failed by model, the last runs, and how far a running one is.

    What is left is counted from the last run's plan; the manifest is not read again.

    \b
    Example:
      serpipe status demo/store
    """
    from serpipe.store import summary
    from serpipe.store.reading import open as open_store

    found = summary.status(open_store(store))
    if not as_json:
        for line in summary.lines(found):
            click.echo(line)
        return
    out = asdict(found)
    for run, shown in zip(found.running, out["running"], strict=True):
        if run.progress:
            shown["progress"] |= {"x_realtime": run.progress.x_realtime, "left_s": run.progress.left_s}
    click.echo(json.dumps(out, indent=1))


@click.command()
@click.argument("store")
@click.option("--code", help="Only this error code.")
@click.option(
    "--stage",
    type=click.Choice(["manifest", "read", "decode", "segment", "model", "run"]),
    help="Only what failed there.",
)
@click.option("--feed", metavar="FOLDER", help="Only recordings in this folder, or below it.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Examples to show.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def failures(store: str, code: str | None, stage: str | None, feed: str | None, limit: int, as_json: bool) -> None:
    """What fails now, by code, stage and feed, with examples and with what tries it again.

    \b
    Example:
      serpipe failures demo/store --stage decode
    """
    from serpipe.store import failures as failing
    from serpipe.store.reading import open as open_store

    found = failing.failures(open_store(store), code=code, stage=stage, feed=feed, limit=limit)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    for line in failing.lines(found):
        click.echo(line)
