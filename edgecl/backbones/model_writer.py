"""Writes small ONNX models as protobuf by hand: without package onnx, whose import costs 12 MB and 0.1 s of a `learn`.

Only what heads need of onnx.proto3: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Field numbers stand beside
each use; `tests/test_onnx_head.py` reads the bytes back with package onnx.
"""
from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Parts = list[bytes | memoryview]

OPSET = 17
IR_VERSION = 8
FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7      # TensorProto.DataType
DATA_TYPES = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int64": INT64}
OF_FLOAT, OF_INT, OF_INTS = 1, 2, 7         # AttributeProto.AttributeType
VARINT, LENGTH_DELIMITED, FIXED32 = 0, 2, 5     # wire types


class ModelWriter:
    """Collects nodes and weights in the order in which they are used, as `graph.GraphBuilder` does."""

    def __init__(self) -> None:
        self.nodes: list[Parts] = []
        self.weights: list[Parts] = []

    def weight(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant; returns its name."""
        value = np.ascontiguousarray(value)     # a number becomes [1]: with a scalar, ONNX Runtime computes in int8
        raw = value.astype(value.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data
        self.weights.append([*(part for size in value.shape for part in _integer(1, size)),
                             *_integer(2, DATA_TYPES[value.dtype.name]), *_text(8, name), *_bytes(9, [raw])])
        return name

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, second: str | None = None,
             **attributes: int | float | Sequence[int]) -> str:
        """Add an operator; returns the name of its (first) output."""
        name = output or f"{op}_{len(self.nodes)}"
        self.nodes.append([*(part for each in inputs for part in _text(1, each)), *_text(2, name),
                           *(_text(2, second) if second else []), *_text(4, op),
                           *(part for key in sorted(attributes) for part in _bytes(5, _attribute(key, attributes[key])))
                           ])
        return name

    def model(self, name: str, inputs: Mapping[str, tuple[str, Sequence[int | str]]],
              outputs: Mapping[str, tuple[str, Sequence[int | str]]], metadata: Mapping[str, str]) -> bytes:
        """The finished model. inputs, outputs: name -> (dtype, shape); a text in a shape names a free axis."""
        graph = [*_each(1, self.nodes), *_text(2, name), *_each(5, self.weights),
                 *_each(11, (_value(*item) for item in inputs.items())),
                 *_each(12, (_value(*item) for item in outputs.items()))]
        return b"".join([*_integer(1, IR_VERSION), *_text(2, "edgecl"), *_bytes(7, graph),
                         *_bytes(8, [*_text(1, ""), *_integer(2, OPSET)]),
                         *_each(14, ([*_text(1, key), *_text(2, value)] for key, value in metadata.items()))])


def _attribute(name: str, value: int | float | Sequence[int]) -> Parts:
    if isinstance(value, int):
        return [*_text(1, name), *_integer(3, value), *_integer(20, OF_INT)]
    if isinstance(value, float):
        return [*_text(1, name), *_head(2, FIXED32), struct.pack("<f", value), *_integer(20, OF_FLOAT)]
    return [*_text(1, name), *(part for each in value for part in _integer(8, each)), *_integer(20, OF_INTS)]


def _value(name: str, described: tuple[str, Sequence[int | str]]) -> Parts:
    """A ValueInfoProto."""
    dtype, shape = described
    axes = _each(1, (_text(2, size) if isinstance(size, str) else _integer(1, size) for size in shape))
    tensor = [*_integer(1, DATA_TYPES[dtype]), *_bytes(2, axes)]
    return [*_text(1, name), *_bytes(2, _bytes(1, tensor))]


def _each(field: int, messages: Iterable[Parts]) -> Parts:
    return [part for message in messages for part in _bytes(field, message)]


def _bytes(field: int, parts: Parts) -> Parts:
    return [*_head(field, LENGTH_DELIMITED), _varint(sum(map(len, parts))), *parts]


def _text(field: int, text: str) -> Parts:
    return _bytes(field, [text.encode()])


def _integer(field: int, value: int) -> Parts:
    return [*_head(field, VARINT), _varint(value % 2 ** 64)]


def _head(field: int, wire_type: int) -> Parts:
    return [_varint(field << 3 | wire_type)]


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7f:
        found.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes((*found, value))
