"""A pretrained backbone for a method: its trunk runs once per sample, its top is the network's body."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgecl.backbones import KIND_OF, build_image
from edgecl.backbones.cut import Anatomy, kept_dtype
from edgecl.backbones.session import open_session
from edgecl.backbones.user_onnx import adopt
from edgecl.errors import BadInput
from edgecl.samples import prepare
from edgecl.training.networks.from_onnx import OnnxModule
from edgecl.training.networks.network import NETWORKS, Network

SAMPLES_PER_PASS = 4

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from edgecl.backbones.cut import Cut
    from edgecl.training.networks.heads import Head


class Trunk:
    """What lies below a cut, in ONNX Runtime: samples [n, ...] -> activations as they are kept."""

    def __init__(self, anatomy: Anatomy, cut: Cut, threads: int = 1) -> None:
        self.info, self.cut, self.model = anatomy.info, cut, anatomy.trunk(cut)
        self.session = open_session(self.model, threads)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        fitted, kept = prepare(x, self.info.kind, self.info.input_shape), kept_dtype(self.cut)
        out, name = np.empty((len(fitted), *self.cut.shape), kept), self.session.get_inputs()[0].name
        for start in range(0, len(fitted), SAMPLES_PER_PASS):
            rows = slice(start, start + SAMPLES_PER_PASS)
            out[rows] = self.session.run(None, {name: fitted[rows]})[0]
        return out


class TunedBlocks:
    """The last blocks of a pretrained backbone, and the trunk below them. name: of the registry, or an .onnx file."""

    def __init__(self, name: str, blocks: int | None, threads: int) -> None:
        self.anatomy = Anatomy(pretrained(name))
        self.cut = self.anatomy.cut(blocks)
        self.trunk, self.nothing = Trunk(self.anatomy, self.cut, threads), empty(self.cut)

    def network(self, head: Callable[[int], Head]) -> Network:
        """Without outputs yet."""
        return network_above(self.anatomy, self.cut, head)


def pretrained(name: str) -> bytes:
    """The backbone file of a name or of an .onnx file. Raises BackboneError, BadInput."""
    if name.endswith(".onnx"):
        return adopt(Path(name))
    if KIND_OF.get(name) != "image":
        known = [other for other, kind in KIND_OF.items() if kind == "image"]
        raise BadInput(f"there is no network {name!r}",
                       f"give one of {', '.join((*NETWORKS, *known))}, a FILE.onnx, or "
                       "package.module:function of your own")
    return build_image(name)


def network_above(anatomy: Anatomy, cut: Cut, head: Callable[[int], Head]) -> Network:
    """The top of a backbone as a network without outputs yet: activations -> features, logits."""
    d = anatomy.info.dimension
    mirror = 3 if anatomy.info.kind == "image" and len(cut.shape) == 3 else None
    network = Network(OnnxModule(anatomy.top(cut)), nn.Identity(), head(d), d, mirror).eval()
    return network.to(memory_format=torch.channels_last) if len(cut.shape) == 3 else network


def empty(cut: Cut) -> Tensor:
    """No activation, [0, ...]."""
    return torch.from_numpy(np.empty((0, *cut.shape), kept_dtype(cut)))
