"""Weights that several sub-networks of one ONNX model have in common, written once."""
from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

INITIALIZER = re.compile(r"nets\.(\d+)\.(.+)")  # names of those of `subnetworks.ServedSubnetworks`
MASKS_PER_BYTE = 8


def shared(model: ModelProto) -> ModelProto:
    """The model, changed in place: a tensor that sub-networks have parts of is stored once, with one byte per weight
    that says which of eight sub-networks have it. ONNX Runtime unpacks it when it loads the model."""
    groups: dict[str, dict[int, TensorProto]] = {}
    for initializer in model.graph.initializer:
        if found := INITIALIZER.fullmatch(initializer.name):
            groups.setdefault(found[2], {})[int(found[1])] = initializer
    nodes = []
    for name, members in groups.items():
        values = {place: numpy_helper.to_array(member) for place, member in members.items()}
        union = _union(list(values.values()))
        if union is None or union.ndim < 2 or len(values) < 2:
            continue
        for start in range(0, len(values), MASKS_PER_BYTE):
            nodes += _unfolded(model, f"shared.{name}", union if start == 0 else None, start, {
                members[place].name: values[place] for place in sorted(values)[start:start + MASKS_PER_BYTE]})
        for member in members.values():
            model.graph.initializer.remove(member)
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return model


def _union(values: list[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """The tensor that all are parts of, 0 elsewhere; None if there is none."""
    if len({value.shape for value in values}) != 1 or values[0].dtype != np.float32:
        return None
    union = values[0].copy()
    for value in values[1:]:
        np.copyto(union, value, where=union == 0)
    return union if all(((value == 0) | (value == union)).all() for value in values) else None


def _unfolded(model: ModelProto, name: str, union: NDArray[np.float32] | None, start: int,
              parts: dict[str, NDArray[np.float32]]) -> list[object]:
    """The nodes that compute these tensors: bit k of a byte says whether a weight is part of the k-th."""
    bits = np.zeros(next(iter(parts.values())).shape, np.uint8)
    for k, value in enumerate(parts.values()):
        bits |= (value != 0).astype(np.uint8) << np.uint8(k)
    which = f"{name}.{start}"
    tensors = {f"{which}.bits": bits, f"{which}.two": np.array(2, np.float32),
               **{f"{which}.{k}": np.array(2.0 ** k, np.float32) for k in range(len(parts))}}
    if union is not None:
        tensors[name] = union
    model.graph.initializer.extend([numpy_helper.from_array(array, key) for key, array in tensors.items()])
    nodes = [helper.make_node("Cast", [f"{which}.bits"], [f"{which}.float"], to=TensorProto.FLOAT)]
    for k, part in enumerate(parts):
        inside = [f"{which}.{k}.{step}" for step in ("shifted", "whole", "bit")]
        nodes += [helper.make_node("Div", [f"{which}.float", f"{which}.{k}"], [inside[0]]),
                  helper.make_node("Floor", [inside[0]], [inside[1]]),
                  helper.make_node("Mod", [inside[1], f"{which}.two"], [inside[2]], fmod=1),
                  helper.make_node("Mul", [name, inside[2]], [part])]
    return nodes
