"""Small helpers around `onnx.helper`, shared by all graphs that edgecl builds, except heads: see `model_writer`."""
from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecl.backbones.model_writer import IR_VERSION, OPSET
from edgecl.backbones.session import METADATA_KEY, BackboneInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DTYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class GraphBuilder:
    """Collects nodes and weights in the order in which they are used."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, value: np.ndarray) -> str:
        """Add a constant; returns its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add an operator; returns the name of its output."""
        name = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def model(self, name: str, inputs: Mapping[str, tuple[str, Sequence[Any]]],
              outputs: Mapping[str, tuple[str, Sequence[Any]]]) -> onnx.ModelProto:
        """The finished model. inputs, outputs: name -> (dtype, shape); a text in a shape names a free axis."""
        graph = helper.make_graph(
            self.nodes, name,
            [helper.make_tensor_value_info(k, DTYPES[d], list(s)) for k, (d, s) in inputs.items()],
            [helper.make_tensor_value_info(k, DTYPES[d], list(s)) for k, (d, s) in outputs.items()],
            self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = "edgecl"
        return model


def graph_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph and its weights, without metadata, as hexadecimal text."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def set_metadata(model: onnx.ModelProto, values: dict[str, str]) -> None:
    """Set metadata entries, replacing those of the same name."""
    merged = {entry.key: entry.value for entry in model.metadata_props} | values
    del model.metadata_props[:]
    helper.set_model_props(model, merged)


def finish_backbone(model: onnx.ModelProto, name: str, kind: str, input_shape: Sequence[int], dimension: int,
                    precision: str = "fp32") -> bytes:
    """Write the backbone's metadata into the model and return its bytes."""
    info = BackboneInfo(name, kind, tuple(input_shape), dimension, precision, graph_sha256(model))
    set_metadata(model, {METADATA_KEY: info.to_json()})
    return bytes(model.SerializeToString())
