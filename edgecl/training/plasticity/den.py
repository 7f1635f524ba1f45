"""DEN: retrain what a task needs, add units if that is not enough, and split the units that drift."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from edgecl.training.plasticity.expandable import Expandable
from edgecl.training.plasticity.growth import first_units
from edgecl.training.plasticity.masks import fresh
from edgecl.training.plasticity.units import between, layers, sizes, spread, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.task_rules import TaskRule
    from edgecl.training.step import Step

SELECT_AFTER, EXPAND_AFTER, SPLIT_AFTER = 0.2, 0.55, 0.8    # shares of a round


@dataclass(eq=False)
class Den(Expandable):
    """Dynamically expandable network (Yoon et al. 2018, section 3, algorithms 1 to 4). The first task learns sparse
    weights. A later one learns its outputs alone, follows their non-zero paths down, and retrains the units on them;
    if its loss stays above a threshold it adds units, of which group sparsity keeps the useful ones; units whose
    weights have drifted are split: the old ones are restored, their copies go on. A task answers by units no younger
    than it.

    l1, group: what each step takes off the size of a weight, or of a unit's weights; l2: weight decay of what is
    retrained; drift: weight of the penalty on leaving the old weights; units: how many are added to a layer; loss:
    above which they are; split: the drift of a unit's weights above which it is split. It grows no further than the
    memory allows.
    """

    room: int
    rule: TaskRule
    l1: float
    l2: float
    group: float
    drift: float
    units: int
    loss: float
    split: float

    passes = 4

    def __post_init__(self) -> None:
        super().__init__(self.room, self.rule)

    def working(self, network: Network, columns: Sequence[int]) -> Network:
        """With room for added units and a copy of each unit."""
        if not self.tasks:
            return self.wide(network, columns, self.width(network))
        width = {group: 2 * size + self.units for group, size in self.width(network).items()}
        return self.wide(network, columns, width)

    # the loop

    def open(self, network: Network, generator: np.random.Generator) -> None:
        self.network, self.generator, self.chain = network, generator, layers(self.work)
        self.parameters = {name: value.detach() for name, value in self.work.named_parameters()}
        self.most, self.last = sizes(self.work), self.chain[-1].makes
        self.used = self.width(network)         # group -> units by now
        self.before = {name: value.clone() for name, value in self.parameters.items()}
        self.stage, self.expanded = 0, False
        self.copies: dict[str, list[tuple[int, int]]] = {}      # group -> the old unit and its copy
        self.shared = [name for name in self.parameters if not name.startswith("head.") and name in
                       self.shared_names(self.work)]
        self.rows = torch.tensor(self.work.head.columns)
        if self.tasks:
            self.free |= dict.fromkeys(self.shared, False)
            self.parameters["head.head.weight"][self.rows] = 0

    def after_step(self, share: float) -> bool:
        if not self.tasks:
            self._shrink([name for name in self.shared if name.endswith("weight")])
            return False
        if self.stage == 0:
            head = self.parameters["head.head.weight"]
            head[self.rows] = F.softshrink(head[self.rows], self.l1)
        elif self.stage == 2 and self.expanded:
            self._shrink_groups()
        due = self.stage < 3 and share >= (SELECT_AFTER, EXPAND_AFTER, SPLIT_AFTER)[self.stage]
        if due:
            self.stage += 1
            (self._select, self._expand, self._split)[self.stage - 1]()
        return due

    def _shrink(self, names: Sequence[str]) -> None:
        for name in names:
            self.parameters[name].copy_(F.softshrink(self.parameters[name], self.l1))

    def penalty(self, step: Step) -> Tensor | float:
        """L2 of what is retrained, and of its drift from the old weights once units were split."""
        total = torch.zeros(())
        for name, value in self.work.named_parameters():
            free = self.free.get(name, True)
            if name not in self.shared or (self.stage == 0 and self.tasks) or isinstance(free, bool):
                continue
            total = total + self.l2 / 2 * (value * free).square().sum()
            if self.stage == 3:
                total = total + self.drift / 2 * ((value - self.before[name]) * (free & self.old[name])).square().sum()
        return step.share * total

    def selected(self) -> dict[str, Tensor]:
        """Group -> bool [units]: those on non-zero paths from the task's outputs (algorithm 2)."""
        found = {group: torch.zeros(size, dtype=torch.bool) for group, size in self.most.items()}
        found[self.last] = (self.parameters["head.head.weight"][self.rows] != 0).flatten(0, -2).any(0)
        for layer in reversed(self.chain):
            if layer.reads in found:
                weight = self.parameters[f"{layer.name}.weight"]
                linked = (weight[found[layer.makes]] != 0).flatten(2).any(2) if weight.dim() > 2 else \
                    weight[found[layer.makes]] != 0
                found[layer.reads] |= linked.any(0).view(-1, layer.fan).any(1)
        return found

    def _select(self) -> None:
        self.alive = self.selected()
        self.free |= weights_of(self.work, self.chain, self.alive)

    def _expand(self) -> None:
        """Add units if the loss is still above the threshold; then only they learn (algorithm 3)."""
        self.old = weights_of(self.work, self.chain, first_units(self.width(self.network), self.most))
        wanted = {group: size + self.units for group, size in self.used.items()}
        if self.mean_loss() <= self.loss or not self._fits(wanted):
            return
        self.expanded, start = True, dict(self.used)
        self.used = wanted
        new = {group: first_units(wanted, self.most)[group] & ~first_units(start, self.most)[group]
               for group in self.most}
        self._read_by(new)
        self.alive = {group: units | new[group] for group, units in self.alive.items()}
        self.kept_free = dict(self.free)
        self.free |= self._into(new)

    def _into(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """bool: the weights into these units from all units in use, and their biases."""
        there, found = first_units(self.used, self.most), {}
        for layer in self.chain:
            found[f"{layer.name}.weight"] = between(self.parameters[f"{layer.name}.weight"], layer, made[layer.makes],
                                                    there.get(layer.reads))
            found[f"{layer.name}.bias"] = made[layer.makes]
        return {name: mask for name, mask in found.items() if name in self.parameters}

    def _read_by(self, new: dict[str, Tensor]) -> None:
        """Initialise the weights into new units; those that the outputs read them with are 0 at first."""
        for name, mask in self._into(new).items():
            value = self.parameters[name]
            value.copy_(torch.where(mask, fresh(value, self.generator), value))

    def _shrink_groups(self) -> None:
        """Take `group` off the length of the weights into each new unit; at 0 the unit is gone (equation 5)."""
        old = self.width(self.network)
        for layer in self.chain:
            weight = self.parameters[f"{layer.name}.weight"]
            new = slice(old[layer.makes], self.used[layer.makes])
            length = weight[new].flatten(1).norm(dim=1)
            scale = (1 - self.group / length.clamp(min=1e-12)).clamp(min=0)
            weight[new] *= scale.view(-1, *[1] * (weight.dim() - 1))

    def drifted(self) -> dict[str, Tensor]:
        """Group -> how far each unit's incoming weights have moved since the last task, float32 [units]."""
        found = {group: torch.zeros(size) for group, size in self.most.items()}
        for layer in self.chain:
            for part in ("weight", "bias"):
                if (name := f"{layer.name}.{part}") in self.parameters:
                    moved = (self.parameters[name] - self.before[name]) * self.old[name]
                    found[layer.makes] += moved.view(len(moved), -1).square().sum(1)
        return {group: squares.sqrt() for group, squares in found.items()}

    def _split(self) -> None:
        """Restore the units that drifted and let copies of them go on (algorithm 4); if the memory has no room for a
        copy, the unit is restored all the same."""
        if self.expanded:
            self.free |= self.kept_free | self._into({
                group: self.alive[group] & ~first_units(self.width(self.network), self.most)[group]
                for group in self.most})
        drift = self.drifted()
        for few in (1.0, 0.5, 0.25, 0.1, 0.0):
            chosen = {group: self._furthest(far, few) for group, far in drift.items()}
            wanted = {group: size + len(chosen[group]) for group, size in self.used.items()}
            if few == 0.0 or self._fits(wanted):
                break
        self.copies = {group: list(zip(old, range(self.used[group], wanted[group]))) for group, old in chosen.items()}
        self.used = wanted
        self._copy({group: far > self.split for group, far in drift.items()})
        new = {group: torch.zeros(size, dtype=torch.bool) for group, size in self.most.items()}
        for group, pairs in self.copies.items():
            new[group][[copy for _, copy in pairs]] = True
            self.alive[group] |= new[group]
        for name, mask in (weights_of(self.work, self.chain, self.alive)).items():
            self.free[name] = self.free[name] | (mask & ~self.old[name])

    def _furthest(self, drift: Tensor, share: float) -> list[int]:
        over = (drift > self.split).nonzero().flatten()
        order = over[drift[over].argsort(descending=True, stable=True)]
        return sorted(order[:int(share * len(order))].tolist())

    def _copy(self, far: dict[str, Tensor]) -> None:
        """Connect copies, to each other and to the task's outputs, as the drifted units were. far: drifted units."""
        for layer in self.chain:
            made = self.copies[layer.makes]
            read = self.copies.get(layer.reads, [])
            for part in ("weight", "bias"):
                if (name := f"{layer.name}.{part}") in self.parameters:
                    value, before = self.parameters[name], self.before[name]
                    old, new = [pair[0] for pair in made], [pair[1] for pair in made]
                    value[new] = value[old]
                    back = far[layer.makes]
                    value[back] = torch.where(self.old[name][back], before[back], 0)
            if made and read:
                weight = self.parameters[f"{layer.name}.weight"]
                new = [pair[1] for pair in made]
                table = torch.zeros(2, weight.shape[1] // layer.fan, dtype=torch.bool)
                table[0, [pair[0] for pair in read]] = table[1, [pair[1] for pair in read]] = True
                olds, copies = (spread(layer, row).nonzero().flatten() for row in table)
                rows = weight[new]
                rows[:, copies] = rows[:, olds]
                rows[:, olds] = 0
                weight[new] = rows
        if pairs := self.copies[self.last]:
            head, old, new = self.parameters["head.head.weight"], *map(list, zip(*pairs))
            rows = head[self.rows]
            rows[..., new], rows[..., old] = rows[..., old], 0
            head[self.rows] = rows

    def mean_loss(self) -> float:
        """Cross-entropy over the round's own samples."""
        return float(F.cross_entropy(self.answered(), self.samples.y))

    def _fits(self, width: dict[str, int]) -> bool:
        classes, now = len(self.rows), self.width(self.network)[self.last]
        outputs_of = classes * self.network.head.weight.shape[1:-1].numel()
        more = outputs_of * (width[self.last] - now)
        more += self.rule.numbers(width[self.last], classes) - self.rule.numbers(now, classes)
        others, old = self.others(self.network, classes), self.size(self.network, self.width(self.network))
        return self.affords(others + old, others + self.size(self.network, width) + 4 * more)

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        width = self.used if self.tasks else self.width(network)
        self.store(network, width)
        self.features = width[self.last]
        del self.parameters, self.before, self.network, self.generator

    def beside(self, network: Network) -> dict[str, Tensor]:
        rows = self.work.state_dict()["head.head.weight"][self.rows]
        return {"head": rows[..., network.head.weight.shape[-1]:self.features].clone()}
