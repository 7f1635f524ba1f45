"""Samples as they came: as many as fit into a fixed number of bytes, or all of them."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.errors import BudgetError
from edgecl.exemplars.selection import herding
from edgecl.training.batch import Batch, held_back, is_held
from edgecl.training.memory.base import Memory, of_column
from edgecl.training.networks.network import outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.batch import Seen
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

CLASS_BYTES = 16  # of a class beside its samples: its number and its count, int32 each, and how many were seen, int64
DRAWS = 50        # at most, until an exemplar is found that is not held back


class Exemplars(Memory):
    """Samples as they came, in lists by class; the bytes, bookkeeping included, never pass `room`."""

    def __init__(self, room: int, nothing: Batch) -> None:
        super().__init__(room, nothing)
        self.kept: dict[int, list[Tensor]] = {}
        self.seen: dict[int, int] = {}
        self.size = nothing.x[0:0].new_empty((1, *nothing.x.shape[1:])).nbytes
        self.check(1)

    def check(self, classes: int) -> None:
        least = classes * (self.size + CLASS_BYTES) + self.reserved
        if self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold {self.reserved_text}an exemplar of {self.size} bytes of "
                              f"each of {classes} class{'es' * (classes > 1)}", f"give --memory {least} or more")

    def capacity(self) -> int:
        """How many exemplars fit, given the bookkeeping of the classes known now."""
        return max(self.room - self.reserved - CLASS_BYTES * len(self.kept), 0) // self.size

    def drawn(self, n: int, generator: np.random.Generator) -> list[tuple[int, int]]:
        """Columns and places of n exemplars, each class with the same chance; empty if there are no exemplars."""
        columns = [column for column, kept in self.kept.items() if kept]
        chosen = [columns[i] for i in generator.integers(len(columns), size=n)] if columns else []
        found = []
        for column, u in zip(chosen, generator.random(n) if chosen else ()):
            place = int(u * len(self.kept[column]))
            for _ in range(DRAWS if self.withholds else 0):     # it may stay held back if nearly all are
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
    """Class-balanced reservoir: within a class, a uniform sample of all that was ever seen of it; if room runs out,
    the largest class loses one (Chrysakis & Moens 2020, algorithm 1)."""

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
        """Each class with the same chance."""
        drawn = self.drawn(n, generator)
        return Batch(torch.stack([self.kept[column][place] for column, place in drawn]),
                     torch.tensor([column for column, _ in drawn])) if drawn else None


class Herding(Exemplars):
    """Of each class the samples whose mean feature follows the class mean best, in that order. The room is divided by
    the number of classes and rounded down; lists are shortened from their ends (Rebuffi et al. 2017, algorithms 4, 5).

    All of them are part of every round's data set (algorithm 3). For a class that comes again, exemplars are selected
    again from the old ones and the new samples.
    """

    def dataset(self, new: Batch) -> Batch:
        for column, samples in self.learned().items():
            new = new.join(of_column(samples, column))
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


class Everything(Memory):
    """All data of all rounds, without a limit: what joint training, the upper bound of every table, is trained on."""

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
