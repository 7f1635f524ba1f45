"""What sub-networks are made of: a task's own tensors, some outputs of a head, and all of them in one graph."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.plasticity.prune_unused import compacted
from edgecl.training.plasticity.task_rules import pick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgecl.training.networks.heads import Head
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.task_rules import TaskRule
    from edgecl.training.step import Step


@dataclass
class Task:
    """What is a task's own. columns: the outputs of the whole head that are its; own: tensors of its sub-network that
    no other task shares, by name; rule: what the task rule keeps of it, a row a column."""

    columns: list[int]
    own: dict[str, Tensor]
    rule: dict[str, Tensor]

    def without(self, taken: set[int]) -> Task:
        """Without the columns that a later task has taken over."""
        rows = [row for row, column in enumerate(self.columns) if column not in taken]
        return Task([self.columns[row] for row in rows], self.own, {name: t[rows] for name, t in self.rule.items()})


class Columns(nn.Module):
    """A head of which only some outputs answer and learn. `told` are called with each step whose loss it computes."""

    needs_old = False

    def __init__(self, head: Head, columns: Sequence[int]) -> None:
        super().__init__()
        self.head, self.columns = head, list(columns)
        self.told: list[Callable[[Step], Tensor | None]] = []

    @property
    def weight(self) -> Tensor:
        """Of the whole head."""
        return self.head.weight

    @property
    def classes(self) -> int:
        """How many outputs there are."""
        return len(self.columns)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features, self.columns)
        return logits

    def loss(self, step: Step) -> Tensor:
        """The head's own, and what the `told` add."""
        loss = self.head.loss(step)
        for listener in self.told:
            if (more := listener(step)) is not None:
                loss = loss + more
        return loss


class ServedSubnetworks(nn.Module):
    """All sub-networks and the rule in one graph. With `compact`, unused units are cut out."""

    def __init__(self, nets: Sequence[Network], tasks: Sequence[Task], rule: TaskRule, compact: bool) -> None:
        super().__init__()
        every = torch.arange(nets[0].head.weight.shape[-1])
        small = [compacted(net) if compact else (net, every) for net in nets]
        self.nets, self.rule = nn.ModuleList([net for net, _ in small]), rule
        places = [small[0 if rule.first else k][1] for k in range(len(tasks))]
        self.kept = [{name: F.pad(t, (0, len(every) - t.shape[1]))[:, units] if t.dim() == 2 else t
                      for name, t in task.rule.items()} for task, units in zip(tasks, places)]   # or it has grown since
        order = [column for task in tasks for column in task.columns]
        self.order = torch.tensor(order).argsort()
        self.answering = [k for k, task in enumerate(tasks) if task.columns]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, log_p, scores = [], [], []
        for k, net in enumerate(self.nets):
            f, z = net(x)
            features.append(f)
            if k in self.answering:
                log_p.append(z.log_softmax(1))
                scores.append(self.rule.score(self.kept[k], f, features[0], log_p[-1]))
        return torch.cat(features, 1), torch.cat(pick(log_p, scores), 1)[:, self.order]
