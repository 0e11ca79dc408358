# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""Training sets for other people's trainers: `serpipe export`."""

from __future__ import annotations

from typing import Literal

import click

FORMATS = ("hf", "audiofolder", "funasr", "kaldi", "emobox", "emo-superb", "nemo", "lhotse", "webdataset")
"""Of `serpipe.pseudolabel.export.formats`, whose import a help page would wait for."""


@click.command()
@click.argument("store")
@click.argument("destination", metavar="DEST")
@click.option("--generation", type=click.IntRange(min=1), required=True, help="Whose kept rows.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: the recipe's]")
@click.option(
    "--audio",
    type=click.Choice(["reference", "cut"]),
    help="Name the recordings, or cut the clips out of them as FLAC  [default: the recipe's, else reference where "
    "the format can]",
)
def export(
    store: str, destination: str, generation: int, form: str | None, audio: Literal["reference", "cut"] | None
) -> None:
    """Write what a generation of STORE kept as a training set to DEST, with a data card.

    \b
    Example:
      serpipe export demo/store --generation 1 --format hf demo/training
    """
    from serpipe.pseudolabel.export.run import export as run

    made = run(store, generation, form, destination, audio=audio)
    for split, counts in made.clips.items():
        labels = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        click.echo(f"{split}: {sum(counts.values())} clips, {made.hours[split]:.2f} h ({labels or 'none'})")
    for reason, count in sorted(made.lost.items()):
        click.echo(f"{count} kept segments are missing: {reason}")
    if made.non_commercial:
        click.echo(f"not for commercial use: {', '.join(made.non_commercial)} forbids it, see README.md")
    click.echo(f"{made.form}, audio by {made.audio}: {made.destination}")
