"""Heads as ONNX: built after learning, served by ONNX Runtime, fused with the backbone for export."""
from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.backbones.model_writer import FLOAT, IR_VERSION, OPSET, UINT8, ModelWriter
from edgecl.backbones.session import open_session
from edgecl.errors import BackboneError
from edgecl.heads.head import LEAST_STEP, LEVELS, Novelty

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgecl.heads.head import Head, NearestRow, Scale

METADATA_KEY = "edgecl.head"
FARTHEST = 1e6      # outside, in units of the threshold: no number is beyond it
OUTPUTS = ("features", "logits", "probabilities", "novelty")


def build_head(head: Head) -> bytes:
    """An ONNX model from features float32 [n, D] to logits [n, C], probabilities [n, C] and novelty [n].

    Its metadata contain the labels, the kind, `unknown_above`: the threshold for `novelty` (null: can't be told yet),
    and `unknown_needs`: how many samples of one class are missing until it can (null: no number of them would do).
    """
    g, transform = ModelWriter(), head.transform
    x = powered = powers(g, "input", transform.power)
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
    _novelty(g, head, powered, centred, z)
    classes = len(head.labels)
    novelty = head.novelty or Novelty(needs=None)
    threshold = novelty.threshold if math.isfinite(novelty.threshold) else None
    return g.model("edgecl_head", {"input": ("float32", ["n", transform.source])},
                   {"logits": ("float32", ["n", classes]), "probabilities": ("float32", ["n", classes]),
                    "novelty": ("float32", ["n"])},
                   {METADATA_KEY: json.dumps({"labels": head.labels, "kind": head.kind, "unknown_above": threshold,
                                              "unknown_needs": novelty.needs})})


def powers(g: ModelWriter, x: str, power: float) -> str:
    """sign(x) |x|^power."""
    if power == 1.0:
        return x
    size = g.node("Pow", [g.node("Abs", [x]), g.weight("power", np.array(power, np.float32))])
    return g.node("Mul", [g.node("Sign", [x]), size])


def _novelty(g: ModelWriter, head: Head, x: str, centred: str, z: str) -> None:
    """The output `novelty` from the features x, before any projection, what the logits were computed from, centred, and
    the logits z; 0 without any score."""
    n = head.novelty or Novelty()
    alone = "novelty" if n.near is None or n.like is None else None
    scores = []
    best = g.node("ArgMax", [z], axis=1, keepdims=0) if n.near is not None or n.like is not None else ""
    if n.near is not None:
        near = n.near
        u = g.node("MatMul", [g.node("Sub", [z, g.weight("centre", near.centre)]), g.weight("map", near.map)])
        far = g.node("MatMul", [g.node("Mul", [u, u]), g.weight("gain", near.gain)])
        to_means = g.node("Gemm", [u, g.weight("means", -2 * near.means), g.weight("squares", near.squares)], transB=1)
        found = g.node("Add", [far, g.node("ReduceMin", [to_means], axes=[1], keepdims=0)])
        scores.append(_standardised(g, ("near", found), n.near_scale, best, alone))
    if n.like is not None:
        like = _like(g, n.like, head, x, centred)
        scores.append(_standardised(g, ("like", like), n.like_scale, best, alone))
    if not scores:
        zero = g.node("Mul", [z, g.weight("zero", np.zeros(1, np.float32))])
        g.node("ReduceMax", [zero], "novelty", axes=[1], keepdims=0)
    elif not alone:
        g.node("Max", scores, "novelty")


def _like(g: ModelWriter, like: NearestRow, head: Head, x: str, centred: str) -> str:
    """See `NearestRow`."""
    if like.centre is not None and like.weight is not None:
        if head.transform.projected or not np.array_equal(like.centre, head.reference):
            centred = g.node("Sub", [x, g.weight("row_centre", like.centre)])
        x = g.node("Mul", [centred, g.weight("row_weight", like.weight)])
    nearest = g.node("ReduceMin", [apart(g, like, x)], axes=[1], keepdims=0)
    return g.node("Log", [g.node("Max", [nearest, _number(g, "least_distance", like.least)])])


def apart(g: ModelWriter, like: NearestRow, x: str) -> str:
    """`NearestRow.apart` of samples x that are centred and weighted already. Both sides are unsigned: some processors
    saturate sums of signed products."""
    largest = g.node("ReduceMax", [g.node("Abs", [x])], axes=[1], keepdims=1)
    step = g.node("Max", [g.node("Div", [largest, _number(g, "levels", LEVELS)]), _number(g, "least_step", LEAST_STEP)])
    whole = g.node("Round", [g.node("Div", [x, step])])
    size = g.node("ReduceL2", [whole], axes=[1], keepdims=1)
    if like.weight is None:
        step = g.node("Div", [_number(g, "one", 1), g.node("Max", [size, _number(g, "shortest", 1)])])
    zero = g.weight("zero_point", np.array([LEVELS + 1], np.uint8))
    shifted = g.node("Cast", [g.node("Add", [whole, _number(g, "shift", LEVELS + 1)])], to=UINT8)
    rows = (like.rows.T.astype(np.int16) + LEVELS + 1).astype(np.uint8)
    product = g.node("Cast", [g.node("MatMulInteger", [shifted, g.weight("rows", rows), zero, zero])], to=FLOAT)
    along = g.node("Mul", [g.node("Mul", [product, g.weight("row_length", -2 * like.length)]), step])
    found = g.node("Add", [along, g.weight("row_squares", like.squares.astype(np.float32))])
    length = g.node("Mul", [size, step])
    return g.node("Add", [found, g.node("Mul", [length, length])])


def _standardised(g: ModelWriter, score: tuple[str, str], scale: Scale, best: str, output: str | None) -> str:
    """A score, as (name, where it is), on the scale of the class `best`."""
    name, found = score
    mean, deviation = (g.node("Gather", [g.weight(f"{name}_{part}", values), best])
                       for part, values in zip(scale._fields, scale))
    return g.node("Div", [g.node("Sub", [found, mean]), deviation], output)


def _number(g: ModelWriter, name: str, value: float) -> str:
    return g.weight(name, np.array(value, np.float32))


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
        self.unknown_above: float | None = values["unknown_above"]
        self.unknown_needs: int | None = values.get("unknown_needs")

    def __call__(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Probabilities float32 [n, C] and whether each sample is unknown, bool [n] (None: can't be told yet), of
        features float32 [n, D]."""
        probabilities, novelty = self.scores(features)
        return probabilities, self.unknown(novelty)

    def scores(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities float32 [n, C] and novelty float32 [n] of features float32 [n, D]."""
        probabilities, novelty = self.session.run(["probabilities", "novelty"], {"input": features})
        return probabilities, novelty

    def unknown(self, novelty: NDArray[np.float32]) -> NDArray[np.bool_] | None:
        """Whether samples of this novelty are unknown, bool [n]; None: can't be told yet."""
        return None if self.unknown_above is None else novelty > self.unknown_above

    def outside(self, novelty: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """How far samples of this novelty are from what is known, float64 [n]: 0 as usual, 1 at the threshold; None:
        can't be told yet."""
        if self.unknown_above is None:
            return None
        past = (novelty.astype(np.float64) - self.unknown_above) / max(self.unknown_above, 1.0)
        return np.nan_to_num(1 + past, nan=0.0).clip(0.0, FARTHEST)


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
