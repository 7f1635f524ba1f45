"""The one training loop. Parts are called by it, return values, and never see it."""
from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BadInput
from edgecl.training.balance.base import Done
from edgecl.training.batch import held_back
from edgecl.training.memory.exemplars import balanced
from edgecl.training.networks.network import outputs
from edgecl.training.optimisers import Sgd
from edgecl.training.passes import Allowance
from edgecl.training.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from edgecl.training.balance.base import Balance
    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Constraint
    from edgecl.training.memory.exemplars import Nothing
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.base import Plasticity


@dataclass
class Parts:
    """A method at work; the head is part of the network."""

    memory: Nothing
    balance: Balance
    constraints: list[Constraint] = field(default_factory=list)
    plasticity: Plasticity | None = None


def learning_round(network: Network, parts: Parts, new: Batch, classes: int, plan: Plan, generator: np.random.Generator,
                   progress: Callable[[int, float], None] | None = None, allowance: Allowance | None = None) -> None:
    """Teach the network one round of new samples; it then has `classes` outputs.

    progress: called after each step with the samples done, replayed ones included, and the loss; allowance: of time and
    memory (default: without bounds). Raises BadInput where the training diverges; the network is then of no use.
    """
    memory, constraints, balance = parts.memory, parts.constraints, parts.balance
    known, allowance, told = network.head.classes, allowance or Allowance(), progress or (lambda done, loss: None)
    network, new = memory.enter(new, network, generator)
    learned, held = split(new, balance, memory)
    data, later = memory.dataset(learned), balance.phases(plan)
    first = replace(plan, epochs=0) if any(phase.afresh for phase in later) else plan
    teacher = Teacher(network, parts, data, first)      # the network as it was
    network.head.extend(classes, generator)
    if parts.plasticity is not None:    # then there is no other part, see `edgecl.rounds.method`
        plastic_round(network, parts.plasticity, parts, new, plan, generator, told, allowance)
        return
    memory.begin(network, known)
    balance.start(network, learned, known)
    rates = network.paces(plan.head_pace, memory.place, memory.pace if known else 1.0)
    for part in constraints:
        part.begin(network, [plan.rate * pace for pace in rates])
    ends = np.cumsum([first.epochs, *(phase.plan.epochs for phase in later)]) / max(plan.epochs, 1)
    run = Run(network, parts, known, generator, told, allowance)
    seen = run.phase(data, first, teacher, ends[0] / ends[-1] if ends[-1] else 1.0, len(learned))
    for left in (learned.take(torch.from_numpy(np.flatnonzero(~seen))), held):
        memory.observe(left, generator)
    memory.update(new, network)
    for phase, end in zip(later, ends[1:]):
        if phase.afresh:
            network.restart(generator)
        data = balanced(memory)
        run.phase(data, phase.plan, Teacher(network, parts, data, phase.plan), end / ends[-1])
    for part in constraints:
        part.end(network, new, generator)
    balance.finish(network, memory, Done(known, learned, held, network))


def plastic_round(network: Network, plastic: Plasticity, parts: Parts, new: Batch, plan: Plan,
                  generator: np.random.Generator, told: Callable[[int, float], None], allowance: Allowance) -> None:
    """Train a sub-network for the new classes, with outputs of its own, and freeze it."""
    work, data = plastic.begin(network, new, generator)
    plan = replace(plan, epochs=plan.epochs * plastic.passes)
    Run(work, parts, 0, generator, told, allowance).phase(data, plan, Teacher(work, parts, data, plan), 1.0)
    plastic.end(network, data, generator)


def planned_steps(parts: Parts, old: Tensor, new: Batch, plan: Plan, whole: bool) -> int:
    """How many steps a round takes where all is kept and nothing stops it. old: columns of what is kept already; whole:
    whether each epoch goes through that too."""
    learned, _ = split(new, parts.balance, parts.memory)
    later, counts = parts.balance.phases(plan), torch.cat([old, learned.y]).bincount()
    first = 0 if any(phase.afresh for phase in later) else plan.epochs
    counts = counts[counts > 0]
    sizes = [len(learned) + len(old) * whole, *[int(counts.min()) * len(counts)] * len(later)]
    return sum(epochs * -(-size // plan.batch)
               for epochs, size in zip([first, *(phase.plan.epochs for phase in later)], sizes))


@dataclass
class Run:
    """The steps of a round, in one phase or several. known: outputs before it; samples: done by now."""

    network: Network
    parts: Parts
    known: int
    generator: np.random.Generator
    progress: Callable[[int, float], None]
    allowance: Allowance
    samples: int = 0

    def phase(self, data: Batch, plan: Plan, teacher: Teacher, until: float,
              fresh: int = 0) -> NDArray[np.bool_]:
        """Train on data, of which the first `fresh` samples are new; which of those were shown to the memory, bool.

        until: the share of the time, for all phases, at which this one ends. Only beside new samples is anything
        replayed.
        """
        network, parts, allowance, generator = self.network, self.parts, self.allowance, self.generator
        constraints, memory, shown = parts.constraints, parts.memory, np.zeros(fresh, bool)
        weights = list(network.parameters())
        place, pace = (memory.place, memory.pace) if self.known else (0, 1.0)
        sgd = Sgd(weights, plan, network.paces(plan.head_pace, place, pace))
        steps, done, begun = plan.epochs * -(-len(data) // plan.batch), 0, allowance.spent()
        network.train_above(place)
        for rows in shuffled(len(data), plan, generator):
            spent = allowance.spent()
            share = max(done / steps, 1.0 if spent >= until else (spent - begun) / (until - begun))
            if share >= 1.0:
                break
            mine = data.take(rows)
            replayed = memory.replay(memory.amount(len(rows)), generator) if fresh else None
            above = replayed if replayed is not None and replayed.place is not None else None
            replayed = replayed if above is None else None
            batch = mine if replayed is None else mine.join(replayed)
            if plan.mirror and network.mirror is not None:
                batch = batch.mirrored(network.mirror, generator)
            old, old_features = teacher(rows, replayed)
            made = allowance.passes(network, constraints, batch, old, self.known, weights, plan.smoothing, old_features,
                                    len(rows), above)
            value, gradients = made.loss, made.gradients
            for part in constraints:
                part.observe(batch, gradients)
            for part in constraints:
                references = (allowance.passes(network, (), some, None, self.known, weights, plan.smoothing).gradients
                              for some in part.references(memory, generator))
                gradients = part.project(gradients, references)
            if parts.plasticity is not None:
                gradients = parts.plasticity.mask(gradients)
            sgd.step(gradients, plan.rate_after(share))
            if parts.plasticity is not None and parts.plasticity.after_step(max((done + 1) / steps, share)):
                sgd.restart()
            for part in constraints:
                part.after_step()
            if fresh and done < steps // plan.epochs:
                places = torch.nonzero(rows < fresh).flatten()
                memory.observe(data.take(rows[places]), generator, made.seen(places, batch, len(rows)))
                shown[rows[places].numpy()] = True
            done, self.samples = done + 1, self.samples + len(batch) + (0 if above is None else len(above))
            if not math.isfinite(value):
                raise BadInput(f"the loss is {value} after {self.samples} samples at a rate of {plan.rate:g}",
                               "give a smaller rate, or a weaker constraint")
            self.progress(self.samples, value)
        network.eval()
        return shown


def split(new: Batch, balance: Balance, memory: Nothing) -> tuple[Batch, Batch]:
    """What is learned, and what is held back for a part that fits its own numbers; the memory then replays none of the
    latter either."""
    memory.withholds = balance.holds_back
    if not balance.holds_back:
        return new, new.take(torch.empty(0, dtype=torch.int64))
    held = held_back(new)
    return tuple(new.take(torch.from_numpy(np.flatnonzero(rows))) for rows in (~held, held))  # type: ignore[return-value]


class Teacher:
    """Logits and features by the network as it is now, where a part asks for them: of a data set once, never again, and
    of what is replayed beside it by a copy of the network, sample by sample."""

    def __init__(self, network: Network, parts: Parts, data: Batch, plan: Plan) -> None:
        asking, self.known = (network.head, *parts.constraints), network.head.classes
        logits, self.featured = (any(getattr(part, name, False) for part in asking)
                                 for name in ("needs_old", "needs_old_features"))
        self.asked = bool(self.known and plan.epochs and (logits or self.featured))
        self.network = deepcopy(network).eval() if self.asked and parts.memory.replays else None
        self.kept = self._told(network, data.x) if self.asked else None

    def __call__(self, rows: Tensor, replayed: Batch | None) -> tuple[Tensor | None, Tensor | None]:
        """Of those rows of the data set and of what is replayed."""
        if self.kept is None:
            return None, None
        told = self.kept[rows]
        if replayed is not None and self.network is not None:
            told = torch.cat([told, self._told(self.network, replayed.x)])
        return told[:, -self.known:], told[:, :-self.known] if self.featured else None

    def _told(self, network: Network, x: Tensor) -> Tensor:
        def told(part: Tensor) -> Tensor:
            return torch.cat(network(part), 1) if self.featured else network(part)[1]

        return outputs(told, x, network.block)


def shuffled(count: int, plan: Plan, generator: np.random.Generator) -> Iterator[Tensor]:
    """The rows of each step: every epoch in an order of its own."""
    for _ in range(plan.epochs):
        yield from torch.from_numpy(generator.permutation(count)).split(plan.batch)
