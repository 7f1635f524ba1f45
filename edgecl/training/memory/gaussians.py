"""Pseudo-rehearsal from class statistics: features are drawn from a Gaussian per class."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BudgetError
from edgecl.statistics.feature_drift import Drift, Pairs
from edgecl.statistics.gaussian import NEGLIGIBLE, Gaussian
from edgecl.training.memory.at_layer import CLASS_BYTES, PLACE_BYTES, Above, float_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

UNIT_BYTES = 4      # the largest deviation of a class, float32; the others are shares of it, float16
SMALLEST_UNIT = 1e-30


class Gaussians(Above):
    """A mean and a diagonal plus low-rank covariance per class; features drawn from them are replayed (after PASS, Zhu
    et al. 2021, section 3.3, which draws from a sphere around each mean).

    Samples that are vectors are taken as features: statistics are of the network's input; of images and windows, of the
    map. rank: directions per class at most; fewer if `room` has no space for them. pace: of the layers below after the
    first round. moves: how old classes follow when those layers move: by a linear "map" of means and covariances,
    `edgecl.statistics.feature_drift`; by "means" alone, the shift of the new samples near each (semantic drift
    compensation, Yu et al. 2020, section 3.2); by the "best" of these, the one that predicts the mean of a new class
    best from the other classes' samples; or "none".
    """

    lasting = True

    def __init__(self, room: int, nothing: Batch, rank: int, pace: float, moves: str) -> None:
        super().__init__(room, nothing)
        self.rank, self.pace, self.moves = rank, pace, moves
        self.kept: dict[int, Arrays] = {}           # as they are stored, and
        self.classes: dict[int, Gaussian] = {}      # as they are drawn from
        self.counts: dict[int, int] = {}
        if nothing.x.dim() == 2:
            self.place = 0
        self.shape = nothing.x.shape[1:]
        self.check(1)

    def check(self, classes: int) -> None:
        if self.place < 0:
            return
        least = PLACE_BYTES + classes * class_bytes(self.shape.numel(), 0)
        if self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold mean and variance of {self.shape.numel()} features of "
                              f"each of {classes} class{'es' * (classes > 1)}", f"give --memory {least} or more")

    def affordable(self, classes: int) -> int:
        """Directions per class that the room has space for."""
        d = self.shape.numel()
        spare = (self.room - PLACE_BYTES) // classes - class_bytes(d, 0)
        return max(min(self.rank, d, spare // (2 * d)), 0)

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        if not self.replayable or not n:
            return None
        columns = self.drawn(n, generator)
        x = np.empty((n, self.shape.numel()), np.float32)
        for column in set(columns.tolist()):
            x[columns == column] = self.classes[column].draw(int((columns == column).sum()), generator)
        return self.arrive(torch.from_numpy(x).view(n, *self.shape), torch.from_numpy(columns))

    def update(self, new: Batch, network: Network) -> None:
        self.choose(network, new.x)
        now, columns = float_rows(self.activations(new.x, network)), new.y.numpy()
        if self.before is not None and self.pace and self.place > network.start and self.moves != "none":
            self._move(float_rows(self.before.x), now, columns)
        self.before = None
        arrived = sorted(set(columns.tolist()))
        rank = self.affordable(len(self.classes.keys() | arrived))
        for column in arrived:
            x = now[columns == column]
            old = self.classes.get(column)
            self.classes[column] = Gaussian.fitted(x, rank) if old is None else old.merged(self.counts[column], x, rank)
            self.counts[column] = self.counts.get(column, 0) + len(x)
        self.kept = {column: _packed(own.cut(rank)) for column, own in self.classes.items()}
        self.classes = {column: _unpacked(kept) for column, kept in self.kept.items()}
        self.columns = list(self.classes)

    def _move(self, old: np.ndarray, now: np.ndarray, columns: np.ndarray) -> None:
        """Let the old classes follow. old, now: the round's samples before and after it [n, d]."""
        way = MOVES[self.moves if self.moves != "best" else best_move(old, now, columns)]
        self.classes |= {column: way(self.classes[column], old, now, columns) for column in self.replayable}

    def state(self) -> Arrays:
        stacked = {name: np.stack([kept[name] for kept in self.kept.values()]) for name in STORED if self.kept}
        return {**super().state(), "counts": np.array([self.counts[c] for c in self.classes], np.int64), **stacked}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.place, self.columns = int(state["place"]), [int(column) for column in state["columns"]]
        self.kept = {column: {name: np.array(state[name][i]) for name in STORED}
                     for i, column in enumerate(self.columns)}
        self.classes = {column: _unpacked(kept) for column, kept in self.kept.items()}
        self.counts = dict(zip(self.columns, map(int, state["counts"])))
        self.shape = torch.Size(state["mean"].shape[1:]) if self.columns else self.shape     # its size; see `choose`


STORED = "mean", "unit", "deviation", "factor"


def class_bytes(dimension: int, rank: int) -> int:
    """Of a class: mean float32, deviations and directions float16."""
    return CLASS_BYTES + UNIT_BYTES + (4 + 2 + 2 * rank) * dimension


def _packed(own: Gaussian) -> Arrays:
    unit = np.array(max(np.sqrt(own.variance.max(initial=0)), SMALLEST_UNIT), np.float32)
    return {"mean": np.float32(own.mean), "unit": unit, "deviation": np.float16(np.sqrt(own.diagonal) / unit),
            "factor": np.float16(own.factor / unit)}


def _unpacked(state: Mapping[str, np.ndarray]) -> Gaussian:
    unit = np.float64(state["unit"])
    return Gaussian(np.float64(state["mean"]), (unit * np.float64(state["deviation"])) ** 2,
                    unit * np.float64(state["factor"]))


# how old classes follow ------------------------------------------------------------------------------


def by_map(own: Gaussian, old: np.ndarray, now: np.ndarray, columns: np.ndarray) -> Gaussian:
    """A linear map of mean and covariance, and its noise: `edgecl.statistics.feature_drift.Drift`."""
    drift = Drift.between({f"{column:06d}": Pairs(old[columns == column], now[columns == column],
                                                  np.zeros(int((columns == column).sum()), bool))
                           for column in np.unique(columns)})
    covariance = drift.weight @ own.covariance @ drift.weight.T + drift.noise
    return Gaussian.of(drift.weight @ own.mean + drift.offset, covariance, len(own.factor))


def by_means(own: Gaussian, old: np.ndarray, now: np.ndarray, columns: np.ndarray) -> Gaussian:
    """Semantic drift compensation (Yu et al. 2020, equations 10 to 12): the mean shift of all samples, weighted with
    exp(-|h - mu|^2 / 2 sigma^2); sigma^2, which the paper sets by hand, is half the smallest of these squared
    distances, so that the nearest sample weighs 1 / e and the sum can't vanish."""
    distance = ((old - own.mean) ** 2).sum(1)
    nearest = max(float(distance.min()), NEGLIGIBLE)
    weights = np.exp(-(distance - nearest) / nearest)
    return Gaussian(own.mean + weights @ (now - old) / weights.sum(), own.diagonal, own.factor)


MOVES = {"map": by_map, "means": by_means}


def best_move(old: np.ndarray, now: np.ndarray, columns: np.ndarray) -> str:
    """Which way best predicts a class's new mean from the other classes' samples; the map if there is one class."""
    left: dict[str, float] = dict.fromkeys(MOVES, 0.0)
    for column in np.unique(columns) if len(np.unique(columns)) > 1 else ():
        own = columns == column
        still = Gaussian(old[own].mean(0), np.zeros(old.shape[1]), np.zeros((0, old.shape[1])))
        for name, way in MOVES.items():
            gap = way(still, old[~own], now[~own], columns[~own]).mean - now[own].mean(0)
            left[name] += float(gap @ gap)
    return min(left, key=left.__getitem__)
