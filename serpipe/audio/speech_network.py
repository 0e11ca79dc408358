"""Silero's voice detector as a graph whose work is in a few large matrix products.

The wheel's own graph convolves each frame for itself, four columns wide at most, which leaves most of a processor's
vector units empty. Here all frames of a call share one product a layer, with the same weights and the same
operations, so the probabilities are the same but for rounding. A convolution becomes a product by writing what its
kernel sees side by side; taps that only ever meet padding are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.onnx_graph import Graph, weights_of

WINDOW = 256
"""Samples of one short-time spectrum."""

HOP = 128
"""Samples from one spectrum to the next."""

SPECTRA = 4
"""Spectra of one frame."""

_BINS = WINDOW // 2 + 1
_STATE = (1, 1, 128)


def network(wheels: Path) -> bytes:
    """The detector as an ONNX model.

    Inputs: `windows`, float32 (frames x 4, 256), and the LSTM's state `h` and `c`, float32 (1, 1, 128). Outputs:
    `speech`, float32 (frames,), probabilities, and `hn` and `cn`, the state afterwards.

    Args:
        wheels: the wheel's `silero_vad_16k_sequence.onnx`, for its weights.
    """
    weights = weights_of(wheels)
    graph = Graph()
    encoded = _encoder(graph, weights, _magnitudes(graph, weights))
    _recurrent(graph, weights, encoded)
    return graph.model(
        inputs={"windows": ("rows", WINDOW), "h": _STATE, "c": _STATE},
        outputs={"speech": ("frames",), "hn": _STATE, "cn": _STATE},
    )


def _magnitudes(graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> str:
    """Each window's spectrum, (frames, 4, 129)."""
    basis = weights["stft.forward_basis_buffer"][:, 0].T
    graph.node("MatMul", ["windows", graph.constant(basis)], ["spectrum"])
    graph.node("Mul", ["spectrum", "spectrum"], ["squares"])
    graph.node("Split", ["squares", graph.constant([_BINS, _BINS])], ["real", "imaginary"], axis=1)
    graph.node("Add", ["real", "imaginary"], ["power"])
    graph.node("Sqrt", ["power"], ["magnitude"])
    return graph.reshaped("magnitude", [-1, SPECTRA, _BINS])


def _encoder(graph: Graph, weights: Mapping[str, NDArray[np.float32]], magnitudes: str) -> str:
    """Four convolutions over the four spectra of a frame, to (frames, 128)."""

    def layer(source: str, number: int, taps: slice) -> str:
        kernel = weights[f"encoder.{number}.weight"][:, :, taps]
        return graph.rectified(graph.linear(source, _matrix(kernel), weights[f"encoder.{number}.bias"]))

    graph.node("Pad", [magnitudes, graph.constant([0, 1, 0, 0, 1, 0])], ["padded"])
    graph.node("Concat", [graph.cut("padded", tap, tap + SPECTRA) for tap in range(3)], ["seen"], axis=2)
    first = layer("seen", 0, slice(3))
    # Stride two from here: of four places the first and the third, and only the first meets padding.
    graph.node("Pad", [first, graph.constant([0, 1, 0, 0, 0, 0])], ["padded before"])
    places = [graph.reshaped(graph.cut("padded before", place, place + 3), [-1, 1, 3 * 128]) for place in (0, 2)]
    graph.node("Concat", places, ["seen by two"], axis=1)
    second = layer("seen by two", 1, slice(3))
    third = layer(graph.reshaped(second, [-1, 2 * 64]), 2, slice(1, 3))
    return layer(third, 3, slice(1, 2))


def _recurrent(graph: Graph, weights: Mapping[str, NDArray[np.float32]], encoded: str) -> None:
    lstm = [graph.constant(weight) for name, weight in weights.items() if name.startswith("onnx::LSTM")]
    sequence = graph.reshaped(encoded, [-1, *_STATE[1:]])
    graph.node("LSTM", [sequence, *lstm, "", "h", "c"], ["states", "hn", "cn"], hidden_size=_STATE[-1])
    states = graph.rectified(graph.reshaped("states", [-1, _STATE[-1]]))
    logits = graph.linear(states, _matrix(weights["output.weight"]), weights["output.bias"])
    graph.node("Sigmoid", [graph.reshaped(logits, [-1])], ["speech"])


def _matrix(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A convolution's kernel (out, in, taps) as the matrix (taps x in, out)."""
    return kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
