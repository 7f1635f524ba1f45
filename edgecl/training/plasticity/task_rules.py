"""Rules that infer the task of a sample, so that one of the sub-networks can answer if no task is given."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Sequence

EPSILON = 1e-6      # the least spread, and the least upper bound of an entropy


class TaskRule:
    """No rule: for methods whose network answers for all classes at once; the base of all.

    What a rule keeps of a task is a dict of tensors, one row per class. first: whether it uses the features of the
    first task's sub-network instead of the task's own.
    """

    first = False

    def numbers(self, width: int, classes: int) -> int:
        """How many float32 it keeps of a task. width: length of features."""
        return 0

    def learn(self, own: Tensor, first: Tensor, y: Tensor, classes: int) -> dict[str, Tensor]:
        """What it keeps of a task: features by its sub-network [n, d] and by the first one's, places of classes [n]."""
        return {}

    def score(self, kept: dict[str, Tensor], own: Tensor, first: Tensor, log_p: Tensor) -> Tensor:
        """[n]: the task whose score is the highest answers. log_p [n, k]: of the task's own classes."""
        return log_p.new_zeros(len(log_p))


class Entropy(TaskRule):
    """The most certain sub-network: least entropy as a share of the most it can have (von Oswald et al. 2020,
    section 2.3, "task-conditioned inference by predictive uncertainty")."""

    def score(self, kept: dict[str, Tensor], own: Tensor, first: Tensor, log_p: Tensor) -> Tensor:
        most = max(torch.tensor(float(log_p.shape[1])).log().item(), EPSILON)
        return (log_p.exp() * log_p).sum(1) / most


class NearestMean(TaskRule):
    """The sub-network in whose own features the sample lies nearest to a class mean: squared distance of features of
    length 1, as a share of what its own training samples have on average."""

    def numbers(self, width: int, classes: int) -> int:
        return classes * (width + 1)

    def learn(self, own: Tensor, first: Tensor, y: Tensor, classes: int) -> dict[str, Tensor]:
        unit = F.normalize(first if self.first else own)
        means = torch.stack([unit[y == place].mean(0) for place in range(classes)])
        near = ((unit - means[y]) ** 2).sum(1).mean().clamp(min=EPSILON)
        return {"means": means, "spread": near.repeat(classes)}

    def score(self, kept: dict[str, Tensor], own: Tensor, first: Tensor, log_p: Tensor) -> Tensor:
        unit, means = F.normalize(first if self.first else own), kept["means"]
        squares = (unit * unit).sum(1, keepdim=True) + (means * means).sum(1) - 2 * unit @ means.T
        return -(squares / self.unit(kept["spread"])).min(1).values

    def unit(self, spread: Tensor) -> Tensor:
        """What distances are divided by."""
        return spread


class Gate(NearestMean):
    """The task of the nearest class mean, all in the features of the first task's sub-network: one frozen space as the
    gate of Aljundi et al. 2017 (Expert Gate) has one for all, and Mensink et al. 2013's nearest class mean in it."""

    first = True

    def unit(self, spread: Tensor) -> Tensor:
        return torch.ones_like(spread)


def pick(log_p: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each task's classes: the log-probabilities within it, lowered in all tasks but the one that its score
    chooses by just enough that its best class is the best of all; within a task their order stays."""
    table = torch.stack(list(scores), 1)
    chosen = table.argmax(1)
    most = max(part.shape[1] for part in log_p)
    drop = torch.tensor(float(most)).log().item() + 1.0
    return [part - drop * (chosen != task).to(part)[:, None] for task, part in enumerate(log_p)]
