"""How fast the models are by themselves: no Ray, no decoding.

Each model at full size with random weights, in every number format: the bare network perfectly packed, serpipe's
adapter on utterances of 1.5 to 11 seconds, on a GPU the share of its measured peak, and what one would use instead.
Needs torch and transformers beside serpipe's own source, nothing else; models of FunASR are left out where it is not
installed. Figures are written as they come.

Example:
    python jobs/benchmark_models.py --model hubert-large-superb-er --dtype bfloat16 --quick
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

# A bare machine has the source, not the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks import models, peers, reference
from benchmarks.figures import Figure

from serpipe.errors import ModelError

WANTED: dict[str, dict[str, float]] = {
    "cpu": reference.WANTED,
    "cuda": {"adapter/model": 0.95, "model/peak": 0.5, "peer/funasr": 10.0},
}
"""By device, what a figure should reach at least: by its whole name, or by what stands before a model's."""

LARGE = (
    "hubert-large-superb-er",
    "wav2vec2-large-superb-er",
    "emotion2vec-plus-large",
    "odyssey-categorical",
    "exhubert",
)
"""The models whose share of the peak is held against what is wanted; the others are told."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", action="append", choices=models.MODELS, help="only this one; again for more")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"), help="only this one")
    parser.add_argument("--peers", action="store_true", help="hold serpipe against Transformers and FunASR too")
    parser.add_argument("--quick", action="store_true", help="three rounds on less audio")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of the networks; tiny tries this job")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as a list")
    asked = parser.parse_args()
    found: list[Figure] = []

    def take(what: str, measure: Callable[[], list[Figure]]) -> None:
        for row in tried(what, measure):
            print(line(row, asked.device), flush=True)
            found.append(row)
        if asked.json:
            asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")

    for name in asked.model or models.MODELS:
        for dtype in asked.dtype or models.dtypes(asked.device):
            options = {"quick": asked.quick, "named": True, "size": asked.size}
            take(f"{name} in {dtype}", lambda: models.figures_of(name, asked.device, dtype, **options))  # noqa: B023
    for peer in peers.PEERS if asked.peers else ():
        take(f"peer {peer}", lambda: peers.figures_of(peer, asked.device, quick=asked.quick, size=asked.size))  # noqa: B023
    where = torch.cuda.get_device_name() if asked.device == "cuda" else platform.processor() or platform.machine()
    print(f"{asked.device}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def tried(what: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
    """Figures, or none and a word on why where this machine has not what they take: the others still count."""
    try:
        return measure()
    except ModelError as error:
        if error.code != "MODEL_BACKEND_UNUSABLE":
            raise
        why = str(error)
    except torch.OutOfMemoryError as error:
        why = str(error).splitlines()[0]
    # Out here, where the error is gone and with it what the network still held.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"{what}: left out, {why}", flush=True)
    return []


def wanted(name: str, device: str) -> float | None:
    """What a figure should reach on a device.

    Examples:
        >>> wanted("model/peak:exhubert:float16", "cuda"), wanted("model/peak:embedded:float16", "cuda")
        (0.5, None)
        >>> wanted("peer/transformers:float32", "cpu"), wanted("peer/transformers:float32", "cuda")
        (1.5, None)
    """
    if name in WANTED[device]:
        return WANTED[device][name]
    figure, _, model = name.partition(":")
    if figure == "adapter/model" or (figure == "model/peak" and model.partition(":")[0] in LARGE):
        return WANTED[device].get(figure)
    return None


def line(row: Figure, device: str) -> str:
    """A figure for people, and whether it is what is wanted."""
    least = wanted(row.name, device)
    held = "" if least is None else f"  wanted {least:g}{'' if row.ratio >= least else ', missed'}"
    return f"{row.name:50} {row.ratio:6.3f}  spread {row.spread:4.0%}  {row.median:.4g} {row.unit}{held}"


if __name__ == "__main__":
    main()
