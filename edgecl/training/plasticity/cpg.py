"""CPG: compact what a task has learned, pick from what older ones left, and grow if that is not enough."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.training.plasticity.growth import first_units, grow, widths
from edgecl.training.plasticity.masks import bits_for, fresh, pack, packed_bytes, unpack
from edgecl.training.plasticity.packnet import Owned
from edgecl.training.plasticity.units import layers, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Gradients
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.task_rules import TaskRule

LEARNING_SHARE = 0.5            # of a round's steps: for picking and growing; the rest is for compacting
GROWTH_CHECKS = (1 / 3, 2 / 3)  # shares of these steps after which it may grow
GROWTH = 0.25                   # of the first width, at a time
PRUNING_RATIOS = (*np.arange(1, 10) / 10, 0.95)     # of the task's weights, one after another (Hung et al. 2019, 4)
MASK_START, MASK_THRESHOLD = 0.01, 0.005    # of real-valued masks: first value, and above which a weight is picked
BETAS, EPSILON = (0.9, 0.999), 1e-8        # of Adam


class Cpg(Owned):
    """Learn free weights and, by real-valued masks with a straight-through gradient, which frozen ones to pick; grow
    if the accuracy stays below the goal; prune in steps as long as it does not (Hung et al. 2019, section 3).

    goal: accuracy on the round's own samples, or what was reached if that is less; most: how many times as wide it may
    become; mask_rate: Adam's, of the masks. What is stored: owners, picks as one bit per weight and task, and what has
    grown, as float32; it grows no further than the memory allows.
    """

    passes = 4

    def __init__(self, room: int, rule: TaskRule, goal: float, most: float, mask_rate: float) -> None:
        super().__init__(room, rule)
        self.goal, self.most, self.mask_rate = goal, max(most, 1.0), mask_rate
        self.factor = 1.0                                   # how wide it is now
        self.extra = torch.zeros(0)                         # the weights that have grown, in the order of `grown`
        self.picks: list[dict[str, Tensor]] = []            # of each task: bool, at the largest width

    # width

    def region(self, network: Network, factor: float) -> dict[str, Tensor]:
        """bool, at the largest width: the weights that exist at a width."""
        wide = super().copied(network, [])
        most = widths(network, self.most)
        grow(wide, most)
        found = weights_of(wide, layers(wide), first_units(widths(network, factor), most))
        return {name: found[name] for name in self.shared_names(network)}

    def grown(self, network: Network, factor: float) -> dict[str, Tensor]:
        """bool, at the largest width: those of them that are not the network's own."""
        first = self.region(network, 1.0)
        return {name: there & ~first[name] for name, there in self.region(network, factor).items()}

    def copied(self, network: Network, columns: Sequence[int]) -> Network:
        made = super().copied(network, columns)
        grow(made, widths(network, self.most))
        state, values = made.state_dict(), self.extra
        for name, new in self.grown(network, self.factor).items() if len(self.extra) else ():
            state[name][new], values = values[:int(new.sum())], values[int(new.sum()):]
        return made

    def usage(self, network: Network) -> dict[str, list[list[float]]]:
        """Of the units that exist at this width, which are the first ones."""
        there = {name.removesuffix(".weight"): int(t.flatten(1).any(1).sum())
                 for name, t in self.region(network, self.factor).items()}
        return {layer: [shares[:there[layer]] for shares in tasks] for layer, tasks in super().usage(network).items()}

    # the loop

    def open(self, network: Network, generator: np.random.Generator) -> None:
        super().open(network, generator)
        self.generator, self.network = generator, network
        self.old = {name: owner > 0 for name, owner in self.owner.items()}
        self.values = {name: weight.clone() for name, weight in self.weights.items()}   # frozen ones, picked or not
        self.real = {name: torch.full_like(weight, MASK_START) for name, weight in self.weights.items()}
        self.moments = {name: torch.zeros(2, *weight.shape) for name, weight in self.weights.items()}
        self.count, self.looked, self.level, self.reached = 0, 0, -1, self.goal
        self.good: list[dict[str, Tensor]] = []
        self.mine = {name: torch.zeros_like(old) for name, old in self.old.items()}
        self.release(self.region(network, self.factor), everything=bool(self.tasks))

    def release(self, there: dict[str, Tensor], everything: bool) -> None:
        """Let the task train all weights at this width that no task owns. everything: initialise all of them, else only
        those that are new."""
        for name, weight in self.weights.items():
            free = there[name] & (self.owner[name] == 0)
            drawn = free if everything else free & ~self.mine[name]
            if everything or self.looked:
                weight.copy_(torch.where(drawn, fresh(weight, self.generator), weight))
            self.mine[name] = self.free[name] = free

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        """Besides the base's, the masks' own step: d loss / d mask = d loss / d (weight used) x weight."""
        if self.tasks and self.level < 0:
            self.count += 1
            for name, gradient in zip(self.names, gradients):
                if name in self.real and gradient is not None:
                    self._adam(name, gradient * self.values[name] * self.old[name])
        return super().project(gradients, references)

    def _adam(self, name: str, gradient: Tensor) -> None:
        first, second = self.moments[name]
        first.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = (second / (1 - BETAS[1] ** self.count)).sqrt_().add_(EPSILON)
        self.real[name].addcdiv_(first / (1 - BETAS[0] ** self.count), size, value=-self.mask_rate)

    def after_step(self, share: float) -> bool:
        if self.tasks and self.level < 0:
            for name, weight in self.weights.items():
                weight.copy_(torch.where(self.old[name], self.values[name] * self.picked(name), weight))
        if share < LEARNING_SHARE:
            due = self.looked < len(GROWTH_CHECKS) and share >= GROWTH_CHECKS[self.looked] * LEARNING_SHARE
            return due and self._look()
        level = min(int((share - LEARNING_SHARE) / (1 - LEARNING_SHARE) * len(PRUNING_RATIOS)), len(PRUNING_RATIOS) - 1)
        return self.level < level and self._compact(level)

    def picked(self, name: str) -> Tensor:
        """bool: the frozen weights of a layer that this task uses."""
        return self.old[name] & (self.real[name] > MASK_THRESHOLD)

    def _look(self) -> bool:
        """Grow, if the goal is not reached and there is room; whether it has."""
        self.looked += 1
        wider = min(self.factor + GROWTH, self.most)
        if self.accuracy() >= self.goal or wider == self.factor:
            return False
        others = self.others(self.network, self.work.head.classes)
        now, then = (others + self._bytes(self.network, len(self.tasks) + 2, factor) for factor in (self.factor, wider))
        if not self.affords(now, then):
            return False
        self.factor = wider
        self.release(self.region(self.network, wider), everything=False)
        return True

    def _compact(self, level: int) -> bool:
        """Prune to the next ratio if the goal still holds; else go back to where it did, and stop."""
        if self.level < 0:
            self.reached = min(self.goal, self.accuracy())
            self.all = {name: int(mine.sum()) for name, mine in self.mine.items()}
        elif self.level >= len(PRUNING_RATIOS):
            return False
        elif self.accuracy() < self.reached:
            self.back()
            self.level = len(PRUNING_RATIOS)
            return True
        self.good = [{name: value.clone() for name, value in self.work.state_dict().items()},
                     {name: mine.clone() for name, mine in self.mine.items()}]
        self.level = level
        for name, weight in self.weights.items():
            left = int(self.mine[name].sum())
            target = int((1 - PRUNING_RATIOS[level]) * self.all[name])
            self.keep_only(name, self.largest(weight.abs(), self.mine[name], 1 - min(target / max(left, 1), 1.0)))
        return True

    def back(self) -> None:
        """Go back to the last state that reached the goal."""
        for name, value in self.work.state_dict().items():
            value.copy_(self.good[0][name])
        self.mine = self.good[1]
        self.free |= self.mine

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        if 0 <= self.level < len(PRUNING_RATIOS) and self.accuracy() < self.reached:
            self.back()
        self.picks.append({name: self.picked(name) for name in self.weights})
        state, rest = network.state_dict(), []
        first, grown = self.region(network, 1.0), self.grown(network, self.factor)
        for name, owner in self.owner.items():
            owner[self.mine[name]] = len(self.tasks) + 1
            values = torch.where(self.old[name], self.values[name], torch.where(owner > 0, self.weights[name], 0))
            state[name].copy_(values[first[name]].view(state[name].shape))
            rest.append(values[grown[name]])
        self.extra = torch.cat(rest)
        there = self.region(network, self.factor)
        self.packed = {"owner": pack({name: owner[there[name]] for name, owner in self.owner.items()},
                                     bits_for(len(self.tasks) + 1))}
        for k, picks in enumerate(self.picks[1:], 1):
            self.packed[f"pick{k:04d}"] = pack({name: pick[there[name]] for name, pick in picks.items()}, 1)
        self.packed |= {"extra": self.extra.numpy(), "factor": np.array(self.factor)}
        del self.weights, self.mine, self.old, self.values, self.real, self.moments, self.good, self.network

    # what is kept

    def owners(self, network: Network) -> dict[str, Tensor]:
        if not self.owner:
            there = self.region(network, self.factor)
            self.owner = {name: torch.zeros(t.shape, dtype=torch.uint8) for name, t in there.items()}
            self.picks = [{name: torch.zeros_like(t) for name, t in there.items()} for _ in self.tasks]
            if self.tasks:
                like = {name: t[t] for name, t in there.items()}
                for name, owner in unpack(self.packed["owner"], bits_for(len(self.tasks)), like).items():
                    self.owner[name][there[name]] = owner
                for k, picks in enumerate(self.picks[1:], 1):
                    for name, pick in unpack(self.packed[f"pick{k:04d}"], 1, like).items():
                        picks[name][there[name]] = pick.bool()
        return self.owner

    def masks(self, network: Network, task: int) -> dict[str, Tensor]:
        return {name: (owner == task + 1) | self.picks[task][name] for name, owner in self.owners(network).items()}

    def take(self, kept: Mapping[str, np.ndarray]) -> None:
        names = [name for name in kept if "/" not in name]
        self.owner, self.picks, self.packed = {}, [], {name: kept[name].copy() for name in names}
        self.factor = float(kept.get("factor", 1.0))
        self.extra = torch.tensor(kept["extra"]) if "extra" in kept else torch.zeros(0)

    def mask_bytes(self, network: Network, tasks: int) -> int:
        return self._bytes(network, tasks, self.factor)

    def _bytes(self, network: Network, tasks: int, factor: float) -> int:
        there = sum(int(t.sum()) for t in self.region(network, factor).values())
        grown = sum(int(t.sum()) for t in self.grown(network, factor).values())
        return packed_bytes(there, bits_for(tasks)) + (tasks - 1) * packed_bytes(there, 1) + 4 * grown + 8
