"""Heads that grow: features -> logits, and the loss that they are trained with."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

AffineMap = tuple[np.ndarray, np.ndarray, bool]


class Step(NamedTuple):
    """What the parts may see of one step, or of a piece of it where memory is short: losses are sums over the piece
    divided by `of` or `old_of`, so that those of all pieces add up to the means over the step.

    features [n, d]; logits [n, C]; targets: columns, int64 [n]; old: logits [m, known] of the first m samples by the
    network as it was before the round, or None where no part asked for them or nothing was known; known: outputs then;
    of, old_of: samples of the whole step, and those of them with old logits; smoothing: of labels.
    """

    features: Tensor
    logits: Tensor
    targets: Tensor
    old: Tensor | None
    known: int
    of: int
    old_of: int
    smoothing: float = 0.0

    @property
    def share(self) -> float:
        """How much of the step it is."""
        return len(self.targets) / self.of


class Softmax(nn.Module):
    """One affine map, cross-entropy over all outputs."""

    needs_old = False

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dimension))
        self.bias = nn.Parameter(torch.empty(0))

    @property
    def classes(self) -> int:
        """How many outputs there are."""
        return len(self.weight)

    def extend(self, classes: int, generator: np.random.Generator) -> None:
        """Add outputs up to `classes`, uniform in +-1 / sqrt(d) as torch's linear layers; the old stay bit for bit."""
        rows, bound = classes - self.classes, self.weight.shape[1] ** -0.5
        for name in ("weight", "bias"):
            old = getattr(self, name)
            new = torch.from_numpy(generator.uniform(-bound, bound, (rows, *old.shape[1:]))).to(old)
            setattr(self, name, nn.Parameter(torch.cat([old.detach(), new])))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)

    def affine(self) -> AffineMap | None:
        """What it computes, for a head of the fast learner's: weight [C, d], bias [C], and whether logits are to be
        divided by |f|; None where it can't be said so."""
        return self.weight.detach().cpu().numpy(), self.bias.detach().cpu().numpy(), False

    def loss(self, step: Step) -> Tensor:
        """A scalar, the mean over the step's samples."""
        return F.cross_entropy(step.logits, step.targets, reduction="sum", label_smoothing=step.smoothing) / step.of


class Sigmoid(Softmax):
    """Binary cross-entropy of every output; the old network's sigmoids are the targets of its outputs (Rebuffi et al.
    2017, algorithm 3): summed over outputs, mean over samples."""

    needs_old = True

    def loss(self, step: Step) -> Tensor:
        """A scalar."""
        targets = F.one_hot(step.targets, step.logits.shape[1]).to(step.logits)
        if step.old is not None:
            targets[:len(step.old), :step.known] = torch.sigmoid(step.old)
        return F.binary_cross_entropy_with_logits(step.logits, targets, reduction="sum") / step.of


class Cosine(nn.Module):
    """Cosine similarity times a learned scale, cross-entropy (Hou et al. 2019, section 3.2; the scale starts at 10)."""

    needs_old = False

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dimension))
        self.scale = nn.Parameter(torch.tensor(10.0))

    classes = Softmax.classes
    loss = Softmax.loss

    def extend(self, classes: int, generator: np.random.Generator) -> None:
        """Add outputs up to `classes`; the old stay bit for bit."""
        bound = self.weight.shape[1] ** -0.5
        new = torch.from_numpy(generator.uniform(-bound, bound, (classes - self.classes, self.weight.shape[1])))
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new.to(self.weight)]))

    def affine(self) -> AffineMap | None:
        weight = (self.scale * F.normalize(self.weight)).detach().cpu().numpy()
        return weight, np.zeros(len(weight), np.float32), True

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


Head = Softmax | Cosine
