"""Heads in closed form: class statistics -> one affine map, exactly and in any order."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgecl.budget import Form

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgecl.lift import Lift
    from edgecl.novelty import Novelty
    from edgecl.statistics import ClassStatistics

    Affine = tuple[NDArray[np.float64], NDArray[np.float64]]

RANKS = (256, 128, 64, 32, 16)  # directions kept beside the diagonal where the quota has no room for all of G
PROJECTED = 1024                # length of the random projection of short feature vectors
PROJECTED_BELOW = 256           # only shorter feature vectors gain from it, measured
BURST = 6  # recordings and photos come in bursts: the effective sample size that fits all our data sets is N / 6


def nearest_mean(statistics: ClassStatistics) -> Affine:
    """W = 2 mu, b = -|mu|^2: the argmax is the nearest class mean."""
    means = statistics.means()
    return 2 * means, -(means ** 2).sum(1)


def cosine(statistics: ClassStatistics) -> Affine:
    """W = mu / |mu| of the means about zero; the logits are to be divided by |h|."""
    means = statistics.means() + statistics.reference
    weight = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return weight, weight @ statistics.reference.astype(np.float64)


def slda(statistics: ClassStatistics, shrinkage: float | None = None) -> Affine:
    """Shared-covariance discriminant: w_c = S_e^-1 mu_c, b_c = -w_c.mu_c / 2, equal priors.

    S_e = (1 - e) S + e tr(S)/d I; e = `shrinkage`, or `oas_shrinkage` (Hayes & Kanan 2020, section 3).
    """
    covariance, means = statistics.within_covariance(), statistics.means()
    e = oas_shrinkage(covariance, statistics.degrees_of_freedom) if shrinkage is None else shrinkage
    scale = np.trace(covariance) / statistics.dimension
    if scale <= 0:  # one sample a class: no covariance yet, so the metric is the identity
        return means, -(means ** 2).sum(1) / 2
    covariance *= 1 - e
    covariance.flat[::statistics.dimension + 1] += e * scale
    weight = solve_positive(covariance, means.T).T
    return weight, -(weight * means).sum(1) / 2


def ridge(statistics: ClassStatistics, penalty: float | None = None) -> Affine:
    """Least squares on one-hot targets with an unpenalised intercept: W = (G + lambda I)^-1 Q, both centred.

    penalty: lambda; None takes the one that weighs as much as `oas_shrinkage` of the within-class covariance.
    """
    scatter, mean = statistics.total_scatter()
    weights = statistics.weights()
    if penalty is None:
        covariance = statistics.within_covariance()
        freedom = statistics.degrees_of_freedom
        e = min(oas_shrinkage(covariance, freedom), 0.9)
        penalty = max(freedom, 1) * e / (1 - e) * np.trace(covariance) / statistics.dimension
    targets = (statistics.means() - mean) * weights[:, None]
    scatter.flat[::statistics.dimension + 1] += max(penalty, 1e-12 * max(np.trace(scatter), 1e-30))
    weight = solve_positive(scatter, targets.T).T
    return weight, weights / statistics.total - weight @ mean


def oas_shrinkage(covariance: NDArray[np.float64], freedom: int) -> float:
    """Shrinkage towards tr(S)/d I, 0..1: the oracle approximating formula (Chen et al. 2010, eq. 23) at the effective
    sample size `freedom / BURST`, since samples recorded together are not independent."""
    d, n = len(covariance), max(freedom / BURST, 1.0)
    square, trace = float((covariance ** 2).sum()), float(np.trace(covariance))
    spread = square - trace ** 2 / d
    if spread <= 1e-12 * square:
        return 1.0
    return float(np.clip(((1 - 2 / d) * square + trace ** 2) / ((n + 1 - 2 / d) * spread), 1e-3, 1.0))


def solve_positive(a: NDArray[np.float64], b: NDArray[np.float64], block: int = 128) -> NDArray[np.float64]:
    """x of a x = b for symmetric positive definite a [d, d], b [d, k]: Cholesky, then substitution in blocks."""
    try:
        lower = np.linalg.cholesky(a)
    except np.linalg.LinAlgError:  # singular or, by rounding, indefinite: leave out the directions that carry nothing
        values, vectors = np.linalg.eigh(a)
        inverse = np.where(values > 1e-12 * values[-1], 1 / np.where(values > 0, values, 1), 0)
        return (vectors * inverse) @ (vectors.T @ b)
    x, d = np.array(b, np.float64), len(a)
    starts = range(0, d, block)
    for s in starts:
        e = s + block
        x[s:e] = np.linalg.solve(lower[s:e, s:e], x[s:e] - lower[s:e, :s] @ x[:s])
    for s in reversed(starts):
        e = s + block
        x[s:e] = np.linalg.solve(lower[s:e, s:e].T, x[s:e] - lower[e:, s:e].T @ x[e:])
    return x


@dataclass(frozen=True)
class HeadKind:
    """How a kind of head is solved and what it needs. `lifted`: works on the random projection."""

    solve: Callable[[ClassStatistics], Affine]
    second_moment: bool = True
    normalised: bool = False
    lifted: bool = False


KINDS: dict[str, HeadKind] = {  # from the fewest bytes to the most
    "nearest-mean": HeadKind(nearest_mean, second_moment=False),
    "cosine": HeadKind(cosine, second_moment=False, normalised=True),
    "slda": HeadKind(slda),
    "ridge": HeadKind(ridge),
    "ridge-projected": HeadKind(ridge, lifted=True),
}


def forms(head: str, dimension: int) -> list[Form]:
    """The forms of statistics that serve a head ("auto" or a kind) on features of that length, richest first."""
    projected = PROJECTED if dimension < PROJECTED_BELOW else 4 * dimension
    plain = [Form(True, rank) for rank in (None, *RANKS) if rank is None or rank < dimension // 2]
    if head == "auto":
        lifted = [Form(True, None, projected)] if dimension < PROJECTED_BELOW else []
        return [*lifted, *plain, Form(False)]
    kind = KINDS[head]
    if kind.lifted:
        return [Form(True, None, projected), Form(True, None, projected // 4)]
    return plain if kind.second_moment else [Form(False)]


@dataclass(frozen=True)
class Head:
    """One affine map on h - reference, ready to serve or to export.

    weight float32 [C, d], bias float32 [C] in the order of `labels`; normalised: logits are divided by |h|;
    temperature: confidence = softmax(logits / temperature); novelty: how unknown samples are told, or None.
    """

    kind: str
    labels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    reference: NDArray[np.float32]
    lift: Lift
    temperature: float = 1.0
    novelty: Novelty | None = field(default=None, repr=False)

    def logits(self, h: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits float64 [n, C] of h float32 [n, d]: the reference that the exported graph is checked against."""
        z = (h.astype(np.float64) - self.reference) @ self.weight.T.astype(np.float64) + self.bias
        if KINDS[self.kind].normalised:
            z /= np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
        return z


def solve(kind: str, statistics: ClassStatistics, lift: Lift) -> Head:
    """The head of that kind for these statistics, uncalibrated."""
    weight, bias = KINDS[kind].solve(statistics)
    return Head(kind, tuple(statistics.labels), weight.astype(np.float32), bias.astype(np.float32),
                statistics.reference, lift)
