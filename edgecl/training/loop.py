"""The one training loop. Parts are called by it, return values, and never see it."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BadInput
from edgecl.training.allowance import Allowance
from edgecl.training.network import outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from edgecl.training.balance import Balance
    from edgecl.training.constraints import Constraint
    from edgecl.training.memory import Batch, Nothing
    from edgecl.training.network import Network


@dataclass
class Parts:
    """A method at work; the head is part of the network."""

    memory: Nothing
    balance: Balance
    constraints: list[Constraint] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How a round is trained.

    epochs: 0 leaves the network as it is; batch: new samples a step; rate, momentum, decay: of SGD; milestones: the
    shares of all steps after which the rate is divided by `factor`; clip: the largest norm of all gradients, 0 for any;
    head_rate: of the head, 0 for the same; cosine: the rate falls to 0 along a half wave (Loshchilov & Hutter 2017);
    smoothing: of labels (Szegedy et al. 2016, section 7); mirror: every other image is turned left to right.
    """

    epochs: int
    batch: int
    rate: float
    momentum: float = 0.0
    decay: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 1.0
    clip: float = 0.0
    head_rate: float = 0.0
    cosine: bool = False
    smoothing: float = 0.0
    mirror: bool = False

    def rate_after(self, share: float) -> float:
        """The rate after that share of all steps."""
        wave = (1 + math.cos(math.pi * share)) / 2 if self.cosine else 1.0
        return self.rate * wave / self.factor ** sum(share >= milestone for milestone in self.milestones)


class Sgd:
    """Gradient descent with momentum as torch.optim.SGD, whose first step would load torch's compiler: 90 MB.

    paces: what each weight's gradient is multiplied with, see `Network.paces`.
    """

    def __init__(self, weights: Sequence[Tensor], plan: Plan, paces: Sequence[Tensor | float] = ()) -> None:
        self.weights, self.plan = [weight.detach() for weight in weights], plan     # the same memory
        self.paces = paces or [1.0] * len(weights)
        self.speed = [torch.zeros_like(weight) for weight in weights]

    def step(self, gradients: Sequence[Tensor | None], rate: float) -> None:
        """Clip the gradients' common norm, and step."""
        used = [row for row in zip(self.weights, self.speed, gradients, self.paces) if row[2] is not None]
        weights, speed, given, paces = (list(column) for column in zip(*used))
        norm = torch.stack(torch._foreach_norm(given)).norm().item() if self.plan.clip else 0.0
        if any(isinstance(pace, torch.Tensor) or pace != 1.0 for pace in paces):
            given = [gradient * pace for gradient, pace in zip(given, paces)]
        torch._foreach_mul_(speed, self.plan.momentum)
        torch._foreach_add_(speed, given, alpha=min(1.0, self.plan.clip / norm) if norm > 0 else 1.0)
        if self.plan.decay:
            torch._foreach_add_(speed, weights, alpha=self.plan.decay)
        torch._foreach_add_(weights, speed, alpha=-rate)


def learning_round(network: Network, parts: Parts, new: Batch, classes: int, plan: Plan, generator: np.random.Generator,
                   progress: Callable[[int, float], None] | None = None, allowance: Allowance | None = None) -> None:
    """Teach the network one round of new samples; it then has `classes` outputs.

    progress: called after each step with the samples done, replayed ones included, and the loss; allowance: of time and
    memory (default: without bounds). Raises BadInput where the training diverges; the network is then of no use.
    """
    memory, constraints, head, allowance = parts.memory, parts.constraints, network.head, allowance or Allowance()
    whole, known = network, head.classes
    network, new = memory.enter(new, network, generator)
    data = memory.dataset(new)
    asked = known and plan.epochs and any(part.needs_old for part in (head, *constraints))
    old = outputs(lambda x: network(x)[1], data.x, network.block) if asked else None   # once a round, never again
    head.extend(classes, generator)
    weights = list(network.parameters())
    paces = network.paces((plan.head_rate or plan.rate) / (plan.rate or 1.0), memory.place, memory.pace if known else 1)
    sgd = Sgd(weights, plan, paces)
    for part in constraints:
        part.begin(network, [plan.rate * pace for pace in paces])
    network.train_above(memory.place if known else 0)
    steps, done, samples = plan.epochs * -(-len(data) // plan.batch), 0, 0
    for rows in shuffled(len(data), plan, generator):
        if (share := max(done / steps, allowance.spent())) >= 1.0:
            break
        fresh, replayed = data.take(rows), memory.replay(memory.amount(len(rows)), generator)
        above = None if replayed is None or replayed.place is None else replayed
        batch = fresh if replayed is None or above is not None else fresh.join(replayed)
        if plan.mirror and network.mirror is not None:
            batch = batch.mirrored(network.mirror, generator)
        value, gradients = allowance.passes(network, constraints, batch, None if old is None else old[rows], known,
                                            weights, plan.smoothing, above)
        for part in constraints:
            gradients = part.project(gradients)
        sgd.step(gradients, plan.rate_after(share))
        for part in constraints:
            part.after_step()
        if done < steps // plan.epochs:
            memory.observe(data.take(rows[rows < len(new)]), generator)
        done, samples = done + 1, samples + len(batch) + (0 if above is None else len(above))
        if not math.isfinite(value):
            raise BadInput(f"the loss is {value} after {samples} samples at a rate of {plan.rate:g}",
                           "give a smaller rate, or a weaker constraint")
        if progress:
            progress(samples, value)
    network.eval()
    for part in constraints:
        part.end(network, new, generator)
    memory.update(new, network)
    parts.balance.finish(whole, memory)


def shuffled(count: int, plan: Plan, generator: np.random.Generator) -> Iterator[Tensor]:
    """The rows of each step: every epoch in an order of its own."""
    for _ in range(plan.epochs):
        yield from torch.from_numpy(generator.permutation(count)).split(plan.batch)
