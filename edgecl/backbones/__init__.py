"""Builders of backbone files: each returns one ONNX model as bytes, preprocessing in the graph, metadata set."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.backbones.torchvision import NAMES as TORCHVISION
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    import numpy as np

DEFAULTS = {"image": "efficientnet-lite0", "window": "rocket", "feature": "identity"}
KIND_OF = {name: kind for kind, name in DEFAULTS.items()} | dict.fromkeys(TORCHVISION, "image")


def check_name(name: str) -> None:
    """Raises BackboneError unless `name` is in the registry or names an .onnx file."""
    if name not in KIND_OF and not name.endswith(".onnx"):
        raise BackboneError(f"no backbone is called {name!r}", f"choose {', '.join(KIND_OF)} or give a FILE.onnx")


def build_image(name: str, weights: Path | None = None) -> bytes:
    """The registered image backbone in fp32."""
    if name == "efficientnet-lite0":
        from edgecl.backbones.cache import cached
        from edgecl.backbones.lite0 import WEIGHTS_SHA256, build_lite0

        if weights is not None:
            return build_lite0(weights)
        return cached(f"efficientnet-lite0-{WEIGHTS_SHA256[:16]}", build_lite0)
    from edgecl.backbones.torchvision import build_torchvision

    return build_torchvision(name, weights)


def build_identity(dimension: int) -> bytes:
    """The backbone for ready-made feature vectors: float32 [n, d] to itself."""
    from edgecl.backbones.graph import GraphBuilder, finish_backbone

    g = GraphBuilder()
    g.node("Identity", ["input"], "features")
    ends = ("float32", ["n", dimension])
    return finish_backbone(g.model("identity", {"input": ends}, {"features": ends}), "identity", "feature",
                           [dimension], dimension)


def quantised(name: str, model: bytes, images: np.ndarray) -> bytes:
    """The backbone in static per-channel int8, its ranges taken from the given images."""
    from edgecl.backbones.quantise import quantise_int8

    if KIND_OF.get(name, "image") != "image":
        raise BackboneError(f"{name} is no image backbone", "leave --int8 away")
    return quantise_int8(model, images)
