# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""`serpipe demo` and `serpipe label`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from serpipe.cli.asked import asked, roles_of
from serpipe.cli.exits import EXIT_BROKEN, EXIT_QUARANTINE

if TYPE_CHECKING:
    from serpipe.engine.label import Result

CODES_SHOWN = 3
"""Of the codes that recordings failed with, the most frequent that a run's last words name."""


@click.command()
@click.argument("directory", default="demo", type=click.Path())
def demo(directory: str) -> None:
    """Make a small archive of synthetic voices in DIRECTORY, label it and show the tables.

    \b
    Example:
      serpipe demo /tmp/serpipe-demo
    """
    from serpipe.demo import run

    run(directory, say=click.echo)


@click.command()
@asked
@click.option("--address", help="Of a Ray cluster  [default: the one around, else one on this machine]")
@click.option(
    "--max-failed",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of this run's recordings in quarantine, whole or in part, above which the exit code is 3. Those of "
    "tries before it count: runs on MANIFEST since the last that came to its end, and those of the same --night.",
)
@click.option("--night", metavar="NAME", help="Tries of one night have it in common, and so their exit code.")
@click.option("--forecast", type=click.Path(dir_okay=False), help="What `serpipe plan --out` wrote, to be compared.")
def label(
    manifest: str,
    store: str,
    columns: tuple[str, ...],
    format_: str | None,
    max_failed: float,
    **options: Any,
) -> None:
    """Label what MANIFEST names and STORE does not hold yet.

    MANIFEST is a folder, a glob, or a list (Parquet, CSV, TSV, JSONL, Kaldi, NeMo, lhotse); both may be local or any
    fsspec URL, such as s3://bucket/archive. What is new or has changed is labelled, and what failed for a reason that
    passes is tried again; what an earlier run has settled is not work, unless --relabel asks for it.

    \b
    Example:
      serpipe label demo/archive demo/store --model embedded --segment window:6/3
    """
    from serpipe.engine.label import label as run

    roles = roles_of(columns)
    if options["dtype"] == "auto":
        for line in _dtypes(options["models"], options["address"]):
            click.echo(line)
    try:
        result = run(manifest, store, format=format_, columns=roles, **options)
    except KeyboardInterrupt as stop:
        why = str(stop) or "the run was stopped before it had labelled anything; the same command starts it again"
        click.echo(f"serpipe: RUN_STOPPED: {why}", err=True)
        sys.exit(EXIT_BROKEN)
    for line in _summary(result):
        click.echo(line)
    if result.failed_share > max_failed:
        sys.exit(EXIT_QUARANTINE)


def _summary(result: Result) -> Iterator[str]:
    """How a run ended: what was labelled, what failed and why, what is left, what to do next."""
    if result.left_out:
        yield f"{result.left_out:,} files of the folder were left out: their endings are not audio"
    if result.mended:
        yield f"{result.mended:,} units that `serpipe verify` had found damaged were made work again"
    yield from result.kept
    if result.run_id is None:
        yield f"nothing new: {result.done_before:,} recordings are labelled already in {result.store}"
        if result.bad_rows:
            yield f"{result.bad_rows:,} manifest rows are in quarantine: `serpipe failures {result.store}` says why"
        yield from _tries(result)
        return
    hours, speed = result.audio_s / 3600, result.audio_s / max(result.elapsed_s, 1e-9)
    yield (
        f"{result.recordings:,} recordings, {hours:.2f} h of audio, {result.segments:,} segments, "
        f"{result.predictions:,} predictions in {result.elapsed_s:.0f} s ({speed:.0f} x real time)"
    )
    if result.failed or result.bad_rows:
        codes = [f"{code} {count:,}" for code, count in result.codes.items()]
        if len(codes) > CODES_SHOWN:
            codes[CODES_SHOWN:] = [f"{len(codes) - CODES_SHOWN} more codes"]
        reasons = f" ({', '.join(codes)})" if codes else ""
        yield (
            f"{result.labelled:,} recordings are labelled whole; {result.failed:,} recordings{reasons} and "
            f"{result.bad_rows:,} manifest rows are in quarantine: "
            f"`serpipe failures {result.store}` says why and what to do"
        )
    if result.unsettled:
        yield f"{result.unsettled:,} recordings are not settled; the next run tries them again"
    if result.twice:
        yield (
            f"{result.twice:,} units were labelled by two of its workers and stand twice: `serpipe verify "
            f"{result.store}` marks them, and the same command again labels them once"
        )
    yield from _tries(result)
    yield f"tables: {result.store}"


def _tries(result: Result) -> Iterator[str]:
    """What the exit code is of, where it is not of this run alone."""
    if result.tried:
        yield (
            f"with the tries before it: {result.tried_failed:,} of {result.tried:,} recordings are in quarantine "
            f"(`serpipe failures {result.store}`)"
        )


def _dtypes(models: tuple[str, ...], address: str | None) -> list[str]:
    """What `--dtype auto` stands for, model by model, and why; a cluster it has to ask stays joined to the end."""
    from serpipe.engine.request import device
    from serpipe.models.certificate import best_dtype
    from serpipe.models.registry import resolve

    references = [resolve(model) for model in models]
    where = click.get_current_context().with_resource(device(address))
    return [f"{model.name}: {dtype}, {why}" for model in references for dtype, why in [best_dtype(model, where)]]
