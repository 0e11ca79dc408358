"""Options that benchmarks share."""

from __future__ import annotations

from pathlib import Path

import click

audio = click.option(
    "--audio",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Listen to pieces of this recording, not to made speech.",
)
