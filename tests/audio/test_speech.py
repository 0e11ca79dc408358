"""The speech detector against Silero's usual frame-by-frame API, and against itself in other pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import silero_vad
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.audio.speech import FRAME, GROUP, SpeechDetector

DATA = Path(os.environ.get("SERPIPE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def detect(samples: NDArray[np.float32], cuts: list[int]) -> NDArray[np.float32]:
    detector = SpeechDetector()
    blocks = np.split(samples, sorted(min(cut, len(samples)) for cut in cuts))
    return np.concatenate([*(detector.push(block) for block in blocks), detector.finish()])


def usual_api(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    model = silero_vad.load_silero_vad(onnx=True)
    padded = np.concatenate([samples, np.zeros(-len(samples) % FRAME, np.float32)]).reshape(-1, FRAME)
    return np.array([model(torch.from_numpy(frame.copy()), 16_000).item() for frame in padded], np.float32)


@pytest.fixture(scope="module")
def timeline() -> NDArray[np.float32]:
    path = DATA / "long" / "emodb_timeline_test.flac"
    if not path.exists():
        pytest.skip(f"real audio is not there: {path}; set SERPIPE_TEST_DATA")
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    return samples


def babble(seconds: float) -> NDArray[np.float32]:
    """A voice-like buzz that comes and goes: enough to move the probabilities about."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    rng = np.random.default_rng(3)
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time)) / 16_000
    buzz = sum(np.sin(pitch * k) / k for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time), 0, 1) * (np.sin(2 * np.pi * 0.17 * time) > -0.4)
    return (0.1 * buzz * syllables + 0.003 * rng.standard_normal(len(time))).astype(np.float32)


BABBLE = babble(27.3)
BABBLE_WHOLE = detect(BABBLE, [])


def test_probabilities_are_those_of_the_usual_api_on_real_speech(timeline: NDArray[np.float32]) -> None:
    expected = usual_api(timeline)
    assert np.ptp(expected) > 0.9  # both speech and silence are in it
    np.testing.assert_allclose(detect(timeline, [100_000, 100_001, 3_000_000]), expected, rtol=0, atol=5e-6)


def test_probabilities_are_those_of_the_usual_api_on_made_sound() -> None:
    assert np.ptp(BABBLE_WHOLE) > 0.4
    np.testing.assert_allclose(BABBLE_WHOLE, usual_api(BABBLE), rtol=0, atol=5e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(BABBLE)), max_size=40))
def test_pushes_do_not_reach_the_numbers(cuts: list[int]) -> None:
    np.testing.assert_array_equal(detect(BABBLE, cuts), BABBLE_WHOLE)


@pytest.mark.parametrize("total", [0, 1, FRAME - 1, FRAME, FRAME + 1, GROUP * FRAME, GROUP * FRAME + 1])
def test_every_frame_has_one_probability(total: int) -> None:
    speech = detect(BABBLE[:total], [total // 2])
    assert speech.dtype == np.float32
    np.testing.assert_array_equal(speech[: total // FRAME], BABBLE_WHOLE[: total // FRAME])
    assert len(speech) == -(-total // FRAME)


def test_detectors_do_not_share_state() -> None:
    one, other = SpeechDetector(), SpeechDetector()
    blocks = np.array_split(BABBLE, 9)
    heard = []
    for block in blocks:
        heard.append(one.push(block))
        other.push(-block[::-1])
    np.testing.assert_array_equal(np.concatenate([*heard, one.finish()]), BABBLE_WHOLE)


def test_the_caller_may_reuse_its_buffer() -> None:
    detector = SpeechDetector()
    heard = []
    buffer = np.empty(10_000, np.float32)
    for start in range(0, len(BABBLE), 10_000):
        block = BABBLE[start : start + 10_000]
        buffer[: len(block)] = block
        heard.append(detector.push(buffer[: len(block)]))
    np.testing.assert_array_equal(np.concatenate([*heard, detector.finish()]), BABBLE_WHOLE)


def test_torch_stays_out_of_the_process() -> None:
    program = (
        "import sys, numpy as np\n"
        "from serpipe.audio.speech import SpeechDetector\n"
        "detector = SpeechDetector()\n"
        "detector.push(np.zeros(600, np.float32))\n"
        "assert len(detector.finish()) == 2\n"
        "print('torch' in sys.modules, 'silero_vad' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
    assert run.stderr == ""
