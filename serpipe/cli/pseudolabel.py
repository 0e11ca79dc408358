# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""Generations of pseudo-labels: `serpipe pseudolabel`, `serpipe generations`."""

from __future__ import annotations

import click


@click.command()
@click.argument("store")
@click.option(
    "--recipe", metavar="FILE", help="TOML or YAML; docs/recipe.md lists every key. Without it: the defaults."
)
@click.option("--gold", metavar="FILE", help="Labels by people (uri, label, speaker, split ...), to calibrate on.")
@click.option("--address", help="Of a running Ray cluster.")
def pseudolabel(store: str, recipe: str | None, gold: str | None, address: str | None) -> None:
    """Make the next generation of pseudo-labels from the predictions in STORE.

    No audio is read and no model is run. Every segment gets a row with its verdicts; nothing is deleted.

    \b
    Example:
      serpipe pseudolabel demo/store
    """
    from serpipe.pseudolabel import generation
    from serpipe.pseudolabel.diff import funnel_lines
    from serpipe.pseudolabel.recipe import load

    record = generation.make(store, load(recipe), gold=gold, address=address)
    for line in funnel_lines(record):
        click.echo(line)


@click.group()
def generations() -> None:
    """The generations of a store: list them, see what was dropped, compare two.

    \b
    Example:
      serpipe generations list demo/store
    """


@generations.command("list")
@click.argument("store")
def list_generations(store: str) -> None:
    """Every generation of STORE: when, which teachers, what it kept, what the gates said.

    \b
    Example:
      serpipe generations list demo/store
    """
    from serpipe.pseudolabel import generation, student
    from serpipe.store.reading import open as open_store

    storage = open_store(store).storage
    numbers = generation.numbers(storage)
    if not numbers:
        click.echo(f"no generation yet; `serpipe pseudolabel {store}` makes one")
    for number in numbers:
        record = generation.load(storage, number)
        teachers = ", ".join(teacher["model"] for teacher in record["teachers"])
        judged = "".join(f", {said['student']} {said['status']}" for said in student.promotions(storage, number))
        click.echo(
            f"generation {number}: {record['created']}, {teachers}, kept {record['kept']['hours']:.2f} of "
            f"{record['considered']['hours']:.2f} h, recipe {record['recipe_hash'][:12]}{judged}"
        )


@generations.command()
@click.argument("store")
@click.option("--generation", type=click.IntRange(min=1), help="Its number; the newest by default.")
def funnel(store: str, generation: int | None) -> None:
    """Hours that a generation of STORE kept and dropped, stage by stage and class by class.

    \b
    Example:
      serpipe generations funnel demo/store
    """
    from serpipe.pseudolabel import generation as rounds
    from serpipe.pseudolabel.diff import funnel_lines
    from serpipe.store.reading import open as open_store

    storage = open_store(store).storage
    newest = max(rounds.numbers(storage), default=1)
    for line in funnel_lines(rounds.load(storage, generation or newest)):
        click.echo(line)


@generations.command("diff")
@click.argument("store")
@click.argument("first", type=click.IntRange(min=1))
@click.argument("second", type=click.IntRange(min=1))
@click.option("--clips", type=click.IntRange(min=0), default=10, show_default=True, help="Flipped clips to name.")
def diff_generations(store: str, first: int, second: int, clips: int) -> None:
    """What changed from generation FIRST to SECOND of STORE: by class, feed and reason, with clips to hear.

    \b
    Example:
      serpipe generations diff demo/store 1 2
    """
    from serpipe.pseudolabel import diff
    from serpipe.store.reading import open as open_store

    for line in diff.lines(first, second, diff.diff(open_store(store).storage, first, second, clips=clips)):
        click.echo(line)
