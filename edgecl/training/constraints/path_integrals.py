"""Penalties on weights by the path that they took: each is credited with a part of the loss's decrease."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.training.constraints.importances import Importances, below_prefix, chunk, known
from edgecl.training.constraints.per_sample_gradients import fisher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Gradients
    from edgecl.training.constraints.importances import ByName
    from edgecl.training.part import Arrays


class Path:
    """-sum g delta along the steps of a round: the part of the loss's decrease that each weight is credited with."""

    def __init__(self, network: nn.Module) -> None:
        self.now = [p.detach() for p in network.parameters()]
        self.credit, self.slopes = ([torch.zeros_like(p) for p in self.now] for _ in range(2))
        self.before, self.start = ([p.clone() for p in self.now] for _ in range(2))

    def observe(self, gradients: Gradients) -> None:
        """Takes gradients of the loss alone: with a penalty's in them, old importances would reinforce themselves."""
        for slope, gradient in zip(self.slopes, gradients):
            if gradient is None:
                slope.zero_()
            else:
                slope.copy_(gradient)

    def step(self) -> None:
        """After the weights have moved."""
        torch._foreach_sub_(self.before, self.now)
        torch._foreach_addcmul_(self.credit, self.slopes, self.before)
        torch._foreach_copy_(self.before, self.now)

    def moved(self) -> list[Tensor]:
        """By how much each weight has moved, squared."""
        return [(now - start).square_() for now, start in zip(self.now, self.start)]


class PathIntegral(Importances):
    """Synaptic intelligence (Zenke et al. 2017, equations 3 to 5): omega grows by path credit / (Delta^2 + damping) in
    each round, Delta how far the weight has moved in it; negative credit counts as 0."""

    def __init__(self, importance: float, damping: float) -> None:
        super().__init__(importance)
        self.damping = damping

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        super().begin(network, rates)
        self.path = Path(network)

    def observe(self, batch: Batch, gradients: Gradients) -> None:
        self.path.observe(gradients)

    def after_step(self, share: float) -> bool:
        self.path.step()
        return False

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.springs = []
        names = [name for name, _ in network.named_parameters()]
        self.add({name: (credit / (moved + self.damping)).relu_()
                  for name, credit, moved in zip(names, self.path.credit, self.path.moved())})
        del self.path


class RiemannianWalk(Importances):
    """Chaudhry et al. 2018: omega is the Fisher information F, moving, plus the score s, each divided by its largest.

    F = alpha F_now + (1 - alpha) F (section 4.1), F_now **per sample** of the step's own samples and labels, once in
    `every` steps; s sums, over each such interval, path credit / (1/2 F Delta^2 + damping), or 0 if that is negative
    (equation 7), and is averaged with the score of the rounds before (section 4.2).
    """

    def __init__(self, importance: float, alpha: float, every: int, damping: float) -> None:
        super().__init__(importance)
        self.alpha, self.every, self.damping = alpha, max(every, 1), damping
        self.score: ByName = {}

    def strengths(self) -> ByName:
        most, best = _largest(self.omega), _largest(self.score)
        return {name: omega / most + self.score[name] / best for name, omega in self.omega.items()}

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        super().begin(network, rates)
        self.network, self.steps = network, 0
        self.path, self.moving = Path(network), _extended(network, self.omega)
        self.fresh = [torch.zeros_like(p) for p in self.path.now]

    def observe(self, batch: Batch, gradients: Gradients) -> None:
        if self.steps % self.every == 0:
            self.network.eval()     # a single sample has no batch statistics
            now = fisher(self.network, batch.x, batch.y, np.random.default_rng(0), chunk(self.network))
            self.network.train()
            share = self.alpha if self.omega or self.steps else 1.0
            torch._foreach_lerp_(list(self.moving.values()), list(now.values()), share)
        self.path.observe(gradients)

    def after_step(self, share: float) -> bool:
        self.path.step()
        self.steps += 1
        if self.steps % self.every == 0:
            self._rate()
        return False

    def _rate(self) -> None:
        """Add the credit of the last steps to the scores."""
        path = self.path
        for score, credit, f, moved in zip(self.fresh, path.credit, self.moving.values(), path.moved()):
            score += (credit / (f * moved / 2 + self.damping)).relu_()
            credit.zero_()
        torch._foreach_copy_(path.start, path.now)

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.springs = []
        self._rate()
        for (name, _), score in zip(network.named_parameters(), self.fresh):
            if (old := self.score.get(name)) is not None:
                known(score, old).add_(old.to(score)).mul_(0.5)
            self.score[name] = score
        self.omega = self.moving
        del self.path, self.moving, self.fresh, self.network

    def state(self) -> Arrays:
        return super().state() | {f"score/{name}": score.cpu().numpy() for name, score in self.score.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        super().load({name: array for name, array in state.items() if not name.startswith("score/")})
        self.score = below_prefix("score", state)


def _extended(network: nn.Module, old: ByName) -> ByName:
    """The old values of every parameter, 0 for what is new; copied."""
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in network.named_parameters()}
    for name, values in old.items():
        known(found[name], values).copy_(values)
    return found


def _largest(values: ByName) -> float:
    return max([float(each.max()) for each in values.values() if each.numel()], default=0.0) or 1.0
