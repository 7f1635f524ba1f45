"""Heads in closed form: from class statistics to one affine map, exact and independent of order."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import StateError
from edgecl.heads.head import Head
from edgecl.statistics.form import Form
from edgecl.statistics.symmetric import solve_positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgecl.statistics.covariance import PooledCovariance
    from edgecl.statistics.transform import FeatureTransform

    Affine = tuple[NDArray[np.float64], NDArray[np.float64]]

RANKS = (256, 128, 64, 32, 16)  # directions kept besides the diagonal if the quota has no room for all of G
PROJECTION_LENGTH = 1024        # of the random projection of short feature vectors
PROJECTED_BELOW = 256           # only shorter feature vectors gain from the projection, measured
MAX_RIDGE_SHRINKAGE = 0.9       # 1 would be an infinite penalty


def nearest_mean(pooled: PooledCovariance) -> Affine:
    """W = 2 mu, b = -|mu|^2: the argmax is the nearest class mean."""
    return 2 * pooled.means, -(pooled.means ** 2).sum(1)


def cosine(pooled: PooledCovariance) -> Affine:
    """W = mu / |mu| of the means about zero; the logits must then be divided by |h|."""
    means = pooled.means + pooled.centre
    weight = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return weight, weight @ pooled.centre


def slda(pooled: PooledCovariance, shrinkage: float | None = None) -> Affine:
    """Shared-covariance discriminant: w_c = S_e^-1 mu_c, b_c = -w_c.mu_c / 2, equal priors.

    S_e = (1 - e) S + e tr(S)/d I; e = `shrinkage`, by default `pooled.shrinkage` (Hayes & Kanan 2020, section 3).
    """
    weight = (pooled.whitened if shrinkage is None else pooled.whiten(shrinkage)).weight
    return weight, -np.einsum("cd,cd->c", weight, pooled.means) / 2


def ridge(pooled: PooledCovariance, penalty: float | None = None) -> Affine:
    """Least squares on one-hot targets with an unpenalised intercept: W = (G + lambda I)^-1 Q, both centred.

    penalty: lambda; None chooses the one equivalent to the shrinkage of S. W then needs little more than `slda`: with
    A = (N - C) S + lambda I, the means M [C, d] and their counts n, G + lambda I = A + M^T n M, and W is
    n (I + K n)^-1 V = n V (I + M^T n V)^-1 of V = M A^-1 and K = V M^T. Which one is solved depends on what is
    smaller, C or d.
    """
    if penalty is not None:
        scale, whitened = 1.0, pooled.solve(max(pooled.freedom, 1), penalty)
    else:
        e = min(pooled.shrinkage, MAX_RIDGE_SHRINKAGE)
        scale = ridge_scale(pooled, e)
        whitened = pooled.whitened if e == pooled.shrinkage else pooled.whiten(e)
    counts, weight = pooled.counts[:, None], whitened.weight
    if whitened.gram is not None:
        root = np.sqrt(counts)
        gain = whitened.gram * (scale * root * root.T)
        gain.flat[::len(gain) + 1] += 1
        return root * solve_positive(gain, weight * (scale * root)), pooled.share
    gain = (pooled.means * (scale * counts)).T @ weight
    gain.flat[::len(gain) + 1] += 1
    return (weight @ np.linalg.inv(gain)) * (scale * counts), pooled.share


def ridge_scale(pooled: PooledCovariance, e: float) -> float:
    """V of `ridge` is this times the means whitened by S_e."""
    return (1 - e) / max(pooled.freedom, 1)


@dataclass(frozen=True)
class HeadKind:
    """How a kind of head is solved and what it needs. solve: from pooled statistics to weight and bias; second_moment:
    whether it needs G; normalised: whether logits are divided by |h|; projected: works on the random projection."""

    solve: Callable[[PooledCovariance], Affine]
    second_moment: bool = True
    normalised: bool = False
    projected: bool = False


def _trained(pooled: PooledCovariance) -> Affine:
    raise StateError("a head that a learning round has trained can't be solved from statistics", "use another kind")


KINDS: dict[str, HeadKind] = {  # from the fewest bytes to the most
    "nearest-mean": HeadKind(nearest_mean, second_moment=False),
    "cosine": HeadKind(cosine, second_moment=False, normalised=True),
    "slda": HeadKind(slda),
    "ridge": HeadKind(ridge),
    "slda-projected": HeadKind(slda, projected=True),
    "ridge-projected": HeadKind(ridge, projected=True),
}
TRAINED = {  # by a learning round. What is learned next is not part of it, so another kind serves from then on
    "trained": HeadKind(_trained, second_moment=False),
    "trained-cosine": HeadKind(_trained, second_moment=False, normalised=True)}
SERVED = {**KINDS, **TRAINED}


def coarser(form: Form, dimension: int) -> list[Form]:
    """The forms that a form may be reduced to, richest first, when the quota has no more room for it."""
    ranks = [rank for rank in RANKS if rank < min(form.rank or dimension, dimension // 2)]
    return [form._replace(rank=rank) for rank in ranks] if form.second_moment else []


def forms(head: str, dimension: int) -> list[Form]:
    """The forms of statistics that suffice for a head ("auto" or a kind) on features of length `dimension`, richest
    first."""
    projected = PROJECTION_LENGTH if dimension < PROJECTED_BELOW else 4 * dimension
    plain = [Form(True, rank) for rank in (None, *RANKS) if rank is None or rank < dimension // 2]
    if head == "auto":
        transformed = [Form(True, None, projected)] if dimension < PROJECTED_BELOW else []
        return [*transformed, *plain, Form(False)]
    kind = KINDS[head]
    if kind.projected:
        return [Form(True, None, projected), Form(True, None, projected // 4)]
    return plain if kind.second_moment else [Form(False)]


def solve(kind: str, pooled: PooledCovariance, transform: FeatureTransform) -> Head:
    """The uncalibrated head of a kind. Raises StateError if the kind needs a second moment that is not kept."""
    weight, bias = KINDS[kind].solve(pooled)
    reference = pooled.centre.astype(np.float32)
    bias = bias + weight @ (reference - pooled.centre)
    shrinkage = pooled.shrinkage if KINDS[kind].second_moment else None
    return Head(kind, pooled.labels, weight.astype(np.float32), bias.astype(np.float32), reference, transform,
                KINDS[kind].normalised, shrinkage=shrinkage)
