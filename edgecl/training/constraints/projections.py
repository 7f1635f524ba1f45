"""Constraints on gradients: to first order, no step may raise the loss over what is kept of earlier rounds."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.training.batch import Batch
from edgecl.training.constraints.base import Constraint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from edgecl.training.constraints.base import Gradients
    from edgecl.training.memory.base import Memory
    from edgecl.training.part import Arrays


class TaskGradients(Constraint):
    """GEM (Lopez-Paz & Ranzato 2017, section 3): the gradient closest to that of the step whose product with the
    gradient over each earlier task's samples is not negative.

    A task is a round, if the memory keeps rounds apart, else the classes that first came in one; each step uses
    `reference` random samples of each (0: all). margin: the least weight of each task's gradient once one constraint is
    violated, as in the authors' code; ridge: on the diagonal of the dual. A round holds one gradient of all weights per
    task.
    """

    def __init__(self, reference: int, margin: float, ridge: float) -> None:
        self.count, self.margin, self.ridge = reference, margin, ridge
        self.bounds: list[int] = []     # outputs after each round

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.shapes = [p.shape for p in network.parameters()]

    def tasks(self, memory: Memory) -> list[Batch]:
        """What is kept of each."""
        return memory.tasks() or by_round(memory.exemplars(), self.bounds, memory.each)

    def reserves(self, parameters: int, memory: Memory) -> int:
        return torch.float32.itemsize * parameters * len(self.tasks(memory))

    def references(self, memory: Memory, generator: np.random.Generator) -> Sequence[Batch]:
        return [drawn([task], self.count or len(task), generator) for task in self.tasks(memory)]

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        rows = [flat(reference, self.shapes) for reference in references]
        if not rows:
            return gradients
        g, others = flat(gradients, self.shapes), torch.stack(rows)
        del rows
        products = (others @ g).double()
        if not (products < 0).any():
            return gradients
        square = (others @ others.T).double().cpu().numpy() + self.ridge * np.eye(len(others))
        weights = dual(square, products.cpu().numpy(), self.margin)
        return shaped(g.addmv_(others.T, torch.from_numpy(weights).to(g)), gradients, self.shapes)

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.bounds.append(len(network.head.weight))

    def state(self) -> Arrays:
        return {"bounds": np.array(self.bounds, np.int32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.bounds = state["bounds"].tolist()


class AverageGradient(Constraint):
    """A-GEM (Chaudhry et al. 2019, equation 11): g - (g.r / r.r) r if g.r is negative, r the gradient over `reference`
    random samples of all that is kept, or over all of them if there are fewer."""

    def __init__(self, reference: int) -> None:
        self.count = max(reference, 1)

    def references(self, memory: Memory, generator: np.random.Generator) -> Sequence[Batch]:
        groups = memory.tasks() or [Batch(kept, torch.full((len(kept),), column))
                                    for column, kept in memory.exemplars().items()]
        return [drawn(groups, self.count, generator)] if groups else []

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        for reference in references:
            pairs = [(g, r) for g, r in zip(gradients, reference) if g is not None and r is not None]
            along = sum(float(torch.dot(g.reshape(-1), r.reshape(-1))) for g, r in pairs)
            square = sum(float(r.square().sum()) for r in reference if r is not None)
            if along < 0 and square > 0:
                ours, theirs = zip(*pairs)
                torch._foreach_add_(list(ours), list(theirs), alpha=-along / square)
        return gradients


def by_round(exemplars: Mapping[int, Tensor], bounds: Sequence[int], each: int) -> list[Batch]:
    """Exemplars by the round in which their class first came. bounds: outputs after each round; each: samples per
    round, 0 for all."""
    found = []
    for low, high in zip([0, *bounds], bounds):
        columns = [column for column in range(low, high) if column in exemplars]
        share = -(-each // max(len(columns), 1)) or None
        kept = [exemplars[column][:share] for column in columns]
        if columns:
            found.append(Batch(torch.cat(kept), torch.cat([
                torch.full((len(some),), column) for some, column in zip(kept, columns)])))
    return found


def drawn(groups: Sequence[Batch], count: int, generator: np.random.Generator) -> Batch:
    """So many random samples of all groups, or all if there are fewer."""
    ends = np.cumsum([len(group) for group in groups])
    rows = np.sort(generator.choice(ends[-1], min(count, ends[-1]), replace=False))
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    taken = [group.take(torch.from_numpy(part + len(group) - end)) for group, part, end in zip(groups, parts, ends)]
    return Batch(torch.cat([each.x for each in taken]), torch.cat([each.y for each in taken]))


def flat(gradients: Gradients, shapes: Sequence[torch.Size]) -> Tensor:
    """All in one vector; 0 for those that are None."""
    some = next(g for g in gradients if g is not None)
    return torch.cat([some.new_zeros(shape.numel()) if g is None else g.reshape(-1)
                      for g, shape in zip(gradients, shapes)])


def shaped(row: Tensor, gradients: Gradients, shapes: Sequence[torch.Size]) -> Gradients:
    """The inverse of `flat`; what was None stays None."""
    return [None if g is None else part.view(shape)
            for g, part, shape in zip(gradients, row.split([shape.numel() for shape in shapes]), shapes)]


def dual(square: np.ndarray, products: np.ndarray, least: float) -> np.ndarray:
    """The v >= least that makes 1/2 v' square v + products' v smallest, square positive definite: float64 [t].

    Non-negative least squares by active sets (Lawson & Hanson 1974, chapter 23).
    """
    linear = products + square.sum(1) * least
    found, free = np.zeros(len(linear)), np.zeros(len(linear), bool)
    small = 1e-12 * max(float(np.abs(linear).max()), 1.0)
    while True:
        slope = np.where(free, -np.inf, -(square @ found + linear))
        best = int(slope.argmax())
        if slope[best] <= small:
            return found + least
        free[best] = True
        while free.any():
            wish = np.zeros(len(linear))
            wish[free] = np.linalg.solve(square[np.ix_(free, free)], -linear[free])
            bad = free & (wish <= 0)
            if not bad.any():
                found = wish
                break
            found += (found[bad] / (found[bad] - wish[bad])).min() * (wish - found)
            free &= found > small
            found[~free] = 0
