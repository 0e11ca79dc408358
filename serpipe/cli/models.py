# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""`serpipe models`: list, check, certify."""

from __future__ import annotations

import click


@click.group(invoke_without_command=True)
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
        speed = f"{row.speed:.0f}" if row.speed >= 100 else f"{row.speed:.3g}"
        click.echo(
            f"{row.dtype} {row.bucket_s[0]:g}-{row.bucket_s[1]:g} s: scores move {row.scores:.2g}, "
            f"batched against alone {row.batched:.2g}, {row.flips} labels flip, {speed} x real time"
        )
    click.echo(f"--dtype auto takes {made.chosen} for {made.model} on {made.device}")
