"""A small image backbone, and photos of a few made-up things, for tests of learning rounds."""
from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgecl.backbones.graph import GraphBuilder, finish_backbone

SIDE = 32


def rng(seed=0):
    return np.random.default_rng(seed)


def convolutions(widths=(8, 16, 16, 24), strides=(2, 2, 1, 2)):
    """uint8 [n, 32, 32, 3] -> float32 [n, d] by one convolution per width, with a shortcut if the shape stays."""
    g, inside = GraphBuilder(), 3
    x = g.node("Cast", [g.node("Transpose", ["image"], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
    x = g.node("Mul", [x, g.weight("scale", np.array(1 / 128, np.float32))])
    for i, (width, stride) in enumerate(zip(widths, strides)):
        w = rng(i).standard_normal((width, inside, 3, 3)) * (2 / (9 * inside)) ** 0.5
        bias = g.weight(f"b{i}", 0.1 * rng(i + 9).standard_normal(width).astype(np.float32))
        y = g.node("Relu", [g.node("Conv", [x, g.weight(f"w{i}", w.astype(np.float32)), bias], strides=[stride] * 2,
                                   pads=[0, 0, 1, 1] if stride == 2 else [1] * 4, kernel_shape=[3, 3])])
        x, inside = g.node("Add", [x, y]) if stride == 1 and width == inside else y, width
    g.node("Flatten", [g.node("GlobalAveragePool", [x])], "features")
    model = g.model("small", {"image": ("uint8", ("n", SIDE, SIDE, 3))}, {"features": ("float32", ("n", inside))})
    return finish_backbone(model, "small", "image", (SIDE, SIDE, 3), inside)


def photos(kind: int, count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, 32, 32, 3]: stripes of a kind's own direction and width, in any colour, with noise."""
    draw = np.random.default_rng([kind, seed])
    down, along = np.mgrid[:SIDE, :SIDE]
    angle, width = 0.7 * kind, 3 + 1.5 * (kind % 3)
    waves = np.sin((np.cos(angle) * along + np.sin(angle) * down)[None] * 2 * np.pi / width
                   + draw.uniform(0, 6.28, (count, 1, 1)))
    colours = draw.uniform(-60, 60, (count, 1, 1, 3))
    noise = draw.normal(0, 25, (count, SIDE, SIDE, 3))
    return np.asarray((128 + waves[..., None] * colours + noise).clip(0, 255), np.uint8)
