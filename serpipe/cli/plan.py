# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""`serpipe plan`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from serpipe.cli.asked import asked, roles_of

if TYPE_CHECKING:
    from serpipe.forecast import Forecast, Range


def _keepable(_context: click.Context, _option: click.Parameter, path: str | None) -> str | None:
    """Refuse where no file can be kept before the rehearsal, not after it."""
    folder = os.path.dirname(os.path.realpath(path)) if path is not None else None
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        raise click.BadParameter(f"no file can be written to {folder}; make that folder, or name another one")
    return path


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
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    callback=_keepable,
    help="Keep the forecast for `serpipe label --forecast`.",
)
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
    from serpipe.engine.planning import plan_ahead

    told = plan_ahead(manifest, store, format=format_, columns=roles_of(columns), **options)
    if out is not None:
        _keep(told.text(), out)
    if as_json:
        click.echo(told.text())
        return
    for line in lines(told):
        click.echo(line)
    if out is not None:
        click.echo(f"forecast: {out}")


def _keep(text: str, path: str) -> None:
    """Write a file whole: a run that fails before or in it leaves the old one."""
    path = os.path.realpath(path)
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)


def lines(told: Forecast) -> Iterator[str]:
    """A forecast for people."""
    work, found = told.work, told.rehearsal
    if found is None:
        yield f"nothing new: {work.done:,} recordings are labelled already in {told.store}"
        return
    hours = work.audio_s.times(1 / 3600)
    probed = f", headers of {work.probed:,} files read" if work.probed else ""
    yield f"left to do: {work.recordings:,} recordings, {_range(hours, '.2f')} h of audio{probed}"
    yield f"done already: {work.done:,} recordings; in quarantine now: {work.failed:,}"
    if work.bad_rows:
        yield f"{work.bad_rows:,} manifest rows cannot be used"
    yield f"rehearsed: {found.recordings:,} recordings, {found.audio_s / 3600:.2f} h of audio, in {found.took_s:.0f} s"
    yield f"  decode: {1 / max(found.decode.busy_s, 1e-9):,.0f} x real time an actor"
    for name, stage in found.models.items():
        where = {"cuda": "a GPU", "assumed": "a GPU, assumed"}.get(stage.where, "an actor on CPU")
        yield f"  {name}: {1 / max(stage.busy_s, 1e-9):,.0f} x real time {where}"
    pools = "; ".join(f"{', '.join(pool.models)}: {pool.actors} actors" for pool in told.pools)
    yield f"on {told.cluster.cpus:g} CPUs and {told.cluster.gpus:g} GPUs: {told.decoders} decoders; {pools}"
    yield (
        f"wall time {clock(told.wall_s)}, of which {told.start_s:.0f} s to start; slowest: {told.bottleneck}; "
        f"{told.cpu_hours:,.2f} CPU-hours and {told.gpu_hours:,.2f} GPU-hours of work"
    )
    if told.cores_per_gpu is not None:
        yield f"cores that keep one GPU busy: {told.cores_per_gpu:.1f}"
    if told.cost is not None:
        each = told.cost / max(hours.value, 1e-9) * 1000
        yield f"cost {told.cost:,.2f} for the cluster's time, {each:,.2f} for 1,000 h of audio"
    tables = ", ".join(f"{table} {size(count)}" for table, count in told.bytes.items())
    yield f"segments {_range(told.segments, ',.0f')}; the store grows by {size(sum(told.bytes.values()))} ({tables})"
    yield f"quarantine {_range(told.quarantined, ',.0f')} recordings"
    yield from told.notes


def clock(seconds: float) -> str:
    """A length of time for people.

    Examples:
        >>> clock(59.6), clock(4000), clock(500_000)
        ('60 s', '1 h 07 min', '138 h 53 min')
    """
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def size(count: float) -> str:
    """Bytes for people.

    Examples:
        >>> size(900), size(1_500_000), size(2e12)
        ('900 B', '1.5 MB', '2.0 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _range(figure: Range, form: str) -> str:
    said = [format(each, form) for each in (figure.value, figure.low, figure.high)]
    return said[0] if said[1] == said[2] else f"{said[0]} ({said[1]} to {said[2]})"
