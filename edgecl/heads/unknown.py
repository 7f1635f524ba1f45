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

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.heads.head import Head
    from edgecl.statistics.covariance import PooledCovariance

    Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

MIN_VARIANCE = 1e-6     # relative to the largest: a direction of the logits with less is only rounding


def fit(head: Head, pooled: PooledCovariance) -> Novelty | None:
    """The distance in the logit space of an affine head, in O(C d min(C, d)); None with fewer than 2 classes or without
    a covariance. pooled: what the head was solved from; its shrinkage may be another one."""
    if len(head.labels) < 2 or pooled.covariance is None or pooled.freedom < 1:
        return None
    e = pooled.shrinkage
    own = head.shrinkage == e and (head.kind == "slda" or (head.kind.startswith("ridge") and e <= MAX_RIDGE_SHRINKAGE))
    parts = _diagonalised(head, pooled) if not own else \
        _of_few(head, pooled) if len(head.labels) <= len(pooled.centre) else _of_many(head, pooled)
    if parts is None:
        return None
    shift = (pooled.centre - head.reference).astype(np.float32)
    centre = head.weight @ shift + head.bias
    return Novelty(centre, *(part.astype(np.float32) for part in parts))


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
    lower = np.linalg.cholesky(inner)
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


def _diagonalised(head: Head, pooled: PooledCovariance) -> Parts | None:
    """Of any affine head: the map that makes the covariance of its logits the identity, and that of the class means
    diagonal, in the min(C, d) directions that the logits have."""
    w, e = head.weight.astype(np.float64), pooled.shrinkage
    if len(w) <= w.shape[1]:
        variance, axes = np.linalg.eigh((1 - e) * (w @ pooled.second() @ w.T) + pooled.sphere(e) * (w @ w.T))
        kept = variance > MIN_VARIANCE * variance[-1]
        white = axes[:, kept] / np.sqrt(variance[kept])
    else:
        values, vectors = np.linalg.eigh(pooled.second())
        root = w @ (vectors * np.sqrt(np.maximum((1 - e) * values + pooled.sphere(e), 0)))
        variance, axes = np.linalg.eigh(root.T @ root)
        kept = variance > MIN_VARIANCE * variance[-1]
        white = root @ (axes[:, kept] / variance[kept])
    if not kept.any():
        return None
    seen = pooled.means @ (w.T @ white)
    between, turn = np.linalg.eigh((seen.T * pooled.share) @ seen)
    means = seen @ turn
    return white @ turn, 1 - 1 / (1 + np.maximum(between, 0)), means, (means ** 2).sum(1)


def lower_inverse(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a lower triangular matrix [n, n], by halves: nearly all of the work is matrix products."""
    n = len(lower)
    if n <= 64:
        return np.linalg.inv(lower)
    half = n // 2
    inverse = np.zeros_like(lower)
    first, last = lower_inverse(lower[:half, :half]), lower_inverse(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ lower[half:, :half]) @ first
    return inverse
