"""The one training loop. It calls the parts, which return values and never see it."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BadInput
from edgecl.training.balance.base import Done
from edgecl.training.optimisers import Sgd
from edgecl.training.passes import Allowance, Course, Objective
from edgecl.training.plan import Phase, Plan
from edgecl.training.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from edgecl.training.balance.base import Balance
    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Constraint
    from edgecl.training.memory.base import Memory
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.base import Plasticity


@dataclass(frozen=True)
class Parts:
    """A method at work; the head is part of the network. Plasticity comes without other parts, see
    `edgecl.rounds.method`."""

    memory: Memory
    balance: Balance
    constraints: list[Constraint] = field(default_factory=list)
    plasticity: Plasticity | None = None

    @property
    def in_steps(self) -> list[Constraint]:
        """Those that act in each step, in their order."""
        return self.constraints if self.plasticity is None else [*self.constraints, self.plasticity]

    def phases(self, plan: Plan) -> list[Phase]:
        """The round's own training on its new samples, then what `balance` adds."""
        epochs = plan.epochs if self.plasticity is None else plan.epochs * self.plasticity.passes
        later = self.balance.phases(plan)
        return [Phase(plan.for_epochs(0 if any(phase.restart for phase in later) else epochs)), *later]

    def teacher(self, network: Network, data: Batch, plan: Plan) -> Teacher:
        """The network as it is now, for a phase on these samples."""
        pupils = (network.head, *self.constraints) if plan.epochs and self.plasticity is None else ()
        return Teacher(network, pupils, data, self.memory.replays)

    def workspace(self, network: Network, data: Batch, generator: np.random.Generator) -> tuple[Network, Batch]:
        """What the steps train, and on what: the network itself, or a copy for a new sub-network."""
        return (network, data) if self.plasticity is None else self.plasticity.workspace(network, data, generator)


def learning_round(network: Network, parts: Parts, new: Batch, classes: int, plan: Plan,
                   generator: np.random.Generator, allowance: Allowance | None = None) -> None:
    """Teach the network one round of new samples; it then has `classes` outputs.

    allowance: time, memory, and a callback for the progress (default: no limits, no callback). Raises BadInput if the
    training diverges; the network is then of no use.
    """
    memory, balance, known = parts.memory, parts.balance, network.head.classes
    network, new = memory.enter(new, network, generator)
    learned, held = memory.split(new, balance.holds_back)
    data, (first, *later) = memory.dataset(learned), parts.phases(plan)
    teacher = parts.teacher(network, data, first.plan)      # before it has new outputs
    network.head.extend(classes, generator)
    memory.begin(network, known)
    balance.start(network, learned, known)
    rates = network.paces(plan.head_pace, memory.place, memory.pace if known else 1.0)
    for part in parts.in_steps:
        part.begin(network, [plan.rate * pace for pace in rates])
    trained, data = parts.workspace(network, data, generator)
    epochs = np.cumsum([phase.plan.epochs for phase in (first, *later)])
    ends = epochs / max(epochs[-1], 1)
    trainer = Trainer(trained, parts, known, generator, allowance or Allowance())
    shown = trainer.run(first.plan, data, teacher, ends[0], len(learned))
    for unseen in (learned.take(torch.from_numpy(np.flatnonzero(~shown))), held):
        memory.observe(unseen, generator)
    memory.update(new, network)
    for phase, end in zip(later, ends[1:]):
        if phase.restart:
            network.restart(generator)
        data = memory.balanced()
        trainer.run(phase.plan, data, parts.teacher(network, data, phase.plan), end)
    for part in parts.in_steps:
        part.end(network, new, generator)
    balance.finish(network, memory, Done(known, learned, held, network))


def planned_steps(parts: Parts, old: Tensor, new: Batch, plan: Plan, whole: bool) -> int:
    """How many steps a round takes if all samples are kept and nothing stops it. old: columns of those kept already;
    whole: whether each epoch goes through them too."""
    learned, _ = parts.memory.split(new, parts.balance.holds_back)
    counts = torch.cat([old, learned.y]).bincount()
    counts = counts[counts > 0]
    sizes = len(learned) + len(old) * whole, int(counts.min()) * len(counts)
    return sum(phase.plan.epochs * -(-sizes[phase.balanced] // plan.batch) for phase in parts.phases(plan))


@dataclass
class Trainer:
    """The steps of a round, in one phase or several. known: outputs before it; samples: done by now."""

    network: Network
    parts: Parts
    known: int
    generator: np.random.Generator
    allowance: Allowance
    samples: int = 0

    def run(self, plan: Plan, data: Batch, teacher: Teacher, until: float, fresh: int = 0) -> NDArray[np.bool_]:
        """Train on data, of which the first `fresh` samples are new; which of those the memory has observed, bool.

        until: the share of the time, for all phases, at which this one ends. Samples are only replayed beside new ones.
        """
        network, parts, allowance, generator = self.network, self.parts, self.allowance, self.generator
        memory, shown, done = parts.memory, np.zeros(fresh, bool), 0
        place, pace = (memory.place, memory.pace) if self.known else (0, 1.0)
        objective = Objective(network, parts.in_steps, self.known, plan.smoothing)
        sgd = Sgd(objective.weights, plan, network.paces(plan.head_pace, place, pace))
        epoch = -(-len(data) // plan.batch)
        course = Course(allowance, plan.epochs * epoch, until)
        network.train_above(place)
        for rows in shuffled(len(data), plan, generator):
            if (share := course.share(done)) >= 1:
                break
            new = data.take(rows)
            batch = teacher.teach(memory.mix(new, generator) if fresh else new, rows)
            if plan.mirror and network.mirror is not None:
                batch = batch.mirrored(network.mirror, generator)
            made = allowance.passes(objective, batch)
            gradients = made.gradients
            for part in objective.parts:
                part.observe(batch, gradients)
            for part in objective.parts:
                references = (allowance.passes(objective.head_only, some).gradients
                              for some in part.references(memory, generator))
                gradients = part.project(gradients, references)
            sgd.step(gradients, plan.rate_after(share))
            done, self.samples = done + 1, self.samples + batch.count
            if sum(part.after_step(max(done / course.steps, share)) for part in objective.parts):   # each is asked
                sgd.restart()
            if fresh and done <= epoch:
                places = torch.nonzero(rows < fresh).flatten()
                memory.observe(data.take(rows[places]), generator, made.seen(places, batch))
                shown[rows[places].numpy()] = True
            if not math.isfinite(made.loss):
                raise BadInput(f"the loss is {made.loss} after {self.samples} samples at a rate of {plan.rate:g}",
                               "give a smaller rate, or a weaker constraint")
            allowance.progress(self.samples, made.loss)
        network.eval()
        return shown


def shuffled(count: int, plan: Plan, generator: np.random.Generator) -> Iterator[Tensor]:
    """The rows of each step: every epoch in an order of its own."""
    for _ in range(plan.epochs):
        yield from torch.from_numpy(generator.permutation(count)).split(plan.batch)
