"""Recognises unknown samples by relative Mahalanobis distance, computed from the logits alone.

MD_c(x) - MD_0(x) (Ren et al. 2021, section 2.2), with the shrunk covariance S_e for MD_c and S_e + B for MD_0, where B
is the covariance of the class means. The two differ only in the C - 1 directions of the means, so for SLDA the
difference is a function of the C logits: 2 C x C numbers instead of two D x D matrices, without approximation. They are
stored as one map that makes S_e the identity and B diagonal, so that float32 suffices.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.heads.head import Novelty

if TYPE_CHECKING:
    from edgecl.heads.head import Head
    from edgecl.statistics.covariance import PooledCovariance

MIN_VARIANCE = 1e-6     # relative to the largest: a direction of the logits with less is only rounding


def fit(head: Head, pooled: PooledCovariance) -> Novelty | None:
    """The distance in the logit space of an affine head; None with fewer than 2 classes or without a covariance."""
    if len(head.labels) < 2 or pooled.covariance is None or pooled.freedom < 1:
        return None
    w, e = head.weight.astype(np.float64), pooled.shrinkage
    means = pooled.means @ w.T
    variance, axes = np.linalg.eigh((1 - e) * (w @ pooled.covariance @ w.T) + pooled.sphere(e) * (w @ w.T))
    kept = variance > MIN_VARIANCE * variance[-1]
    if not kept.any():
        return None
    white = axes[:, kept] / np.sqrt(variance[kept])
    between, turn = np.linalg.eigh((white.T @ (means.T * pooled.share)) @ (means @ white))
    final = white @ turn
    centre = (pooled.centre - head.reference) @ w.T + head.bias
    gain = 1 - 1 / (1 + np.maximum(between, 0))
    return Novelty(*(part.astype(np.float32) for part in (centre, final, gain, means @ final)))
