"""Adopts a user's own ONNX file as a backbone: checks it, adds preprocessing, and tries it out."""
from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from edgecl.backbones.graph import GraphBuilder, finish_backbone, graph_sha256
from edgecl.backbones.session import KINDS, METADATA_KEY, BackboneInfo, open_session
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 512_000_000
MAX_VALUES = 50_000_000             # per sample; a 4K photo has 25 million
DTYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8"}
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
RANKS = {2: "feature", 3: "window", 4: "image"}
RANGES = {  # ONNX's metadata Image.NominalPixelRange -> mean and standard deviation, of values 0..255
    "NominalRange_0_255": ("0", "1"), "Normalized_0_1": ("0", "255"),
    "Normalized_1_1": ("127.5", "127.5")}


def adopt(path: Path) -> bytes:
    """A backbone from an ONNX file with one input and one output, whose batch axis is free or 1.

    Input: float32 [n, d] features, float32 [n, time, channels] windows, or RGB images. A graph for uint8 images
    [n, height, width, 3] stays unchanged. A graph for [n, 3, height, width] or for float32 is wrapped so that the
    backbone takes that form; float32 values are `(x - mean) / std`, which is x / 255 unless the file's metadata sets
    `edgecl.mean` and `edgecl.std`, in units of 0..255 (one number, or three as "123.7, 116.3, 103.5"), or ONNX's
    `Image.NominalPixelRange`. Output: float32 [n, d], or [n, d, h, w], which is averaged over h and w.
    A file that edgecl has written is kept unchanged, after checking its hash. Raises BackboneError for anything else.
    """
    try:
        return _adopt(path)
    except _FileError as error:
        what, cure = error.args
    except OSError as error:
        what, cure = f"can't be read ({error.strerror})", "check its name and permissions"
    except UnicodeError:
        what, cure = "contains text that is not UTF-8", "export it again"
    raise BackboneError(f"{path} {what}", cure)


class _FileError(Exception):
    """What is wrong with the file, and the cure."""


def _adopt(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise _FileError(f"is not a file of at most {MAX_BYTES} bytes", "name an .onnx file")
    content = path.read_bytes()
    model = _checked(content)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if not all(isinstance(text, str) for entry in metadata.items() for text in entry):
        raise UnicodeError          # protobuf leaves such text as bytes
    if METADATA_KEY in metadata:
        _check_own(model, metadata[METADATA_KEY])
        return content
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise _FileError(f"has {len(inputs)} inputs and {len(model.graph.output)} outputs",
                       "give a graph with one of each")
    kind, sizes = _kind(inputs[0])
    _free_batch(model, inputs[0])
    shape = _take_images(model, inputs[0], sizes, metadata) if kind == "image" else sizes
    if len(answer := _try(model, KINDS[kind], shape)) == 4:
        _pool(model, answer[1])
        answer = _try(model, KINDS[kind], shape)
    if len(answer) != 2:
        raise _FileError(f"returns shape {answer} for 2 samples", "make it return one vector per sample")
    return finish_backbone(model, path.stem, kind, shape, answer[1])


def _checked(content: bytes) -> onnx.ModelProto:
    """The model, if it is valid, reads no other files and runs no other code. Raises _FileError."""
    try:
        onnx.checker.check_model(content)
        model = onnx.load_model_from_string(content)
    except (ValueError, onnx.checker.ValidationError, DecodeError) as error:
        raise _FileError(f"is not valid ONNX: {_line(error)}", "export it again") from error
    graphs = list(_graphs(model.graph))
    if any(uses_external_data(tensor) for graph in graphs for tensor in _tensors(graph)):
        raise _FileError("stores weights in other files", "save it as one file (external_data=False)")
    domains = {node.domain for graph in graphs for node in graph.node} - DOMAINS
    if domains or model.functions:
        raise _FileError(f"uses operators of {', '.join(map(str, domains)) or 'its own'}",
                       "export it with standard operators only")
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    sparse = list(graph.sparse_initializer)
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _check_own(model: onnx.ModelProto, text: str) -> None:
    """Raise _FileError unless a file with edgecl's metadata matches them."""
    cure = "use the file as edgecl wrote it"
    try:
        info = BackboneInfo.from_json(text)
        dtype = KINDS[info.kind]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _FileError(f"has unreadable edgecl metadata: {_line(error)}", cure) from error
    if graph_sha256(model) != info.graph_sha256:
        raise _FileError(f"has been altered: its graph is not {info.graph_sha256[:16]}", cure)
    if (answer := _try(model, dtype, info.input_shape)) != (2, info.dimension):
        raise _FileError(f"returns shape {answer}, not (2, {info.dimension}), for 2 samples", cure)


def _kind(entry: onnx.ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    """The kind of the graph's input and the shape of one sample."""
    tensor = entry.type.tensor_type
    batch, *sizes = [axis.dim_value for axis in tensor.shape.dim] or [0]
    kind = RANKS.get(1 + len(sizes))
    dtype = DTYPES.get(tensor.elem_type, "another dtype")
    fits = dtype == "float32" or (dtype == "uint8" and kind == "image")
    if kind is None or not fits or batch > 1 or min(sizes) < 1:
        raise _FileError(f"takes {dtype} of shape {(batch, *sizes)} (0: free)",
                         "only the batch axis may be free; give a graph for float32 [n, d], [n, time, channels] or "
                         "images")
    return kind, tuple(sizes)


def _free_batch(model: onnx.ModelProto, entry: onnx.ValueInfoProto) -> None:
    del model.graph.value_info[:]       # shapes inside may hold the old batch size
    for value in (entry, model.graph.output[0]):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"


def _take_images(model: onnx.ModelProto, entry: onnx.ValueInfoProto, sizes: tuple[int, ...],
                 metadata: dict[str, str]) -> tuple[int, ...]:
    """Make the graph take uint8 [n, height, width, 3]; returns (height, width, 3)."""
    if 3 not in (sizes[0], sizes[2]):
        raise _FileError(f"takes images of shape {sizes}", "give a graph for 3 channels, RGB")
    if (pixels := metadata.get("Image.BitmapPixelFormat", "Rgb8")) != "Rgb8":
        raise _FileError(f"takes pixels in {pixels} format", "give a graph for Rgb8")
    planes = sizes[2] != 3
    shape = (*sizes[1:], 3) if planes else sizes
    before, x = GraphBuilder(), "edgecl.image"
    if entry.type.tensor_type.elem_type == TensorProto.FLOAT:
        mean, std = RANGES.get(metadata.get("Image.NominalPixelRange", ""), ("0", "255"))
        x = before.node("Cast", [x], "edgecl.float", to=TensorProto.FLOAT)
        for op, name, default in (("Sub", "edgecl.mean", mean), ("Div", "edgecl.std", std)):
            values = _channels(metadata.get(name, default))
            x = before.node(op, [x, before.weight(name, values)], f"{name}.out")
    if planes:
        before.node("Transpose", [x], "edgecl.planes", perm=[0, 3, 1, 2])
    if before.nodes:
        before.nodes[-1].output[0] = entry.name
        nodes = [*before.nodes, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(before.weights)
        entry.CopyFrom(helper.make_tensor_value_info(
            "edgecl.image", TensorProto.UINT8, ["n", *shape]))
    return shape


def _channels(text: str) -> np.ndarray:
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        values = np.empty(0, np.float32)
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise _FileError(f"has {text!r} as edgecl.mean or edgecl.std", "give one number or three")
    return values


def _pool(model: onnx.ModelProto, dimension: int) -> None:
    output = model.graph.output[0]
    model.graph.node.extend([
        helper.make_node("GlobalAveragePool", [output.name], ["edgecl.pooled"]),
        helper.make_node("Flatten", ["edgecl.pooled"], ["edgecl.features"])])
    output.CopyFrom(helper.make_tensor_value_info(
        "edgecl.features", TensorProto.FLOAT, ["n", dimension]))


def _try(model: onnx.ModelProto, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the output for two samples. Raises _FileError unless the model treats each sample on its own."""
    if not all(isinstance(side, int) and side > 0 for side in shape) or prod(shape) > MAX_VALUES:
        raise _FileError(f"takes samples of shape {shape}", f"use at most {MAX_VALUES} values per sample")
    random = np.random.default_rng(0)
    two = random.standard_normal((2, *shape), np.float32)
    if dtype == "uint8":
        two = random.integers(0, 256, two.shape, np.uint8)
    session = open_session(model.SerializeToString())
    name = session.get_inputs()[0].name
    try:
        both, one = [session.run(None, {name: samples})[0] for samples in (two, two[:1])]
    except Exception as error:   # ONNX Runtime's error classes lack a common public base
        raise _FileError(f"fails on 2 samples: {_line(error)}", "make its batch axis free") from error
    if both.dtype != np.float32 or not np.isfinite(both).all():
        raise _FileError(f"returns {both.dtype}, or numbers that are not finite", "make it return finite float32")
    if both.shape != (2, *one.shape[1:]) or not np.allclose(both[:1], one, rtol=1e-3, atol=1e-4):
        raise _FileError(f"returns {both.shape} for 2 samples and {one.shape} for 1, or mixes samples",
                         "make its batch axis free")
    return tuple(both.shape)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
