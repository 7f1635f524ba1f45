"""Heads that grow: features -> logits, and the loss that they are trained with."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.step import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

HIDDEN_LOGIT = -1e9       # a logit that no softmax sees
K_MEANS_ROUNDS = 10       # rounds of k-means

AffineMap = tuple[np.ndarray, np.ndarray, bool]


def picked(rows: Tensor, columns: Sequence[int] | None) -> Tensor:
    """The rows of these outputs, None for all."""
    return rows if columns is None else rows[columns]


class Softmax(nn.Module):
    """One affine map, cross-entropy over all outputs."""

    needs_old = False
    signed = False      # whether features may be negative: the last ReLU of our networks is left out then

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

    def forward(self, features: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        """Features [n, d] -> logits [n, C], or those of some columns only. Their rows are picked before the product, so
        that they round the same however many outputs the head has."""
        return F.linear(features, picked(self.weight, columns), picked(self.bias, columns))

    def cosines(self, features: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        """Of features [n, d] and the weights of each output, [n, C], or of some columns only."""
        return F.linear(F.normalize(features), F.normalize(picked(self.weight, columns)))

    def imprint(self, column: int, features: Tensor, known: int) -> None:
        """Start an output from features of its class [m, d]: the mean of the L2-normalised ones, as long as the weights
        of the `known` outputs are on average (Qi et al. 2018, section 3.2; Hou et al. 2019, the authors' program)."""
        mean = F.normalize(F.normalize(features).mean(0), dim=0)
        self.weight.data[column] = mean.to(self.weight) * self.weight.data[:known].norm(dim=1).mean()

    def affine(self) -> AffineMap | None:
        """What it computes, for a head of the fast learner's: weight [C, d], bias [C], and whether logits are to be
        divided by |f|; None if it is not affine."""
        return self.weight.detach().cpu().numpy(), self.bias.detach().cpu().numpy(), False

    def loss(self, step: Step) -> Tensor:
        """A scalar, the mean over the step's samples."""
        return step.cross_entropy(step.logits)


class Sigmoid(Softmax):
    """Binary cross-entropy of every output; the old network's sigmoids are the targets of its outputs (Rebuffi et al.
    2017, algorithm 3): summed over outputs, mean over samples."""

    needs_old = True

    def loss(self, step: Step) -> Tensor:
        """A scalar."""
        targets = F.one_hot(step.targets, step.logits.shape[1]).to(step.logits)
        if step.old is not None:
            targets[:len(step.old), :step.known] = torch.sigmoid(step.old[:, :step.known])
        return step.mean(F.binary_cross_entropy_with_logits(step.logits, targets, reduction="none").sum(1))


class Asymmetric(Softmax):
    """New samples are compared with the classes of the step's new samples only, so that their arrival does not push the
    old ones away; replayed samples with all (Caccia et al. 2022, ER-ACE, section 4.2, equation 3)."""

    def loss(self, step: Step) -> Tensor:
        """A scalar."""
        absent = torch.ones(step.logits.shape[1], dtype=torch.bool, device=step.logits.device)
        absent[step.present] = False
        hidden = absent & (torch.arange(len(step.targets), device=absent.device) < step.fresh)[:, None]
        return step.cross_entropy(step.logits.masked_fill(hidden, HIDDEN_LOGIT))


class Cosine(nn.Module):
    """Cosine similarity times a learned scale, cross-entropy (Hou et al. 2019, section 3.2; the scale starts at 10)."""

    needs_old = False
    signed = True

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dimension))
        self.scale = nn.Parameter(torch.tensor(10.0))

    classes = Softmax.classes
    loss = Softmax.loss
    cosines = Softmax.cosines
    imprint = Softmax.imprint

    def extend(self, classes: int, generator: np.random.Generator) -> None:
        """Add outputs up to `classes`; the old stay bit for bit."""
        bound = self.weight.shape[1] ** -0.5
        new = torch.from_numpy(generator.uniform(-bound, bound, (classes - self.classes, self.weight.shape[1])))
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new.to(self.weight)]))

    def affine(self) -> AffineMap | None:
        weight = (self.scale * F.normalize(self.weight)).detach().cpu().numpy()
        return weight, np.zeros(len(weight), np.float32), True

    def forward(self, features: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        return self.scale * self.cosines(features, columns)


class Proxies(nn.Module):
    """Local similarity classifier (Douillard et al. 2020, section 3.3): an output is the mean of the similarities to
    its proxies, weighted by their softmax; the loss is NCA with a margin, on them times a learned scale, which is kept
    as its logarithm: at a scale below 0 the loss has its least value, 0, whatever the network answers.

    proxies: of each class, k; weight [C, k, d]. As in the authors' program a similarity is minus the squared distance
    of vectors of length 3, 18 (cos - 1), and the margin, of 0.6, is one of those.
    """

    needs_old = False
    signed = True
    margin, steepness = 0.6, 18.0

    def __init__(self, dimension: int, proxies: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, proxies, dimension))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    classes = Softmax.classes

    def extend(self, classes: int, generator: np.random.Generator) -> None:
        """Add outputs up to `classes`; the old stay bit for bit."""
        bound, (_, proxies, d) = self.weight.shape[2] ** -0.5, self.weight.shape
        new = torch.from_numpy(generator.uniform(-bound, bound, (classes - self.classes, proxies, d)))
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new.to(self.weight)]))

    def affine(self) -> AffineMap | None:
        return None

    def cosines(self, features: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        """Weighted by their softmax over the proxies, [n, C], or of some columns only."""
        weight = picked(self.weight, columns)
        near = F.linear(F.normalize(features), F.normalize(weight, dim=2).flatten(0, 1))
        near = near.unflatten(1, weight.shape[:2])
        return (near * (self.steepness * near).softmax(2)).sum(2)

    def forward(self, features: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        return self.log_scale.exp() * self.steepness * (self.cosines(features, columns) - 1)

    def imprint(self, column: int, features: Tensor, known: int) -> None:
        """Start the proxies of an output from features of its class [m, d]: the means of k groups of the L2-normalised
        ones (Douillard et al. 2020, section 3.3), as long as known ones are on average."""
        unit = F.normalize(features)
        count = min(self.weight.shape[1], len(unit))
        centres = unit[torch.linspace(0, len(unit) - 1, count).long()].clone()
        for _ in range(K_MEANS_ROUNDS):
            nearest = (unit @ centres.T).argmax(1)
            for place in nearest.unique().tolist():
                centres[place] = F.normalize(unit[nearest == place].mean(0), dim=0)
        length = self.weight.data[:known].norm(dim=2).mean()
        self.weight.data[column, :count] = centres.to(self.weight) * length

    def loss(self, step: Step) -> Tensor:
        """A scalar: -log of exp(s (y - margin)) / sum over the others of exp(s z), not below 0."""
        margins = self.log_scale.exp() * self.margin * F.one_hot(step.targets, step.logits.shape[1])
        shifted = step.logits - margins
        own = shifted.gather(1, step.targets[:, None])[:, 0]
        others = shifted.scatter(1, step.targets[:, None], HIDDEN_LOGIT).logsumexp(1)
        return step.mean(F.relu(others - own))


Head = Softmax | Cosine | Proxies
