"""A model that somebody else installed: its module and its entry point, as any package brings them."""

from __future__ import annotations

from pathlib import Path

LOUDNESS = '''
"""How loud a segment is, and how long."""
import pathlib
import numpy as np
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import ModelSpec, Outputs

SPEC = ModelSpec(name="NAME", hub_id=None, revision=None, licence="Apache-2.0", labels=("neutral", "anger"),
    taxonomy="ekman", parameters=PARAMETERS, min_seconds=0.1, max_seconds=30.0, embedding_width=2, frame_rate=None,
    adapter_epoch=1)

SPECS, FILES, SHIPPED = (SPEC,), ("NAME.py",), str(pathlib.Path(__file__).parent)

class Loudness:
    spec, weights_sha256 = SPEC, content_sha256(SHIPPED, FILES)
    def forward(self, waveforms, *, frames):
        level = np.array([[0.0, np.sqrt(np.mean(w**2)) * 10 - 1] for w in waveforms], np.float32).reshape(-1, 2)
        scores = np.exp(level) / np.exp(level).sum(axis=1, keepdims=True)
        return Outputs(level, scores.astype(np.float32), level, None)

def load(spec, directory, *, device, dtype):
    return Loudness()
'''


def install(site: Path, *names: str, parameters: int = 0) -> None:
    """Install models called `names` into a folder of packages, which must be on the path."""
    for name in names:
        (site / f"{name}.py").write_text(LOUDNESS.replace("NAME", name).replace("PARAMETERS", str(parameters)))
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[serpipe.models]\n{name} = {name}\n")
