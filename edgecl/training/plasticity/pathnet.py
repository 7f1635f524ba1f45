"""PathNet: evolution finds a path through modules; the winner's are frozen, all others are initialised again."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.training.plasticity.base import Plasticity
from edgecl.training.plasticity.masks import fresh
from edgecl.training.plasticity.units import into, layers, sizes, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays
    from edgecl.training.plasticity.task_rules import TaskRule
    from edgecl.training.step import Step

SEARCH_SHARE = 0.75     # of a round's steps; the others train the winner
LARGEST_MOVE = 2        # of a mutation, in modules (Fernando et al. 2017, section 2.1)


class PathNet(Plasticity):
    """Binary tournaments between paths, each trained for a while; the better one overwrites the other with a mutated
    copy of itself. After the round the winner's modules are frozen; all others and the genotypes are initialised again
    (Fernando et al. 2017, sections 2.1 and 2.2).

    A module is a block of a layer's units; a path consists of at most `active` of the `modules` of each layer;
    population: of paths; tournaments: per round. What is stored is each task's path, one bit per module.
    """

    shared_bias = True
    passes = 4

    def __init__(self, room: int, rule: TaskRule, modules: int, active: int, population: int, tournaments: int) -> None:
        super().__init__(room, rule)
        self.modules, self.active, self.population, self.tournaments = modules, active, population, tournaments
        self.paths: list[np.ndarray] = []       # of each task: bool [layers, modules]

    def open(self, network: Network, generator: np.random.Generator) -> None:
        self.chain, self.sizes, self.generator = layers(network), sizes(network), generator
        self.owned = into(network, self.chain, self.units(self.frozen()))
        self.pool = {}      # the weights of all modules, those of the path in training as they were before
        self.parameters = {name: value.detach() for name, value in self.work.named_parameters() if name in self.owned}
        for name, value in self.parameters.items():
            drawn = fresh(value, generator) if self.tasks else value
            self.pool[name] = torch.where(self.owned[name], value, drawn).clone()
        self.genotypes = generator.integers(self.modules, size=(self.population, len(self.sizes), self.active))
        self.fitness = np.full(self.population, -1.0)
        self.slot, self.searching = 0, True
        self.pair = self._drawn()
        self.enter(self.pair[0])

    def frozen(self) -> np.ndarray:
        """The modules that no round may change, bool [layers, modules]."""
        none = np.zeros((len(self.sizes), self.modules), bool)
        return np.logical_or.reduce([none, *self.paths])

    def units(self, path: np.ndarray) -> dict[str, Tensor]:
        """Group -> bool [units] of the modules of a path."""
        return {group: torch.from_numpy(path[row])[torch.arange(size) * self.modules // size]
                for row, (group, size) in enumerate(self.sizes.items())}

    def path(self, place: int) -> np.ndarray:
        """A genotype's modules, bool [layers, modules]."""
        found = np.zeros((len(self.sizes), self.modules), bool)
        np.put_along_axis(found, self.genotypes[place], True, 1)
        return found

    def enter(self, place: int) -> None:
        """Train this genotype's path."""
        self.trained, self.right, self.seen = place, 0, 0
        self.used = weights_of(self.work, self.chain, self.units(self.path(place)))
        for name, value in self.parameters.items():
            value.copy_(torch.where(self.used[name], self.pool[name], 0))
            self.free[name] = self.used[name] & ~self.owned[name]

    def leave(self) -> None:
        """Store what the path in training has learned, and its fitness."""
        for name, value in self.parameters.items():
            self.pool[name] = torch.where(self.free[name], value, self.pool[name])
        if self.seen:
            self.fitness[self.trained] = self.right / self.seen

    def penalty(self, step: Step) -> Tensor | float:
        """There is none, but the path in training is judged by its answers in the steps."""
        self.right += int((step.logits.argmax(1) == step.targets).sum())
        self.seen += len(step.targets)
        return 0.0

    def _drawn(self) -> tuple[int, int]:
        first, second = self.generator.choice(self.population, 2, replace=False).tolist()
        return first, second

    def after_step(self, share: float) -> bool:
        if not self.searching or share >= 1:
            return False
        slot = int(share / SEARCH_SHARE * 2 * self.tournaments)
        if slot == self.slot:
            return False
        self.slot = slot
        self.leave()
        if share >= SEARCH_SHARE:
            self.searching = False
            self.enter(self.winner())
        elif self.trained == self.pair[0]:
            self.enter(self.pair[1])
        else:
            self.overwrite(*sorted(self.pair, key=lambda place: -self.fitness[place]))
            self.pair = self._drawn()
            self.enter(self.pair[0])
        return True

    def winner(self) -> int:
        """The fittest genotype."""
        return int(self.fitness.argmax())

    def overwrite(self, better: int, worse: int) -> None:
        """The worse becomes a copy of the better, each of its modules moved with a chance of 1 / (layers x active)."""
        copy = self.genotypes[better].copy()
        moved = self.generator.random(copy.shape) < 1 / copy.size
        copy = (copy + moved * self.generator.integers(-LARGEST_MOVE, LARGEST_MOVE + 1, copy.shape)) % self.modules
        self.genotypes[worse], self.fitness[worse] = copy, -1.0

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        self.leave()
        if self.searching:      # stopped early
            self.enter(self.winner())
        state, before = network.state_dict(), self.frozen()
        self.paths.append(self.path(self.trained))
        mine = into(network, self.chain, self.units(self.paths[-1] & ~before))
        for name in self.parameters:
            kept = torch.where(mine[name] & self.used[name], self.pool[name], 0)
            state[name].copy_(torch.where(self.owned[name], state[name], kept))
        del self.pool, self.parameters, self.used, self.owned, self.genotypes, self.generator

    def masks(self, network: Network, task: int) -> dict[str, Tensor]:
        self.sizes = sizes(network)
        return weights_of(network, layers(network), self.units(self.paths[task]))

    def kept(self) -> Arrays:
        if not self.paths:
            return {}
        return {"paths": np.packbits(np.stack(self.paths)), "shape": np.array(self.paths[0].shape, np.uint8)}

    def take(self, kept: Mapping[str, np.ndarray]) -> None:
        self.paths = []
        if "paths" in kept:
            shape = (len(self.tasks), *(int(side) for side in kept["shape"]))
            bits = np.unpackbits(kept["paths"], count=int(np.prod(shape)))
            self.paths = list(bits.astype(bool).reshape(shape))

    def mask_bytes(self, network: Network, tasks: int) -> int:
        return 2 + -(-tasks * len(sizes(network)) * self.modules // 8)
