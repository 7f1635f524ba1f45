"""Memories whose replayed samples enter the network at a layer above its input; layers below are frozen or slowed."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.training.batch import Batch
from edgecl.training.memory.base import Memory
from edgecl.training.networks.network import outputs

if TYPE_CHECKING:
    from torch import Tensor

    from edgecl.training.networks.network import Network

PLACE_BYTES = 4     # int32
CLASS_BYTES = 12    # its column, int32, and how many samples it had, int64


class Above(Memory):
    """The base: after the first round, the first `place` layers learn at `pace`, 0 for not at all.

    The first round trains the whole network. From then on, each old class is replayed as often as a new one is seen.
    """

    pace = 0.0

    def __init__(self, room: int, nothing: Batch) -> None:
        super().__init__(room, nothing)
        self.place = -1                     # not chosen yet
        self.shape = torch.Size()           # of one sample above it
        self.columns: list[int] = []        # classes that can be replayed
        self.replayable: list[int] = []     # those of them that are not part of this round
        self.fresh = 1                      # classes of this round
        self.before: Batch | None = None    # this round's samples above `place`, as they were at its start

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        arrived = set(new.y.tolist())
        self.choose(network, new.x)
        self.check(len(arrived.union(self.columns)))
        if not self.columns:
            return network, new
        self.fresh, self.replayable = len(arrived), [column for column in self.columns if column not in arrived]
        self.before = Batch(self.activations(new.x, network), new.y)
        if self.pace == 0:
            return network.above(self.place), Batch(self.before.x, new.y)
        return network, new

    def choose(self, network: Network, x: Tensor) -> None:
        """Fix the place, once, and the shape of what lies above it; x: samples."""
        if self.place < 0:
            self.place = self.chosen(network, x[:1])
        self.shape = self.activations(x[:1], network).shape[1:]

    def chosen(self, network: Network, x: Tensor) -> int:
        """The place at which replayed samples enter: here the map."""
        return network.map_place

    def activations(self, x: Tensor, network: Network) -> Tensor:
        """Above `place` layers, of samples or of activations above `network.start` layers; without gradients."""
        if self.place == network.start:
            return x
        return outputs(lambda part: network.below(part, self.place), x, network.block)

    def amount(self, n: int) -> int:
        return -(-n * len(self.replayable) // self.fresh)

    def arrive(self, x: Tensor, y: Tensor) -> Batch:
        """Replayed activations; if no layers lie below, they join the new samples."""
        return Batch(x, y, place=None if self.place == 0 else self.place)

    def state(self) -> dict[str, np.ndarray]:
        return {"place": np.array(self.place, np.int32), "columns": np.array(self.columns, np.int32)}

    def drawn(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """n replayable columns, each with the same chance."""
        return np.array(self.replayable, np.int64)[generator.integers(len(self.replayable), size=n)]


def float_rows(x: Tensor) -> np.ndarray:
    """Activations as float64 vectors [n, d]."""
    return x.flatten(1).to(torch.float64).numpy()
