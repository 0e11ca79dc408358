"""How fast the models are by themselves: no Ray, no decoding.

Each model at full size with random weights, in every number format: the bare network perfectly packed, serpipe's
adapter on utterances of 1.5 to 11 seconds, on a GPU the share of its measured peak, and what one would use instead
where it is installed. Needs torch, transformers, scipy and, for emotion2vec, funasr beside serpipe itself.

Example:
    python jobs/benchmark_models.py --model hubert-large-superb-er --dtype bfloat16 --quick
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks import models, peers
from benchmarks.figures import Figure


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", action="append", choices=models.MODELS, help="only this one; again for more")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"), help="only this one")
    parser.add_argument("--peers", action="store_true", help="hold serpipe against Transformers and FunASR too")
    parser.add_argument("--quick", action="store_true", help="three rounds of half a minute of audio")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as a list")
    asked = parser.parse_args()
    found: list[Figure] = []
    for name in asked.model or models.MODELS:
        for dtype in asked.dtype or models.dtypes(asked.device):
            found += show(models.figures_of(name, asked.device, dtype, quick=asked.quick, named=True))
    if asked.peers:
        found += show(peers.measure(quick=asked.quick))
    where = torch.cuda.get_device_name() if asked.device == "cuda" else platform.processor() or platform.machine()
    print(f"{asked.device}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


def show(rows: list[Figure]) -> list[Figure]:
    """Print figures as they come."""
    for row in rows:
        print(f"{row.name:50} {row.ratio:6.3f}  spread {row.spread:4.0%}  {row.median:.4g} {row.unit}", flush=True)
    return rows


if __name__ == "__main__":
    main()
