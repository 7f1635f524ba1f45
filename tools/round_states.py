"""States for testing learning rounds: small synthetic backbones, and classes that they can distinguish."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.learner import Learner
from edgecl.profiling import sandbox
from edgecl.settings import Settings


def conv_backbone(widths: tuple[int, ...] = (8, 16, 32), side: int = 32, seed: int = 0, kernel: int = 3) -> bytes:
    """uint8 [n, side, side, 3] -> float32 [n, widths[-1]]: convolutions, every other one with stride 2, then a mean."""
    graph = GraphBuilder()
    x = graph.node("Cast", [graph.node("Transpose", ["image"], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
    x = graph.node("Div", [x, graph.weight("scale", np.array(255, np.float32))])
    x = _convolutions(graph, x, 3, widths, (kernel, kernel), seed)
    graph.node("Flatten", [graph.node("GlobalAveragePool", [x])], "features")
    model = graph.model("conv", {"image": ("uint8", ("n", side, side, 3))},
                        {"features": ("float32", ("n", widths[-1]))})
    return finish_backbone(model, "conv", "image", (side, side, 3), widths[-1])


def window_backbone(widths: tuple[int, ...] = (16, 32), time: int = 64, channels: int = 6, seed: int = 0) -> bytes:
    """float32 [n, time, channels] -> float32 [n, widths[-1]]: convolutions along time."""
    graph = GraphBuilder()
    x = _convolutions(graph, graph.node("Transpose", ["window"], perm=[0, 2, 1]), channels, widths, (5,), seed)
    graph.node("Flatten", [graph.node("GlobalAveragePool", [x])], "features")
    model = graph.model("waves", {"window": ("float32", ("n", time, channels))},
                        {"features": ("float32", ("n", widths[-1]))})
    return finish_backbone(model, "waves", "window", (time, channels), widths[-1])


def _convolutions(graph: GraphBuilder, x: str, inside: int, widths: tuple[int, ...], kernel: tuple[int, ...],
                  seed: int) -> str:
    rng, axes = np.random.default_rng(seed), len(kernel)
    for place, out in enumerate(widths):
        values = rng.standard_normal((out, inside, *kernel)) * (2 / (inside * np.prod(kernel))) ** 0.5
        weights = [graph.weight(f"{name}{place}", array.astype(np.float32))
                   for name, array in (("w", values), ("b", np.zeros(out)))]
        stride = 1 + (place + 1) % 2
        x = graph.node("Relu", [graph.node("Conv", [x, *weights], kernel_shape=list(kernel), strides=[stride] * axes,
                                           pads=[side // 2 for side in kernel] * 2)])
        inside = out
    return x


def taught(folder: Path, model: bytes, each: int = 20, classes: int = 4, seed: int = 0, **settings: Any) -> Learner:
    """A state with this backbone that has learned synthetic classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "backbone.onnx").write_bytes(model)
    learner = Learner.create(folder / "state", Settings(**{
        "backbone": str(folder / "backbone.onnx"), "quota": 200_000_000, "exemplars": 50_000_000, "codec": "raw",
        **settings}))
    for number in range(classes):
        teach(learner, number, each, seed)
    return learner


def teach(learner: Learner, number: int, each: int = 20, seed: int = 0) -> None:
    """Learn one more synthetic class."""
    from edgecl.backbones.session import Backbone

    model = Path(learner.settings.backbone)
    info = Backbone(model).info if model.suffix == ".onnx" else learner.sessions.backbone().info
    samples = sandbox.samples(info.kind, info.input_shape, each, 1000 * seed + number)
    learner.learn(samples, f"class {number}")
