"""Adam for the small networks beside the served one."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

RATE, FIRST, SECOND, TINY = 1e-3, 0.9, 0.999, 1e-8      # section 2


class Adam:
    """Kingma & Ba 2015, algorithm 1, as torch.optim.Adam, whose first step would load torch's compiler: 90 MB."""

    def __init__(self, weights: Sequence[Tensor], rate: float = RATE) -> None:
        self.weights, self.rate, self.steps = list(weights), rate, 0
        self._held = [weight.detach() for weight in self.weights]       # the same memory
        self._mean = [torch.zeros_like(weight) for weight in self._held]
        self._square = [torch.zeros_like(weight) for weight in self._held]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step against the gradients."""
        given = list(gradients)
        self.steps += 1
        torch._foreach_mul_(self._mean, FIRST)
        torch._foreach_add_(self._mean, given, alpha=1 - FIRST)
        torch._foreach_mul_(self._square, SECOND)
        torch._foreach_addcmul_(self._square, given, given, value=1 - SECOND)
        root = torch._foreach_sqrt(self._square)
        torch._foreach_div_(root, (1 - SECOND ** self.steps) ** 0.5)
        torch._foreach_add_(root, TINY)
        torch._foreach_addcdiv_(self._held, self._mean, root, value=-self.rate / (1 - FIRST ** self.steps))
