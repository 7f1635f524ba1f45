"""Recognises unknown samples by relative Mahalanobis distance, computed from the logits alone.

MD_c(x) - MD_0(x) (Ren et al. 2021, section 2.2), with the shrunk covariance S_e for MD_c and S_e + B for MD_0, where B
is the covariance of the class means. The two differ only in the C - 1 directions of the means, so for SLDA and ridge
the difference is a function of the C logits, without approximation: at most 2 C x min(C, d) numbers instead of two
d x d matrices.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.heads.head import Novelty
from edgecl.heads.solvers import MAX_RIDGE_SHRINKAGE, ridge_scale
from edgecl.statistics.covariance import factored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.heads.head import Head
    from edgecl.statistics.covariance import PooledCovariance

    Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

MIN_VARIANCE = 1e-6     # relative to the largest: a direction of the logits with less is only rounding
SMALL = 64              # rows of a triangular matrix that is inverted as any other
NEGLIGIBLE = 1e-11      # the same in float64, relative to the average


def fit(head: Head, pooled: PooledCovariance, solved: PooledCovariance | None = None) -> Novelty | None:
    """The distance in the logit space of an affine head, in O(C d min(C, d)); None with fewer than 2 classes or without
    a covariance. solved: what the head was solved from, if not from `pooled`: the same with another shrinkage."""
    if len(head.labels) < 2 or pooled.covariance is None or pooled.freedom < 1:
        return None
    solved = solved or pooled
    e, few = solved.shrinkage, len(head.labels) <= len(pooled.centre)
    parts: Parts | None = None
    if head.shrinkage == e and (head.kind == "slda" or (head.kind.startswith("ridge") and e <= MAX_RIDGE_SHRINKAGE)):
        if e == pooled.shrinkage:
            parts = _of_few(head, pooled) if few else _of_many(head, pooled)
        elif few and e < 1:
            parts = _shrunk_otherwise(head, pooled, solved)
    if parts is None:
        parts = _diagonalised(head, pooled)
    if parts is None:
        return None
    centre = head.weight @ (pooled.centre - head.reference).astype(np.float32) + head.bias
    to_u, gain, means, squares = (part.astype(np.float32) for part in parts)
    return Novelty(centre, to_u, gain, means, squares)


def _of_few(head: Head, pooled: PooledCovariance) -> Parts:
    """For C <= d, of a head that is solved from S_e itself, with the shares s, K = M S_e^-1 M^T and z = M S_e^-1 x:

    MD_0 takes z^T r (I + r K r)^-1 r z off MD_c, r = sqrt(s): with I + r K r = L L^T, that is |u|^2 of u = L^-1 r z;
    and z_c = u . m_c for the rows m_c of L / r. Ridge has the logits of which z is (K + I / (c n)) times.
    """
    gram, root = pooled.whitened.gram, np.sqrt(pooled.share)
    assert gram is not None
    inner = gram * root[:, None]
    inner *= root
    inner.flat[::len(inner) + 1] += 1
    lower = np.asarray(np.linalg.cholesky(inner), np.float64)
    means = lower / root[:, None]
    turned = lower_inverse(lower).T
    if head.kind == "slda":
        to_u = turned * root[:, None]
    else:
        scale = ridge_scale(pooled, pooled.shrinkage) * float(pooled.counts.sum())
        turned *= 1 / scale - 1
        turned += lower
        to_u = turned / root[:, None]
    return to_u, np.ones(len(root)), means, np.diag(gram).copy()


def _of_many(head: Head, pooled: PooledCovariance) -> Parts | None:
    """For C > d, of a head that is solved from S_e itself: with the whitened means Y = M L^-T, S_e = L L^T, and
    Y^T s Y = Q b Q^T, the logits are Y y = (Y Q) u, so u = (Y Q)^T s z / b. Ridge has the logits
    n c Y Q u / (1 + c N b)."""
    rows, share = pooled.whitened.rows, pooled.share[:, None]
    assert rows is not None
    between, axes = np.linalg.eigh((rows * share).T @ rows)
    kept = between > 1e-12 * between[-1]
    if not kept.any():
        return None
    between, means = between[kept], rows @ axes[:, kept]
    if head.kind == "slda":
        to_u = means * share / between
    else:
        scale = ridge_scale(pooled, pooled.shrinkage) * float(pooled.counts.sum())
        to_u = means * ((1 + scale * between) / (scale * between))
    return to_u, between / (1 + between), means, (means ** 2).sum(1)


def _shrunk_otherwise(head: Head, pooled: PooledCovariance, solved: PooledCovariance) -> Parts | None:
    """For C <= d, of a head that is solved from the same S shrunk to T = S_e' instead, z = V x, V = M T^-1, K = V M^T:

    S_e = a T + b I, so that the logits have the covariance a K + b V V^T = F F^T, where the direction s that they do
    not have counts as one of an average variance. In u = F^-1 z the means are H = F^-1 K, one a column; the rest is as
    in `_of_few`, of H^T H in place of K. None if the means are dependent.
    """
    gram, share = solved.whitened.gram, pooled.share
    assert gram is not None
    a = (1 - pooled.shrinkage) / (1 - solved.shrinkage)
    within = solved.whitened.weight @ solved.whitened.weight.T
    within *= pooled.sphere(pooled.shrinkage) - a * solved.sphere(solved.shrinkage)
    within += a * gram
    average = float(np.trace(within)) / len(within)
    within += np.outer(share, share) * (average / float(share @ share))
    with factored(within, shift=NEGLIGIBLE * average) as factor:
        if factor is None:
            return None
        seen = factor.forward(gram)
        root = np.sqrt(share)
        inner = seen.T @ seen
        squares = np.diag(inner).copy()
        inner *= root[:, None]
        inner *= root
        inner.flat[::len(inner) + 1] += 1
        lower = np.asarray(np.linalg.cholesky(inner), np.float64)
        to_u = factor.backward(seen * root) @ lower_inverse(lower).T
    if head.kind != "slda":
        to_u = gram @ to_u + to_u / (ridge_scale(solved, solved.shrinkage) * pooled.counts[:, None])
    return to_u, np.ones(len(root)), lower / root[:, None], squares


def _diagonalised(head: Head, pooled: PooledCovariance) -> Parts | None:
    """Of any affine head: the map that makes the covariance of its logits the identity, and that of the class means
    diagonal, in the min(C, d) directions that the logits have."""
    w, e = head.weight.astype(np.float64), pooled.shrinkage
    if len(w) <= w.shape[1]:
        variance, axes = np.linalg.eigh((1 - e) * (w @ pooled.second() @ w.T) + pooled.sphere(e) * (w @ w.T))
        kept = variance > MIN_VARIANCE * variance[-1]
        white = axes[:, kept] / np.sqrt(variance[kept])
    else:
        root = w @ _root(pooled.shrunk(e))
        variance, axes = np.linalg.eigh(root.T @ root)
        kept = variance > MIN_VARIANCE * variance[-1]
        white = root @ (axes[:, kept] / variance[kept])
    if not kept.any():
        return None
    seen = pooled.means @ (w.T @ white)
    between, turn = np.linalg.eigh((seen.T * pooled.share) @ seen)
    means = seen @ turn
    return white @ turn, 1 - 1 / (1 + np.maximum(between, 0)), means, (means ** 2).sum(1)


def _root(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """R [d, d] so that R R^T = a, or what of it is positive."""
    try:
        return np.asarray(np.linalg.cholesky(a), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(a)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float64)


def lower_inverse(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a lower triangular matrix [n, n], by halves: nearly all of the work is matrix products."""
    n = len(lower)
    if n <= SMALL:
        return np.asarray(np.linalg.inv(lower), np.float64)
    half, inverse = n // 2, np.zeros_like(lower)
    first, last = lower_inverse(lower[:half, :half]), lower_inverse(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ lower[half:, :half]) @ first
    return inverse
