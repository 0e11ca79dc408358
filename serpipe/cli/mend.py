# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""What the operator does to a store: `serpipe verify`, `serpipe gc`, `serpipe retry`."""

from __future__ import annotations

import sys

import click

from serpipe.cli.exits import EXIT_BROKEN


@click.command()
@click.argument("store")
def verify(store: str) -> None:
    """Read every file of STORE and compare it with its footer and the ledger; exit 1 where something is wrong.

    One line for each finding. What can be made again is marked, and the next `serpipe label`
    without --shard makes it.

    \b
    Example:
      serpipe verify demo/store
    """
    from serpipe.store.reading import open as open_store
    from serpipe.store.verify import verify as check

    found = check(open_store(store).storage)
    for finding in found.findings:
        click.echo(finding)
    click.echo(
        f"{found.files:,} files, {_size(found.size)}, {found.predictions:,} predictions and {found.entries:,} ledger "
        f"entries: {len(found.findings):,} findings"
    )
    if found.findings:
        if any(finding.remedy != "none" for finding in found.findings):
            click.echo("the next `serpipe label` into this store without --shard mends what is marked")
        sys.exit(EXIT_BROKEN)


@click.command()
@click.argument("store")
@click.option("--fp", help="Drop all labels of this model fingerprint, also where nothing newer replaces them.")
@click.option("--dry-run", is_flag=True, help="Tell what would be dropped, and drop nothing.")
def gc(store: str, fp: str | None, dry_run: bool) -> None:
    """Drop the labels in STORE that newer ones of the same model replace, and what interrupted writers left.

    The only labels of a recording stay, unless --fp names them.

    \b
    Example:
      serpipe gc demo/store --dry-run
    """
    from serpipe.store.gc import gc as collect
    from serpipe.store.reading import open as open_store

    done = collect(open_store(store), fp=fp, dry_run=dry_run)
    verb = "would drop" if dry_run else "dropped"
    for part in done.partitions:
        kept = f"; {part.kept:,} recordings have no newer labels and keep these" if part.kept else ""
        click.echo(
            f"{verb} model {part.model} fp {part.fp} audio {part.audio}: {part.predictions:,} predictions of "
            f"{part.recordings:,} recordings{kept}"
        )
    for name in done.leftovers:
        click.echo(f"{verb} {name}")
    if not done.partitions and not done.leftovers:
        click.echo("nothing to drop")
    elif not dry_run:
        click.echo(f"{_size(done.freed)} freed")


@click.command()
@click.argument("store")
@click.option("--code", help="Only what failed with this error code.")
@click.option("--transient", is_flag=True, help="Also what failed for now, which the next run tries in any case.")
def retry(store: str, code: str | None, transient: bool) -> None:
    """Make what failed for good in STORE work again; the next `serpipe label` tries it.

    \b
    Example:
      serpipe retry demo/store --code AUDIO_UNDECODABLE
    """
    from serpipe.store.reading import open as open_store
    from serpipe.store.retry import retry as again

    done = again(open_store(store), code=code, transient=transient)
    for name, count in done.codes.items():
        click.echo(f"{name}: {count:,} recordings")
    click.echo(
        f"{done.units:,} units of {done.recordings:,} recordings are work again; `serpipe label MANIFEST {store}` with "
        "the options of the last run labels them"
        if done.units
        else "nothing that failed for good is settled"
    )
    if done.unasked:
        click.echo(f"{done.unasked:,} failures are transient: the next `serpipe label` tries them without being asked")
    if done.of_manifest:
        click.echo(f"{done.of_manifest:,} failures are rows of a manifest: mend them there")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
