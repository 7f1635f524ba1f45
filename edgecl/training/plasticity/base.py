"""Sub-networks: each round trains one of its own inside the network, which then stays as it is."""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgecl.errors import BudgetError
from edgecl.training.batch import Batch
from edgecl.training.constraints.base import Constraint
from edgecl.training.networks.network import Network, outputs
from edgecl.training.plasticity.masks import bias_names, norm_names, weight_names
from edgecl.training.plasticity.subnetworks import Columns, ServedSubnetworks, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgecl.training.constraints.base import Gradients
    from edgecl.training.part import Arrays
    from edgecl.training.plasticity.task_rules import TaskRule


class Plasticity(Constraint):
    """The base: sub-networks, each a mask per weight and some tensors of its own, and all that is done with them.

    A method decides which weights a round may train (`open`, `after_step`), which it keeps (`close`), which belong to a
    task (`masks`), and how that is stored (`kept`, `take`, `mask_bytes`). passes: how many times the epochs of a plan a
    round takes; compact: whether unused units are removed from what serves; else what sub-networks share is stored once
    in the exported file, see `plasticity.shared_weights`; shared_bias: whether a unit's bias is a weight like others;
    else each task has its own.
    """

    passes = 1
    compact = True
    shared_bias = False

    def __init__(self, room: int, rule: TaskRule) -> None:
        """`room`: bytes for all that is kept; `rule`: infers the task of a sample."""
        self.room, self.rule = room, rule
        self.tasks: list[Task] = []
        self.served: ServedSubnetworks | None = None

    # the loop

    def workspace(self, network: Network, new: Batch, generator: np.random.Generator) -> tuple[Network, Batch]:
        """The network that this round trains, with one output for each class of the new samples, and these samples with
        its columns."""
        columns = sorted(set(new.y.tolist()))
        self.work = self.working(network, columns)
        self.names = [name for name, _ in self.work.named_parameters()]
        scales = [name for name, p in self.work.named_parameters() if name.startswith("head.") and not p.dim()]
        self.free: dict[str, Tensor | bool] = dict.fromkeys(scales, not self.tasks)     # all tasks answer through them
        places = torch.tensor([columns.index(column) for column in new.y.tolist()])
        self.samples = Batch(new.x, places)
        self.open(network, generator)
        return self.work, self.samples

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        """No step for weights that are not free."""
        masked: list[Tensor | None] = []
        for name, gradient in zip(self.names, gradients):
            free = self.free.get(name, True)
            masked.append(None if gradient is None or free is False else gradient if free is True else gradient * free)
        return masked

    def answered(self) -> Tensor:
        """Logits of the round's own samples by the network in training [n, classes]."""
        training = self.work.training
        self.work.eval()
        logits = outputs(lambda x: self.work(x)[1], self.samples.x, self.work.block)
        self.work.train(training)
        return logits

    def accuracy(self) -> float:
        """Of the network in training, on the round's own samples."""
        return float((self.answered().argmax(1) == self.samples.y).float().mean())

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        """Freeze what was learned."""
        columns, samples = self.work.head.columns, self.samples
        self.close(network, samples, generator)
        trained = self.work.state_dict()
        with torch.no_grad():
            for name, value in network.head.named_parameters():
                new_rows = trained[f"head.head.{name}"]
                if value.dim():     # a head that has grown reads more features
                    value[columns] = new_rows[columns][..., :value.shape[-1]] if value.dim() > 1 else new_rows[columns]
                else:
                    value.copy_(new_rows)
        own = {name: trained[name].clone() for name in self.own_names(network)}
        own |= self.beside(network)
        self.tasks = [task.without(set(columns)) for task in self.tasks] + [Task(columns, own, {})]
        del self.work, self.free, self.samples
        f = outputs(self.subnetwork(network, len(self.tasks) - 1).features, samples.x, network.block)
        first = f if len(self.tasks) == 1 else outputs(self.subnetwork(network, 0).features, samples.x, network.block)
        self.tasks[-1].rule = self.rule.learn(f, first, samples.y, len(columns))
        self.served = None

    # what a method decides

    def open(self, network: Network, generator: np.random.Generator) -> None:
        """Set which weights of the network at `work` are free."""

    def close(self, network: Network, new: Batch, generator: np.random.Generator) -> None:
        """Give the network the weights of `work` that are to be kept."""

    def working(self, network: Network, columns: Sequence[int]) -> Network:
        """The network that a round trains."""
        return self.copied(network, columns)

    def beside(self, network: Network) -> dict[str, Tensor]:
        """What else belongs to a task once `work` is trained."""
        return {}

    def masks(self, network: Network, task: int) -> dict[str, Tensor]:
        """By name: bool, of the shape of a weight that the task's sub-network has only a part of."""
        return {}

    def kept(self) -> Arrays:
        """How the masks are stored."""
        return {}

    def take(self, kept: Mapping[str, np.ndarray]) -> None:
        """The inverse of `kept`."""

    def mask_bytes(self, network: Network, tasks: int) -> int:
        """Bytes of `kept` after so many tasks."""
        return 0

    # sub-networks

    def own_names(self, network: Network) -> list[str]:
        """The tensors of which each task has its own."""
        return norm_names(network) + ([] if self.shared_bias else bias_names(network))

    def shared_names(self, network: Network) -> list[str]:
        """The tensors that sub-networks share."""
        return weight_names(network) + (bias_names(network) if self.shared_bias else [])

    def copied(self, network: Network, columns: Sequence[int]) -> Network:
        """A copy of the network, with these outputs only."""
        made = copy.deepcopy(network)
        made.head = Columns(made.head, columns)     # type: ignore[assignment]
        return made

    def subnetwork(self, network: Network, task: int) -> Network:
        """A copy of a task's sub-network: its outputs are the task's columns."""
        made = self.copied(network, self.tasks[task].columns).eval()
        own = self.tasks[task].own
        with torch.no_grad():
            state = made.state_dict()
            for name, mask in self.masks(network, task).items():
                state[name].copy_(torch.where(mask, state[name], 0))
            for name, value in own.items():
                if name in state:
                    state[name].copy_(value)
        return made

    def serve(self, network: Network) -> nn.Module:
        """An input -> (features of all sub-networks, logits of all classes), see `pick`; without unused units."""
        if self.served is None:
            nets = [self.subnetwork(network, k) for k in range(len(self.tasks))]
            self.served = ServedSubnetworks(nets, self.tasks, self.rule, self.compact)
        return self.served.eval()

    def usage(self, network: Network) -> dict[str, list[list[float]]]:
        """Layer -> for each task the share of each unit's incoming weights that its sub-network uses."""
        nets = [self.subnetwork(network, k).state_dict() for k in range(len(self.tasks))]
        return {name.removesuffix(".weight"): [[round(float(share), 3) for share in
                                                (net[name] != 0).flatten(1).float().mean(1)] for net in nets]
                for name in weight_names(network)}

    # bytes

    def check(self, network: Network, classes: int) -> None:
        """Raises BudgetError if another task with so many classes would not fit."""
        needed = self.others(network, classes) + self.mask_bytes(network, len(self.tasks) + 1)
        if needed > self.room:
            raise BudgetError(f"{self.room} bytes can't hold the masks and the own tensors of {len(self.tasks) + 1} "
                              f"sub-network{'s' * bool(self.tasks)}", f"give --memory {needed} or more")

    def others(self, network: Network, classes: int) -> int:
        """Bytes of everything but the masks, with one more task of so many classes."""
        wide = self.copied(network, [])
        state = wide.state_dict()
        own = sum(state[name].nbytes for name in self.own_names(network))
        numbers = classes + self.rule.numbers(wide.head.weight.shape[-1], classes)
        return sum(self._task_bytes(task) for task in self.tasks) + own + 4 * numbers

    def affords(self, now: int, then: int) -> bool:
        """Whether it may grow from `now` to `then` bytes: half of what is free is left to later tasks."""
        return then - now <= (self.room - now) / 2

    @staticmethod
    def _task_bytes(task: Task) -> int:
        return 4 * len(task.columns) + sum(t.nbytes for t in (*task.own.values(), *task.rule.values()))

    def state(self) -> Arrays:
        arrays = dict(self.kept())
        for k, task in enumerate(self.tasks):
            arrays[f"{k:04d}/columns"] = np.array(task.columns, np.int32)
            arrays |= {f"{k:04d}/own/{name}": t.numpy() for name, t in task.own.items()}
            arrays |= {f"{k:04d}/rule/{name}": t.numpy() for name, t in task.rule.items()}
        return arrays

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.tasks, self.served = [], None
        while (columns := state.get(f"{len(self.tasks):04d}/columns")) is not None:
            own, rule = ({name.removeprefix(start): torch.tensor(array) for name, array in state.items()
                          if name.startswith(start)}
                         for start in (f"{len(self.tasks):04d}/{kind}/" for kind in ("own", "rule")))
            self.tasks.append(Task([int(column) for column in columns], own, rule))
        self.take(state)
