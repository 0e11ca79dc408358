"""How fast serpipe is: against bare codecs, bare networks, its own parts, and what one would use instead.

Measures on audio and checkpoints that it makes itself, arms in turns, and prints a table: for each figure the ratio
that is held against what is wanted, its spread over the rounds, and the speed of the first arm. With --audio it listens
to pieces of a recording instead.

Example:
    python jobs/benchmark.py --quick --json figures.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path

import click
from benchmarks import options, reference, voice
from benchmarks.figures import Figure

ROOT = Path(__file__).resolve().parents[1]

PARTS = ("decode", "models", "peers", "pipeline:embedded", "pipeline:hubert-large", "resources")
"""Modules of `benchmarks`, in the order they run; behind a colon what they are to measure alone."""

REFERENCE = ROOT / "infra" / "benchmark.json"

PAGES = {
    ROOT / "README.md": [*reference.SHOWN],
    ROOT / "docs" / "performance.md": None,
}
"""Where the table stands, and which of its figures; all where None."""

END_TO_END = "end-to-end/parts:"

AGAIN = 2
"""How often a part is measured again in which a figure is worse than it was: three short rounds leave the ratio of a
format a tenth below its usual one now and then. M4A's in the child was 0.86 to 1.42 in a day's runs."""


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Few rounds on little audio: under ten minutes on two cores.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this part; again for more.")
@options.audio
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures as a list.")
@click.option("--figures", type=click.Path(exists=True, path_type=Path), help="Take such a list instead of measuring.")
@click.option(
    "--check",
    is_flag=True,
    help="Exit with 1 where a ratio is more than 10 % below infra/benchmark.json, and is so twice more.",
)
@click.option("--save", is_flag=True, help="Make the whole table infra/benchmark.json and that of the pages.")
@click.option("--price-core-hour", type=click.FloatRange(min=0), default=0.04, show_default=True, help="Of a CPU core.")
@click.option("--price-gpu-hour", type=click.FloatRange(min=0), default=3.2, show_default=True, help="Of a GPU.")
def main(
    quick: bool,
    parts: tuple[str, ...],
    audio: Path | None,
    out: Path | None,
    figures: Path | None,
    check: bool,
    save: bool,
    price_core_hour: float,
    price_gpu_hour: float,
) -> None:
    """Measure, print, compare, keep."""
    held = reference.of(REFERENCE.read_text()) if REFERENCE.exists() else None
    if check and held is None:
        raise click.UsageError(f"there is no {REFERENCE} to check against; --save makes it")
    if save and (parts or figures):
        raise click.UsageError(
            "--save keeps one whole measurement of one machine and day; leave --part and --figures out"
        )
    if audio is not None:
        if check or save or figures:
            raise click.UsageError(
                "--audio measures on a recording of yours; --check, --save and --figures are of speech that is made"
            )
        voice.listen_to(audio)
    if check and held and figures is None and held.quick != quick:
        raise click.UsageError(
            f"{REFERENCE.name} was taken {'with' if held.quick else 'without'} --quick, and ratios of other amounts of "
            f"audio are others; {'add' if held.quick else 'leave out'} --quick"
        )
    if figures is None:
        hour = price(price_core_hour, price_gpu_hour)
        taken = {part: [*rows, *costs(rows, hour)] for part, rows in measured(parts or PARTS, quick=quick).items()}
    else:
        taken = {"figures": [Figure(**row) for row in json.loads(figures.read_text())]}
    found = reference.now(taken, quick=quick)
    rows = list(found.figures.values())
    show(found, rows)
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    worse = worse_each_time(rows, held, parts or PARTS, quick=quick, again=figures is None) if check and held else []
    for sentence in worse:
        print(sentence, file=sys.stderr)
    if save:
        keep(found)
    sys.exit(bool(worse))


def worse_each_time(
    rows: list[Figure], held: reference.Reference, parts: tuple[str, ...], *, quick: bool, again: bool
) -> list[str]:
    """What is worse than it was, and is so whenever its part is measured `AGAIN`: one slow minute is no regression.

    Args:
        rows: what was measured.
        held: what it is held against.
        parts: those measured.
        quick: how.
        again: whether to measure more than once.
    """
    doubted = below(rows, replace(held, parts={part: was for part, was in held.parts.items() if part in parts}))
    for _ in range(AGAIN if again else 0):
        if doubted.parts:
            rows = [row for part in measured(tuple(doubted.parts), quick=quick).values() for row in part]
            doubted = below(rows, doubted)
    return reference.regressions(rows, doubted, machine=reference.machine())


def below(rows: list[Figure], held: reference.Reference) -> reference.Reference:
    """Those figures of a reference that are worse now.

    Each by itself: of the many of a part, another one is below by chance the next time.
    """
    worse = partial(reference.regressions, rows, machine=reference.machine())
    parts = {
        part: [one for one in was if worse(replace(held, parts={part: [one]}))] for part, was in held.parts.items()
    }
    return replace(held, parts={part: figures for part, figures in parts.items() if figures})


def measured(parts: tuple[str, ...], *, quick: bool) -> dict[str, list[Figure]]:
    """Figures of the parts asked for, each in turn."""
    taken = {}
    for part in parts:
        print(f"measuring {part} …", end=" ", file=sys.stderr, flush=True)
        began = time.monotonic()
        module, _, only = part.partition(":")
        measure: Callable[..., list[Figure]] = import_module(f"benchmarks.{module}").measure
        taken[part] = measure(quick=quick, only=only) if only else measure(quick=quick)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return taken


def show(found: reference.Reference, rows: list[Figure]) -> None:
    """Print the table and the machine."""
    table = [["figure", "value", "wanted", "spread", "speed"], *map(reference.cells, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{found.date}, {found.machine}")


def costs(rows: list[Figure], hour: float) -> list[Figure]:
    """What labelling a thousand hours costs here, of each figure that is the speed of a whole run.

    Args:
        rows: figures of a part.
        hour: price of an hour of this machine.
    """
    return [
        Figure(
            name=f"{reference.COST}{row.name.removeprefix(END_TO_END)}",
            ratio=1000 / row.median * hour,
            median=1000 / row.median * hour,
            spread=None,
            unit=f"at {hour:.2f} an hour",
        )
        for row in rows
        if row.name.startswith(END_TO_END)
    ]


def price(core_hour: float, gpu_hour: float) -> float:
    """What an hour of this machine costs."""
    import torch

    return (os.cpu_count() or 1) * core_hour + torch.cuda.device_count() * gpu_hour


def keep(found: reference.Reference) -> None:
    """Check figures in, and put them where people read them."""
    REFERENCE.write_text(found.text())
    for page, names in PAGES.items():
        page.write_text(reference.put(page.read_text(), reference.table(found, names=names)))


if __name__ == "__main__":
    main()
