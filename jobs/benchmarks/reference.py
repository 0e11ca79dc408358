"""The figures that are checked in: what the pages show, and what a later run is held against."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import Figure

LOSS = 0.1
"""Of a ratio; more is a regression."""

WANTED = {
    "decode/bare": 0.9,
    "decode-isolated/bare": 0.8,
    "vad-x-realtime": 500.0,
    "adapter/model": 0.95,
    "end-to-end/parts:hubert-large": 0.9,
    "end-to-end/parts:embedded": 0.75,
    "peer/transformers": 4.0,
    "peer/transformers:float32": 1.5,
    "peer/funasr": 2.5,
    "peer/ray-data": 3.0,
}
"""What serpipe wants of its figures on two cores."""

SHOWN = (*WANTED, "end-to-end/parts-libopus:embedded")
"""Figures that the README shows: also the parts with the faster decoder."""

COST = "cost/1000-hours:"
"""Of what labels an archive: the price of the machine for as long as a thousand hours of audio take."""

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
"""Between these a page has the table, written by `jobs/benchmark.py --save`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Figures of one run of the benchmark.

    Attributes:
        machine: in words: processor, cores, memory, versions.
        date: UTC.
        quick: whether they were taken with `--quick`.
        parts: name of a part to its figures.
    """

    machine: str
    date: str
    quick: bool
    parts: dict[str, list[Figure]]

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure by name."""
        return {figure.name: figure for part in self.parts.values() for figure in part}

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def of(text: str) -> Reference:
    """A reference from its JSON."""
    held = json.loads(text)
    parts = {name: [Figure(**figure) for figure in figures] for name, figures in held.pop("parts").items()}
    return Reference(**held, parts=parts)


def now(parts: dict[str, list[Figure]], *, quick: bool) -> Reference:
    """What was measured here and today."""
    return Reference(machine=machine(), date=datetime.now(UTC).date().isoformat(), quick=quick, parts=parts)


def machine() -> str:
    """This machine in words."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return ", ".join(
        [
            f"{os.cpu_count()} cores of {model}",
            *gpus,
            f"{memory:.0f} GiB",
            f"Python {platform.python_version()}",
            f"torch {torch.__version__}",
        ]
    )


def regressions(found: Iterable[Figure], reference: Reference, *, machine: str) -> list[str]:
    """What is worse than it was, a sentence each.

    A ratio is held against the reference on any machine, a figure that is no ratio only on the same one. What has no
    figure any more is worse too. Seconds, megabytes and prices are told and not held.

    Args:
        found: figures of this run.
        reference: what is checked in.
        machine: the one `found` was taken on.
    """
    ours = {figure.name: figure for figure in found}
    sentences = []
    for name, was in reference.figures.items():
        if was.unit in ("s", "MB") or name.startswith(COST) or ("/" not in name and machine != reference.machine):
            continue
        if name not in ours:
            sentences.append(f"{name} was {was.ratio:.3g} and is not measured any more")
        elif ours[name].ratio < (1 - LOSS) * was.ratio:
            sentences.append(
                f"{name} is {ours[name].ratio:.3g} and was {was.ratio:.3g} on {reference.date}: "
                f"{1 - ours[name].ratio / was.ratio:.0%} less, more than {LOSS:.0%}"
            )
    return sentences


def table(reference: Reference, *, names: Sequence[str] | None = None) -> str:
    """Figures as Markdown, each with the command that takes it again.

    Args:
        reference: where from.
        names: the figures wanted; all by default.
    """
    rows = [
        f"Taken {reference.date} on {reference.machine}.",
        "",
        "| figure | value | wanted | spread | speed | again |",
        "|---|---|---|---|---|---|",
    ]
    quick = " --quick" if reference.quick else ""
    for part, figures in reference.parts.items():
        for figure in figures:
            if names is None or figure.name in names:
                rows.append(f"| {' | '.join(cells(figure))} | `python jobs/benchmark.py{quick} --part {part}` |")
    return "\n".join(rows)


def cells(figure: Figure) -> list[str]:
    """Name, value, what is wanted, spread, and the speed it comes from."""
    wanted = WANTED.get(figure.name)
    plain = figure.ratio == figure.median
    value = f"{figure.ratio:.3g}" if figure.ratio < 100 else f"{figure.ratio:.0f}"
    speed = f"{figure.median:.3g}" if figure.median < 100 else f"{figure.median:.0f}"
    return [
        figure.name,
        f"{value} {figure.unit}" if plain else value,
        "" if wanted is None else f"≥ {wanted:g}" + (", not reached" if figure.ratio < wanted else ""),
        "" if figure.spread is None else f"{figure.spread:.0%}",
        "" if plain else f"{speed} {figure.unit}",
    ]


def put(page: str, block: str) -> str:
    """A page with the table in its place."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{block}\n{END}", page, flags=re.DOTALL)
