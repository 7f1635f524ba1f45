"""What is kept of the data between rounds: exemplars within a fixed number of bytes, everything, or statistics."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.errors import BudgetError
from edgecl.exemplars.selection import herding
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform
from edgecl.training.batch import Batch, held_back, is_held
from edgecl.training.networks.network import outputs
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.batch import Seen
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

PER_CLASS = 16    # bytes beside a class's samples: its number and its count, int32 each, and how many were seen, int64
TRIES = 50        # draws of an exemplar that is not held back


def balanced(memory: Nothing) -> Batch:
    """As many exemplars of each class as of that which has the fewest, the first ones, without those held back."""
    held = {column: samples for column, samples in memory.learned().items() if len(samples)}
    least = min((len(samples) for samples in held.values()), default=0)
    nothing = memory.nothing
    return Batch(torch.cat([nothing.x, *(samples[:least] for samples in held.values())]),
                 torch.cat([nothing.y, *(torch.full((least,), column) for column in held)]))


class Nothing(Part):
    """Keeps nothing; the base of all memories."""

    bounded = True      # by the bytes that the user allows for exemplars
    replays = False     # whether `replay` gives anything, once something is kept
    withholds = False   # whether some of what is kept is for the parts that fit numbers, and not to be trained on
    reserved = 0        # of these bytes, those that the next round takes beside exemplars
    each = 0            # samples of a round that a constraint is to look at, 0 for all
    lasting = False     # a worker keeps its state from round to round; else the state's own exemplars are held
    place, pace = 0, 1.0    # the first `place` layers learn at that pace after the first round

    def __init__(self, room: int, nothing: Batch) -> None:
        """`room`: bytes for exemplars; `nothing`: a batch without samples that has their shape and dtype."""
        self.room, self.nothing = room, nothing

    def check(self, classes: int) -> None:
        """Raise BudgetError where exemplars of so many classes would not fit."""

    def beside(self) -> str:
        """What is to be said of the bytes beside exemplars."""
        return f"{self.reserved} bytes of tasks' gradients and " if self.reserved else ""

    def hold(self, old: Batch) -> None:
        """Take samples as kept from earlier rounds, without copying them."""

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        """Called once at the start of a round, before the network has new outputs: what is trained and on what. Where
        the lower layers stay as they are, that is the part above them, and their activations."""
        return network, new

    def amount(self, n: int) -> int:
        """How many samples are to be replayed beside n new ones."""
        return n

    def begin(self, network: Network, known: int) -> None:
        """Before a round, with the network as it was left but for the outputs of new classes, those from `known` on."""

    def dataset(self, new: Batch) -> Batch:
        """What a round goes through: its new samples first, then what the memory adds as a whole."""
        return new

    def observe(self, new: Batch, generator: np.random.Generator, seen: Seen | None = None) -> None:
        """Called with each new sample once a round, after it was trained on, if it was. seen: what the network made of
        it then."""

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        """n samples to train on beside n new ones, or None."""
        return None

    def update(self, new: Batch, network: Network) -> None:
        """Called once at the end of a round with all its new samples and the network in evaluation mode."""

    def exemplars(self) -> dict[int, Tensor]:
        """Column -> samples kept [m, ...]."""
        return {}

    def learned(self) -> dict[int, Tensor]:
        """Those of them that may be trained on."""
        held = self.exemplars()
        return {column: samples[torch.from_numpy(~held_back(Batch(samples, torch.full((len(samples),), column))))]
                for column, samples in held.items()} if self.withholds else held

    def tasks(self) -> list[Batch]:
        """What is kept of each round, where rounds are kept apart; else nothing."""
        return []


class Exemplars(Nothing):
    """Samples as they came, in lists by class; the bytes, bookkeeping included, never pass `room`."""

    def __init__(self, room: int, nothing: Batch) -> None:
        super().__init__(room, nothing)
        self.kept: dict[int, list[Tensor]] = {}
        self.seen: dict[int, int] = {}
        self.size = nothing.x[0:0].new_empty((1, *nothing.x.shape[1:])).nbytes
        self.check(1)

    def check(self, classes: int) -> None:
        least = classes * (self.size + PER_CLASS) + self.reserved
        if self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold {self.beside()}an exemplar of {self.size} bytes of each "
                              f"of {classes} class{'es' * (classes > 1)}", f"give --memory {least} or more")

    def capacity(self) -> int:
        """How many exemplars fit beside the bookkeeping of the classes known now."""
        return max(self.room - self.reserved - PER_CLASS * len(self.kept), 0) // self.size

    def drawn(self, n: int, generator: np.random.Generator) -> list[tuple[int, int]]:
        """Columns and places of n exemplars, of every class with the same chance; none where there are none."""
        columns = [column for column, kept in self.kept.items() if kept]
        chosen = [columns[i] for i in generator.integers(len(columns), size=n)] if columns else []
        found = []
        for column, u in zip(chosen, generator.random(n) if chosen else ()):
            place = int(u * len(self.kept[column]))
            for _ in range(TRIES if self.withholds else 0):     # more than that where nearly all are held back
                if not is_held(self.kept[column][place]):
                    break
                place = int(generator.integers(len(self.kept[column])))
            found.append((column, place))
        return found

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

    replays = True

    def observe(self, new: Batch, generator: np.random.Generator, seen: Seen | None = None) -> None:
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
        drawn = self.drawn(n, generator)
        return Batch(torch.stack([self.kept[column][place] for column, place in drawn]),
                     torch.tensor([column for column, _ in drawn])) if drawn else None


class Herding(Exemplars):
    """Per class the samples whose mean feature follows the class mean best, in that order; room is divided by the
    classes and rounded down, and a list is shortened from its end (Rebuffi et al. 2017, algorithms 4 and 5).

    All of them are part of every round's data set (algorithm 3). A class that comes again is chosen anew from its
    exemplars and its new samples.
    """

    def dataset(self, new: Batch) -> Batch:
        for column, samples in self.learned().items():
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
        return new.join(self.all.take(torch.from_numpy(np.flatnonzero(~held_back(self.all)))) if self.withholds else
                        self.all)

    def update(self, new: Batch, network: Network) -> None:
        self.all = self.all.join(new)

    def exemplars(self) -> dict[int, Tensor]:
        return {int(column): self.all.x[self.all.y == column] for column in self.all.y.unique()}

    def state(self) -> Arrays:
        return {"x": self.all.x.numpy(), "columns": self.all.y.numpy().astype(np.int32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.all = Batch(torch.tensor(state["x"]), torch.tensor(state["columns"]).long())


class Statistics(Nothing):
    """Class statistics of a frozen network, see `edgecl.statistics.class_statistics`; at rest between rounds.

    layer: "map" (before the neck) or "features"; power: Tukey's; projection: length of a random projection, 0 for none.
    """

    bounded = False

    def __init__(self, room: int, nothing: Batch, layer: str, power: float, projection: int) -> None:
        super().__init__(room, nothing)
        self.layer, self.power, self.projection = layer, power, projection
        self.arrays: Arrays = {}

    def transform(self, source: int) -> FeatureTransform:
        """The transform of features of that length; its matrix is made anew from a fixed seed."""
        return FeatureTransform(source, self.projection or source, self.power, self.projection > 0)

    def update(self, new: Batch, network: Network) -> None:
        if self.withholds:
            new = new.take(torch.from_numpy(np.flatnonzero(~held_back(new))))
        f = outputs(network.body if self.layer == "map" else network.features, new.x, network.block).numpy()
        h = self.transform(f.shape[1])(f)
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
