"""What serves, as ONNX: input -> features and logits, classes in the metadata."""
from __future__ import annotations

import io
import json
import warnings
from typing import TYPE_CHECKING

import onnx
import onnx.compose
import torch

from edgecl.backbones.graph import set_metadata
from edgecl.backbones.model_writer import OPSET
from edgecl.training.plasticity.shared_weights import shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

METADATA_KEY = "edgecl.classes"


def export(served: nn.Module, example: Tensor, classes: Sequence[int], trunk: bytes | None = None) -> bytes:
    """An ONNX model with a free batch axis; `example`: samples [n, ...] of the input's shape and dtype; `classes`: the
    class number of each logit; trunk: the model below `served`, if that takes activations."""
    out = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # The tracing exporter needs no onnxscript.
        torch.onnx.export(served.eval(), (example,), out, input_names=["input"], output_names=["features", "logits"],
                          opset_version=OPSET, dynamo=False,
                          dynamic_axes={name: {0: "n"} for name in ("input", "features", "logits")})
    model = shared(onnx.load_model_from_string(out.getvalue()))
    if trunk is not None:
        below = onnx.load_model_from_string(trunk)
        kind = model.graph.input[0].type.tensor_type.elem_type      # as activations are kept
        below.graph.node.append(onnx.helper.make_node("Cast", [below.graph.output[0].name], ["kept"], to=kind))
        below.graph.output[0].name = "kept"
        below.graph.output[0].type.tensor_type.elem_type = kind
        del below.metadata_props[:]
        below.ir_version = model.ir_version
        model = onnx.compose.merge_models(below, onnx.compose.add_prefix(model, "top/", rename_outputs=False),
                                          io_map=[("kept", "top/input")])
    set_metadata(model, {METADATA_KEY: json.dumps([int(c) for c in classes])})
    return bytes(model.SerializeToString())
