"""Penalties on weights: each is pulled back to where the last round left it, by how important it was for that."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from edgecl.training.constraints.base import Constraint
from edgecl.training.constraints.per_sample_gradients import CHUNK, fisher, sensitivity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Gradients
    from edgecl.training.part import Arrays
    from edgecl.training.step import Step

    ByName = dict[str, Tensor]


class Spring(NamedTuple):
    """What holds one parameter: its place among all, a view of its values now, those it is pulled to, and k of
    1/2 k d^2."""

    place: int
    now: Tensor
    then: Tensor
    stiffness: Tensor


class Quadratic(Constraint):
    """importance / 2 sum omega / mean(omega) (theta - theta*)^2, theta* the values before the round, omega 1: plain L2,
    the baseline of elastic weight consolidation (Kirkpatrick et al. 2017, figure 2); the base of those with another
    omega.

    Divided by its mean, omega has no unit, and one importance fits several data sets (Schwarz et al. 2018 normalise
    each task's as well). New outputs are free. In the penalty, but not in omega, the stiffness of a weight is at most
    1 / rate: a step of SGD then leads back to theta* at most; from 2 (1 + momentum) / rate on, steps would diverge.
    """

    def __init__(self, importance: float) -> None:
        self.importance = importance
        self.omega: ByName = {}
        self.springs: list[Spring] = []

    def strengths(self) -> ByName:
        """Parameter name -> omega of the rows that existed before the round."""
        return self.omega

    def anchor(self, name: str, now: Tensor) -> Tensor:
        """theta* of a parameter whose value is `now` when the round begins."""
        return now.clone()

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.springs, strengths = [], self.strengths()
        scale = self.importance / (_mean(strengths) or 1.0)
        for place, ((name, p), rate) in enumerate(zip(network.named_parameters(), rates)):
            if (omega := strengths.get(name)) is not None:
                now = known(p.detach(), omega)
                most = 1 / torch.as_tensor(rate).to(now)      # infinite if nothing moves
                stiffness = torch.minimum(scale * omega.to(now), most)
                self.springs.append(Spring(place, now, self.anchor(name, now), stiffness))

    def penalty(self, step: Step) -> Tensor | float:
        held = sum(((now - then).square_() * stiffness).sum() for _, now, then, stiffness in self.springs)
        return held / 2 * step.share

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        """Adds the penalty's gradient; autograd would take four times as long."""
        for place, now, then, stiffness in self.springs:
            if (gradient := gradients[place]) is not None:
                known(gradient, then).addcmul_(stiffness, now - then)
        return gradients

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.springs = []
        self.omega = {name: torch.ones(()).expand(p.shape) for name, p in network.named_parameters()}

    def state(self) -> Arrays:
        return {name: np.array(omega.shape, np.int32) for name, omega in self.omega.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.omega = {name: torch.ones(()).expand(*shape.tolist()) for name, shape in state.items()}


class Importances(Quadratic):
    """A quadratic penalty whose omega is kept between rounds."""

    def add(self, fresh: ByName, kept: float = 1.0) -> None:
        """omega = kept x omega + fresh; fresh is used up."""
        for name, omega in fresh.items():
            if (old := self.omega.get(name)) is not None:
                known(omega, old).add_(old.to(omega), alpha=kept)
            self.omega[name] = omega

    def state(self) -> Arrays:
        return {name: omega.cpu().numpy() for name, omega in self.omega.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.omega = {name: torch.tensor(omega) for name, omega in state.items()}


class Fisher(Importances):
    """omega is the diagonal Fisher information (Kirkpatrick et al. 2017, equation 3): the mean over `samples` of a
    round (0: all) of squared gradients **per sample**; labels are the model's own, "drawn" from its softmax, or the
    "exact" expectation over it. Of the rounds, omega = gamma omega + that of the round.

    form: "online" pulls to the newest weights (Schwarz et al. 2018, section 4); "offline" to those after each round by
    its own Fisher information, like the paper's sum of penalties: up to a constant, one penalty around the mean of all
    theta* weighted by their omegas, so that two numbers per weight are enough, however many rounds there were.
    """

    def __init__(self, importance: float, gamma: float, samples: int, labels: str, form: str) -> None:
        super().__init__(importance)
        self.gamma, self.samples, self.labels, self.offline = gamma, samples, labels, form == "offline"
        self.anchors: ByName = {}

    def anchor(self, name: str, now: Tensor) -> Tensor:
        return self.anchors[name].to(now) if self.offline else super().anchor(name, now)

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.springs = []
        fresh = fisher(network, _some(new.x, self.samples, generator), self.labels, generator, chunk(network))
        if self.offline:
            for name, p in network.named_parameters():
                mean = p.detach().clone()
                if (old := self.omega.get(name)) is not None:
                    weight = self.gamma * old.to(mean)
                    share = weight / (weight + known(fresh[name], old)).clamp_(min=torch.finfo(mean.dtype).tiny)
                    known(mean, old).lerp_(self.anchors[name].to(mean), share)
                self.anchors[name] = mean
        self.add(fresh, self.gamma)

    def state(self) -> Arrays:
        return super().state() | {f"anchor/{name}": mean.cpu().numpy() for name, mean in self.anchors.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        super().load({name: array for name, array in state.items() if not name.startswith("anchor/")})
        self.anchors = below_prefix("anchor", state)


class Sensitivity(Importances):
    """Memory aware synapses (Aljundi et al. 2018, equations 2 to 4): omega is the mean over `samples` of a round (0:
    all) of |d |z|^2 / d theta| **per sample**, z the outputs; no labels; summed over the rounds."""

    def __init__(self, importance: float, samples: int) -> None:
        super().__init__(importance)
        self.samples = samples

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.springs = []
        self.add(sensitivity(network, _some(new.x, self.samples, generator), chunk(network)))


def known(values: Tensor, old: Tensor) -> Tensor:
    """A view of the rows of a parameter, its gradient or importance that existed when `old` was taken."""
    return values[:len(old)] if old.dim() else values


def _mean(values: ByName) -> float:
    return sum(float(each.sum()) for each in values.values()) / max(sum(each.numel() for each in values.values()), 1)


def below_prefix(prefix: str, state: Mapping[str, np.ndarray]) -> ByName:
    return {name.removeprefix(f"{prefix}/"): torch.tensor(array) for name, array in state.items()
            if name.startswith(f"{prefix}/")}


def _some(x: Tensor, samples: int, generator: np.random.Generator) -> Tensor:
    """So many random ones of them; 0 for all."""
    if 0 < samples < len(x):
        return x[torch.from_numpy(generator.choice(len(x), samples, replace=False))]
    return x


def chunk(network: nn.Module) -> int:
    """How many samples may pass at a time, with the inputs and gradients of all layers in memory."""
    return min(max(getattr(network, "block", 2 * CHUNK) // 2, 1), CHUNK)
