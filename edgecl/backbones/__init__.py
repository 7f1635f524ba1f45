"""Builders of backbone files: each returns one ONNX model as bytes, with preprocessing in the graph and metadata."""
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
    """Raise BackboneError unless `name` is in the registry or names an .onnx file."""
    if name not in KIND_OF and not name.endswith(".onnx"):
        raise BackboneError(f"there is no backbone {name!r}", f"choose {', '.join(KIND_OF)} or give a FILE.onnx")


def build_image(name: str, weights: Path | None = None) -> bytes:
    """A registered image backbone in fp32. weights: a file to use instead of the usual weights. Raises BackboneError if
    the weights are missing or unsuitable."""
    if name == "efficientnet-lite0":
        from edgecl.backbones.cache import cached
        from edgecl.backbones.lite0 import WEIGHTS_SHA256, build_lite0

        if weights is not None:
            return build_lite0(weights)
        return cached(f"efficientnet-lite0-{WEIGHTS_SHA256[:16]}", build_lite0)
    from edgecl.backbones.torchvision import build_torchvision

    return build_torchvision(name, weights)


def build_identity(dimension: int) -> bytes:
    """The backbone for ready-made feature vectors, which it passes through: float32 [n, d]."""
    from edgecl.backbones.graph import GraphBuilder, finish_backbone

    g = GraphBuilder()
    g.node("Identity", ["input"], "features")
    ends = ("float32", ["n", dimension])
    return finish_backbone(g.model("identity", {"input": ends}, {"features": ends}), "identity", "feature",
                           [dimension], dimension)


def quantised(name: str, model: bytes, images: np.ndarray) -> bytes:
    """The backbone in static per-channel int8, with ranges taken from `images`, uint8 [n, height, width, 3].

    Raises BackboneError if it is not an image backbone or can't be quantised.
    """
    from edgecl.backbones.quantise import quantise_int8

    if KIND_OF.get(name, "image") != "image":
        raise BackboneError(f"{name} is not an image backbone", "leave out --int8")
    return quantise_int8(model, images)
