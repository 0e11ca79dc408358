"""How likely each 32 ms of a channel is speech: Silero's voice activity detector, run on a stream.

The network is the wheel's own, its weights in the graph of `serpipe.audio.speech_network`, some frames a call. The
LSTM's state and the context travel from call to call, so that the probabilities are those of the usual frame-by-frame
API, to 5e-6, however the recording arrives.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from serpipe.audio.speech_network import HOP, SPECTRA, WINDOW, network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FRAME = 512
"""Samples that share one probability (32 ms); the only length the 16 kHz network takes."""

CONTEXT = 64
"""Samples of the frame before that the network sees in front of each frame."""

GROUP = 64
"""Frames a call (2 s). The speed is flat from 32 to 1024; memory, caches and the probabilities' lag are not."""

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
        # What the network saw last, and the samples that are not a group yet.
        self._samples = np.zeros(CONTEXT + GROUP * FRAME, np.float32)
        self._filled = CONTEXT
        self._h = np.zeros(_STATE, np.float32)
        self._c = np.zeros(_STATE, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes the next samples of the channel.

        Args:
            samples: float32 (n,), mono, 16 kHz, finite: a NaN would stay in the network's state.

        Returns:
            float32 (frames,): probabilities in [0, 1] of the groups that became complete.
        """
        heard = []
        taken = 0
        while taken < len(samples):
            fresh = samples[taken : taken + len(self._samples) - self._filled]
            self._samples[self._filled : self._filled + len(fresh)] = fresh
            self._filled += len(fresh)
            taken += len(fresh)
            if self._filled == len(self._samples):
                heard.append(self._run(GROUP))
        return np.concatenate(heard) if heard else np.empty(0, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """Ends the channel.

        Returns:
            float32 (frames,): probabilities of the frames still waiting; the last one is padded with zeros.
        """
        if self._filled == CONTEXT:
            return np.empty(0, np.float32)
        frames = -(-(self._filled - CONTEXT) // FRAME)
        self._samples[self._filled : CONTEXT + frames * FRAME] = 0.0
        return self._run(frames)

    def _run(self, frames: int) -> NDArray[np.float32]:
        feeds = {"windows": self._windows(frames), "h": self._h, "c": self._c}
        speech: NDArray[np.float32]
        speech, self._h, self._c = _session().run(("speech", "hn", "cn"), feeds)
        self._samples[:CONTEXT] = self._samples[frames * FRAME : frames * FRAME + CONTEXT]
        self._filled = CONTEXT
        return speech

    def _windows(self, frames: int) -> NDArray[np.float32]:
        """What each spectrum sees: float32 (frames x 4, 256); the last of a frame sees its end mirrored too."""
        windows = np.empty((frames, SPECTRA, WINDOW), np.float32)
        seen = sliding_window_view(self._samples[: CONTEXT + frames * FRAME], CONTEXT + FRAME)[::FRAME]
        for spectrum in range(SPECTRA):
            inside = seen[:, spectrum * HOP : spectrum * HOP + WINDOW]
            windows[:, spectrum, : inside.shape[1]] = inside
        mirrored = WINDOW - inside.shape[1]
        windows[:, -1, -mirrored:] = seen[:, -2 : -2 - mirrored : -1]
        return windows.reshape(-1, WINDOW)


@cache
def _session() -> InferenceSession:
    """The process's one session: made at first use, so after any fork, and without threads of its own."""
    import onnxruntime  # whole, window and given segments never need it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(network(_wheels()), options, providers=["CPUExecutionProvider"])


def _wheels() -> Path:
    """Finds the network inside the wheel without importing the package, which would import torch."""
    found = find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("silero_vad is not installed; `pip install silero-vad`", name="silero_vad")
    return Path(found.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
