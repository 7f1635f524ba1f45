"""The input of every head solver: class means, and the pooled within-class covariance with its shrinkage."""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.errors import StateError
from edgecl.statistics.symmetric import factored, pseudo_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SAMPLES_PER_BURST = 6   # recordings and photos come in bursts: an effective sample size of N / 6 fits all our data sets
MAX_SHRINKAGE = 0.7     # more would lose the directions of G, which a few samples per class already show well
VARIANCE_FLOOR = 1e-5   # of the total variance: below it, stored float32 can't distinguish variance from rounding


@dataclass(frozen=True)
class PooledCovariance:
    """Means and covariance computed from class statistics.

    labels [C] in alphabetical order; counts float64 [C]; centre: the mean of all samples, float64 [d]; means mu: of the
    classes, about the centre, float64 [C, d]; covariance S: within classes, float64 [d, d], 0 if every class has only
    one sample, None if no second moment is kept; freedom: N - C, plus those that approximately forgotten classes left;
    penalty: the shrinkage to use, None for the analytic one; exact: whether single samples can be taken out of S.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.float64]
    centre: NDArray[np.float64]
    means: NDArray[np.float64]
    covariance: NDArray[np.float64] | None
    freedom: int
    penalty: float | None = None
    exact: bool = True

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

    def whiten(self, e: float) -> Whitened:
        """The means whitened by S_e; what `metric` was last asked for costs nothing."""
        if e not in self._solved:
            with self.metric(e):
                pass
        return self._solved[e]

    @contextmanager
    def metric(self, e: float | None) -> Iterator[Metric]:
        """S_e as a metric, factored once; meanwhile the covariance lends it room, see `factored`. None: the plain one,
        about zero, which nothing is taken out of."""
        if e is None:
            yield Metric.of(self.means + self.centre, None, np.zeros(len(self.centre)), 0.0, 0)
            return
        shift = self.sphere(e)
        weight = (1 - e) / max(self.freedom, 1) if self.exact else 0.0
        with factored(self.second(), 1 - e, shift) as factor:
            if factor is not None:
                half = factor.forward(self.means.T).T
                if e not in self._solved:
                    self._solved.clear()
                    self._solved[e] = Whitened.of(half, factor.backward(half.T.copy()).T)
                yield Metric.of(half, lambda x: factor.forward(x.T).T, self.centre, weight, self.freedom)
                return
        root = pseudo_root(self.second(), 1 - e, shift)
        half = self.means @ root
        self._solved.clear()
        self._solved[e] = Whitened.of(half, half @ root.T)
        yield Metric.of(half, lambda x: x @ root, self.centre, weight, self.freedom)

    def solve(self, scale: float, shift: float) -> Whitened:
        """The means whitened by scale S + shift I. Raises StateError if no second moment is kept."""
        covariance = self.second()
        with factored(covariance, scale, shift) as factor:
            if factor is not None:
                half = factor.forward(self.means.T)
                return Whitened.of(half.T, factor.backward(half.copy()).T)
        half = self.means @ (root := pseudo_root(covariance, scale, shift))
        return Whitened.of(half, half @ root.T)

    @property
    def whitened(self) -> Whitened:
        """`whiten` at `shrinkage`: several heads need little more."""
        return self.whiten(self.shrinkage)

    @cached_property
    def _solved(self) -> dict[float, Whitened]:
        """What `metric` was last asked for."""
        return {}


class Metric(NamedTuple):
    """A metric in which vectors of an inner product x A^-1 y have plain ones. means [C, r]: of the classes, whitened;
    squares [C]: of their lengths; whitener: from centred [n, d] to whitened [n, r], None if that is the same; origin:
    what features are centred by, [d]; weight: of W in A, 0 if single samples can't be taken out of it; freedom: degrees
    of freedom in W."""

    means: NDArray[np.float64]
    squares: NDArray[np.float64]
    whitener: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None
    origin: NDArray[np.float64]
    weight: float
    freedom: int

    @classmethod
    def of(cls, means: NDArray[np.float64], whitener: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None,
           origin: NDArray[np.float64], weight: float, freedom: int) -> Metric:
        """With the squares of these means."""
        return cls(means, np.einsum("cr,cr->c", means, means), whitener, origin, weight, freedom)

    def whiten(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Whitened [n, r] of centred x [n, d]."""
        return x if self.whitener is None else self.whitener(x)


class Whitened(NamedTuple):
    """The means mu of C classes whitened by a covariance A = L L^T. weight: A^-1 mu_c, float64 [C, d]; gram:
    mu_c . A^-1 mu_k, float64 [C, C], if C <= d, else None; rows: L^-1 mu_c, float64 [C, d], if C > d, else None."""

    weight: NDArray[np.float64]
    gram: NDArray[np.float64] | None
    rows: NDArray[np.float64] | None

    @classmethod
    def of(cls, rows: NDArray[np.float64], weight: NDArray[np.float64]) -> Whitened:
        """rows: L^-1 mu_c, or mu_c times another root of A^-1, [C, r]."""
        few = len(rows) <= weight.shape[1]
        return cls(weight, rows @ rows.T if few else None, None if few else rows)


def oas_shrinkage(covariance: NDArray[np.float64], freedom: int) -> float:
    """Shrinkage towards tr(S)/d I, 0..1: the oracle approximating shrinkage (Chen et al. 2010, eq. 23) for an effective
    sample size of `freedom / SAMPLES_PER_BURST`, since samples recorded together are not independent."""
    d, n = len(covariance), max(freedom / SAMPLES_PER_BURST, 1.0)
    square, trace = float(np.vdot(covariance, covariance)), float(np.trace(covariance))
    spread = square - trace ** 2 / d
    if spread <= 1e-12 * square:
        return 1.0
    return float(np.clip(((1 - 2 / d) * square + trace ** 2) / ((n + 1 - 2 / d) * spread), 1e-3, MAX_SHRINKAGE))
