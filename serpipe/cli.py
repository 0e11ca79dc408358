# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""The command line: one function of the library per command."""

from __future__ import annotations

import sys
from typing import Any

import click

from serpipe import __version__
from serpipe.errors import SerpipeError, UsageError

EXIT_USAGE, EXIT_BROKEN, EXIT_QUARANTINE = 2, 1, 3


class _Commands(click.Group):
    """Turns serpipe's errors into one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SerpipeError as error:
            click.echo(f"serpipe: {error}", err=True)
            sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_BROKEN)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Label large speech archives with emotion, into Parquet tables you can prove.

    \b
    Example:
      serpipe demo
    """


@main.command()
@click.argument("directory", default="demo", type=click.Path())
def demo(directory: str) -> None:
    """Make a small archive of synthetic voices in DIRECTORY, label it and show the tables.

    \b
    Example:
      serpipe demo /tmp/serpipe-demo
    """
    from serpipe.demo import run

    run(directory, say=click.echo)


@main.command()
@click.argument("manifest")
@click.argument("store")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("embedded",),
    show_default=True,
    help="NAME or NAME=DIRECTORY; may be given again.",
)
@click.option(
    "--segment",
    "segmentation",
    help="given, whole, window:LENGTH/HOP in seconds, or vad  [default: given where the manifest has times, else vad]",
)
@click.option(
    "--channels",
    type=click.Choice(["mix", "first", "split"]),
    help="[default: split where the manifest names channels, else mix]",
)
@click.option("--embeddings", type=click.Choice(["utterance", "frame", "none"]), default="utterance", show_default=True)
@click.option(
    "--speech-share/--no-speech-share",
    "speech",
    default=True,
    show_default=True,
    help="Measure how much of each segment is speech.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="Number format; auto takes what `serpipe models certify` found.",
)
@click.option("--format", "format_", help="Of the manifest, where it is not recognised.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=NAME",
    help="A column of the manifest by hand, as uri=path_on_disk.",
)
@click.option("--base", help="Folder that relative uris of the manifest start from  [default: the manifest's own]")
@click.option("--skip-bad-rows", is_flag=True, help="Put rows that cannot be used in quarantine and go on.")
@click.option("--address", help="Of a Ray cluster  [default: the one around, else one on this machine]")
@click.option("--decoders", type=click.IntRange(min=1), help="Decode actors  [default: what the cluster carries]")
@click.option("--pool", "pools", multiple=True, metavar="NAME[:ACTORS]", help="Give a model a pool of its own.")
@click.option(
    "--max-failed",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of recordings in quarantine above which the exit code is 3.",
)
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
    fsspec URL, such as s3://bucket/archive.

    \b
    Example:
      serpipe label demo/archive demo/store --model embedded --segment window:6/3
    """
    from serpipe.engine.label import label as run

    roles = dict(_role(column) for column in columns)
    if options["dtype"] == "auto":
        for line in _dtypes(options["models"]):
            click.echo(line)
    result = run(manifest, store, format=format_, columns=roles or None, **options)
    if result.left_out:
        click.echo(f"{result.left_out} files of the folder were left out: their endings are not audio")
    if result.run_id is None:
        click.echo(f"nothing new: {result.done_before} recordings are labelled already in {result.store}")
        return
    hours, speed = result.audio_s / 3600, result.audio_s / max(result.elapsed_s, 1e-9)
    click.echo(
        f"{result.recordings} recordings, {hours:.2f} h of audio, {result.segments} segments, {result.predictions} "
        f"predictions in {result.elapsed_s:.0f} s ({speed:.0f} x real time)"
    )
    if result.failed or result.bad_rows:
        click.echo(
            f"{result.failed} recordings and {result.bad_rows} manifest rows are in quarantine; "
            f"`serpipe failures {result.store}` says why"
        )
    if result.unsettled:
        click.echo(f"{result.unsettled} of them are tried again by the next run")
    click.echo(f"tables: {result.store}")
    if result.failed_share > max_failed:
        sys.exit(EXIT_QUARANTINE)


@main.command()
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


@main.command()
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


@main.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """The models known here; `check` and `certify` look at one.

    \b
    Example:
      serpipe models
    """
    from serpipe.models.registry import specs

    if context.invoked_subcommand:
        return
    for name, spec in sorted(specs().items()):
        where = f"{spec.hub_id} at {spec.revision or 'no pinned revision'}" if spec.hub_id else "ships with serpipe"
        click.echo(f"{name}: {', '.join(spec.labels) or 'embeddings only'}")
        click.echo(
            f"  {where}; {spec.licence}; {spec.parameters / 1e6:.2f} M parameters; "
            f"{spec.min_seconds:g}-{spec.max_seconds:g} s a segment"
        )
        if "-NC" in spec.licence:
            click.echo("  not for commercial use, and neither is what is trained on its labels")


@models.command()
@click.argument("model")
def check(model: str) -> None:
    """Audit MODEL and print its passport; exit 1 with the reason where it fails.

    MODEL is NAME, NAME@REVISION or NAME=LOCATION.

    \b
    Example:
      serpipe models check embedded
    """
    from serpipe.models.passport import issue
    from serpipe.models.registry import resolve

    click.echo(issue(resolve(model)).text())


@models.command()
@click.argument("model")
@click.option("--audio", required=True, help="Folder of recordings to measure on.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--drift", type=click.FloatRange(0, 1), default=0.02, show_default=True, help="Change of a score to accept."
)
def certify(model: str, audio: str, device: str, drift: float) -> None:
    """Measure how far batches and number formats move MODEL's answers, and keep it for `label --dtype auto`.

    \b
    Example:
      serpipe models certify embedded --audio demo/archive
    """
    from serpipe.models.certificate import certify as measure
    from serpipe.models.registry import resolve

    made = measure(resolve(model), audio, device=device, drift=drift)
    for row in made.measures:
        click.echo(
            f"{row.dtype} {row.bucket_s[0]:g}-{row.bucket_s[1]:g} s: scores move {row.scores:.2g}, "
            f"batched against alone {row.batched:.2g}, {row.flips} labels flip, {row.speed:g} x real time"
        )
    click.echo(f"--dtype auto takes {made.chosen} for {made.model} on {made.device}")


def _dtypes(models: tuple[str, ...]) -> list[str]:
    """What `--dtype auto` stands for, model by model, and why."""
    from serpipe.models.certificate import best_dtype
    from serpipe.models.registry import resolve

    references = [resolve(model) for model in models]
    return [f"{model.name}: {dtype}, {why}" for model in references for dtype, why in [best_dtype(model)]]


def _role(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not role or not name:
        raise UsageError("COLUMN_INVALID", f"--column {text!r} is not ROLE=NAME; write it as uri=path_on_disk")
    return role, name
