"""Episodic memory: samples kept round by round, for constraints on each of them (Lopez-Paz & Ranzato 2017)."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BudgetError
from edgecl.training.batch import Batch
from edgecl.training.memory.base import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

SAMPLE_BYTES, ROUND_BYTES = 4, 4    # of a sample beside its own: its column; of a round: how many samples it has


class Episodes(Memory):
    """Equal shares of the rounds (Lopez-Paz & Ranzato 2017, section 3), `each` samples per round at most (0: no limit).

    A share is spread evenly over its classes and over the order in which their samples came; the paper takes the last
    that came. It is shortened from its end, whichever class that is. Nothing of it is replayed.
    """

    def __init__(self, room: int, nothing: Batch, each: int) -> None:
        super().__init__(room, nothing)
        self.each = each
        self.rounds: list[Batch] = []
        self.apart = True       # whether rounds are known
        self.size = nothing.x[0:0].new_empty((1, *nothing.x.shape[1:])).nbytes + SAMPLE_BYTES
        self.check(1)

    def check(self, classes: int) -> None:
        if self._share(len(self.rounds) + 1) < 1:
            least = (len(self.rounds) + 1) * (self.size + ROUND_BYTES) + self.reserved
            raise BudgetError(f"{self.room} bytes can't hold {self.reserved_text}an exemplar of {self.size} bytes of "
                              f"each of {len(self.rounds) + 1} round{'s' * bool(self.rounds)}",
                              f"give --memory {least} or more")

    def _share(self, rounds: int) -> int:
        share = ((self.room - self.reserved) // max(rounds, 1) - ROUND_BYTES) // self.size
        return min(share, self.each) if self.each else share

    def hold(self, old: Batch) -> None:
        """As many of each class as of a round: a constraint may know which classes came in one round."""
        classes = [old.take(torch.nonzero(old.y == column).flatten()) for column in old.y.unique().tolist()]
        self.rounds = [each.take(spread(each.y, self.each or len(each))) for each in classes]
        self.apart = False

    def tasks(self) -> list[Batch]:
        return self.rounds if self.apart else []

    def dataset(self, new: Batch) -> Batch:
        self._shorten(self._share(len(self.rounds)))        # the constraints may need more than in the last round
        return new

    def update(self, new: Batch, network: Network) -> None:
        if self.apart:
            share = self._share(len(self.rounds) + 1)
            self._shorten(share)
            self.rounds.append(new.take(spread(new.y, share)))

    def _shorten(self, share: int) -> None:
        if self.apart:
            self.rounds = [old if len(old) <= share else Batch(old.x[:share].clone(), old.y[:share].clone())
                           for old in self.rounds]

    def exemplars(self) -> dict[int, Tensor]:
        kept = Batch(torch.cat([self.nothing.x, *(old.x for old in self.rounds)]),
                     torch.cat([self.nothing.y, *(old.y for old in self.rounds)]))
        return {column: kept.x[kept.y == column] for column in kept.y.unique().tolist()}

    def state(self) -> Arrays:
        return {"x": torch.cat([self.nothing.x, *(old.x for old in self.rounds)]).numpy(),
                "columns": torch.cat([self.nothing.y, *(old.y for old in self.rounds)]).numpy().astype(np.int32),
                "counts": np.array([len(old) for old in self.rounds], np.int32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        counts = state["counts"].tolist()
        self.rounds = [Batch(x.clone(), y.clone()) for x, y in zip(
            torch.tensor(state["x"]).split(counts), torch.tensor(state["columns"]).long().split(counts))]


def spread(y: Tensor, count: int) -> Tensor:
    """Rows int64 [count] or fewer: of each class in turn, spread evenly over its samples."""
    picked = []
    for column in (columns := y.unique().tolist()):
        own = torch.nonzero(y == column).flatten()
        few = min(-(-count // len(columns)), len(own))
        places = torch.linspace(0, len(own) - 1, few).round().long()
        turn = torch.randperm(few, generator=torch.Generator().manual_seed(few))
        picked += [(place, column, int(own[row])) for place, row in enumerate(places[turn].tolist())]
    return torch.tensor([row for _, _, row in sorted(picked)][:count], dtype=torch.int64)
