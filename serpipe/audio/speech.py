"""How likely each 32 ms of a channel is speech: Silero's voice activity detector, run on a stream.

The network is the wheel's own `silero_vad_16k_sequence.onnx`, a few hundred frames a call. The wheel's
wrapper for it starts afresh at every call; here the LSTM's state and the context travel on, so that the
probabilities are those of the usual frame-by-frame API however the recording arrives.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FRAME = 512
"""Samples that share one probability (32 ms); the only length the 16 kHz network takes."""

CONTEXT = 64
"""Samples of the frame before that the network sees in front of each frame."""

GROUP = 256
"""Frames a call (8.2 s). The speed is flat from 32 to 1024; memory and the probabilities' lag are not."""

_STATE = (1, 1, 128)


class SpeechDetector:
    """The speech probability of every 512-sample frame of one channel.

    Frames run through the network in groups of `GROUP`, counted from the start of the recording, so how the
    samples are cut into pushes cannot reach the numbers. Probabilities therefore lag behind the samples by
    up to a group.

    Examples:
        >>> detector = SpeechDetector()
        >>> detector.push(np.zeros(16_000, np.float32)).shape
        (0,)
        >>> bool(detector.finish().max() < 0.1), 31 * FRAME < 16_000 < 32 * FRAME
        (True, True)
    """

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.float32]] = []
        self._waiting_samples = 0
        self._context = np.zeros(CONTEXT, np.float32)
        self._h = np.zeros(_STATE, np.float32)
        self._c = np.zeros(_STATE, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes the next samples of the channel.

        Args:
            samples: float32 (n,), mono, 16 kHz, finite: a NaN would stay in the network's state.

        Returns:
            float32 (frames,): probabilities in [0, 1] of the groups that became complete.
        """
        # The caller may reuse its buffer before these samples have made a group.
        self._waiting.append(np.array(samples, np.float32))
        self._waiting_samples += len(samples)
        if self._waiting_samples < GROUP * FRAME:
            return np.empty(0, np.float32)
        waiting = np.concatenate(self._waiting)
        whole = len(waiting) // (GROUP * FRAME) * (GROUP * FRAME)
        groups = waiting[:whole].reshape(-1, GROUP, FRAME)
        self._waiting = [waiting[whole:].copy()]
        self._waiting_samples = len(waiting) - whole
        return np.concatenate([self._run(group) for group in groups])

    def finish(self) -> NDArray[np.float32]:
        """Ends the channel.

        Returns:
            float32 (frames,): probabilities of the frames still waiting; the last one is padded with zeros.
        """
        waiting = np.concatenate([*self._waiting, np.zeros(-self._waiting_samples % FRAME, np.float32)])
        self._waiting, self._waiting_samples = [], 0
        if not len(waiting):
            return waiting
        return self._run(waiting.reshape(-1, FRAME))

    def _run(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = np.empty((len(frames), CONTEXT + FRAME), np.float32)
        inputs[:, CONTEXT:] = frames
        inputs[0, :CONTEXT] = self._context
        inputs[1:, :CONTEXT] = frames[:-1, -CONTEXT:]
        self._context = frames[-1, -CONTEXT:].copy()
        feeds = {"input": inputs, "h": self._h, "c": self._c}
        speech: NDArray[np.float32]
        speech, self._h, self._c = _session().run(("speech_probs", "hn", "cn"), feeds)
        return speech


@cache
def _session() -> InferenceSession:
    """The process's one session: made at first use, so after any fork, and without threads of its own."""
    import onnxruntime  # whole, window and given segments never need it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # the file has unused constants, and every load would warn of them
    return onnxruntime.InferenceSession(_network(), options, providers=["CPUExecutionProvider"])


def _network() -> Path:
    """Finds the network inside the wheel without importing the package, which would import torch."""
    found = find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("silero_vad is not installed; `pip install silero-vad`", name="silero_vad")
    return Path(found.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
