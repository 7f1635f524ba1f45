"""The relative Mahalanobis distance of a sample, in the space of a head's logits.

MD_c(x) - MD_0(x) (Ren et al. 2021, section 2.2), with the shrunk covariance S_e for MD_c and S_e + B for MD_0, where B
is the covariance of the class means. The two differ only in the C - 1 directions of the means, so for SLDA and ridge it
is a function of the C logits, without approximation: at most 2 C x min(C, d) numbers instead of two d x d matrices.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.heads.head import RelativeDistance
from edgecl.heads.solvers import KINDS, MAX_RIDGE_SHRINKAGE, ridge_scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.heads.head import Head
    from edgecl.statistics.covariance import PooledCovariance

    Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

SMALL = 64      # rows of a triangular matrix that is inverted as any other


def relative_distance(head: Head, pooled: PooledCovariance) -> RelativeDistance | None:
    """The distance in the logit space of a head solved from these statistics; None if its logits do not tell."""
    parts = parts_of(head.kind, pooled)
    if parts is None:
        return None
    centre = head.weight @ (pooled.centre - head.reference).astype(np.float32) + head.bias
    to_u, gain, means, squares = (part.astype(np.float32) for part in parts)
    return RelativeDistance(centre, to_u, gain, means, squares)


def parts_of(kind: str, pooled: PooledCovariance) -> Parts | None:
    """Map, gain, means and squares of the distance, in O(C d min(C, d)); None with fewer than 2 classes, without a
    covariance, or for a kind of head whose logits do not tell it."""
    solved = KINDS.get(kind)
    if len(pooled.labels) < 2 or pooled.covariance is None or pooled.freedom < 1 or solved is None \
            or not solved.second_moment or (kind.startswith("ridge") and pooled.shrinkage > MAX_RIDGE_SHRINKAGE):
        return None
    return _of_few(kind, pooled) if len(pooled.labels) <= len(pooled.centre) else _of_many(kind, pooled)


def _of_few(kind: str, pooled: PooledCovariance) -> Parts:
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
    if kind.startswith("slda"):
        to_u = turned * root[:, None]
    else:
        scale = ridge_scale(pooled, pooled.shrinkage) * float(pooled.counts.sum())
        turned *= 1 / scale - 1
        turned += lower
        to_u = turned / root[:, None]
    return to_u, np.ones(len(root)), means, np.diag(gram).copy()


def _of_many(kind: str, pooled: PooledCovariance) -> Parts | None:
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
    if kind.startswith("slda"):
        to_u = means * share / between
    else:
        scale = ridge_scale(pooled, pooled.shrinkage) * float(pooled.counts.sum())
        to_u = means * ((1 + scale * between) / (scale * between))
    return to_u, between / (1 + between), means, (means ** 2).sum(1)


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
