"""How far `serpipe plan` is from the runs it forecasts, on three mixes: short WAV files, podcasts, a large model.

python jobs/benchmark_plan.py --mix utterances --mix podcasts --mix windows
python jobs/benchmark_plan.py --audio episode.opus
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from benchmarks import material, options, voice

from serpipe.models.contract import SAMPLE_RATE
from serpipe.store import runs
from serpipe.store.storage import Storage

EPISODES, EPISODE_S = 5, 600.0
"""How many podcasts differ, for they take long to write, and how long each is."""


def utterances(folder: Path, scale: float) -> list[str]:
    """Many short WAV files, each labelled whole by the model that ships."""
    material.write_clips(folder / "0", 300.0)
    for copy in range(1, round(120 * scale)):
        shutil.copytree(folder / "0", folder / str(copy))
    return ["--model", "embedded", "--segment", "whole"]


def podcasts(folder: Path, scale: float) -> list[str]:
    """Episodes of ten minutes in Opus, cut by voice detection."""
    for episode in range(round(45 * scale)):
        place, first = folder / f"{episode}.opus", folder / f"{episode % EPISODES}.opus"
        if first.exists():
            shutil.copyfile(first, place)
        else:
            voice.write(place, EPISODE_S, rate=voice.heard.rate, seed=round(episode * EPISODE_S / voice.STEP_S))
    return ["--model", "embedded", "--segment", "vad"]


def windows(folder: Path, scale: float) -> list[str]:
    """WAV files of half a minute, windowed, by a large model with random weights."""
    for number in range(round(24 * scale)):
        voice.write(folder / f"{number}.wav", 30.0, rate=SAMPLE_RATE, seed=number)
    return ["--model", material.checkpoint("hubert-base-superb-er"), "--segment", "window:6/6"]


MIXES: dict[str, Callable[[Path, float], list[str]]] = {
    "utterances": utterances,
    "podcasts": podcasts,
    "windows": windows,
}


@click.command()
@click.option("--mix", "mixes", multiple=True, type=click.Choice(list(MIXES)), default=list(MIXES))
@options.audio
@click.option("--rehearse", default=30.0, show_default=True, help="Seconds of rehearsal.")
@click.option("--scale", default=1.0, show_default=True, help="Of the archives; at 1 a run takes about a minute.")
def main(mixes: tuple[str, ...], audio: Path | None, rehearse: float, scale: float) -> None:
    """Print actual figures over forecast ones."""
    if audio is not None:
        voice.listen_to(audio)
    for mix in mixes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            options = MIXES[mix](folder / "archive", scale)
            for line in measured(folder, options, rehearse):
                click.echo(f"{mix}: {line}")


def measured(folder: Path, options: list[str], rehearse: float) -> list[str]:
    """Forecast and label an archive; each figure of the run beside its forecast."""
    asked = [str(folder / "archive"), str(folder / "store"), *options]
    told = folder / "forecast.json"
    _serpipe("plan", *asked, "--rehearse", str(rehearse), "--out", str(told))
    _serpipe("label", *asked, "--forecast", str(told))
    (record,) = runs.load(Storage(str(folder / "store")))
    found: dict[str, Any] = json.loads(told.read_text())
    start = f"start forecast {found['start_s']:.1f} s, slowest {found['bottleneck']}"
    return [start, *(runs.told(line) for line in runs.compared(record))]


def _serpipe(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "serpipe", *arguments], check=True)


if __name__ == "__main__":
    main()
