"""Residual adapters on top of a backbone that has nothing to tune, or whose samples are not kept."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecl.backbones.cut import metadata, stamped
from edgecl.backbones.session import METADATA_KEY, BackboneInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADAPTER_WIDTH = 64      # hidden units
ADAPTER_PREFIX = "adapter."
ADAPTER_INPUT = f"{ADAPTER_PREFIX}features"


def with_adapter(model: bytes, seed: int) -> bytes:
    """The backbone with a residual adapter on top, f + W2 relu(W1 f + b) (Houlsby et al. 2019, section 2).

    W2 starts at 0, so the features do not change yet. An adapter that is already there becomes a layer of the backbone.
    """
    whole = onnx.load_model_from_string(model)
    _rename(whole)
    info, output = BackboneInfo.from_json(metadata(whole)[METADATA_KEY]), whole.graph.output[0].name
    d, rng, base = info.dimension, np.random.default_rng(seed), ADAPTER_INPUT
    for node in whole.graph.node:
        for ends in (node.input, node.output):
            ends[:] = [base if name == output else name for name in ends]
    for name, values in (("down", rng.standard_normal((d, ADAPTER_WIDTH)) * math.sqrt(2 / d)),
                         ("bias", np.zeros(ADAPTER_WIDTH)), ("up", np.zeros((ADAPTER_WIDTH, d)))):
        whole.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), ADAPTER_PREFIX + name))
    ends = [(f"{ADAPTER_PREFIX}{a}", f"{ADAPTER_PREFIX}{b}") for a, b in (("features", "hidden"), ("hidden", "active"))]
    (source, hidden), (_, active) = ends
    whole.graph.node.extend([
        helper.make_node("Gemm", [source, f"{ADAPTER_PREFIX}down", f"{ADAPTER_PREFIX}bias"], [hidden]),
        helper.make_node("Relu", [hidden], [active]),
        helper.make_node("MatMul", [active, f"{ADAPTER_PREFIX}up"], [f"{ADAPTER_PREFIX}change"]),
        helper.make_node("Add", [source, f"{ADAPTER_PREFIX}change"], [output])])
    return stamped(whole, info)


def adapted(model: bytes, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output of a backbone's adapter for features [n, d] from below it, float32 [n, d]."""
    whole = onnx.load_model_from_string(model)
    down, bias, up = (numpy_helper.to_array(each) for name in ("down", "bias", "up") for each in whole.graph.initializer
                      if each.name == ADAPTER_PREFIX + name)
    adapted_features: NDArray[np.float32] = features + np.maximum(features @ down + bias, 0) @ up
    return adapted_features


def adapters(model: bytes) -> int:
    """How many adapters a backbone has."""
    return _count(onnx.load_model_from_string(model))


def _rename(whole: onnx.ModelProto) -> None:
    """Rename the parts of a backbone's adapter, so that their names are free for another one."""
    number = _count(whole)

    def renamed(name: str) -> str:
        return f"adapter{number}.{name.removeprefix(ADAPTER_PREFIX)}" if name.startswith(ADAPTER_PREFIX) else name

    for each in whole.graph.initializer:
        each.name = renamed(each.name)
    for node in whole.graph.node:
        for ends in (node.input, node.output):
            ends[:] = list(map(renamed, ends))


def _count(whole: onnx.ModelProto) -> int:
    return sum(each.name.startswith("adapter") and each.name.endswith(".up") for each in whole.graph.initializer)
