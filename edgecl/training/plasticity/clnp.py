"""CLNP: whole units that a task does not need are given up, and stay free for later tasks."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.training.plasticity.base import Plasticity
from edgecl.training.plasticity.masks import fresh
from edgecl.training.plasticity.units import Activity, into, layers, sizes, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays
    from edgecl.training.plasticity.task_rules import TaskRule
    from edgecl.training.step import Step

TRIED_SHARES = np.linspace(0.95, 0, 20)     # of the free units of a layer, to be given up


class Clnp(Plasticity):
    """Train with an L1 penalty on activations; freeze the active units and their incoming weights; set weights from
    inactive to active units to 0, so that inactive ones may change at will (Golkar et al. 2019, section 3).

    The least active units of each layer count as inactive, as many as the accuracy allows. sparsity: weight of the
    penalty, the sum over units of their mean activity; margin: the accuracy that may be lost on the round's own
    samples, "graceful forgetting" (section 3.2). What is stored is the task that froze each unit, one byte per unit.
    """

    shared_bias = True

    def __init__(self, room: int, rule: TaskRule, sparsity: float, margin: float) -> None:
        super().__init__(room, rule)
        self.sparsity, self.margin = sparsity, margin
        self.owner: dict[str, Tensor] = {}      # group -> uint8 [units]: 0 for free, k + 1 for task k

    def open(self, network: Network, generator: np.random.Generator) -> None:
        self.chain = layers(network)
        if not self.owner:
            self.owner = {group: torch.zeros(size, dtype=torch.uint8) for group, size in sizes(network).items()}
        self.free |= into(network, self.chain, {group: owner == 0 for group, owner in self.owner.items()})
        if self.tasks:
            for name, value in self.work.named_parameters():
                if name in self.free and not isinstance(self.free[name], bool):
                    value.detach().copy_(torch.where(self.free[name], fresh(value, generator), value.detach()))
        self.activity = Activity(self.work, self.chain)

    def penalty(self, step: Step) -> Tensor | float:
        return self.sparsity * step.share * torch.stack([mean.sum() for mean in self.activity.last.values()]).sum()

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        mean = self.activity.over(self.work, new.x)
        self.activity.close()
        trained = {name: value.clone() for name, value in self.work.state_dict().items()}
        goal = self.accuracy() - self.margin
        for share in TRIED_SHARES:
            alive = self.active(mean, float(share))
            self._confine(self.work, trained, alive)
            if self.accuracy() >= goal:
                break
        for group, owner in self.owner.items():
            owner[alive[group] & (owner == 0)] = len(self.tasks) + 1
        self._confine(network, self.work.state_dict(), {group: owner > 0 for group, owner in self.owner.items()})
        del self.activity

    def active(self, mean: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Group -> bool [units]: those frozen before, and all free ones but the least active share of each layer."""
        found = {}
        for group, owner in self.owner.items():
            free = (owner == 0).nonzero().flatten()
            by_activity = free[mean[group][free].argsort(descending=True, stable=True)]
            kept = by_activity[:len(free) - int(share * len(free))]
            found[group] = owner > 0
            found[group][kept[mean[group][kept] > 0]] = True
        return found

    def _confine(self, network: Network, values: Mapping[str, Tensor], alive: dict[str, Tensor]) -> None:
        """Give the network these weights between active units, and 0 elsewhere."""
        state = network.state_dict()
        for name, mask in weights_of(network, self.chain, alive).items():
            state[name].copy_(torch.where(mask, values[name], 0))

    def masks(self, network: Network, task: int) -> dict[str, Tensor]:
        alive = {group: (owner > 0) & (owner <= task + 1) for group, owner in self.owner.items()}
        return weights_of(network, layers(network), alive)

    def kept(self) -> Arrays:
        return {f"owner/{group}": owner.numpy().copy() for group, owner in self.owner.items()}

    def take(self, kept: Mapping[str, np.ndarray]) -> None:
        self.owner = {name.removeprefix("owner/"): torch.tensor(array) for name, array in kept.items()
                      if name.startswith("owner/")}

    def mask_bytes(self, network: Network, tasks: int) -> int:
        return sum(sizes(network).values())
