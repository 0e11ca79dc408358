"""Speech for model tests: real where it is at hand, synthetic elsewhere."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from serpipe.testing import speech_like

_FOLDER = Path(os.environ.get("SERPIPE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "emodb" / "wav"


@cache
def sounds() -> tuple[NDArray[np.float32], ...]:
    """Six sounds of 30 s."""
    files = sorted(_FOLDER.glob("*.wav"))[::14][:18]
    if len(files) < 18:
        return tuple(speech_like(30.0, seed=seed, pitch_hz=90.0 + 40.0 * seed) for seed in range(6))
    clips = [soundfile.read(file, dtype="float32")[0] for file in files]
    return tuple(np.resize(np.concatenate(clips[i : i + 3]), 480_000) for i in range(0, 18, 3))
