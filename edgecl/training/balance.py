"""How old and new classes are brought to one scale after a round, or answered for without the trained head."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import StateError
from edgecl.heads import solve
from edgecl.training.memory import Statistics
from edgecl.training.network import outputs

if TYPE_CHECKING:
    from edgecl.heads import Head as Solved
    from edgecl.training.heads import AffineMap
    from edgecl.training.memory import Nothing
    from edgecl.training.network import Network


class Balance:
    """Leaves the network as it is; the base of all.

    What `finish` finds is a function of memory and network, so that nothing is kept: after a load it is found again.
    """

    def finish(self, network: Network, memory: Nothing) -> None:
        """After a round, with the network in evaluation mode."""

    def fold(self, network: Network) -> nn.Module:
        """What serves: an input -> (features, logits). It is what predicts and what is exported."""
        return network


class Folded(nn.Module):
    """Features through a readout other than the network's own head. layer: "map" or "features"."""

    def __init__(self, network: Network, readout: nn.Module, layer: str) -> None:
        super().__init__()
        self.body, self.neck = network.body, network.neck if layer == "features" else nn.Identity()
        self.readout = readout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.neck(self.body(x))
        return features, self.readout(features)


class ExemplarMeans(Balance):
    """Nearest mean of exemplars (Rebuffi et al. 2017, algorithm 1): of the L2-normalised features of those still held
    and, for images, of their mirror images; the mean is normalised again."""

    def finish(self, network: Network, memory: Nothing) -> None:
        held = memory.exemplars()
        rows = torch.full((network.head.classes, network.head.weight.shape[1]), torch.nan)
        for column, samples in held.items():
            views = [samples] if network.mirror is None else [samples, samples.flip(network.mirror)]
            means = [F.normalize(outputs(network.features, view, network.block)).mean(0) for view in views]
            rows[column] = F.normalize(torch.stack(means).mean(0), dim=0)
        self.means = rows

    def fold(self, network: Network) -> nn.Module:
        return Folded(network, Nearest(self.means), "features")


class Nearest(nn.Module):
    """-|f / |f| - mu|^2, up to a constant: 2 f.mu / |f| - 1, as the means are of length 1."""

    means: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        known = means.isfinite().all(1)
        self.register_buffer("means", torch.where(known[:, None], means, 0))
        self.register_buffer("offset", torch.where(known, -1.0, -10.0))     # a class without an exemplar comes last

    def affine(self) -> AffineMap | None:
        """See `Softmax.affine`; None where a class has no exemplar."""
        if not torch.equal(self.offset, torch.full_like(self.offset, -1.0)):
            return None
        return 2 * self.means.cpu().numpy(), np.zeros(len(self.means), np.float32), True

    def forward(self, features: Tensor) -> Tensor:
        return 2 * F.normalize(features) @ self.means.T + self.offset


class ClosedForm(Balance):
    """A head solved from class statistics, see `edgecl.heads`. solver: nearest-mean, slda or ridge."""

    def __init__(self, solver: str) -> None:
        self.solver = solver

    def finish(self, network: Network, memory: Nothing) -> None:
        if not isinstance(memory, Statistics):
            raise StateError(f"{type(memory).__name__} keeps no statistics", 'give memory = "statistics"')
        self.layer, statistics = memory.layer, memory.statistics()
        self.solved = solve(self.solver, statistics.pooled(), memory.lift(_width(network, memory.layer)))

    def fold(self, network: Network) -> nn.Module:
        return Folded(network, Affine(self.solved), self.layer)


def _width(network: Network, layer: str) -> int:
    return network.map_size if layer == "map" else network.head.weight.shape[1]


class Affine(nn.Module):
    """`edgecl.heads.Head.logits` of features, its lift included."""

    reference: Tensor
    weight: Tensor
    bias: Tensor
    signs: Tensor

    def __init__(self, solved: Solved) -> None:
        super().__init__()
        self.lift = solved.lift
        for name, value in (("reference", solved.reference), ("weight", solved.weight), ("bias", solved.bias)):
            self.register_buffer(name, torch.from_numpy(np.array(value)))
        if self.lift.projected:
            self.register_buffer("signs", torch.from_numpy(self.lift.signs * np.float32(self.lift.scale)))

    def forward(self, features: Tensor) -> Tensor:
        h = features
        if self.lift.power != 1.0:
            h = h.sign() * h.abs() ** self.lift.power
        if self.lift.projected:
            h = F.relu(h @ self.signs)
        return F.linear(h - self.reference, self.weight, self.bias)
