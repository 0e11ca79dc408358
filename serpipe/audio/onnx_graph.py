"""ONNX graphs, read and written: the few messages of its protocol buffers that a small network needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_IR_VERSION, _OPSET = 8, 17
_FLOAT, _INT64 = 1, 7
_VARINT, _BYTES, _FIXED32 = 0, 2, 5

_Field = tuple[int, int | str | bytes]


class Graph:
    """A graph that grows node by node; every value has a name.

    Examples:
        >>> import onnxruntime
        >>> graph = Graph()
        >>> graph.node("Add", ["a", graph.constant(np.float32([1, 2]))], ["b"])
        >>> session = onnxruntime.InferenceSession(graph.model(inputs={"a": ("n", 2)}, outputs={"b": ("n", 2)}))
        >>> session.run(["b"], {"a": np.zeros((3, 2), np.float32)})[0].tolist()
        [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._names = 0

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int) -> None:
        """Append an operation; an input named "" is one left out."""
        fields: list[_Field] = [*((1, name) for name in inputs), *((2, name) for name in outputs)]
        fields += [(4, kind)]
        fields += [(5, _message([(1, name), (3, value), (20, 2)])) for name, value in attributes.items()]
        self._nodes.append(_message(fields))

    def constant(self, values: NDArray[np.float32] | Sequence[int]) -> str:
        """The name of a constant: float32 of any shape, or a list of whole numbers."""
        array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        name = self._name()
        kind = _FLOAT if array.dtype == np.float32 else _INT64
        self._constants.append(_message([*((1, n) for n in array.shape), (2, kind), (8, name), (9, array.tobytes())]))
        return name

    def cut(self, source: str, start: int, end: int) -> str:
        """The name of rows [start, end) of the second axis."""
        return self._new("Slice", source, self.constant([start]), self.constant([end]), self.constant([1]))

    def reshaped(self, source: str, shape: Sequence[int]) -> str:
        """The name of the same values in another shape."""
        return self._new("Reshape", source, self.constant(shape))

    def linear(self, source: str, matrix: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """The name of `source @ matrix + bias`."""
        product = self._new("MatMul", source, self.constant(matrix))
        return self._new("Add", product, self.constant(bias))

    def rectified(self, source: str) -> str:
        """The name of the values, those below zero as zero."""
        return self._new("Relu", source)

    def model(self, *, inputs: Mapping[str, Sequence[int | str]], outputs: Mapping[str, Sequence[int | str]]) -> bytes:
        """The graph as a file's content.

        Args:
            inputs: names and shapes of float32 values; a name in a shape is any number.
            outputs: the same.
        """
        graph: list[_Field] = [(1, node) for node in self._nodes]
        graph += [(2, "graph"), *((5, constant) for constant in self._constants)]
        graph += [(11, _port(name, shape)) for name, shape in inputs.items()]
        graph += [(12, _port(name, shape)) for name, shape in outputs.items()]
        return _message([(1, _IR_VERSION), (7, _message(graph)), (8, _message([(1, ""), (2, _OPSET)]))])

    def _new(self, kind: str, *inputs: str) -> str:
        name = self._name()
        self.node(kind, inputs, [name])
        return name

    def _name(self) -> str:
        self._names += 1
        return f"_{self._names}"


def weights_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """A model's float32 constants by name, in the order of the file."""
    found = {}
    for number, graph in _fields(path.read_bytes()):
        if number != 7 or isinstance(graph, int):
            continue
        for kind, tensor in _fields(graph):
            if kind == 5 and not isinstance(tensor, int):
                about = dict(_fields(tensor))
                name, data = about.get(8), about.get(9)
                if about.get(2) == _FLOAT and isinstance(name, bytes) and isinstance(data, bytes):
                    shape = [size for part, size in _fields(tensor) if part == 1 and isinstance(size, int)]
                    found[name.decode()] = np.frombuffer(data, np.float32).reshape(shape)
    return found


def _port(name: str, shape: Sequence[int | str]) -> bytes:
    sizes = _message((1, _message([(1 if isinstance(size, int) else 2, size)])) for size in shape)
    return _message([(1, name), (2, _message([(1, _message([(1, _FLOAT), (2, sizes)]))]))])


def _message(fields: Iterable[_Field]) -> bytes:
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | _BYTES) + _varint(len(raw)) + raw
    return bytes(out)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        if key & 7 == _VARINT:
            value, place = _read_varint(message, place)
            yield key >> 3, value
            continue
        length, place = (4, place) if key & 7 == _FIXED32 else _read_varint(message, place)
        yield key >> 3, message[place : place + length]
        place += length


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        shift += 7
        place += 1
        if byte < 128:
            return value, place
