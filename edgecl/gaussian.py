"""A Gaussian of each class, diagonal and low rank: what stands for its samples where none may be kept."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

ROUNDING = 1e-12    # of the strongest direction
RANK = 16           # directions of a class at most


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag(diagonal) + factor^T factor): mean and diagonal float64 [d], factor [r, d], strongest row first."""

    mean: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, mean: NDArray[np.float64], covariance: NDArray[np.float64], rank: int) -> Gaussian:
        """The diagonal of a covariance [d, d], exactly, and its `rank` strongest directions."""
        rank = min(rank, len(mean))
        values, vectors = np.linalg.eigh(covariance) if rank else (np.zeros(0), np.zeros((len(mean), 0)))
        kept = slice(len(values) - rank, None)
        factor = (np.sqrt(np.maximum(values[kept], 0))[:, None] * vectors[:, kept].T)[::-1]
        return cls(mean, np.maximum(np.diag(covariance) - (factor ** 2).sum(0), 0), factor)

    @classmethod
    def fitted(cls, x: NDArray[np.float64], rank: int) -> Gaussian:
        """Of samples [n, d]."""
        mean = x.mean(0)
        return cls._strongest(mean, (x - mean) / np.sqrt(len(x)), x.var(0), rank)

    @classmethod
    def _strongest(cls, mean: NDArray[np.float64], rows: NDArray[np.float64], variance: NDArray[np.float64],
                   rank: int) -> Gaussian:
        """The `rank` strongest directions of rows^T rows, which may be far fewer rows than d, in a covariance of that
        diagonal."""
        if len(rows) >= rows.shape[1]:
            factor = cls.of(mean, rows.T @ rows, rank).factor
        else:
            values, left = np.linalg.eigh(rows @ rows.T)
            kept = np.flatnonzero(values > ROUNDING * values[-1])[::-1][:rank]
            factor = left[:, kept].T @ rows
            factor = np.vstack([factor, np.zeros((min(rank, len(mean)) - len(factor), len(mean)))])
        return cls(mean, np.maximum(variance - (factor ** 2).sum(0), 0), factor)

    @property
    def variance(self) -> NDArray[np.float64]:
        """float64 [d]."""
        return self.diagonal + (self.factor ** 2).sum(0)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """float64 [d, d]."""
        return np.diag(self.diagonal) + self.factor.T @ self.factor

    def cut(self, rank: int) -> Gaussian:
        """With the `rank` strongest directions; what the others carried goes to the diagonal, which stays exact."""
        return Gaussian(self.mean, self.diagonal + (self.factor[rank:] ** 2).sum(0), self.factor[:rank])

    def draw(self, n: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """float64 [n, d]."""
        own = generator.standard_normal((n, len(self.mean))) * np.sqrt(self.diagonal)
        return self.mean + own + generator.standard_normal((n, len(self.factor))) @ self.factor

    def merged(self, count: int, x: NDArray[np.float64], rank: int) -> Gaussian:
        """With samples x [n, d] beside the `count` that it was made of; what the diagonal carries chooses no
        direction."""
        n, mean = len(x), x.mean(0)
        share, gap = n / (n + count), mean - self.mean
        between = share * (1 - share)
        rows = np.vstack([np.sqrt(1 - share) * self.factor, np.sqrt(share / n) * (x - mean),
                          np.sqrt(between) * gap[None]])
        variance = (1 - share) * self.variance + share * x.var(0) + between * gap ** 2
        return self._strongest(self.mean + share * gap, rows, variance, rank)


class ClassGaussians:
    """The covariance of each class, for a state that keeps no sample, in `room` bytes at rest: a diagonal and as many
    directions as fit, RANK at most; of no class where not even the diagonals do."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.of: dict[str, Gaussian] = {}

    def rank(self, classes: int, dimension: int) -> int:
        """Directions a class that the room has space for; less than 0 where it has none for a diagonal."""
        return min(self.room // (4 * dimension * max(classes, 1)) - 1, RANK, dimension)

    def add(self, label: str, count: int, h: NDArray[np.float32]) -> None:
        """Samples h [n, d] of a class that had `count`."""
        x, old = h.astype(np.float64), self.of.get(label)
        classes = len(self.of.keys() | {label})
        rank = self.rank(classes, x.shape[1])
        if rank < 0:
            self.of = {}
        elif old is not None or not count:     # of a class whose shape was let go of, later samples alone tell nothing
            self.of[label] = Gaussian.fitted(x, rank) if old is None else old.merged(count, x, rank)
            self.of = {name: own.cut(rank) for name, own in self.of.items()}

    def forget(self, label: str) -> None:
        """Let go of a class."""
        self.of.pop(label, None)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """At rest, float32, in alphabetical order; the means are those of the statistics."""
        if not self.of:
            return {}
        every = [self.of[label] for label in sorted(self.of)]
        least = min(len(own.factor) for own in every)
        cut = [own.cut(least) for own in every]
        return {"names": np.array(sorted(self.of), np.str_),
                "diagonal": np.array([own.diagonal for own in cut], np.float32),
                "factor": np.array([own.factor for own in cut], np.float32)}

    def load(self, arrays: Mapping[str, NDArray[Any]], means: Mapping[str, NDArray[np.float64]]) -> None:
        """The inverse of `to_arrays`. means: class -> float64 [d]."""
        self.of = {} if "names" not in arrays else {
            str(name): Gaussian(means[str(name)], diagonal.astype(np.float64), factor.astype(np.float64))
            for name, diagonal, factor in zip(arrays["names"], arrays["diagonal"], arrays["factor"])}
