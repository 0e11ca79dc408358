"""The options that say what is labelled and how: those of `serpipe label`, and of what forecasts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from serpipe.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

_ASKED = (
    click.argument("manifest"),
    click.argument("store"),
    click.option(
        "--model",
        "models",
        multiple=True,
        default=("embedded",),
        show_default=True,
        help="NAME or NAME=DIRECTORY; may be given again.",
    ),
    click.option(
        "--segment",
        "segmentation",
        help="given, whole, window:LENGTH/HOP in seconds, or vad  "
        "[default: given where the manifest has times, else vad]",
    ),
    click.option(
        "--channels",
        type=click.Choice(["mix", "first", "split"]),
        help="[default: split where the manifest names channels, else mix]",
    ),
    click.option(
        "--embeddings", type=click.Choice(["utterance", "frame", "none"]), default="utterance", show_default=True
    ),
    click.option(
        "--speech-share/--no-speech-share",
        "speech",
        default=True,
        show_default=True,
        help="Measure how much of each segment is speech.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
        default="float32",
        show_default=True,
        help="Number format; auto takes what `serpipe models certify` found.",
    ),
    click.option("--format", "format_", help="Of the manifest, where it is not recognised."),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="ROLE=NAME",
        help="A column of the manifest by hand, as uri=path_on_disk.",
    ),
    click.option("--base", help="Folder that relative uris of the manifest start from  [default: the manifest's own]"),
    click.option(
        "--allow-root",
        "allow_roots",
        multiple=True,
        metavar="ROOT",
        help="A folder, bucket or prefix; MANIFEST may name files in those that are given only  [default: anywhere]",
    ),
    click.option("--skip-bad-rows", is_flag=True, help="Put rows that cannot be used in quarantine and go on."),
    click.option("--decoders", type=click.IntRange(min=1), help="Decode actors  [default: what the cluster carries]"),
    click.option("--pool", "pools", multiple=True, metavar="NAME[:ACTORS]", help="Give a model a pool of its own."),
    click.option(
        "--relabel",
        is_flag=True,
        help="Label again what other weights, another adapter, dtype, decoder, segmentation or channels have labelled, "
        "what other given segments are labelled of, and what lacks the embeddings asked for.",
    ),
    click.option(
        "--recheck",
        is_flag=True,
        help="Ask the store of each recording whether its content has changed, whatever MANIFEST says of it.",
    ),
    click.option(
        "--shard",
        metavar="INDEX/COUNT",
        help="Only this share of the recordings, 0/COUNT the first; the others may run at the same time elsewhere.",
    ),
)


def asked(command: _F) -> _F:
    """Give a command the arguments and options that say what is labelled and how."""
    for parameter in reversed(_ASKED):
        command = parameter(command)
    return command


def roles_of(columns: Sequence[str]) -> dict[str, str] | None:
    """What `--column` names: role to column; None where it names none.

    Raises:
        UsageError: `COLUMN_INVALID`.
    """
    return dict(_role(column) for column in columns) or None


def _role(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not role or not name:
        raise UsageError("COLUMN_INVALID", f"--column {text!r} is not ROLE=NAME; write it as uri=path_on_disk")
    return role, name
