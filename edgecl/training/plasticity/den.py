"""DEN: retrain what a task needs, add units where that does not do, and split the units that drift."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from edgecl.training.networks.network import Network, outputs
from edgecl.training.plasticity.base import Plasticity
from edgecl.training.plasticity.growth import first_units, grow
from edgecl.training.plasticity.masks import fresh
from edgecl.training.plasticity.units import between, layers, sizes, spread, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgecl.training.batch import Batch
    from edgecl.training.part import Arrays
    from edgecl.training.plasticity.task_rules import TaskRule
    from edgecl.training.step import Step

SELECT, EXPAND, SPLIT = 0.2, 0.55, 0.8      # shares of a round after which each is done


class Den(Plasticity):
    """Dynamically expandable network (Yoon et al. 2018, section 3, algorithms 1 to 4). The first task learns sparse
    weights. A later one learns its outputs alone, follows their non-zero paths down, and retrains the units on them;
    where its loss stays over a threshold it adds units, of which group sparsity leaves those of use; units whose
    weights have drifted are split: the old ones go back, copies go on. A task answers by units no younger than it.

    l1, group: what is taken off the size of a weight, or of a unit's weights, at a step; l2: weight decay of what is
    retrained; drift: of the penalty on leaving the old weights; units: added to a layer; loss: over which they are;
    split: the drift of a unit's weights over which it is split. It grows no further than the memory allows.
    """

    shared_bias = True
    compact = False     # its sub-networks lie inside one another
    passes = 4

    def __init__(self, room: int, rule: TaskRule, l1: float, l2: float, group: float, drift: float, units: int,
                 loss: float, split: float) -> None:
        super().__init__(room, rule)
        self.l1, self.l2, self.group, self.drift, self.units, self.loss, self.split = \
            l1, l2, group, drift, units, loss, split
        self.stamps: dict[str, Tensor] = {}     # group -> uint8 [units]: the task, from 1, that a unit came with
        self.extra = torch.zeros(0)             # the weights that have grown

    # width

    def width(self, network: Network) -> dict[str, int]:
        """Group -> units now."""
        return {group: len(self.stamps.get(group, range(size))) for group, size in sizes(network).items()}

    def wide(self, network: Network, columns: Sequence[int], width: dict[str, int]) -> Network:
        """The network apart at that width."""
        made = super().copied(network, columns)
        grow(made, width)
        state, values = made.state_dict(), self.extra
        for name, new in self.grown(network, made, self.width(network)).items() if len(values) else ():
            state[name][new], values = values[:int(new.sum())], values[int(new.sum()):]
        return made

    def grown(self, network: Network, made: Network, width: dict[str, int]) -> dict[str, Tensor]:
        """bool: the weights of `made` that are there at a width and not the network's own."""
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

    def working(self, network: Network, columns: Sequence[int]) -> Network:
        """With room for units that are added, and a copy of each."""
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
        due = self.stage < 3 and share >= (SELECT, EXPAND, SPLIT)[self.stage]
        if due:
            self.stage += 1
            (self._select, self._expand, self._split)[self.stage - 1]()
        return due

    def _shrink(self, names: Sequence[str]) -> None:
        for name in names:
            self.parameters[name].copy_(F.softshrink(self.parameters[name], self.l1))

    def penalty(self, step: Step) -> Tensor | float:
        """L2 of what is retrained, and what holds it to the old weights once units were split."""
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
        """Add units where the loss is still over the threshold; only what is new learns then (algorithm 3)."""
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
        """bool: the weights into these units from all units that are there, and their biases."""
        there, found = first_units(self.used, self.most), {}
        for layer in self.chain:
            found[f"{layer.name}.weight"] = between(self.parameters[f"{layer.name}.weight"], layer, made[layer.makes],
                                                    there.get(layer.reads))
            found[f"{layer.name}.bias"] = made[layer.makes]
        return {name: mask for name, mask in found.items() if name in self.parameters}

    def _read_by(self, new: dict[str, Tensor]) -> None:
        """Draw what goes into new units as at the start, small in the outputs."""
        for name, mask in self._into(new).items():
            value = self.parameters[name]
            value.copy_(torch.where(mask, fresh(value, self.generator), value))

    def _shrink_groups(self) -> None:
        """Take `group` off the length of what goes into each new unit; at 0 it is gone (equation 5)."""
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
        """Copies of the units that drifted go on, the old ones go back to what they were (algorithm 4); where the
        memory has no room for a copy, the unit goes back all the same."""
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
        """Copies read, and are read by copies and by the task's outputs, as the drifted units were. far: those."""
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
        training = self.work.training
        self.work.eval()
        logits = outputs(lambda x: self.work(x)[1], self.samples.x, self.work.block)
        self.work.train(training)
        return float(F.cross_entropy(logits, self.samples.y))

    def _fits(self, width: dict[str, int]) -> bool:
        classes, now = len(self.rows), self.width(self.network)[self.last]
        outputs_of = classes * self.network.head.weight.shape[1:-1].numel()
        more = outputs_of * (width[self.last] - now)
        more += self.rule.numbers(width[self.last], classes) - self.rule.numbers(now, classes)
        others, old = self.others(self.network, classes), self._bytes(self.network, self.width(self.network))
        return self.affords(others + old, others + self._bytes(self.network, width) + 4 * more)

    def others(self, network: Network, classes: int) -> int:
        """With the outputs' weights of features that have grown."""
        features = list(self.width(network).values())[-1] - network.head.weight.shape[-1]
        proxies = network.head.weight.shape[1:-1].numel()
        return super().others(network, classes) + 4 * classes * proxies * features

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        stamp = len(self.tasks) + 1
        width = self.used if self.tasks else self.width(network)
        old, state = self.width(network), network.state_dict()
        if not self.stamps:
            self.stamps = {group: torch.ones(size, dtype=torch.uint8) for group, size in width.items()}
        self.stamps = {group: torch.cat([self.stamps[group], torch.full((width[group] - old[group],), stamp,
                                                                       dtype=torch.uint8)]) for group in width}
        first = sizes(network)
        grown = self.grown(network, self.work, width)
        mine = weights_of(self.work, self.chain, first_units(first, self.most))
        for name in mine:
            state[name].copy_(self.parameters[name][mine[name]].view(state[name].shape))
        self.extra = torch.cat([self.parameters[name][mask] for name, mask in grown.items()])
        self.features = width[self.last]
        del self.parameters, self.before, self.network, self.generator

    def beside(self, network: Network) -> dict[str, Tensor]:
        rows = self.work.state_dict()["head.head.weight"][self.rows]
        return {"head": rows[..., network.head.weight.shape[-1]:self.features].clone()}

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

    def mask_bytes(self, network: Network, tasks: int) -> int:
        return self._bytes(network, self.width(network))

    def _bytes(self, network: Network, width: dict[str, int]) -> int:
        made = super().copied(network, [])
        grow(made, width)
        return sum(width.values()) + 4 * sum(int(new.sum()) for new in self.grown(network, made, width).values())
