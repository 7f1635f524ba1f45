"""Heads as ONNX: built after learning, served by ONNX Runtime, fused with the backbone for export."""
from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.backbones.model_writer import IR_VERSION, OPSET, ModelWriter
from edgecl.backbones.session import open_session
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgecl.heads.head import Head

METADATA_KEY = "edgecl.head"
OUTPUTS = ("features", "logits", "probabilities", "novelty")


def build_head(head: Head) -> bytes:
    """An ONNX model from features float32 [n, D] to logits [n, C], probabilities [n, C] and novelty [n].

    Its metadata contain the labels, the kind, and `unknown_above`, the threshold for `novelty` (null: never unknown).
    """
    g, transform = ModelWriter(), head.transform
    x = "input"
    if transform.power != 1.0:
        size = g.node("Pow", [g.node("Abs", [x]), g.weight("power", np.array(transform.power, np.float32))])
        x = g.node("Mul", [g.node("Sign", [x]), size])
    if transform.projected:
        signs = g.node("DequantizeLinear", [g.weight("signs", transform.signs),
                                            g.weight("scale", np.array(transform.scale, np.float32))])
        x = g.node("Relu", [g.node("MatMul", [x, signs])])
    centred = g.node("Sub", [x, g.weight("reference", head.reference)])
    normalised = head.normalised
    z = g.node("Gemm", [centred, g.weight("weight", head.weight), g.weight("bias", head.bias)],
               None if normalised else "logits", transB=1)
    if normalised:
        length = g.node("ReduceL2", [x], axes=[1], keepdims=1)
        z = g.node("Div", [z, g.node("Max", [length, g.weight("least", np.array(1e-12, np.float32))])], "logits")
    cooled = g.node("Div", [z, g.weight("temperature", np.array(head.temperature, np.float32))])
    share = g.node("Softmax", [cooled], None if head.smoothing else "probabilities", axis=1)
    if head.smoothing:
        kept = g.node("Mul", [share, g.weight("kept", np.array(1 - head.smoothing, np.float32))])
        g.node("Add", [kept, g.weight("smoothing", np.array(head.smoothing / len(head.labels), np.float32))],
               "probabilities")
    if head.novelty is None:
        zero = g.node("Mul", [z, g.weight("zero", np.zeros(1, np.float32))])
        g.node("ReduceMax", [zero], "novelty", axes=[1], keepdims=0)
    else:
        n = head.novelty
        u = g.node("MatMul", [g.node("Sub", [z, g.weight("centre", n.centre)]), g.weight("map", n.map)])
        far = g.node("MatMul", [g.node("Mul", [u, u]), g.weight("gain", n.gain)])
        squares = g.weight("squares", n.squares)
        near = g.node("Gemm", [u, g.weight("means", -2 * n.means), squares], transB=1)
        g.node("Add", [far, g.node("ReduceMin", [near], axes=[1], keepdims=0)], "novelty")
    classes = len(head.labels)
    threshold = head.novelty.threshold if head.novelty else math.inf
    return g.model("edgecl_head", {"input": ("float32", ["n", transform.source])},
                   {"logits": ("float32", ["n", classes]), "probabilities": ("float32", ["n", classes]),
                    "novelty": ("float32", ["n"])},
                   {METADATA_KEY: json.dumps({"labels": head.labels, "kind": head.kind,
                                              "unknown_above": threshold if math.isfinite(threshold) else None})})


class HeadSession:
    """A head in ONNX, ready to serve. Raises BackboneError if the model is not one."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        self.session = open_session(model, threads)
        metadata = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if metadata is None:
            raise BackboneError("the model is not an edgecl head", "create the state again")
        values: dict[str, Any] = json.loads(metadata)
        self.labels: list[str] = values["labels"]
        self.kind: str = values["kind"]
        self.unknown_above = math.inf if values["unknown_above"] is None else float(values["unknown_above"])

    def __call__(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Probabilities float32 [n, C] and whether each sample is unknown, bool [n], of features float32 [n, D]."""
        probabilities, distance = self.session.run(["probabilities", "novelty"], {"input": features})
        return probabilities, distance > self.unknown_above


def fuse(backbone: bytes, head: bytes) -> bytes:
    """Backbone and head as one ONNX model with the outputs features, logits, probabilities and novelty, and the
    metadata of both."""
    import onnx
    from onnx import compose

    from edgecl.backbones.graph import set_metadata

    body, top = (onnx.load_model_from_string(model) for model in (backbone, head))
    target = max(OPSET, *(o.version for m in (body, top) for o in m.opset_import if o.domain in ("", "ai.onnx")))
    body, top = (m if _opset(m) == target else onnx.version_converter.convert_version(m, target)
                 for m in (body, top))
    output = body.graph.output[0].name
    metadata = {entry.key: entry.value for model in (body, top) for entry in model.metadata_props}
    del body.metadata_props[:], top.metadata_props[:]
    body.ir_version = top.ir_version = max(IR_VERSION, body.ir_version)
    prefixed = compose.add_prefix(body, "backbone/", rename_inputs=False)
    model = compose.merge_models(prefixed, compose.add_prefix(top, "head/"),
                                 io_map=[(f"backbone/{output}", "head/input")],
                                 outputs=[f"head/{name}" for name in OUTPUTS[1:]])
    _expose(model, {f"backbone/{output}": "features", **{f"head/{name}": name for name in OUTPUTS[1:]}},
            prefixed.graph.output[0])
    set_metadata(model, metadata)
    return bytes(model.SerializeToString())


def _opset(model: Any) -> int:
    return int(next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))


def _expose(model: Any, names: dict[str, str], feature_output: Any) -> None:
    """Give the outputs of the fused graph their plain names, and put the features first."""
    outputs = [feature_output, *model.graph.output]
    for node in model.graph.node:
        for ends in (node.input, node.output):
            for i, end in enumerate(ends):
                ends[i] = names.get(end, end)
    copies = []
    for output in outputs:
        copy = type(output)()
        copy.CopyFrom(output)
        copy.name = names[output.name]
        copies.append(copy)
    del model.graph.output[:]
    model.graph.output.extend(copies)
