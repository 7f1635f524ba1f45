"""Lottery tickets: a sparse sub-network that, from its initial values, learns as well as the whole."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgecl.training.plasticity.masks import fresh
from edgecl.training.plasticity.packnet import Owned

if TYPE_CHECKING:
    import numpy as np

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.task_rules import TaskRule


class Lottery(Owned):
    """For each task a ticket among the free weights: train, prune a share of it, reset the rest to its initial values,
    and repeat; the last ticket is trained and frozen (Frankle & Carbin 2019, section 2, "iterative pruning with
    resetting").

    prunings: how many times; given_up: the share of the ticket's weights that is pruned in each layer each time.
    """

    def __init__(self, room: int, rule: TaskRule, prunings: int, given_up: float) -> None:
        super().__init__(room, rule)
        self.prunings, self.given_up, self.passes = prunings, given_up, prunings + 1

    def open(self, network: Network, generator: np.random.Generator) -> None:
        super().open(network, generator)
        if self.tasks:      # at the first, the network is new
            for name, weight in self.weights.items():
                weight.copy_(torch.where(self.mine[name], fresh(weight, generator), weight))
        self.initial = {name: value.clone() for name, value in self.work.state_dict().items()}
        self.rounds = 0

    def after_step(self, share: float) -> bool:
        if self.rounds == self.prunings or share * self.passes < self.rounds + 1:
            return False
        self.rounds += 1
        self.prune(self.given_up)
        self.rewind()
        return True

    def rewind(self) -> None:
        """Reset all that the task trains to its initial values; what was pruned stays 0."""
        for name, value in self.work.state_dict().items():
            pruned = (self.owner[name] == 0) & ~self.mine[name] if name in self.mine else torch.tensor(False)
            value.copy_(torch.where(pruned, torch.zeros_like(value), self.initial[name]))

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        if self.rounds < self.prunings:     # stopped early: later tasks need room all the same
            self.prune(1 - (1 - self.given_up) ** (self.prunings - self.rounds))
        super().close(network, new, generator)
        del self.initial
