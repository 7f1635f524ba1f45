"""How old and new classes are balanced after a round, and heads that replace the trained one."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import StateError
from edgecl.heads.solvers import solve
from edgecl.training.memory.statistics import Statistics
from edgecl.training.networks.network import Served, outputs
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgecl.heads.head import Head as Solved
    from edgecl.training.batch import Batch
    from edgecl.training.memory.base import Memory
    from edgecl.training.networks.heads import AffineMap
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays
    from edgecl.training.plan import Phase, Plan


class Done(NamedTuple):
    """The end of a round: outputs known before it, what it has learned, what it has held back, and what serves."""

    known: int
    learned: Batch
    held: Batch
    served: Served


class Balance(Part):
    """Leaves the network as it is; the base of all."""

    holds_back = False      # whether it needs samples that were not trained on

    def start(self, network: Network, new: Batch, known: int) -> None:
        """Before the first step of a round, with the outputs of new classes."""

    def phases(self, plan: Plan) -> list[Phase]:
        """What is trained after the round's own steps. plan: that of these steps."""
        return []

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        """After a round, with the network in evaluation mode; it may be changed."""

    def restore(self, network: Network, memory: Memory) -> None:
        """After a load: computes what follows from network and memory, and so is not in the state."""

    def fold(self, network: Network, served: Served | None = None) -> Served:
        """What serves: an input -> (features, logits). It predicts, and is exported. served: what would serve without
        this part, None for the network."""
        return served or network


class Chain(Balance):
    """Several parts, one after another."""

    def __init__(self, parts: Sequence[Balance]) -> None:
        self.parts = parts
        self.holds_back = any(part.holds_back for part in parts)

    def start(self, network: Network, new: Batch, known: int) -> None:
        for part in self.parts:
            part.start(network, new, known)

    def phases(self, plan: Plan) -> list[Phase]:
        return [phase for part in self.parts for phase in part.phases(plan)]

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        for part in self.parts:
            part.finish(network, memory, done)
            done = done._replace(served=part.fold(network, done.served).eval())

    def restore(self, network: Network, memory: Memory) -> None:
        for part in self.parts:
            part.restore(network, memory)

    def fold(self, network: Network, served: Served | None = None) -> Served:
        for part in self.parts:
            served = part.fold(network, served)
        return served or network

    def state(self) -> Arrays:
        return {f"{i}/{name}": array for i, part in enumerate(self.parts) for name, array in part.state().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        for i, part in enumerate(self.parts):
            part.load({name.removeprefix(f"{i}/"): array for name, array in state.items() if name.startswith(f"{i}/")})


class Folded(Served):
    """Features through another readout than the network's own head. layer: "map" or "features"."""

    def __init__(self, network: Network, readout: nn.Module, layer: str) -> None:
        super().__init__()
        self.body, self.neck = network.body, network.neck if layer == "features" else nn.Identity()
        self.readout = readout

    def affine(self) -> AffineMap | None:
        return self.readout.affine() if isinstance(self.readout, Nearest) else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.neck(self.body(x))
        return features, self.readout(features)


class ExemplarMeans(Balance):
    """Nearest mean of exemplars (Rebuffi et al. 2017, algorithm 1): of the L2-normalised features of those still kept
    and, for images, of their mirror images; the mean is normalised again."""

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        self.restore(network, memory)

    def restore(self, network: Network, memory: Memory) -> None:
        held = memory.exemplars()
        rows = torch.full((network.head.classes, network.head.weight.shape[-1]), torch.nan)
        for column, samples in held.items():
            views = [samples] if network.mirror is None else [samples, samples.flip(network.mirror)]
            means = [F.normalize(outputs(network.features, view, network.block)).mean(0) for view in views]
            rows[column] = F.normalize(torch.stack(means).mean(0), dim=0)
        self.means = rows

    def fold(self, network: Network, served: Served | None = None) -> Served:
        return Folded(network, Nearest(self.means), "features")


class Nearest(nn.Module):
    """-|f / |f| - mu|^2, up to a constant: 2 f.mu / |f| - 1, as the means are of length 1."""

    means: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        known = means.isfinite().all(1)
        self.register_buffer("means", torch.where(known[:, None], means, 0))
        self.register_buffer("offset", torch.where(known, -1.0, -10.0))     # a class without exemplars comes last

    def affine(self) -> AffineMap | None:
        """See `Softmax.affine`; None if a class has no exemplars."""
        if not torch.equal(self.offset, torch.full_like(self.offset, -1.0)):
            return None
        return 2 * self.means.cpu().numpy(), np.zeros(len(self.means), np.float32), True

    def forward(self, features: Tensor) -> Tensor:
        return 2 * F.normalize(features) @ self.means.T + self.offset


class ClosedForm(Balance):
    """A head solved from class statistics, see `edgecl.heads.solvers`. solver: nearest-mean, slda or ridge."""

    def __init__(self, solver: str) -> None:
        self.solver = solver

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        self.restore(network, memory)

    def restore(self, network: Network, memory: Memory) -> None:
        if not isinstance(memory, Statistics):
            raise StateError(f"{type(memory).__name__} keeps no statistics", 'give memory = "statistics"')
        self.layer, statistics = memory.layer, memory.statistics()
        self.solved = solve(self.solver, statistics.pooled(), memory.transform(_width(network, memory.layer)))

    def fold(self, network: Network, served: Served | None = None) -> Served:
        return Folded(network, Affine(self.solved), self.layer)


def _width(network: Network, layer: str) -> int:
    return network.map_size if layer == "map" else network.head.weight.shape[-1]


class Affine(nn.Module):
    """`edgecl.heads.head.Head.logits` of features, including its transform."""

    reference: Tensor
    weight: Tensor
    bias: Tensor
    signs: Tensor

    def __init__(self, solved: Solved) -> None:
        super().__init__()
        self.transform = solved.transform
        for name, value in (("reference", solved.reference), ("weight", solved.weight), ("bias", solved.bias)):
            self.register_buffer(name, torch.from_numpy(np.array(value)))
        if self.transform.projected:
            self.register_buffer("signs", torch.from_numpy(self.transform.signs * np.float32(self.transform.scale)))

    def forward(self, features: Tensor) -> Tensor:
        h = features
        if self.transform.power != 1.0:
            h = h.sign() * h.abs() ** self.transform.power
        if self.transform.projected:
            h = F.relu(h @ self.signs)
        return F.linear(h - self.reference, self.weight, self.bias)
