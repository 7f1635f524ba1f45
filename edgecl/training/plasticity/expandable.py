"""Sub-networks of a network that grows: a task's own consists of all units that are no younger than the task."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.training.plasticity.base import Plasticity
from edgecl.training.plasticity.growth import first_units, grow
from edgecl.training.plasticity.units import layers, sizes, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays
    from edgecl.training.plasticity.task_rules import TaskRule


class Expandable(Plasticity):
    """The base of methods that add units. What is stored is the task that each unit came with, and the weights that
    have grown; those of the first task's units are the network's own."""

    shared_bias = True
    compact = False     # its sub-networks lie inside one another

    def __init__(self, room: int, rule: TaskRule) -> None:
        super().__init__(room, rule)
        self.stamps: dict[str, Tensor] = {}     # group -> uint8 [units]: the task, from 1, that a unit came with
        self.extra = torch.zeros(0)             # the weights that have grown, in the order of `grown`

    def width(self, network: Network) -> dict[str, int]:
        """Group -> units now."""
        return {group: len(self.stamps.get(group, range(size))) for group, size in sizes(network).items()}

    def wide(self, network: Network, columns: Sequence[int], width: dict[str, int]) -> Network:
        """A copy of the network at that width."""
        made = super().copied(network, columns)
        grow(made, width)
        state, values = made.state_dict(), self.extra
        for name, new in self.grown(network, made, self.width(network)).items() if len(values) else ():
            state[name][new], values = values[:int(new.sum())], values[int(new.sum()):]
        return made

    def grown(self, network: Network, made: Network, width: dict[str, int]) -> dict[str, Tensor]:
        """bool: the weights of `made` that exist at a width and are not the network's own."""
        chain, most = layers(made), sizes(made)
        there, first = (weights_of(made, chain, first_units(each, most)) for each in (width, sizes(network)))
        return {name: mask & ~first[name] for name, mask in there.items()}

    def copied(self, network: Network, columns: Sequence[int]) -> Network:
        made = self.wide(network, columns, self.width(network))
        rows: Tensor = made.head.head.weight        # type: ignore[union-attr, assignment]
        for task in self.tasks:
            more = task.own.get("head", torch.zeros(0, 0))
            with torch.no_grad():
                for column, values in zip(task.columns, more):
                    rows[column, ..., network.head.weight.shape[-1]:][..., :values.shape[-1]] = values
        return made

    def store(self, network: Network, width: dict[str, int]) -> None:
        """Keep what the round has trained, at that width."""
        old, state, trained = self.width(network), network.state_dict(), dict(self.work.named_parameters())
        stamp = len(self.tasks) + 1
        if not self.stamps:
            self.stamps = {group: torch.ones(size, dtype=torch.uint8) for group, size in width.items()}
        self.stamps = {group: torch.cat([self.stamps[group], torch.full((width[group] - old[group],), stamp,
                                                                       dtype=torch.uint8)]) for group in width}
        grown = self.grown(network, self.work, width)
        own = weights_of(self.work, layers(self.work), first_units(sizes(network), sizes(self.work)))
        for name, mask in own.items():
            state[name].copy_(trained[name].detach()[mask].view(state[name].shape))
        self.extra = torch.cat([trained[name].detach()[mask] for name, mask in grown.items()])

    # bytes

    def others(self, network: Network, classes: int) -> int:
        """With the outputs' weights of features that have grown."""
        features = list(self.width(network).values())[-1] - network.head.weight.shape[-1]
        proxies = network.head.weight.shape[1:-1].numel()
        return super().others(network, classes) + 4 * classes * proxies * features

    def size(self, network: Network, width: dict[str, int]) -> int:
        """Bytes of `kept` at that width."""
        made = super().copied(network, [])
        grow(made, width)
        return sum(width.values()) + 4 * sum(int(new.sum()) for new in self.grown(network, made, width).values())

    def mask_bytes(self, network: Network, tasks: int) -> int:
        return self.size(network, self.width(network))

    # what is kept

    def masks(self, network: Network, task: int) -> dict[str, Tensor]:
        made = self.copied(network, [])
        return weights_of(made, layers(made), {group: stamps <= task + 1 for group, stamps in self.stamps.items()})

    def kept(self) -> Arrays:
        stamps = {f"stamps/{group}": stamps.numpy().copy() for group, stamps in self.stamps.items()}
        return {**stamps, "extra": self.extra.numpy()} if stamps else {}

    def take(self, kept: Mapping[str, np.ndarray]) -> None:
        self.stamps = {name.removeprefix("stamps/"): torch.tensor(array) for name, array in kept.items()
                       if name.startswith("stamps/")}
        self.extra = torch.tensor(kept["extra"]) if "extra" in kept else torch.zeros(0)
