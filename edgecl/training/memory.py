"""What is kept of the data between rounds: exemplars within a fixed number of bytes, everything, or statistics."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.errors import BudgetError
from edgecl.exemplars import herding
from edgecl.lift import Lift
from edgecl.statistics import ClassStatistics
from edgecl.training.network import outputs
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.network import Network
    from edgecl.training.part import Arrays

PER_CLASS = 16    # bytes beside a class's samples: its number and its count, int32 each, and how many were seen, int64


@dataclass(frozen=True)
class Batch:
    """Samples as they came, uint8 or float32 [n, ...], and their columns (outputs of the network), int64 [n]. place:
    of activations, the layers of the network that lie below them; None for what the network takes."""

    x: Tensor
    y: Tensor
    place: int | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Batch:
        """The samples of those rows, int64 [m], copied."""
        return Batch(self.x.index_select(0, rows), self.y.index_select(0, rows))

    def join(self, other: Batch) -> Batch:
        """Both, copied."""
        return Batch(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))

    def mirrored(self, axis: int, generator: np.random.Generator) -> Batch:
        """Every other sample, drawn by lot, turned round along an axis."""
        lots = torch.from_numpy(generator.random(len(self)) < 0.5).view(-1, *[1] * (self.x.dim() - 1))
        return Batch(torch.where(lots, self.x.flip(axis), self.x), self.y)


class Nothing(Part):
    """Keeps nothing; the base of all memories."""

    bounded = True  # by the bytes that the user allows for exemplars
    lasting = False     # a worker keeps its state from round to round; else the state's own exemplars are held
    place, pace = 0, 1.0    # the first `place` layers learn at that pace after the first round

    def __init__(self, room: int, nothing: Batch) -> None:
        """`room`: bytes for exemplars; `nothing`: a batch without samples that has their shape and dtype."""
        self.room, self.nothing = room, nothing

    def check(self, classes: int) -> None:
        """Raise BudgetError where exemplars of so many classes would not fit."""

    def hold(self, old: Batch) -> None:
        """Take samples as kept from earlier rounds, without copying them."""

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        """Called once at the start of a round, before the network has new outputs: what is trained and on what. Where
        the lower layers stay as they are, that is the part above them, and their activations."""
        return network, new

    def amount(self, n: int) -> int:
        """How many samples are to be replayed beside n new ones."""
        return n

    def dataset(self, new: Batch) -> Batch:
        """What a round goes through: its new samples first, then what the memory adds as a whole."""
        return new

    def observe(self, new: Batch, generator: np.random.Generator) -> None:
        """Called with each new sample once a round, after it was trained on."""

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        """n samples to train on beside n new ones, or None."""
        return None

    def update(self, new: Batch, network: Network) -> None:
        """Called once at the end of a round with all its new samples and the network in evaluation mode."""

    def exemplars(self) -> dict[int, Tensor]:
        """Column -> samples kept [m, ...]."""
        return {}


class Exemplars(Nothing):
    """Samples as they came, in lists by class; the bytes, bookkeeping included, never pass `room`."""

    def __init__(self, room: int, nothing: Batch) -> None:
        super().__init__(room, nothing)
        self.kept: dict[int, list[Tensor]] = {}
        self.seen: dict[int, int] = {}
        self.size = nothing.x[0:0].new_empty((1, *nothing.x.shape[1:])).nbytes
        self.check(1)

    def check(self, classes: int) -> None:
        least = classes * (self.size + PER_CLASS)
        if self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold an exemplar of {self.size} bytes of each of {classes} "
                              f"class{'es' * (classes > 1)}", f"give --memory {least} or more")

    def capacity(self) -> int:
        """How many exemplars fit beside the bookkeeping of the classes known now."""
        return max(self.room - PER_CLASS * len(self.kept), 0) // self.size

    def hold(self, old: Batch) -> None:
        for sample, column in zip(old.x, old.y.tolist()):
            self.kept.setdefault(column, []).append(sample)
        self.seen = {column: len(kept) for column, kept in self.kept.items()}

    def exemplars(self) -> dict[int, Tensor]:
        return {column: torch.stack(kept) for column, kept in self.kept.items() if kept}

    def state(self) -> Arrays:
        samples = [sample for kept in self.kept.values() for sample in kept]
        return {"x": torch.stack(samples).numpy() if samples else self.nothing.x.numpy(),
                "columns": np.array(list(self.kept), np.int32),
                "counts": np.array([len(kept) for kept in self.kept.values()], np.int32),
                "seen": np.array([self.seen[column] for column in self.kept], np.int64)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        samples = iter(torch.tensor(state["x"]))
        columns = [int(column) for column in state["columns"]]
        self.kept = {column: [next(samples).clone() for _ in range(n)] for column, n in zip(columns, state["counts"])}
        self.seen = {column: int(n) for column, n in zip(columns, state["seen"])}


class Reservoir(Exemplars):
    """A class-balanced reservoir: within a class, a uniform part of all its samples ever seen; what does not fit is
    taken from the largest class (Chrysakis & Moens 2020, algorithm 1)."""

    def observe(self, new: Batch, generator: np.random.Generator) -> None:
        for sample, column in zip(new.x, new.y.tolist()):
            kept = self.kept.setdefault(column, [])
            self.seen[column] = self.seen.get(column, 0) + 1
            if self.seen[column] == len(kept) + 1:      # none of this class was ever dropped
                kept.append(sample.clone())
            elif generator.random() * self.seen[column] < len(kept):
                kept[generator.integers(len(kept))] = sample.clone()
            while sum(map(len, self.kept.values())) > self.capacity():
                largest = max(self.kept.values(), key=len)
                largest[generator.integers(len(largest))] = largest[-1]
                largest.pop()

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        """Every class with the same chance."""
        columns = [column for column, kept in self.kept.items() if kept]
        if not columns:
            return None
        drawn = [columns[i] for i in generator.integers(len(columns), size=n)]
        samples = [self.kept[column][int(u * len(self.kept[column]))] for column, u in zip(drawn, generator.random(n))]
        return Batch(torch.stack(samples), torch.tensor(drawn))


class Herding(Exemplars):
    """Per class the samples whose mean feature follows the class mean best, in that order; room is divided by the
    classes and rounded down, and a list is shortened from its end (Rebuffi et al. 2017, algorithms 4 and 5).

    All of them are part of every round's data set (algorithm 3). A class that comes again is chosen anew from its
    exemplars and its new samples.
    """

    def dataset(self, new: Batch) -> Batch:
        for column, samples in self.exemplars().items():
            new = new.join(Batch(samples, torch.full((len(samples),), column)))
        return new

    def update(self, new: Batch, network: Network) -> None:
        arrived = sorted(set(new.y.tolist()))
        for column in arrived:
            self.seen[column] = self.seen.get(column, 0) + int((new.y == column).sum())
            self.kept.setdefault(column, [])
        share = self.capacity() // len(self.kept)
        for column, kept in self.kept.items():
            if column not in arrived:
                del kept[share:]
                continue
            candidates = torch.cat([*(sample[None] for sample in kept), new.x[new.y == column]])
            h = outputs(network.features, candidates, network.block)
            unit = torch.nn.functional.normalize(h).numpy()
            best = np.argsort(herding(unit, unit.mean(0, dtype=np.float64), share))[:share]
            self.kept[column] = [candidates[int(i)].clone() for i in best]


class Everything(Nothing):
    """All data of all rounds, without a bound: what the upper bound of every table is trained on."""

    bounded = False

    def __init__(self, room: int, nothing: Batch) -> None:
        super().__init__(room, nothing)
        self.all = nothing

    def hold(self, old: Batch) -> None:
        self.all = old

    def dataset(self, new: Batch) -> Batch:
        return new.join(self.all)

    def update(self, new: Batch, network: Network) -> None:
        self.all = self.all.join(new)

    def exemplars(self) -> dict[int, Tensor]:
        return {int(column): self.all.x[self.all.y == column] for column in self.all.y.unique()}

    def state(self) -> Arrays:
        return {"x": self.all.x.numpy(), "columns": self.all.y.numpy().astype(np.int32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.all = Batch(torch.tensor(state["x"]), torch.tensor(state["columns"]).long())


class Statistics(Nothing):
    """Class statistics of a frozen network, see `edgecl.statistics`; at rest between rounds.

    layer: "map" (before the neck) or "features"; power: Tukey's; projection: length of a random projection, 0 for none.
    """

    bounded = False

    def __init__(self, room: int, nothing: Batch, layer: str, power: float, projection: int) -> None:
        super().__init__(room, nothing)
        self.layer, self.power, self.projection = layer, power, projection
        self.arrays: Arrays = {}

    def lift(self, source: int) -> Lift:
        """The transform of features of that length; its matrix is made anew from a fixed seed."""
        return Lift(source, self.projection or source, self.power, self.projection > 0)

    def update(self, new: Batch, network: Network) -> None:
        f = outputs(network.body if self.layer == "map" else network.features, new.x, network.block).numpy()
        h = self.lift(f.shape[1])(f)
        statistics = self.statistics() if self.arrays else ClassStatistics(h.mean(0))
        for column in new.y.unique().tolist():
            statistics.add(f"{column:06d}", h[new.y.numpy() == column])
        self.arrays = statistics.to_arrays()

    def statistics(self) -> ClassStatistics:
        """Labels are columns of six digits, so that their order is that of the columns."""
        return ClassStatistics.from_arrays(self.arrays)

    def state(self) -> Arrays:
        return dict(self.arrays)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.arrays = {name: array.copy() for name, array in state.items()}
