"""SGD for the served network, and Adam for the small networks beside it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgecl.training.plan import Plan

RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8      # section 2


class Adam:
    """Kingma & Ba 2015, algorithm 1, like torch.optim.Adam, whose first step would load torch's compiler: 90 MB."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights, self.steps = list(weights), 0
        self._held = [weight.detach() for weight in self.weights]       # the same memory
        self._mean = [torch.zeros_like(weight) for weight in self._held]
        self._square = [torch.zeros_like(weight) for weight in self._held]

    def step(self, gradients: Sequence[Tensor], rate: float = RATE) -> None:
        """One step against the gradients."""
        given = list(gradients)
        self.steps += 1
        torch._foreach_mul_(self._mean, BETA_1)
        torch._foreach_add_(self._mean, given, alpha=1 - BETA_1)
        torch._foreach_mul_(self._square, BETA_2)
        torch._foreach_addcmul_(self._square, given, given, value=1 - BETA_2)
        root = torch._foreach_sqrt(self._square)
        torch._foreach_div_(root, (1 - BETA_2 ** self.steps) ** 0.5)
        torch._foreach_add_(root, EPSILON)
        torch._foreach_addcdiv_(self._held, self._mean, root, value=-rate / (1 - BETA_1 ** self.steps))


class Sgd:
    """Gradient descent with momentum like torch.optim.SGD, whose first step would load torch's compiler: 90 MB.

    paces: what each weight's gradient is multiplied by, see `Network.paces`.
    """

    def __init__(self, weights: Sequence[Tensor], plan: Plan, paces: Sequence[Tensor | float] = ()) -> None:
        self.weights, self.plan = [weight.detach() for weight in weights], plan     # the same memory
        self.paces = paces or [1.0] * len(weights)
        self.speed = [torch.zeros_like(weight) for weight in weights]

    def restart(self) -> None:
        """Forget the momentum: the weights have been changed otherwise than by steps."""
        torch._foreach_zero_(self.speed)

    def step(self, gradients: Sequence[Tensor | None], rate: float) -> None:
        """Clip the norm of all gradients together, and step."""
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
