"""A multivariate Gaussian whose covariance is a diagonal plus a low rank."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEGLIGIBLE = 1e-12    # relative to the strongest direction


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag(diagonal) + factor^T factor): mean and diagonal float64 [d], factor [r, d], strongest row first."""

    mean: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, mean: NDArray[np.float64], covariance: NDArray[np.float64], rank: int) -> Gaussian:
        """The Gaussian with the exact diagonal of a covariance [d, d] and its `rank` strongest directions."""
        rank = min(rank, len(mean))
        values, vectors = np.linalg.eigh(covariance) if rank else (np.zeros(0), np.zeros((len(mean), 0)))
        kept = slice(len(values) - rank, None)
        factor = (np.sqrt(np.maximum(values[kept], 0))[:, None] * vectors[:, kept].T)[::-1]
        return cls(mean, np.maximum(np.diag(covariance) - (factor ** 2).sum(0), 0), factor)

    @classmethod
    def fitted(cls, x: NDArray[np.float64], rank: int) -> Gaussian:
        """The Gaussian fitted to samples [n, d], with `rank` directions."""
        mean = x.mean(0)
        return cls._strongest(mean, (x - mean) / np.sqrt(len(x)), x.var(0), rank)

    @classmethod
    def _strongest(cls, mean: NDArray[np.float64], rows: NDArray[np.float64], variance: NDArray[np.float64],
                   rank: int) -> Gaussian:
        """The Gaussian with the diagonal `variance` and the `rank` strongest directions of rows^T rows, which may have
        far fewer rows than d."""
        if len(rows) >= rows.shape[1]:
            factor = cls.of(mean, rows.T @ rows, rank).factor
        else:
            values, left = np.linalg.eigh(rows @ rows.T)
            kept = np.flatnonzero(values > NEGLIGIBLE * values[-1])[::-1][:rank]
            factor = left[:, kept].T @ rows
            factor = np.vstack([factor, np.zeros((min(rank, len(mean)) - len(factor), len(mean)))])
        return cls(mean, np.maximum(variance - (factor ** 2).sum(0), 0), factor)

    @property
    def variance(self) -> NDArray[np.float64]:
        """The diagonal of the covariance, float64 [d]."""
        return self.diagonal + (self.factor ** 2).sum(0)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The whole covariance, float64 [d, d]."""
        return np.diag(self.diagonal) + self.factor.T @ self.factor

    def cut(self, rank: int) -> Gaussian:
        """The Gaussian reduced to its `rank` strongest directions; each variance stays exact."""
        return Gaussian(self.mean, self.diagonal + (self.factor[rank:] ** 2).sum(0), self.factor[:rank])

    def draw(self, n: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """n random samples, float64 [n, d]."""
        own = generator.standard_normal((n, len(self.mean))) * np.sqrt(self.diagonal)
        return self.mean + own + generator.standard_normal((n, len(self.factor))) @ self.factor

    def joined(self, count: int, other: Gaussian, others: int, rank: int) -> Gaussian:
        """The Gaussian of the `count` samples that this one was fitted to and the `others` of another one. Only their
        factors, not their diagonals, take part in choosing the new directions."""
        share, gap = others / (others + count), other.mean - self.mean
        between = share * (1 - share)
        rows = np.vstack([np.sqrt(1 - share) * self.factor, np.sqrt(share) * other.factor,
                          np.sqrt(between) * gap[None]])
        variance = (1 - share) * self.variance + share * other.variance + between * gap ** 2
        return self._strongest(self.mean + share * gap, rows, variance, rank)

    def merged(self, count: int, x: NDArray[np.float64], rank: int) -> Gaussian:
        """The Gaussian of these samples x [n, d] and the `count` that this one was fitted to. Only its factor, not its
        diagonal, takes part in choosing the new directions."""
        n, mean = len(x), x.mean(0)
        share, gap = n / (n + count), mean - self.mean
        between = share * (1 - share)
        rows = np.vstack([np.sqrt(1 - share) * self.factor, np.sqrt(share / n) * (x - mean),
                          np.sqrt(between) * gap[None]])
        variance = (1 - share) * self.variance + share * x.var(0) + between * gap ** 2
        return self._strongest(self.mean + share * gap, rows, variance, rank)
