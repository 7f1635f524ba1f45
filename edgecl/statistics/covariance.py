"""The input of every head solver: class means, and the pooled within-class covariance with its shrinkage."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import StateError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES_PER_BURST = 6   # recordings and photos come in bursts: an effective sample size of N / 6 fits all our data sets
MAX_SHRINKAGE = 0.7     # more would lose the directions of G, which a few samples per class already show well
VARIANCE_FLOOR = 1e-5   # of the total variance: below it, stored float32 can't distinguish variance from rounding
CHOLESKY_BLOCK = 128    # rows eliminated at a time


@dataclass(frozen=True)
class PooledCovariance:
    """Means and covariance computed from class statistics.

    labels [C] in alphabetical order; counts float64 [C]; centre: the mean of all samples, float64 [d]; means mu: of the
    classes, about the centre, float64 [C, d]; covariance S: within classes, float64 [d, d], 0 if every class has only
    one sample, None if no second moment is kept; freedom: N - C, plus those that approximately forgotten classes left;
    penalty: the shrinkage to use, None for the analytic one.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.float64]
    centre: NDArray[np.float64]
    means: NDArray[np.float64]
    covariance: NDArray[np.float64] | None
    freedom: int
    penalty: float | None = None

    @property
    def share(self) -> NDArray[np.float64]:
        """Each class's share of all samples, float64 [C]."""
        return self.counts / float(self.counts.sum())

    def second(self) -> NDArray[np.float64]:
        """S. Raises StateError if no second moment is kept."""
        if self.covariance is None:
            raise StateError("these class statistics keep no second moment", "use a nearest-mean head")
        return self.covariance

    @cached_property
    def shrinkage(self) -> float:
        """How far S is shrunk towards a sphere: `penalty`, else `oas_shrinkage`."""
        return oas_shrinkage(self.second(), self.freedom) if self.penalty is None else self.penalty

    def sphere(self, e: float) -> float:
        """e tr(S)/d, but at least VARIANCE_FLOOR of the total variance."""
        trace = float(np.trace(self.second()))
        total = float(self.share @ (self.means ** 2).sum(1)) + trace * self.freedom / float(self.counts.sum())
        return max(e * trace, VARIANCE_FLOOR * total) / len(self.centre) or 1.0

    def shrunk(self, e: float) -> NDArray[np.float64]:
        """S_e = (1 - e) S + `sphere(e)` I, float64 [d, d]."""
        covariance = (1 - e) * self.second()
        covariance.flat[::len(covariance) + 1] += self.sphere(e)
        return covariance

    def whiten(self, e: float) -> NDArray[np.float64]:
        """S_e^-1 mu_c, float64 [C, d]."""
        rows: NDArray[np.float64] = solve_positive(self.shrunk(e), self.means.T).T
        return rows

    @cached_property
    def whitened(self) -> NDArray[np.float64]:
        """`whiten` at `shrinkage`, solved once: several heads need little more."""
        return self.whiten(self.shrinkage)


def oas_shrinkage(covariance: NDArray[np.float64], freedom: int) -> float:
    """Shrinkage towards tr(S)/d I, 0..1: the oracle approximating shrinkage (Chen et al. 2010, eq. 23) for an effective
    sample size of `freedom / SAMPLES_PER_BURST`, since samples recorded together are not independent."""
    d, n = len(covariance), max(freedom / SAMPLES_PER_BURST, 1.0)
    square, trace = float(np.vdot(covariance, covariance)), float(np.trace(covariance))
    spread = square - trace ** 2 / d
    if spread <= 1e-12 * square:
        return 1.0
    return float(np.clip(((1 - 2 / d) * square + trace ** 2) / ((n + 1 - 2 / d) * spread), 1e-3, MAX_SHRINKAGE))


def solve_positive(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve a x = b for symmetric positive definite a [d, d] and b [d, k], by blocked Cholesky and substitution.

    Nearly all the work is matrix products, which takes two thirds of the time of `numpy.linalg.cholesky`.
    """
    lower, x = a.copy(), np.array(b, np.float64)
    blocks = [slice(start, min(start + CHOLESKY_BLOCK, len(a))) for start in range(0, len(a), CHOLESKY_BLOCK)]
    corners: list[NDArray[np.float64]] = []
    try:
        for k in blocks:
            lower[k.start:, k] -= lower[k.start:, :k.start] @ lower[k, :k.start].T
            corners.append(np.linalg.inv(np.linalg.cholesky(lower[k, k])))
            lower[k.stop:, k] = lower[k.stop:, k] @ corners[-1].T
            x[k] = corners[-1] @ (x[k] - lower[k, :k.start] @ x[:k.start])
    except np.linalg.LinAlgError:  # singular or, by rounding, indefinite: drop directions without variance
        values, vectors = np.linalg.eigh(a)
        inverse = np.where(values > 1e-12 * values[-1], 1 / np.where(values > 0, values, 1), 0)
        solved: NDArray[np.float64] = (vectors * inverse) @ (vectors.T @ b)
        return solved
    for k, corner in zip(reversed(blocks), reversed(corners)):
        x[k] = corner.T @ (x[k] - lower[k.stop:, k].T @ x[k.stop:])
    return x
