"""Smaller and faster forms of a backbone: weights stored as float16, or 8-bit convolutions."""
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecl.backbones.graph import finish_backbone, set_metadata
from edgecl.backbones.session import METADATA_KEY, BackboneInfo
from edgecl.errors import BackboneError, BadInput

MIN_HALF_VALUES = 256       # smaller tensors stay float32: biases and constants
MAX_HALF = 65504.0
QUANTISED = ["Conv", "Clip", "Relu", "Add", "Gemm", "MatMul"]   # not preprocessing


def store_fp16(model: bytes) -> bytes:
    """The same backbone with large weights stored as float16: half the bytes, float32 arithmetic.

    ONNX Runtime widens the weights once, when it loads the model, so the speed does not change. A tensor with values
    beyond the range of float16 stays float32.
    """
    whole = onnx.load_model_from_string(model)
    casts = []
    for weight in whole.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        if values.size >= MIN_HALF_VALUES and np.abs(values).max() <= MAX_HALF:
            name, stored = weight.name, f"{weight.name}.fp16"
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
            casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *whole.graph.node]
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    return _stamped(whole, whole, "fp16")


def quantise_int8(model: bytes, images: np.ndarray) -> bytes:
    """The backbone in static 8-bit integers (QDQ, per channel), with ranges taken from `images`.

    images: uint8 [n, height, width, 3], a few dozen of the kind that the backbone will see. Weights have 7 bits, since
    with 8 the 16-bit sums of x86 cores without VNNI saturate; those of depthwise convolutions, which are summed in 32
    bits, have 8. Raises BadInput if the images have another shape or dtype, BackboneError if the backbone can't be
    quantised.
    """
    from edgecl.backbones.onnx_runtime import quantization

    tools = quantization()
    source = onnx.load_model_from_string(model)
    info = _info(source)
    if info.kind != "image" or info.precision == "int8":
        raise BackboneError(f"{info.name} is a {info.kind} backbone of precision {info.precision}",
                            "quantise an image backbone of precision fp32 or fp16")
    if not len(images) or images.dtype != np.uint8 or images.shape[1:] != info.input_shape:
        raise BadInput(f"the calibration images are {images.dtype} {images.shape}",
                       f"give uint8 images {info.input_shape} for {info.name}")
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        try:
            tools.quant_pre_process(source, plain, skip_symbolic_shape=True)
            graph = onnx.load_model(plain).graph
            eight = [{"quant_type": tools.QuantType.QInt8, "axis": 0, "reduce_range": False}]
            tools.quantize_static(
                plain, small, _Reader(graph.input[0].name, images), per_channel=True,
                reduce_range=True, activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
                op_types_to_quantize=QUANTISED,
                extra_options={"TensorQuantOverrides": dict.fromkeys(_depthwise(graph), eight)})
        except Exception as error:      # the quantiser does not have its own error class
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise BackboneError(f"{info.name} can't be quantised: {reason}",
                                "keep it in fp32 or fp16") from error
        return _stamped(onnx.load_model(small), source, "int8")


class _Reader:
    """A calibration data reader for ONNX Runtime: one sample per call, None at the end."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _depthwise(graph: onnx.GraphProto) -> list[str]:
    """Names of the weights of depthwise convolutions."""
    channels = {weight.name: weight.dims[0] for weight in graph.initializer if weight.dims}
    groups = {node.input[1]: attribute.i for node in graph.node if node.op_type == "Conv"
              for attribute in node.attribute if attribute.name == "group"}
    return [name for name, group in groups.items() if group > 1 and channels.get(name) == group]


def _info(model: onnx.ModelProto) -> BackboneInfo:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return BackboneInfo.from_json(metadata[METADATA_KEY])


def _stamped(model: onnx.ModelProto, source: onnx.ModelProto, precision: str) -> bytes:
    """`model` with the metadata of `source`, except for precision and hash."""
    info, metadata = _info(source), {entry.key: entry.value for entry in source.metadata_props}
    del model.metadata_props[:]
    set_metadata(model, metadata)
    return finish_backbone(model, info.name, info.kind, info.input_shape, info.dimension, precision)
