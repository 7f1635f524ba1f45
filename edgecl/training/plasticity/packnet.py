"""PackNet: every weight belongs to the task that kept it; what a task prunes is free for the next."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgecl.training.plasticity.base import Plasticity
from edgecl.training.plasticity.masks import bits_for, pack, packed_bytes, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays
    from edgecl.training.plasticity.task_rules import TaskRule

PRUNE_AFTER = 2 / 3     # of a round's steps; the others train what is left (Mallya & Lazebnik 2018, section 4.2)


class Owned(Plasticity):
    """The base of methods whose weights have owners: 0 for none, k + 1 for task k, whose sub-network consists of all
    weights that had an owner by then. What is stored is the owner of each weight, in as few bits as possible."""

    compact = False

    def __init__(self, room: int, rule: TaskRule) -> None:
        super().__init__(room, rule)
        self.owner: dict[str, Tensor] = {}
        self.packed: dict[str, np.ndarray] = {}

    def open(self, network: Network, generator: np.random.Generator) -> None:
        self.weights = {name: p.detach() for name, p in self.work.named_parameters()
                        if name in self.shared_names(network)}       # the same memory
        self.mine = {name: owner == 0 for name, owner in self.owners(network).items()}
        self.free |= self.mine

    def owners(self, network: Network) -> dict[str, Tensor]:
        """uint8 of the shape of each weight."""
        state = network.state_dict()
        like = {name: state[name] for name in self.shared_names(network)}
        if not self.owner:
            self.owner = (unpack(self.packed["owner"], bits_for(len(self.tasks)), like) if self.tasks else
                          {name: torch.zeros(weight.shape, dtype=torch.uint8) for name, weight in like.items()})
        return self.owner

    def prune(self, share: float) -> None:
        """Set that share of the task's weights in each layer to 0, the smallest first, and free them."""
        for name, weight in self.weights.items():
            self.keep_only(name, self.largest(self.scores(weight), self.mine[name], share))

    def scores(self, weight: Tensor) -> Tensor:
        """How much each weight is worth keeping."""
        return weight.abs()

    def largest(self, scores: Tensor, mine: Tensor, share: float) -> Tensor:
        """bool: the task's weights without the share of them that has the lowest scores."""
        held = scores[mine]
        left = torch.zeros(len(held), dtype=torch.bool)
        left[held.argsort(descending=True, stable=True)[:len(held) - int(share * len(held))]] = True
        return torch.zeros_like(mine).masked_scatter(mine, left)

    def keep_only(self, name: str, kept: Tensor) -> None:
        """Make these the task's weights of a layer; its others become 0."""
        self.weights[name][self.mine[name] & ~kept] = 0
        self.mine[name] = kept
        self.free[name] = kept

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        state, bits = network.state_dict(), bits_for(len(self.tasks) + 1)
        for name, owner in self.owners(network).items():
            owner[self.mine[name]] = len(self.tasks) + 1
            state[name].copy_(torch.where(owner > 0, self.weights[name], 0))
        self.packed = {"owner": pack(self.owner, bits)}
        del self.weights, self.mine

    def masks(self, network: Network, task: int) -> dict[str, Tensor]:
        return {name: (owner > 0) & (owner <= task + 1) for name, owner in self.owners(network).items()}

    def kept(self) -> Arrays:
        return dict(self.packed)

    def take(self, kept: Mapping[str, np.ndarray]) -> None:
        self.owner, self.packed = {}, {name: kept[name].copy() for name in ("owner",) if name in kept}

    def mask_bytes(self, network: Network, tasks: int) -> int:
        state = network.state_dict()
        return packed_bytes(sum(state[name].numel() for name in self.shared_names(network)), bits_for(tasks))


class PackNet(Owned):
    """Train the free weights, prune them by size, train the rest again, freeze it (Mallya & Lazebnik 2018, section 3).

    pruned: the share of the task's weights in each layer that is freed for later tasks.
    """

    passes = 2

    def __init__(self, room: int, rule: TaskRule, pruned: float) -> None:
        super().__init__(room, rule)
        self.pruned, self.done = pruned, False

    def open(self, network: Network, generator: np.random.Generator) -> None:
        super().open(network, generator)
        self.done = False

    def after_step(self, share: float) -> bool:
        if self.done or share < PRUNE_AFTER:
            return False
        self.prune(self.pruned)
        self.done = True
        return True

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        if not self.done:
            self.prune(self.pruned)
        super().close(network, new, generator)
