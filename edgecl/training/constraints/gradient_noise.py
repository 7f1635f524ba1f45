"""Noise that is added to gradients."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from edgecl.training.constraints.base import Constraint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Gradients
    from edgecl.training.memory.base import Memory


class GradientNoise(Constraint):
    """Gaussian noise of variance eta / (1 + t)^fading on each gradient, t the step within the round (Neelakantan et al.
    2015; Castro et al. 2018, section 4: 0.3 and 0.55)."""

    def __init__(self, eta: float, fading: float) -> None:
        self.eta, self.fading = eta, fading

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.done, self.generator = 0, torch.Generator()

    def references(self, memory: Memory, generator: np.random.Generator) -> Sequence[Batch]:
        self.generator.manual_seed(int(generator.integers(2**62)))
        return ()

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        deviation = math.sqrt(self.eta / (1 + self.done) ** self.fading)
        self.done += 1
        for gradient in gradients:
            if gradient is not None:
                noise = torch.empty(gradient.shape).normal_(0, deviation, generator=self.generator)
                gradient.add_(noise.to(gradient))
        return gradients
