"""`adopt`: a user's ONNX file becomes a backbone, or one line says why not."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgecl.backbones.graph import GraphBuilder, finish_backbone, set_metadata
from edgecl.backbones.session import METADATA_KEY, Backbone
from edgecl.backbones.user_onnx import adopt
from edgecl.errors import BackboneError, EdgeclError


def write(path: Path, op: str = "Relu", shape: tuple[int | str, ...] = ("n", 5),
          answer: tuple[int | str, ...] | None = None, dtype: str = "float32",
          metadata: dict[str, str] | None = None, **attributes: object) -> Path:
    """A graph of one operator from `x` to `y`."""
    graph = GraphBuilder()
    graph.node(op, ["x"], "y", **attributes)
    model = graph.model("m", {"x": (dtype, shape)}, {"y": ("float32", answer or shape)})
    set_metadata(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def network(path: Path, layout: str, metadata: dict[str, str] | None = None) -> torch.nn.Module:
    """Write a small convolution network for float32 images in this layout, and return it."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3, bias=True)
    graph = GraphBuilder()
    x = "x" if layout == "NCHW" else graph.node("Transpose", ["x"], perm=[0, 3, 1, 2])
    weights = [graph.weight(k, v.detach().numpy()) for k, v in conv.named_parameters()]
    graph.node("Conv", [x, *weights], "y")
    shape = (1, 3, 8, 9) if layout == "NCHW" else ("n", 8, 9, 3)
    model = graph.model("m", {"x": ("float32", shape)}, {"y": ("float32", (shape[0], 4, 6, 7))})
    set_metadata(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return conv


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("metadata", "mean", "std"), [
    ({}, 0.0, 255.0), ({"Image.NominalPixelRange": "Normalized_1_1"}, 127.5, 127.5),
    ({"Image.NominalPixelRange": "NominalRange_0_255"}, 0.0, 1.0),
    ({"edgecl.mean": "120, 110, 100", "edgecl.std": "60"}, [120, 110, 100], 60.0)])
def test_adopts_float_images(tmp_path: Path, layout: str, metadata: dict[str, str],
                             mean: float | list[float], std: float) -> None:
    conv = network(tmp_path / "net.onnx", layout, metadata)
    backbone = Backbone(adopt(tmp_path / "net.onnx"))
    assert (backbone.info.name, backbone.info.kind) == ("net", "image")
    assert (backbone.info.input_shape, backbone.info.dimension) == ((8, 9, 3), 4)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)
    planes = (torch.tensor(images) - torch.tensor(mean)) / std
    reference = conv(planes.permute(0, 3, 1, 2)).mean((2, 3)).detach().numpy()
    assert np.abs(backbone.features(images) - reference).max() < 1e-5 * np.abs(reference).max()


def test_adopts_uint8_images(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.node("Cast", ["x"], to=TensorProto.FLOAT)
    graph.node("ReduceMean", [x], "y", axes=[1, 2], keepdims=0)
    model = graph.model("m", {"x": ("uint8", ("n", 4, 5, 3))}, {"y": ("float32", ("n", 3))})
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    adopted = adopt(tmp_path / "a.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    np.testing.assert_allclose(Backbone(adopted).features(images), images.mean((1, 2)), rtol=1e-6)


def test_adopts_features_and_windows(tmp_path: Path) -> None:
    info = Backbone(adopt(write(tmp_path / "a.onnx"))).info
    assert (info.kind, info.input_shape, info.dimension) == ("feature", (5,), 5)
    path = write(tmp_path / "b.onnx", "Flatten", (1, 6, 2), (1, 12))
    info = Backbone(adopt(path)).info
    assert (info.kind, info.input_shape, info.dimension) == ("window", (6, 2), 12)


def test_keeps_its_own_files(tmp_path: Path) -> None:
    path, graph = tmp_path / "a.onnx", GraphBuilder()
    graph.node("Mul", ["x", graph.weight("w", np.ones(5, np.float32))], "y")
    model = graph.model("m", {"x": ("float32", ("n", 5))}, {"y": ("float32", ("n", 5))})
    own = finish_backbone(model, "own", "feature", (5,), 5)
    path.write_bytes(own)
    assert adopt(path) == own
    model = onnx.load_model_from_string(own)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros(5, np.float32), "w"))
    path.write_bytes(model.SerializeToString())
    refuse(path, "altered")
    path.write_bytes(finish_backbone(model, "own", "feature", (5,), 6))
    refuse(path, r"not \(2, 6\)")
    set_metadata(model, {METADATA_KEY: "{}"})
    path.write_bytes(model.SerializeToString())
    refuse(path, "unreadable edgecl metadata")


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(EdgeclError, match=reason) as caught:
        adopt(path)
    assert isinstance(caught.value, BackboneError) and "\n" not in str(caught.value)


def test_adopt_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    refuse(path, "not a file")
    path.write_bytes(b"no protobuf")
    refuse(path, "not valid ONNX")
    refuse(write(path, "NoSuchOperator"), "not valid ONNX")
    refuse(write(path, shape=("n", "k")), "0: free")
    refuse(write(path, shape=(2, 5)), "0: free")
    refuse(write(path, "Cast", dtype="uint8", to=TensorProto.FLOAT), "uint8 of shape")
    refuse(write(path, "Cast", dtype="int64", to=TensorProto.FLOAT), "another dtype of shape")
    refuse(write(path, shape=("n", 1 << 20, 1 << 20)), "takes samples of shape")
    refuse(write(path, shape=("n", 6, 5, 4)), "takes images of shape")
    refuse(write(path, shape=("n", 6, 5, 3), metadata={"Image.BitmapPixelFormat": "Bgr8"}), "Bgr8")
    refuse(write(path, shape=("n", 6, 5, 3), metadata={"edgecl.std": "a"}), "edgecl.std")
    refuse(write(path, "ReduceMean", ("n", 5), (1, 5), axes=[0]), r"returns \(1, 5\)")
    refuse(write(path, "Softmax", axis=0), "mixes samples")
    refuse(write(path, "Log"), "numbers that are not finite")
    refuse(write(path, shape=("n", 4, 5)), "for 2 samples")


def test_refuses_a_batch_that_is_built_in(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Reshape", ["x", graph.weight("shape", np.array([1, 6]))], "y")
    model = graph.model("m", {"x": ("float32", (1, 2, 3))}, {"y": ("float32", (1, 6))})
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    refuse(tmp_path / "a.onnx", "fails on 2 samples")


def test_refuses_other_files_and_other_code(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    model = onnx.load_model(path)
    model.graph.node[0].domain = "evil"
    model.opset_import.append(helper.make_opsetid("evil", 1))
    path.write_bytes(model.SerializeToString())
    refuse(path, "operators of evil")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1],
                         data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="a.onnx")
    model = onnx.load_model(write(path))
    model.graph.initializer.append(weight)
    path.write_bytes(model.SerializeToString())
    refuse(path, "other files|not valid")
