"""Pseudo-rehearsal from class means: features of new classes are translated to them."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BudgetError
from edgecl.training.memory.at_layer import CLASS_BYTES, PLACE_BYTES, Above, float_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays


class Translated(Above):
    """FeTrIL (Petit et al. 2023, section 3.2, equation 1): the network below the head is frozen after the first round;
    a pseudo-feature of an old class C_p is the feature of a sample of the new class C_n with the nearest mean, moved by
    mu(C_p) - mu(C_n). Only the mean of a class is kept."""

    lasting = True

    def __init__(self, room: int, nothing: Batch) -> None:
        super().__init__(room, nothing)
        self.nearest: dict[int, Tensor] = {}    # old class -> pseudo-features of this round
        self.means: dict[int, np.ndarray] = {}
        self.counts: dict[int, int] = {}

    def chosen(self, network: Network, x: Tensor) -> int:
        return network.map_place + 1

    def check(self, classes: int) -> None:
        least = PLACE_BYTES + classes * (CLASS_BYTES + 4 * self.shape.numel())
        if self.place >= 0 and self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold a mean of {self.shape.numel()} features of each of "
                              f"{classes} class{'es' * (classes > 1)}", f"give --memory {least} or more")

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        network, new = super().enter(new, network, generator)
        if self.before is not None:
            h, y = self.before.x.numpy().astype(np.float64), new.y.numpy()
            fresh = {int(column): h[y == column] for column in np.unique(y)}
            centres = np.stack([rows.mean(0) for rows in fresh.values()])
            for column in self.replayable:
                closest = int(((centres - self.means[column]) ** 2).sum(1).argmin())
                rows = list(fresh.values())[closest] - centres[closest] + self.means[column]
                self.nearest[column] = torch.from_numpy(rows.astype(np.float32))
        return network, new

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        if not self.replayable or not n:
            return None
        columns = self.drawn(n, generator)
        rows = [self.nearest[column][int(u * len(self.nearest[column]))]
                for column, u in zip(columns.tolist(), generator.random(n))]
        return self.arrive(torch.stack(rows), torch.from_numpy(columns))

    def update(self, new: Batch, network: Network) -> None:
        self.choose(network, new.x)
        h, columns = float_rows(self.activations(new.x, network)), new.y.numpy()
        self.before, self.nearest = None, {}
        for column in np.unique(columns).tolist():
            x = h[columns == column]
            count = self.counts.get(column, 0)
            total = x.sum(0) + count * self.means.get(column, np.zeros(h.shape[1]))
            self.counts[column] = count + len(x)
            self.means[column] = (total / self.counts[column]).astype(np.float32)
        self.columns = list(self.means)

    def state(self) -> Arrays:
        return {**super().state(), "counts": np.array([self.counts[c] for c in self.columns], np.int64),
                "means": np.array([self.means[c] for c in self.columns], np.float32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.place, self.columns = int(state["place"]), [int(column) for column in state["columns"]]
        self.counts = dict(zip(self.columns, map(int, state["counts"])))
        self.means = dict(zip(self.columns, state["means"].copy()))
        self.shape = torch.Size(state["means"].shape[1:]) if self.columns else self.shape
